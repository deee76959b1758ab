"""metrics.csv: the row of an epoch, and how rows are written and read. Knows no torch."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from dbnrun.config.registry import UserError
from dbnrun.runs.layout import Appended

TIME_COLUMNS = ("train_seconds", "eval_seconds")


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One line of metrics.csv. Losses in nat, l2 excluded; errors in %. None is an empty field.

    All that evaluation measures, val_loss to lambda_drift, is None after an epoch without one (train.eval_every).
    The order of the fields is a public format: add at the end, with None as the default, and never rename. A file that
    was written before a column existed reads with None there.
    """

    epoch: int  # 1-based; everything but train_* is measured after its last step
    step: int  # updates so far, the paper's m
    alpha: float | None  # averaging weight at the last step; None where there is no schedule
    lr: float  # of the weights group, at the last step
    train_loss: float  # running mean over the epoch's training batches, with train.label_smoothing
    train_error_pct: float
    val_loss: float | None
    val_error_pct: float | None
    test_loss: float | None
    test_error_pct: float | None  # at this epoch's parameters, never the best so far
    test_error_pct_population: float | None  # same weights, population statistics; None without statistics
    lambda_drift: float | None  # RMS over units of |mu_lambda - mu_pop| / (sigma_pop + eps)
    grad_norm: float  # mean over the epoch of the L2 norm of the gradient of loss + l2
    train_seconds: float  # wall clock, evaluation left out
    eval_seconds: float


COLUMNS = tuple(field.name for field in fields(EpochRow))
REQUIRED = tuple(field.name for field in fields(EpochRow) if field.default is MISSING)  # in every file
# What every evaluation measures: all of them are there, or none is.
EVALUATED = ("val_loss", "val_error_pct", "test_loss", "test_error_pct")
NOT_EVALUATED: dict[str, Any] = dict.fromkeys((*EVALUATED, "test_error_pct_population", "lambda_drift"))
_TYPES = get_type_hints(EpochRow)


def is_evaluated(epoch: int, epochs: int, every: int) -> bool:
    """Whether a run of so many epochs is evaluated after this one: after each `every`-th, and after the last."""
    return epoch % every == 0 or epoch == epochs


def _field(name: str, value: float | int | None) -> str:
    if value is None:
        return ""
    if name in TIME_COLUMNS:
        return f"{value:.3f}"
    return repr(int(value) if _TYPES[name] is int else float(value))  # repr reads back exactly


def _line(row: EpochRow) -> str:
    return ",".join(_field(name, getattr(row, name)) for name in COLUMNS) + "\n"


def values(row: EpochRow) -> dict[str, float]:
    """What metrics.csv holds of a row, by column, as it reads back; without its empty fields."""
    return {name: float(text) for name in COLUMNS if (text := _field(name, getattr(row, name)))}


def csv_text(rows: Iterable[EpochRow]) -> str:
    """A whole metrics.csv."""
    return ",".join(COLUMNS) + "\n" + "".join(map(_line, rows))


def parse_row(fields_read: Mapping[str, str | None]) -> EpochRow:
    """A row from its fields as text. Raises ValueError where one is missing, wrongly empty, or not a number.

    A column that the header lacks keeps its default; the caller has seen to the required ones.
    """
    values: dict[str, Any] = {}
    for name in COLUMNS:
        if name not in fields_read and name not in REQUIRED:
            continue
        text, hint = fields_read[name], _TYPES[name]
        if text is None:
            raise ValueError(f"the line ends before {name}")
        if text == "":
            if hint in (int, float):
                raise ValueError(f"{name} is empty")
            values[name] = None
        else:
            values[name] = int(text) if hint is int else float(text)
    empty = [name for name in EVALUATED if values[name] is None]
    if empty and len(empty) < len(EVALUATED):
        raise ValueError(f"{empty[0]} is empty")
    return EpochRow(**values)


def read_rows(path: Path) -> list[EpochRow]:
    """The rows of a metrics.csv; [] where the file is missing. A half-written last line is left out.

    Raises UserError where another line is malformed, or a required column is missing. Columns of a newer version are
    passed over.
    """
    return list(newest_first(path))[::-1]


def newest_first(path: Path) -> Iterator[EpochRow]:
    """The rows of a metrics.csv, the last one first, each parsed when it is asked for. Raises what read_rows does."""
    lines = _whole_lines(path)
    return (_row(path, lines, number) for number in range(len(lines) - 1, 0, -1) if lines[number])


def _whole_lines(path: Path) -> list[str]:
    """Header and rows as text. A line is whole once its newline is there: a crash can leave a last one without."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: not text; is it a metrics.csv of dbnrun? Move the folder away to train it again."
        ) from None
    lines = text.split("\n")[:-1]
    missing = [name for name in REQUIRED if name not in lines[0].split(",")] if lines else []
    if missing:
        raise UserError(f"{path}: expected the column {missing[0]!r}; is it a metrics.csv of dbnrun?")
    return lines


def _row(path: Path, lines: Sequence[str], number: int) -> EpochRow:
    try:
        return parse_row(dict(itertools.zip_longest(lines[0].split(","), lines[number].split(","))))
    except ValueError as error:
        raise UserError(f"{path}: line {number + 1}: {error}. Move the folder away to train it again.") from None


def refuse_unknown_columns(path: Path, known: Collection[str] = COLUMNS) -> None:
    """Raises UserError where a newer version has written columns to `path`: written anew, the file would lose them."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header = file.readline()
    except FileNotFoundError:
        return
    names = next(csv.reader([header]), []) if header.endswith("\n") else []  # a torn header is not read either
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"{path}: has the column {unknown[0]!r}, which this version of dbnrun does not know and would lose; "
            "continue with the version that wrote it, or move it away to start over."
        )


class MetricsWriter:
    """Appends rows to a run's metrics.csv; each is synced to disk before `write` returns."""

    def __init__(self, folder: Path, rows: list[EpochRow]) -> None:
        """Keep exactly `rows`: epochs after the checkpoint that the run continues from are trained again."""
        self.path = folder / "metrics.csv"
        self._file = Appended(self.path, csv_text(rows))

    def write(self, row: EpochRow) -> None:
        self._file.write(_line(row))

    def close(self) -> None:
        self._file.close()
