"""The data sets that one can choose."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dbnrun.config.own import Own, source
from dbnrun.config.registry import UNSET, Choice, UserError, choice, one_of, option
from dbnrun.data.download import DataFile, Download, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor

    from dbnrun.data.dataset import Data

    Augmentation = Callable[[Tensor, Generator], Tensor]


@dataclass
class Dataset(Choice):
    """A data set. `val_size`: records for validation, below 1 a share of the training records."""

    val_size: float = option(UNSET, above=0)
    fnn_widths: list[int] = UNSET  # hidden layers of model=fnn on this data set, unless model.widths says otherwise

    images: ClassVar[bool] = True  # (C, H, W), not plain features
    # What the binomial noise of a single reading depends on; None: each run's manifest says it.
    test_records: ClassVar[int | None] = None
    downloads: ClassVar[tuple[Download, ...]] = ()  # the official files, under data_dir
    digest: ClassVar[str]  # of the official content; that of `downloads` where there are any
    # Raised with every change of code that alters a number of a cell here whose configuration stays the same.
    results_version: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        if cls.downloads:
            cls.digest = digest_of(cls.downloads)

    def check(self) -> None:
        _check_share("val_size", self.val_size)

    def identity(self) -> dict[str, Any]:
        options = super().identity()
        del options["fnn_widths"]  # only the default of model.widths
        return options

    @property
    def augmentation(self) -> Augmentation | None:
        """What is done with each training batch; None: nothing."""
        return None

    def digest_in(self, data_dir: Path) -> str:
        """SHA-256 of the content: of a pinned data set it is known without reading any file."""
        return self.digest

    def load(self, data_dir: Path) -> Data:
        """The data set on the CPU; fetched into `data_dir` first where it is missing.

        Raises UserError where a file is missing and cannot be fetched, or is not the official one.
        """
        return importlib.import_module(f"dbnrun.data.{self.registered}").load(self, data_dir)


def _check_share(key: str, size: float) -> None:
    if size >= 1 and size != int(size):
        raise UserError(f"dataset.{key}={size}: expected a share below 1 or a whole number of records.")


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
    digest = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # images and labels as uint8


IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx(folder: str, mirrors: Sequence[str], *sha256: str) -> tuple[Download, ...]:
    """The four files of MNIST's format, each from the first of `mirrors` that gives it."""
    return tuple(
        Download(tuple(f"{url}/{name}.gz" for url in mirrors), (DataFile(f"{folder}/raw/{name}", digest),))
        for name, digest in zip(IDX, sha256, strict=True)
    )


@choice("dataset", "mnist", "MNIST")
@dataclass
class MNIST(Images):
    """60,000 + 10,000 handwritten digits of 28x28 pixels in [0, 1]."""

    test_records = 10_000
    downloads = _idx(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist",),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    )


@choice("dataset", "fashion_mnist", "Fashion-MNIST")
@dataclass
class FashionMNIST(Images):
    """60,000 + 10,000 pictures of clothes of 28x28 pixels in [0, 1], in ten classes."""

    test_records = 10_000
    downloads = _idx(
        "FashionMNIST",
        (
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
        ),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    )


def _ni(name: str, mirror: str, sha256: str) -> Download:
    official = f"https://kdd.ics.uci.edu/databases/kddcup99/{name}"
    return Download((official, mirror), (DataFile(f"ni/{name}", sha256),))


@choice("dataset", "ni", "NI (KDD Cup 1999)")
@dataclass
class NI(Dataset):
    """Network intrusion, KDD Cup 1999. `features`: log(1 + x) scaled to [0, 1] in training, or standardized."""

    features: str = option("log", among=("log", "standard"))

    images = False
    test_records = 311_029
    results_version = 2  # the population pass takes records in mixed order
    downloads = (
        _ni(
            "kddcup.data_10_percent.gz",
            "https://ndownloader.figshare.com/files/5976042",
            "f8c8267ebcd9c0ed1fd7d6277fe5bfff8732e9b7db8e61b873542b2a534b6f9a",
        ),
        _ni(
            "corrected.gz",
            "https://archive.ics.uci.edu/ml/machine-learning-databases/kddcup99-mld/corrected.gz",
            "547dfb9c0f0dc1d9944219ec79e851191faebaeb8acbfa1cd171c418397052a4",
        ),
    )


def _cifar(name: str, sha256: str) -> DataFile:
    return DataFile(f"cifar-10-batches-py/{name}", sha256)


@choice("dataset", "cifar10", "CIFAR-10")
@dataclass
class CIFAR10(Images):
    """50,000 + 10,000 colour images of 32x32 pixels, standardized by channel on the training part."""

    test_records = 10_000
    downloads = (
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            (
                _cifar("batches.meta", "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb"),
                _cifar("data_batch_1", "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"),
                _cifar("data_batch_2", "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"),
                _cifar("data_batch_3", "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"),
                _cifar("data_batch_4", "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"),
                _cifar("data_batch_5", "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"),
                _cifar("test_batch", "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"),
            ),
        ),
    )


