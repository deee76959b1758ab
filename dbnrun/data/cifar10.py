"""CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dbnrun.data import options
from dbnrun.data.dataset import Data, Part, split_off
from dbnrun.data.download import ensure
from dbnrun.data.pixels import SLICE, Moments, channel_moments, standardized
from dbnrun.torchvision_shim import torchvision


class CIFAR10(torchvision.datasets.CIFAR10):
    """The official reader, without its own pass over all files for their MD5: `ensure` has read every byte."""

    def _check_integrity(self) -> bool:
        return True

    def _load_meta(self) -> None:
        """The classes' names, which nothing here asks for."""


def load(config: options.CIFAR10, data_dir: Path) -> Data:
    """Images (3, 32, 32), each channel standardized by its mean and standard deviation over the training part."""
    return read(CIFAR10, 10, config, data_dir)


def read(reader: type[CIFAR10], classes: int, config: options.Images, data_dir: Path) -> Data:
    """What `load` returns, from the files that `reader` reads."""
    ensure(config, data_dir)
    train_x, train_y = _official(reader, data_dir, train=True)
    train, val = split_off(len(train_y), config.val_size)
    moments = channel_moments(train_x, train)
    parts = _part(train_x, train_y, train, moments), _part(train_x, train_y, val, moments)
    del train_x
    test_x, test_y = _official(reader, data_dir, train=False)
    test = _part(test_x, test_y, np.arange(len(test_y)), moments)
    return Data(*parts, test, (3, 32, 32), classes, config.digest)


def _official(reader: type[CIFAR10], data_dir: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3, 32, 32) uint8 and classes. torchvision unpickles; `ensure` has checked every byte it reads."""
    official = reader(str(data_dir), train=train, download=False)
    return official.data.transpose(0, 3, 1, 2), np.asarray(official.targets)


def _part(x: np.ndarray, y: np.ndarray, index: np.ndarray, moments: Moments) -> Part:
    images = torch.empty((len(index), 3, 32, 32))
    for start in range(0, len(index), SLICE):
        images[start : start + SLICE] = standardized(torch.from_numpy(x[index[start : start + SLICE]]), moments)
    return Part(images, torch.from_numpy(y[index]).long())
