"""What a run leaves behind, each file written crash-safe.

    <results_dir>/runs/<readable name>-<signature>/
        metrics.csv     one EpochRow a line, appended and synced as each epoch ends
        config.yaml     the cell: everything that decides the numbers
        manifest.json   status, versions, device, data digest, wall time
        run.log         versions and environment of each attempt, and its traceback where it failed
        checkpoint.pt   while unfinished, with the one before it as checkpoint.previous.pt
        lock            while a process trains it: dbnrun.lease

Knows no torch: a checkpoint is bytes here.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from dbnrun.config import UserError, readable_name

TIME_COLUMNS = ("train_seconds", "eval_seconds")
FINISHED = ("done", "diverged")  # statuses of a manifest that leave nothing to train

# Raised, for the data sets concerned, with every change of code that alters a number of a cell whose configuration
# stays the same. (A change of the configuration's schema alters the signature instead.) Records of another version are
# stale: trained again when asked for, the old ones set aside. NI 2: the population pass takes records in mixed order.
RESULTS_VERSIONS = {"digits": 1, "mnist": 1, "ni": 2, "cifar10": 1}


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
    train_loss: float  # running mean over the epoch's training batches
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


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: done, diverged, skipped (finished before), held (by another process), refused or failed."""

    name: str
    folder: Path
    status: str
    row: EpochRow | None = None  # its last
    message: str = ""
    where: str = ""  # it diverged, now or before: 'epoch 2, step 37', where that is recorded

    @property
    def diverged(self) -> bool:
        """Whether the cell has ended, now or before, with a training loss that is not finite."""
        return "diverged" in (self.status, self.message)


WEIGHTS = "weights.pt"  # the trained network, kept where save_weights=true

COLUMNS = tuple(field.name for field in fields(EpochRow))
REQUIRED = tuple(field.name for field in fields(EpochRow) if field.default is MISSING)  # in every file
# What every evaluation measures: all of them are there, or none is.
EVALUATED = ("val_loss", "val_error_pct", "test_loss", "test_error_pct")
NOT_EVALUATED: dict[str, Any] = dict.fromkeys((*EVALUATED, "test_error_pct_population", "lambda_drift"))
_TYPES = get_type_hints(EpochRow)


def is_evaluated(epoch: int, epochs: int, every: int) -> bool:
    """Whether a run of so many epochs is evaluated after this one: after each `every`-th, and after the last."""
    return epoch % every == 0 or epoch == epochs


def run_folder(results_dir: Path, cell: Mapping[str, Any], signature: str) -> Path:
    return results_dir / "runs" / f"{readable_name(cell)}-{signature}"


def write_atomic(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write to a temporary file beside `path`, sync, rename: a crash leaves the old file or the new one.

    With `keep`, the file that was there before is kept under that name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_atomic(folder / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, or {} where there is none to read: the run never got as far as writing one."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def divergence(manifest: Mapping[str, Any]) -> str:
    """Where a run's training loss was not finite first, such as 'epoch 2, step 37'; '' where it does not say."""
    if "diverged_step" not in manifest:
        return ""
    return f"epoch {manifest['diverged_epoch']}, step {manifest['diverged_step']}"


def is_stale(manifest: Mapping[str, Any], dataset: str) -> bool:
    """Whether the records of a cell on this data set were made by code whose numbers differ from ours."""
    return bool(manifest) and manifest.get("results_version", 1) != RESULTS_VERSIONS[dataset]


def is_finished(folder: Path, dataset: str) -> bool:
    """Whether there is nothing left to train: ended, of our version, and with its rows."""
    manifest = read_manifest(folder)
    ended = str(manifest.get("status")) in FINISHED and not is_stale(manifest, dataset)
    return ended and (folder / "metrics.csv").is_file()


def write_cell(folder: Path, cell: Mapping[str, Any]) -> None:
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(cell))).encode())


def _field(name: str, value: float | int | None) -> str:
    if value is None:
        return ""
    if name in TIME_COLUMNS:
        return f"{value:.3f}"
    return repr(int(value) if _TYPES[name] is int else float(value))  # repr reads back exactly


def _line(row: EpochRow) -> str:
    return ",".join(_field(name, getattr(row, name)) for name in COLUMNS) + "\n"


def csv_text(rows: Iterable[EpochRow]) -> str:
    """A whole metrics.csv."""
    return ",".join(COLUMNS) + "\n" + "".join(map(_line, rows))


def parse_row(fields_read: Mapping[str, str | None]) -> EpochRow:
    """A row from its fields as text. Raises ValueError where one is missing, empty without leave, or no number.

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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: not text; is it a metrics.csv of dbnrun? Move the folder away to train it again."
        ) from None
    # A line is whole once its newline is there; a crash can leave a last one without.
    whole = text[: text.rfind("\n") + 1]
    if not whole:
        return []
    reader = csv.DictReader(io.StringIO(whole))
    missing = [name for name in REQUIRED if name not in (reader.fieldnames or [])]
    if missing:
        raise UserError(f"{path}: expected the column {missing[0]!r}; is it a metrics.csv of dbnrun?")
    rows = []
    for line in reader:
        try:
            rows.append(parse_row(line))
        except ValueError as error:
            raise UserError(
                f"{path}: line {reader.line_num}: {error}. Move the folder away to train it again."
            ) from None
    return rows


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
            "go on with the version that wrote it, or move it away to begin anew."
        )


class RecordWriter:
    """Appends rows to a run's metrics.csv; each is synced to disk before `write` returns."""

    def __init__(self, folder: Path, rows: list[EpochRow]) -> None:
        """Start from exactly `rows`: what lies behind the checkpoint one continues from is trained again."""
        self.path = folder / "metrics.csv"
        text = csv_text(rows)
        if not self.path.exists() or self.path.read_text() != text:
            write_atomic(self.path, text.encode())
        self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed by __exit__

    def write(self, row: EpochRow) -> None:
        self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def set_aside(path: Path) -> Path | None:
    """Rename a file that cannot be continued, so that nothing recorded is lost; None where there is none."""
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.stem}.set-aside-{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    return kept