@choice("dataset", "cifar100", "CIFAR-100")
@dataclass
class CIFAR100(Images):
    """50,000 + 10,000 colour images of 32x32 pixels in 100 classes, standardized by channel on the training part."""

    test_records = 10_000
    downloads = (
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            (
                DataFile("cifar-100-python/meta", "md5:7973b15100ade9c7d40fb424638fde48"),
                DataFile("cifar-100-python/train", "md5:16019d7e3df5f24257cddd939b257f8d"),
                DataFile("cifar-100-python/test", "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ),
        ),
    )


@choice("dataset", "folder", "Folder of images")
@dataclass
class Folder(Images):
    """Your own images, in one folder a class, standardized by channel on the training part.

    `path` decides no number: the digest of the files stands in the signature, wherever they lie.
    """

    path: str | None = None
    # What figures call the data set: the user's word for it, where the class has one for all.
    label: str = "folder"  # pyright: ignore[reportIncompatibleVariableOverride]
    size: Any = None  # an integer or [H, W]: resizes every image; None: all must have one size
    channels: int | None = None  # 1 or 3: converts every image to grey or to RGB; None: all must be alike
    test_size: float = option(0.2, above=0)  # as val_size, where there is no folder of the test part

    def check(self) -> None:
        super().check()
        _check_share("test_size", self.test_size)
        if self.channels is not None:
            one_of("dataset.channels", self.channels, (1, 3))
        sides = self.sides
        if sides is not None and (len(sides) != 2 or not all(type(n) is int and 1 <= n <= 4096 for n in sides)):
            raise UserError(f"dataset.size={self.size}: expected an integer from 1 to 4096, or [HEIGHT,WIDTH] of such.")
        if not self.label.strip() or not self.label.isprintable():
            raise UserError(f"dataset.label={self.label!r}: expected a name for tables and figures.")

    @property
    def sides(self) -> list[int] | None:
        """Height and width that every image is resized to."""
        if self.size is None:
            return None
        return list(self.size) if isinstance(self.size, list | tuple) else [self.size, self.size]

    def identity(self) -> dict[str, Any]:
        options = super().identity() | {"size": self.sides}
        del options["path"]
        return options

    def digest_in(self, data_dir: Path) -> str:
        """SHA-256 over the names and bytes of the images, read once a command. Raises UserError for a bad layout."""
        from dbnrun.data.image_files import found_at

        return found_at(self.path, data_dir)[1]


@choice("dataset", "custom")
@dataclass
class CustomDataset(Own, Dataset):
    """A function of your own, called as load(data_dir, **options); `data/own_data.py` says what it may return."""

    def load(self, data_dir: Path) -> Data:
        from dbnrun.data.own_data import as_data

        return as_data(self.made(data_dir), self.target, self.val_size)

    def digest_in(self, data_dir: Path) -> str:
        from dbnrun.data.own_data import remembered_digest

        key = json.dumps([asdict(self), source(self.key, self.target)], default=str)
        return remembered_digest(key, lambda: self.load(data_dir).digest)


@choice("dataset", "table", "Table")
@dataclass
class Table(Dataset):
    """A table of the user's own, CSV or Parquet: a column of labels, and columns of features.

    `test_size`: as `val_size`, of all records, where no `test_path` names a second file. `missing`: empty fields are
    refused, or filled: with the training part's mean in a numeric column, with all zeros in any other.
    """

    path: str = ""
    label: str = ""  # the column  # pyright: ignore[reportIncompatibleVariableOverride]
    test_path: str | None = None
    test_size: float = option(0.2, above=0)
    missing: str = option("refuse", among=("refuse", "mean"))

    images = False

    def check(self) -> None:
        super().check()
        _check_share("test_size", self.test_size)

    def identity(self) -> dict[str, Any]:
        options = super().identity()
        idle = ("path", "test_path", *(["test_size"] if self.test_path else []))
        return {key: value for key, value in options.items() if key not in idle}

    @property
    def files(self) -> list[Path]:
        """The table's file, and the second one where there is one. Raises UserError where one cannot be a table."""
        if not self.path:
            raise UserError("dataset.path: expected the table's file, such as dataset.path=x.csv.")
        if not self.label:
            raise UserError(
                "dataset.label: expected the name of the table's label column, such as dataset.label=class."
            )
        typed = {"path": self.path} | ({"test_path": self.test_path} if self.test_path else {})
        for key, path in typed.items():
            if fault := _no_table(Path(path)):
                raise UserError(f"dataset.{key}={path}: {fault}; expected a .csv or .parquet file.")
        return [Path(path) for path in typed.values()]

    def digest_in(self, data_dir: Path) -> str:
        """SHA-256 over the bytes of the file, or over the digests of both, whatever their names."""
        digests = []
        for file in self.files:
            try:
                stat = file.stat()
                digests.append(_sha256(file.resolve(), stat.st_size, stat.st_mtime_ns))
            except OSError as error:
                raise UserError(f"{file}: cannot be read ({error.strerror or error}).") from None
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    """Of a file's bytes, read once in a process for as long as its size and modification time stay."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _no_table(path: Path) -> str:
    """Why a path cannot be that of a table; '' where it can."""
    if path.is_dir():
        return "this is a folder"
    if not path.exists():
        return "there is no such file"
    return "" if path.suffix.lower() in (".csv", ".parquet") else "a file of another kind"
