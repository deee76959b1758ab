"""MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dbnrun.data import options
from dbnrun.data.dataset import Data, Part, split_off
from dbnrun.data.download import ensure
from dbnrun.torchvision_shim import torchvision


class MNIST(torchvision.datasets.MNIST):
    """The official reader, of the raw files alone. Its name is that of their folder.

    torchvision would prefer MNIST/processed/*.pt of its old versions, which nothing has verified, where they lie there.
    """

    def _check_legacy_exist(self) -> bool:
        return False


def load(config: options.MNIST, data_dir: Path) -> Data:
    """Images (1, 28, 28) in [0, 1]."""
    return read(MNIST, config, data_dir)


def read(reader: type[MNIST], config: options.Images, data_dir: Path) -> Data:
    """What `load` returns, from the files that `reader` reads."""
    ensure(config, data_dir)

    def images(train: bool) -> tuple[Tensor, Tensor]:
        official = reader(str(data_dir), train=train, download=False)
        return official.data, official.targets

    def part(x: Tensor, y: Tensor) -> Part:
        return Part(x.unsqueeze(1).float().div_(255), y)

    x, y = images(train=True)
    train, val = (torch.from_numpy(index) for index in split_off(len(y), config.val_size))
    parts = part(x[train], y[train]), part(x[val], y[val]), part(*images(train=False))
    return Data(*parts, (1, 28, 28), 10, config.digest)
