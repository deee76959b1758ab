"""MNIST and CIFAR-10 against the official bytes, read by hand."""

import numpy as np
import torch

from dbnrun.config import DatasetConfig
from dbnrun.data import load
from dbnrun.data.parts import split_off


def test_mnist_holds_the_official_pixels(real_data):
    data = load(DatasetConfig(name="mnist", val_size=10000, fnn_widths=[300], augment="none"), real_data)
    raw = real_data / "MNIST" / "raw"
    pixels = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer((raw / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    train, val = split_off(60000, 10000)
    np.testing.assert_allclose(data.train.x.numpy(), pixels[train] / np.float32(255), rtol=1e-6)
    np.testing.assert_allclose(data.val.x[:50].numpy(), pixels[val[:50]] / np.float32(255), rtol=1e-6)
    assert np.array_equal(data.test.y.numpy(), labels)
    assert (len(data.train), len(data.val), len(data.test)) == (50000, 10000, 10000)


def test_cifar10_is_standardized_by_channel_on_the_training_part(real_data):
    data = load(DatasetConfig(name="cifar10", val_size=5000, fnn_widths=[300], augment="none"), real_data)
    assert (len(data.train), len(data.val), len(data.test)) == (45000, 5000, 10000)
    per_channel = data.train.x.permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(per_channel.std(1), torch.ones(3).double(), rtol=0, atol=1e-5)
    # 5 = "truck" … the first test image of CIFAR-10 is a cat, then two ships and an airplane.
    assert data.test.y[:4].tolist() == [3, 8, 8, 0]
