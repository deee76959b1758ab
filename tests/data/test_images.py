"""MNIST, CIFAR-10 and those in their formats against the official bytes, read by hand or by torchvision."""

import hashlib
import pickle

import numpy as np
import pytest
import torch

from dbnrun.config import registry
from dbnrun.config.registry import UserError
from dbnrun.data.dataset import split_off
from dbnrun.data.download import DataFile, Download
from dbnrun.data.options import CIFAR100, MNIST, FashionMNIST
from dbnrun.data.torchvision_shim import torchvision


def mnist(val_size=10000):
    return registry.make("dataset", "mnist", val_size=val_size, fnn_widths=[300], augment="none")


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A data folder with MNIST's four files, of 30 and 10 images; returns it and the training pixels."""
    return tmp_path, _write_idx(tmp_path, "MNIST", MNIST, monkeypatch)


def _write_idx(tmp_path, name_of_folder, kind, monkeypatch):
    """Four files in MNIST's format, pinned as the data set's own; returns the training pixels."""
    rng = np.random.default_rng(0)
    pixels = {
        "train": rng.integers(0, 256, (30, 28, 28), np.uint8),
        "t10k": rng.integers(0, 256, (10, 28, 28), np.uint8),
    }
    downloads = []
    raw = tmp_path / name_of_folder / "raw"
    raw.mkdir(parents=True)
    for part, images in pixels.items():
        n = len(images)
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in images.shape)
        labels = b"\0\0\x08\x01" + n.to_bytes(4, "big") + bytes(i % 10 for i in range(n))
        for name, body in (
            (f"{part}-images-idx3-ubyte", header + images.tobytes()),
            (f"{part}-labels-idx1-ubyte", labels),
        ):
            (raw / name).write_bytes(body)
            file = DataFile(f"{name_of_folder}/raw/{name}", hashlib.sha256(body).hexdigest())
            downloads.append(Download((f"http://127.0.0.1:9/{name}.gz",), (file,)))
    monkeypatch.setattr(kind, "downloads", tuple(downloads))
    return pixels["train"]


