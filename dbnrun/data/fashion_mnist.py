"""Fashion-MNIST: 60,000 + 10,000 pictures of clothes of 28x28 pixels, in files like MNIST's."""

from __future__ import annotations

from pathlib import Path

from dbnrun.data import mnist, options
from dbnrun.data.dataset import Data


class FashionMNIST(mnist.MNIST):
    """The official reader of these files: its name is that of their folder."""


def load(config: options.FashionMNIST, data_dir: Path) -> Data:
    """Images (1, 28, 28) in [0, 1]."""
    return mnist.read(FashionMNIST, config, data_dir)
