"""What a data set is to the rest of the program: three parts as tensors, and how one is split off."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dbnrun.config.registry import UserError
from dbnrun.data.pixels import Moments, standardized

SPLIT_SEED = 170508011  # the paper's arXiv number; the validation part is the same for every cell


@dataclass(frozen=True)
class Part:
    """Records x (N, *input_shape) and their classes y (N,) int64.

    x is float32, or uint8 pixels in a quarter of the memory, whose `moments` standardize each batch that is taken.
    """

    x: Tensor
    y: Tensor
    moments: Moments | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:  # not all the numbers
        return f"Part({len(self)} records, x {tuple(self.x.shape)} {self.x.dtype})"

    def inputs(self, index: Tensor | slice) -> Tensor:
        """What a network is given of the records of `index`: float32 (*index.shape, *input_shape)."""
        x = self.x[index]
        return x if self.moments is None else standardized(x, self.moments)

    def at(self, index: Tensor) -> Part:
        """The part of the records of `index`."""
        return Part(self.x[index], self.y[index], self.moments)

    def to(self, device: torch.device) -> Part:
        moments = self.moments and (self.moments[0].to(device), self.moments[1].to(device))
        return Part(self.x.to(device), self.y.to(device), moments)


@dataclass(frozen=True)
class Data:
    """A data set in memory: training, validation and test part, and the digest of the files it came from.

    `shuffle_order` (N,) is a fixed random order of the training records for a pass in batches, where the file's own
    order would put like records into one batch; None where the file's order will do.
    """

    train: Part
    val: Part
    test: Part
    input_shape: tuple[int, ...]
    num_classes: int
    digest: str
    shuffle_order: Tensor | None = None

    def to(self, device: torch.device) -> Data:
        parts = {name: getattr(self, name).to(device) for name in ("train", "val", "test")}
        order = self.shuffle_order
        return replace(self, **parts, shuffle_order=None if order is None else order.to(device))


def fixed_shuffle(records: int) -> Tensor:
    """A fixed random order of so many records, (N,)."""
    return torch.randperm(records, generator=torch.Generator().manual_seed(SPLIT_SEED))


def shortened(data: Data, limit: int | None) -> Data:
    """The data with the first `limit` records of each part in its mixed order; a part that has no more as it lies."""

    def first(part: Part) -> Part:
        if limit is None or limit >= len(part):
            return part
        index = fixed_shuffle(len(part))[:limit].to(part.x.device)
        return part.at(index)

    train = first(data.train)
    shuffle_order = data.shuffle_order if train is data.train else None  # the first records are mixed already
    return replace(data, train=train, val=first(data.val), test=first(data.test), shuffle_order=shuffle_order)


def validation_count(records: int, size: float, option: str = "val_size") -> int:
    """Records to split off: `size` itself, or the share that it is below 1. Raises UserError if none remain."""
    count = round(size * records) if size < 1 else int(size)
    if not 0 < count < records:
        raise UserError(
            f"dataset.{option}={size:g}: expected at least 1 and fewer than the {records} training records."
        )
    return count


def split_off(records: int, size: float, option: str = "val_size") -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of what remains and of what is split off, drawn with a fixed seed; `option` gives the size."""
    count = validation_count(records, size, option)
    order = np.random.default_rng(SPLIT_SEED).permutation(records)
    return np.sort(order[count:]), np.sort(order[:count])
