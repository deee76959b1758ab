"""A table of the user's own: a CSV or Parquet file with a column of labels and columns of features.

Features: the numeric columns in the file's order, standardized by mean and standard deviation of the training part;
then one column a category of each other column (text, category, boolean), the categories of the training part in
alphabetical order. A category that training has not seen is all zeros, and so is an empty field under missing=mean.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from dbnrun.config.registry import UserError, first_line, nearest
from dbnrun.data import options
from dbnrun.data.dataset import Data, Part, fixed_shuffle, split_off

if TYPE_CHECKING:
    import pandas as pd

MOST_CATEGORIES, MOST_CLASSES = 1_000, 10_000


@dataclass(frozen=True)
class Table:
    """A file's columns."""

    path: Path
    frame: pd.DataFrame

    def __len__(self) -> int:
        return len(self.frame)

    def is_numeric(self, name: str) -> bool:
        from pandas.api import types

        kind = self.frame[name].dtype
        return types.is_numeric_dtype(kind) and not types.is_bool_dtype(kind) and not types.is_complex_dtype(kind)

    def kind(self, name: str) -> str:
        """What pandas makes of a column's values: string, boolean, integer, …"""
        from pandas.api import types

        return types.infer_dtype(self.frame[name], skipna=True)

    def refuse(self, name: str, where: np.ndarray, fault: str) -> None:
        """Raise UserError with the place of a column's first field that has a fault, where one has."""
        if where.any():
            row = int(np.argmax(where)) + 1
            raise UserError(f"{self.path}: column {name!r} in row {row} below the header {fault}.")


@dataclass(frozen=True)
class Records:
    """Some records of a table: the training, validation or test part."""

    table: Table
    index: np.ndarray

    def column(self, name: str) -> pd.Series:
        return self.table.frame[name].iloc[self.index]

    def numbers(self, name: str) -> np.ndarray:
        """A numeric column, float64, NaN where it is empty."""
        return self.column(name).to_numpy(np.float64, na_value=np.nan)

    def words(self, name: str) -> np.ndarray:
        """Any other column as text, None where it is empty."""
        column = self.column(name)
        pairs = zip(column.astype(object), column.isna(), strict=True)
        return np.array([None if empty else str(value) for value, empty in pairs], dtype=object)


@dataclass(frozen=True)
class Numeric:
    """One feature of a numeric column: (x − mean) · factor, and 0 where it is empty."""

    name: str
    mean: float
    factor: float
    width: int = 1

    def __call__(self, records: Records) -> np.ndarray:
        return np.nan_to_num((records.numbers(self.name) - self.mean) * self.factor)[:, None]


@dataclass(frozen=True)
class Categories:
    """A feature for each category of a column: 1 where a record has it, else 0."""

    name: str
    known: list[str]

    @property
    def width(self) -> int:
        return len(self.known)

    def __call__(self, records: Records) -> np.ndarray:
        import pandas as pd

        codes = pd.Index(self.known, dtype=object).get_indexer(records.words(self.name))
        return codes[:, None] == np.arange(self.width)


def load(config: options.Table, data_dir: Path) -> Data:
    """Features of the columns, see the module's docstring; the classes are the label's values in order."""
    digest = config.digest_in(data_dir)
    table, other = _tables(config)
    parts = _split(config, table, other)
    names = [name for name in table.frame if name != config.label]
    if not names:
        raise UserError(f"{table.path}: expected columns of features beside the label column {config.label!r}.")
    labels = _labels(config.label, parts)
    features = _features(names, parts)
    train, val, test = (Part(x, torch.from_numpy(y)) for x, y in zip(features, labels, strict=True))
    classes = int(train.y.max()) + 1
    # A table may be sorted, and the training part is in the file's order.
    return Data(train, val, test, tuple(train.x.shape[1:]), classes, digest, fixed_shuffle(len(train)))


