"""CIFAR-100: 50,000 + 10,000 colour images of 32x32 pixels in its 100 fine classes."""

from __future__ import annotations

from pathlib import Path

from dbnrun.data import cifar10, options
from dbnrun.data.dataset import Data
from dbnrun.data.torchvision_shim import torchvision


class CIFAR100(cifar10.CIFAR10):
    """The official reader of these files, as that of CIFAR-10."""

    base_folder = torchvision.datasets.CIFAR100.base_folder
    train_list = torchvision.datasets.CIFAR100.train_list
    test_list = torchvision.datasets.CIFAR100.test_list


def load(config: options.CIFAR100, data_dir: Path) -> Data:
    """Images (3, 32, 32), each channel standardized by its mean and standard deviation over the training part."""
    return cifar10.read(CIFAR100, 100, config, data_dir)
