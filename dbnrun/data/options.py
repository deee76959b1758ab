"""The data sets that one can choose."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dbnrun.config.registry import UNSET, Choice, UserError, choice, option

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

    from dbnrun.data.parts import Data

    Augmentation = Callable[[Tensor, Generator], Tensor]


@dataclass
class Dataset(Choice):
    """A data set. `val_size`: records for validation, below 1 a share of the training records."""

    val_size: float = option(UNSET, above=0)
    fnn_widths: list[int] = UNSET  # hidden layers of model=fnn on this data set, unless model.widths says otherwise

    images: ClassVar[bool] = True  # (C, H, W), not plain features
    test_records: ClassVar[int]  # what the binomial noise of a single reading depends on

    def check(self) -> None:
        if self.val_size >= 1 and self.val_size != int(self.val_size):
            raise UserError(f"dataset.val_size={self.val_size}: expected a share below 1 or a whole number of records.")

    def identity(self) -> dict[str, Any]:
        options = super().identity()
        del options["fnn_widths"]  # only the default of model.widths
        return options

    @property
    def augmentation(self) -> Augmentation | None:
        """What is done with each training batch; None: nothing."""
        return None

    def load(self, data_dir: Path) -> Data:
        """The data set on the CPU; fetched into `data_dir` first where it is missing.

        Raises UserError where a file is missing and cannot be fetched, or is not the official one.
        """
        return importlib.import_module(f"dbnrun.data.{self.registered}").load(self, data_dir)


@dataclass
class Images(Dataset):
    """Images (C, H, W). `augment`: none, or a random horizontal flip and a crop after padding by 4."""

    augment: str = option("none", among=("none", "flip_crop"))

    @property
    def augmentation(self) -> Augmentation | None:
        from dbnrun.data.augment import flip_crop

        return flip_crop if self.augment == "flip_crop" else None


@choice("dataset", "digits", "Digits")
@dataclass
class Digits(Images):
    """1,797 handwritten digits of 8x8 pixels that come inside scikit-learn: no download."""

    test_records = 360


@choice("dataset", "mnist", "MNIST")
@dataclass
class MNIST(Images):
    """60,000 + 10,000 handwritten digits of 28x28 pixels in [0, 1]."""

    test_records = 10_000


@choice("dataset", "ni", "NI (KDD Cup 1999)")
@dataclass
class NI(Dataset):
    """Network intrusion, KDD Cup 1999. `features`: log(1 + x) scaled to [0, 1] in training, or standardized."""

    features: str = option("log", among=("log", "standard"))

    images = False
    test_records = 311_029


@choice("dataset", "cifar10", "CIFAR-10")
@dataclass
class CIFAR10(Images):
    """50,000 + 10,000 colour images of 32x32 pixels, standardized by channel on the training part."""

    test_records = 10_000
