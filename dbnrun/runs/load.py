"""The reader of run folders: what each holds, as a report counts it."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from dbnrun.config import registry
from dbnrun.config.identity import Recorded, choice_of, schedule_key, signature
from dbnrun.config.registry import UserError
from dbnrun.runs import layout, metrics
from dbnrun.runs.metrics import EpochRow

HOW_TO_TRAIN = "train some, such as `dbnrun -m norm=bn,ln seed=0,1,2`"
# The loader in C is ten times faster; both read plain data only.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
T = TypeVar("T")


@dataclass(frozen=True)
class RunRecord:
    """One recorded run: its cell, how it stands, and its rows."""

    folder: Path  # or the records file that holds it
    signature: str
    data_digest: str  # '' where no manifest says it
    cell: dict[str, Any]
    status: str  # done, diverged, failed, unfinished, or incomplete: called done, but rows are missing
    rows: tuple[EpochRow, ...]
    manifest: dict[str, Any] = field(default_factory=dict)  # where its numbers come from

    @property
    def is_recorded(self) -> bool:
        """Whether it is one of the committed records, not a run folder."""
        return self.folder.suffix == ".csv"


def read_runs(paths: Sequence[Path], *, strict: bool = False) -> list[RunRecord]:
    """Every run folder under `paths`. One that cannot be read is warned of and left out; UserError with `strict`."""
    return list(readable(read_run, folders(paths), strict=strict))


def readable(read: Callable[[T], RunRecord], given: Iterable[T], *, strict: bool = False) -> Iterator[RunRecord]:
    """What `read` makes of each that is given; what it refuses is warned of and left out, or with `strict` refused."""
    for one in given:
        try:
            yield read(one)
        except UserError as error:
            if strict:
                raise
            print(f"dbnrun: warning: left out: {error}", file=sys.stderr)


def deduplicated(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """The runs as a report counts them: each once, even if trained again under an equivalent configuration.

    Where two finished copies have different numbers the first counts, and a line says how far apart they are.
    """
    kept, unlike = distinct(runs)
    kept, more = distinct(map(as_auto, kept))
    say_unlike(unlike + more)
    return kept


def as_auto(run: RunRecord) -> RunRecord:
    """On a CPU deterministic=true is deterministic=auto: the same training, under one signature here."""
    if run.manifest.get("device") != "cpu" or run.cell.get("deterministic") is not True:
        return run
    cell = {**run.cell, "deterministic": "auto"}
    return replace(run, cell=cell, signature=signature(cell, run.data_digest))


def folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders that `paths` name: run folders, or results folders with run folders in them."""
    found: list[Path] = []
    for path in paths:
        runs = path / "runs" if (path / "runs").is_dir() else path
        within = sorted(config.parent for config in runs.glob("*/config.yaml"))
        found += [path] if (path / "config.yaml").is_file() else within
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> RunRecord:
    """What a run folder holds. Raises UserError where it is no run of dbnrun, or cannot be read."""
    return with_rows(described(folder))


def described(folder: Path) -> RunRecord:
    """What a run folder holds but for its rows: its metrics.csv is not read, and a 'done' is what the manifest says."""
    try:
        cell = read_cell(folder)
        if int(cell["train"]["epochs"]) < 1 or not _has_what_a_report_reads(cell):
            raise ValueError("not a run")
    except UserError:
        raise
    except OSError as error:
        raise _not_readable(folder, error) from None
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.yaml'}: not a run of dbnrun ({type(error).__name__}); move it away."
        ) from None
    manifest = layout.read_manifest(folder)
    status = str(manifest.get("status", ""))
    return RunRecord(
        folder,
        signature=str(manifest.get("signature") or folder.name),
        data_digest=str(manifest.get("data_digest") or ""),
        cell=cell,
        status="stale" if layout.is_stale(manifest, cell["dataset"]["name"]) else status,
        rows=(),
        manifest=manifest,
    )


def with_rows(run: RunRecord) -> RunRecord:
    """A run that is `described` with the rows of its metrics.csv, and the status that they bear out."""
    try:
        rows = tuple(metrics.read_rows(run.folder / "metrics.csv"))
    except OSError as error:
        raise _not_readable(run.folder, error) from None
    status = run.status if run.status == "stale" else _status(run.status, rows, int(run.cell["train"]["epochs"]))
    return replace(run, rows=rows, status=status)


