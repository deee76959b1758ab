"""CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dbnrun.data import options
from dbnrun.data.dataset import Data, Part, split_off
from dbnrun.data.download import ensure
from dbnrun.torchvision_shim import torchvision

SLICE = 500  # images converted at a time, so that no second copy of the whole set is in memory


class CIFAR10(torchvision.datasets.CIFAR10):
    """The official reader, without its own pass over all files for their MD5: `ensure` has read every byte."""

    def _check_integrity(self) -> bool:
        return True


def load(config: options.CIFAR10, data_dir: Path) -> Data:
    """Images (3, 32, 32), each channel standardized by its mean and standard deviation over the training part."""
    ensure(config, data_dir)
    train_x, train_y = _official(data_dir, train=True)
    train, val = split_off(len(train_y), config.val_size)
    moments = _channel_moments(train_x, train)
    parts = _part(train_x, train_y, train, moments), _part(train_x, train_y, val, moments)
    del train_x
    test_x, test_y = _official(data_dir, train=False)
    test = _part(test_x, test_y, np.arange(len(test_y)), moments)
    return Data(*parts, test, (3, 32, 32), 10, config.digest)


def _official(data_dir: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 32, 32, 3) uint8 and classes. torchvision unpickles; `ensure` has checked every byte it reads."""
    official = CIFAR10(str(data_dir), train=train, download=False)
    return official.data, np.asarray(official.targets)


def _channel_moments(x: np.ndarray, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over the images of `index`, in [0, 1], shape (3, 1, 1).

    From the counts of the 256 pixel values: exact, and without a floating-point copy of the images.
    """
    counts = np.zeros((3, 256))
    for start in range(0, len(index), SLICE):
        chunk = x[index[start : start + SLICE]]
        for channel in range(3):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return tuple(torch.tensor(moment, dtype=torch.float32).view(3, 1, 1) for moment in (mean, std))  # pyright: ignore[reportReturnType]


def _part(x: np.ndarray, y: np.ndarray, index: np.ndarray, moments: tuple[Tensor, Tensor]) -> Part:
    mean, std = moments
    images = torch.empty((len(index), 3, 32, 32))
    for start in range(0, len(index), SLICE):
        chunk = torch.from_numpy(x[index[start : start + SLICE]]).permute(0, 3, 1, 2)
        images[start : start + SLICE] = chunk.float().div_(255).sub_(mean).div_(std)
    return Part(images, torch.from_numpy(y[index]).long())