def _tables(config: options.Table) -> tuple[Table, Table]:
    """The table, and the one that the test part is taken from: a second file, or the same."""
    path, *second = config.files
    table = _read(path, config)
    if not second:
        return table, table
    text = [name for name in table.frame if table.kind(name) == "string"]
    other = _read(second[0], config, text)
    for one, two in ((table, other), (other, table)):
        if absent := [name for name in two.frame if name not in one.frame]:
            raise UserError(
                f"{one.path}: has no column {absent[0]!r}, which {two.path} has; expected the same columns."
            )
    for name in table.frame:
        if name != config.label and table.is_numeric(name) != other.is_numeric(name):
            kinds = [("text", "numbers")[each.is_numeric(name)] for each in (other, table)]
            raise UserError(f"{other.path}: column {name!r} holds {kinds[0]}, and {kinds[1]} in {table.path}.")
    return table, other


def _read(path: Path, config: options.Table, text: Sequence[str] = ()) -> Table:
    """A file's records, refused where one cannot be used; columns of `text` are text whatever they look like."""
    frame = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path, text)
    table = Table(path, frame)
    if config.label not in frame:
        hint = (
            nearest(config.label, frame) or f" It has {', '.join(list(frame)[:8])}{', …' * (len(frame.columns) > 8)}."
        )
        raise UserError(f"dataset.label={config.label}: {path} has no such column.{hint}")
    if not len(frame):
        raise UserError(f"{path}: has a header and no records.")
    table.refuse(config.label, frame[config.label].isna().to_numpy(), "is empty; expected a label for every record")
    for name in frame:
        if name != config.label:
            _check_feature(table, name, config.missing)
    return table


def _check_feature(table: Table, name: str, missing: str) -> None:
    column = table.frame[name]
    if missing == "refuse":
        table.refuse(name, column.isna().to_numpy(), "is empty; fill it, or set dataset.missing=mean")
    if table.is_numeric(name):
        infinite = np.isinf(column.to_numpy(np.float64, na_value=np.nan))
        table.refuse(name, infinite, "is infinite; expected finite numbers")
    elif table.kind(name) not in ("string", "boolean", "categorical", "empty"):
        raise UserError(f"{table.path}: column {name!r} is {table.kind(name)}; expected numbers, text or booleans.")


def _csv(path: Path, text: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    try:
        header = next(_lines(path), (0, []))[1]
        if twice := [name for name in header if header.count(name) > 1]:
            raise UserError(f"{path}: has two columns named {twice[0]!r}; expected a header of different names.")
        # Always pandas' own parser: another engine, where it is installed, could round numbers otherwise.
        dtype: Any = dict.fromkeys(set(text) & set(header), "str")
        frame = pd.read_csv(path, engine="c", low_memory=False, dtype=dtype)
    except UserError:
        raise
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: is empty; expected a header and records.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: {_ragged(path) or f'cannot be read as CSV ({first_line(error)})'}.") from None
    # pandas takes what is too much in every line for an index, and fills what a line lacks with empty fields.
    suspect = not isinstance(frame.index, pd.RangeIndex) or (len(frame) and frame.iloc[:, -1].isna().any())
    if suspect and (fault := _ragged(path)):
        raise UserError(f"{path}: {fault}.")
    return frame


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file that are not empty, as fields, each with its number."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        yield from ((reader.line_num, fields) for fields in reader if fields)


def _ragged(path: Path) -> str:
    """The first line with more or fewer fields than the header; '' where there is none."""
    try:
        lines = _lines(path)
        expected = len(next(lines)[1])
        for number, fields in lines:
            if len(fields) != expected:
                return f"line {number} has {len(fields)} fields; expected {expected}, as in the header"
    except (OSError, ValueError, csv.Error):
        pass  # what is wrong is something else
    return ""


def _parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading Parquet needs pyarrow, which is missing; pip install 'dbnrun[parquet]'.")
    try:
        frame = pd.read_parquet(path, engine="pyarrow").reset_index(drop=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)}).") from None
    return frame.rename(columns=str)