def _not_readable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{error.filename or folder}: cannot be read ({error.strerror}); repair it, or move it away.")


def read_cell(folder: Path) -> dict[str, Any]:
    """What config.yaml says, not to be changed: cells share their parts. Raises OSError, or what YAML finds wrong.

    The runs of a results folder have most top-level parts in common, so each distinct one is parsed once.
    """
    text = (folder / "config.yaml").read_text()
    try:
        parts = [_part(block) for block in re.split(r"(?m)^(?=\w)", text) if block]
        return {key: value for part in parts for key, value in part.items()}
    except (yaml.YAMLError, AttributeError):  # not as we write it
        return cast(dict[str, Any], yaml.load(text, Loader=_Loader))


@functools.lru_cache(maxsize=8192)
def _part(block: str) -> Any:
    return yaml.load(block, Loader=_Loader)


def _has_what_a_report_reads(cell: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of ours, as far as it is read here; an error where a part is missing."""
    groups, norm = cell["optimizer"]["groups"], choice_of("norm", cell["norm"])
    return (
        all(isinstance(cell[group]["name"], str) for group in registry.GROUPS if group in cell)
        and (isinstance(norm, Recorded) or norm.scheduled == ("schedule" in cell))
        and cell["seed"] >= 0
        and all([schedule_key(cell), choice_of("model", cell["model"]).title, cell["train"]["batch_size"]])
        and all(group["lr"] >= 0 for group in groups.values())
    )


def _status(status: str, rows: Sequence[EpochRow], epochs: int) -> str:
    """How a run counts here: its manifest's status, and whether metrics.csv bears out a 'done'."""
    if status == "done":
        whole = [row.epoch for row in rows] == list(range(1, epochs + 1))
        return "done" if whole else "incomplete"
    return status if status in ("diverged", "failed") else "unfinished"


Pair = tuple[RunRecord, RunRecord]  # the copy that is kept, and another with different numbers


def distinct(runs: Iterable[RunRecord]) -> tuple[list[RunRecord], list[Pair]]:
    """Runs by signature, of several copies the first finished one; and the pairs of finished copies that differ."""
    kept: dict[str, RunRecord] = {}
    unlike: list[Pair] = []
    for run in runs:
        other = kept.setdefault(run.signature, run)
        if other is run or run.status not in layout.FINISHED:
            continue
        if other.status not in layout.FINISHED:
            kept[run.signature] = run
        elif spelled(other) != spelled(run):
            unlike.append((other, run))
    return list(kept.values()), unlike


def say_unlike(unlike: Sequence[Pair]) -> None:
    """Print how far copies are from those that are kept, in a line; nothing where there are none."""
    if not unlike:
        return
    kept, other = max(unlike, key=_distance)
    far = _distance((kept, other))
    runs = "runs differ" if len(unlike) > 1 else "run differs"
    apart = f"by up to {far:.3g} pp of test error" if math.isfinite(far) else "one of the two has diverged"
    print(
        f"{len(unlike)} {runs} from the copy that is used (the record, or else the first): "
        f"{apart} ({other.folder} against {kept.folder}). Rounding depends on the machine, device, threads, stack and "
        "compile; dropout and augmentation depend on the device. `dbnrun report RUNS --out DIR` draws runs "
        "on their own."
    )


def _distance(pair: Pair) -> float:
    """The largest difference in test error [pp] between two copies; infinite where only one has diverged."""
    kept, other = pair
    if kept.status != other.status:
        return math.inf
    errors = ([row.test_error_pct for row in run.rows if row.test_error_pct is not None] for run in pair)
    apart = [abs(a - b) for a, b in zip(*errors, strict=False)]
    return max(filter(math.isfinite, apart), default=0.0)


def spelled(run: RunRecord, names: Sequence[str] | None = None) -> list[tuple[str, ...]]:
    """A run's rows as the records spell them; unless named, the columns that two copies of a run share.

    Those are the ones that every file has, without the seconds: no two trainings take equally long. Two runs are equal
    where this text is, NaN included.
    """
    names = names or [name for name in metrics.REQUIRED if name not in metrics.TIME_COLUMNS]
    return [tuple(_spelled(name, getattr(row, name)) for name in names) for row in run.rows]


def _spelled(name: str, value: float | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    if name in metrics.TIME_COLUMNS:
        return f"{value:.3f}"
    return f"{value:.9g}" if "error_pct" in name else f"{value:.6g}"