def test_mnist_is_read_from_the_verified_raw_files_and_from_no_others(small_mnist):
    folder, pixels = small_mnist
    # torchvision itself would take the files of its old versions first.
    (folder / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        planted = torch.zeros(40, 28, 28, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64)
        torch.save(planted, folder / "MNIST" / "processed" / name)
    data = mnist(val_size=5).load(folder)
    train, val = split_off(30, 5)
    np.testing.assert_allclose(data.train.x[:, 0].numpy(), pixels[train] / np.float32(255), rtol=1e-6)
    assert data.val.y.tolist() == [i % 10 for i in val]
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.int64


def test_an_altered_mnist_file_is_refused_by_name(small_mnist):
    folder, _ = small_mnist
    labels = folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\7")
    with pytest.raises(UserError, match=r"MNIST/raw/t10k-labels-idx1-ubyte \(not the official file"):
        mnist(val_size=5).load(folder)


def test_fashion_mnist_is_what_torchvision_reads_from_its_folder(tmp_path, monkeypatch):
    _write_idx(tmp_path, "FashionMNIST", FashionMNIST, monkeypatch)
    data = registry.make("dataset", "fashion_mnist", val_size=5, fnn_widths=[300]).load(tmp_path)
    official = {part: torchvision.datasets.FashionMNIST(str(tmp_path), train=part) for part in (True, False)}
    for part, train, index in zip(
        (data.train, data.val, data.test), (True, True, False), (*split_off(30, 5), np.arange(10)), strict=True
    ):
        assert torch.equal(part.x[:, 0], official[train].data[index].float().div(255))
        assert torch.equal(part.y, official[train].targets[index])
    assert data.input_shape == (1, 28, 28) and data.num_classes == 10


def test_cifar100_is_what_torchvision_reads_in_100_fine_classes(tmp_path, monkeypatch):
    rng, files = np.random.default_rng(0), []
    for name, n in (("train", 40), ("test", 20), ("meta", 0)):
        content = {"data": rng.integers(0, 256, (n, 3072), np.uint8), "fine_labels": [(7 * i) % 100 for i in range(n)]}
        names = {"fine_label_names": [str(i) for i in range(100)]}
        body = pickle.dumps(content | {"coarse_labels": [0] * n} if n else names)
        (tmp_path / "cifar-100-python").mkdir(exist_ok=True)
        (tmp_path / "cifar-100-python" / name).write_bytes(body)
        files.append(DataFile(f"cifar-100-python/{name}", f"md5:{hashlib.md5(body).hexdigest()}"))
    monkeypatch.setattr(CIFAR100, "downloads", (Download(("http://127.0.0.1:9/x.tar.gz",), tuple(files)),))
    reader = torchvision.datasets.CIFAR100
    for attribute, file in (("train_list", files[0]), ("test_list", files[1])):
        monkeypatch.setattr(reader, attribute, [[file.path.rpartition("/")[2], file.digest[4:]]])
    monkeypatch.setitem(reader.meta, "md5", files[2].digest[4:])

    data = registry.make("dataset", "cifar100", val_size=8, fnn_widths=[300]).load(tmp_path)
    official = {part: reader(str(tmp_path), train=part) for part in (True, False)}
    train, val = split_off(40, 8)
    learned = official[True].data[train] / 255
    mean, std = learned.mean((0, 1, 2)), learned.std((0, 1, 2))
    for part, is_train, index in zip(
        (data.train, data.val, data.test), (True, True, False), (train, val, np.arange(20)), strict=True
    ):
        theirs = (official[is_train].data[index] / 255 - mean) / std
        # float32, values up to about 2.
        np.testing.assert_allclose(part.x.numpy(), theirs.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)
        assert part.y.tolist() == [official[is_train].targets[i] for i in index]
    assert data.num_classes == 100 and data.input_shape == (3, 32, 32)
    (tmp_path / "cifar-100-python" / "test").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cifar-100-python/test \(not the official file, MD5 differs\)"):
        registry.make("dataset", "cifar100", val_size=8, fnn_widths=[300]).load(tmp_path)


def test_mnist_holds_the_official_pixels(real_data):
    data = mnist().load(real_data)
    raw = real_data / "MNIST" / "raw"
    pixels = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer((raw / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    train, val = split_off(60000, 10000)
    np.testing.assert_allclose(data.train.x.numpy(), pixels[train] / np.float32(255), rtol=1e-6)
    np.testing.assert_allclose(data.val.x[:50].numpy(), pixels[val[:50]] / np.float32(255), rtol=1e-6)
    assert np.array_equal(data.test.y.numpy(), labels)
    assert (len(data.train), len(data.val), len(data.test)) == (50000, 10000, 10000)


def test_cifar10_is_standardized_by_channel_on_the_training_part(real_data):
    data = registry.make("dataset", "cifar10", val_size=5000, fnn_widths=[300], augment="none").load(real_data)
    assert (len(data.train), len(data.val), len(data.test)) == (45000, 5000, 10000)
    folder = real_data / "cifar-10-batches-py"  # `load` has verified every byte of it

    def official(*names):
        batches = [pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in names]
        return np.concatenate([b["data"] for b in batches]), np.concatenate([b["labels"] for b in batches])

    x, y = official(*(f"data_batch_{i}" for i in range(1, 6)))
    train, val = split_off(50000, 5000)
    channels = x[train].reshape(-1, 3, 1024)
    # Sums of whole numbers are exact; a float64 copy of the images would take more than a gigabyte.
    mean = channels.sum((0, 2), dtype=np.int64) / (45000 * 1024)
    square = np.square(channels, dtype=np.uint16).sum((0, 2), dtype=np.int64) / (45000 * 1024)
    std = np.sqrt(square - mean**2)

    def standardized(images):
        return (images.reshape(-1, 3, 32, 32) - mean[:, None, None]) / std[:, None, None]

    test_x, test_y = official("test_batch")
    for part, images, labels in (
        (data.train, x[train], y[train]),
        (data.val, x[val], y[val]),
        (data.test, test_x, test_y),
    ):
        for some in (slice(0, 100), slice(-100, None)):
            # float32, values up to about 2.
            np.testing.assert_allclose(part.x[some].numpy(), standardized(images[some]), rtol=0, atol=1e-6)
        assert np.array_equal(part.y.numpy(), labels)