def _split(config: options.Table, table: Table, other: Table) -> list[Records]:
    """Training, validation and test part. The first two lie in `table`, in its order."""
    try:
        if other is table:
            rest, test = split_off(len(table), config.test_size, "test_size")
        else:
            rest, test = np.arange(len(table)), np.arange(len(other))
        train, val = split_off(len(rest), config.val_size)
    except UserError as error:
        raise UserError(f"{table.path}: {error}") from None
    return [Records(table, rest[train]), Records(table, rest[val]), Records(other, test)]


def _labels(name: str, parts: Sequence[Records]) -> list[np.ndarray]:
    """The classes of each part, int64: the positions of its labels among those of the training part, in order."""
    import pandas as pd

    values = [pd.Index(np.asarray(part.column(name))) for part in parts]
    path = parts[0].table.path
    try:
        classes = values[0].unique().sort_values()
    except TypeError:  # of lists, for example, which Parquet can hold
        raise UserError(f"{path}: column {name!r} holds labels that have no order; expected text or numbers.") from None
    if len(classes) < 2:
        raise UserError(
            f"{path}: column {name!r} is {classes[0]} in all the training part; expected two classes or more."
        )
    if len(classes) > MOST_CLASSES:
        raise UserError(
            f"{path}: column {name!r} has {len(classes)} different labels in the training part; expected at most "
            f"{MOST_CLASSES} classes. A column of quantities cannot be the label."
        )
    codes = [classes.get_indexer(value).astype(np.int64) for value in values]
    for part, value, code in zip(parts, values, codes, strict=True):
        if (code < 0).any():
            raise UserError(
                f"{part.table.path}: the training part has no record with label {value[int(np.argmax(code < 0))]} in "
                f"column {name!r}; remove such records, or add more of them."
            )
    return codes


def _features(names: Sequence[str], parts: Sequence[Records]) -> list[torch.Tensor]:
    """Each part's features (N, D) float32, encoded by what the training part holds."""
    train = parts[0]
    numeric = [_numeric(name, train) for name in names if train.table.is_numeric(name)]
    _warn_of_constants([each.name for each in numeric if each.factor == 0], train.table.path)
    encoders = [*numeric, *(_categories(name, train) for name in names if not train.table.is_numeric(name))]
    features = [torch.empty((len(part.index), sum(each.width for each in encoders))) for part in parts]
    start = 0
    for encoder in encoders:
        for part, x in zip(parts, features, strict=True):
            x[:, start : start + encoder.width] = torch.from_numpy(encoder(part))
        start += encoder.width
    return features


def _warn_of_constants(names: Sequence[str], path: Path) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        listed = ", ".join(map(repr, names[:5])) + more
        line = f"{path}: constant in the training part, and so always 0: column {listed}"
        tqdm.write(f"dbnrun: warning: {line}", sys.stderr)


def _numeric(name: str, train: Records) -> Numeric:
    values = train.numbers(name)
    values = values[~np.isnan(values)]
    if not len(values) or values.min() == values.max():  # rounding can leave a constant's deviation above 0
        return Numeric(name, 0, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(values.mean()), float(values.std())
    if not 0 < deviation < np.inf:
        raise UserError(f"{train.table.path}: column {name!r} has numbers too large or too close to be standardized.")
    return Numeric(name, mean, 1 / deviation)


def _categories(name: str, train: Records) -> Categories:
    known = sorted({word for word in train.words(name) if word is not None})
    if len(known) > MOST_CATEGORIES:
        raise UserError(
            f"{train.table.path}: column {name!r} is text with {len(known)} categories in the training part, such as "
            f"{known[0]!r}; expected numbers, or at most {MOST_CATEGORIES} categories."
        )
    return Categories(name, known)
