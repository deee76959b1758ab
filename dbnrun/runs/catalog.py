"""What runs a results folder holds: listed by filters, found by name, compared, removed. Only `remove` writes.

A run is listed from its manifest, its cell and the last lines of its rows: 10,000 of them in a second or two.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbnrun.config.filters import matcher, options
from dbnrun.config.registry import UserError
from dbnrun.runs import layout, metrics
from dbnrun.runs.load import folders, read_cell
from dbnrun.runs.lock import Held, leased
from dbnrun.runs.metrics import EpochRow
from dbnrun.runs.status import ON_DISK, RunStatus, status_of


@dataclass(frozen=True)
class Listed:
    """A run as a list shows it."""

    folder: Path
    cell: dict[str, Any]
    manifest: dict[str, Any]
    status: RunStatus

    @property
    def signature(self) -> str:
        return self.folder.name.rpartition("-")[2]

    @property
    def epochs(self) -> int:
        """How many it is to train."""
        return self.cell["train"]["epochs"]

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """What it is made of, by the keys of a command."""
        return options(self.cell)

    @functools.cached_property
    def reached(self) -> tuple[int, float | None]:
        """Its last recorded epoch (0: none) and the last test error [%]. Raises UserError at a damaged metrics.csv."""
        epoch = 0
        for row in metrics.newest_first(self.folder / "metrics.csv"):
            epoch = epoch or row.epoch
            if row.test_error_pct is not None:
                return epoch, row.test_error_pct
        return epoch, None


def read(folder: Path) -> Listed:
    """A run's folder as a list shows it. Raises UserError where it holds no run of ours, or cannot be read."""
    try:
        cell = read_cell(folder)
        dataset, _ = cell["dataset"]["name"], int(cell["train"]["epochs"])
    except Exception as error:  # whatever a damaged file makes of it
        raise UserError(f"{folder / 'config.yaml'}: not a run of dbnrun ({type(error).__name__}).") from None
    manifest = layout.read_manifest(folder)
    return Listed(folder, cell, manifest, status_of(folder, dataset, manifest))


def select(results_dir: Path, words: Sequence[str]) -> tuple[list[Listed], list[UserError]]:
    """The runs that `words` choose, filters (config/filters.py, and status=) or runs by name; and what cannot be read.

    All filters must hold; of several runs that are named, each counts. Without words all runs.
    """
    filters = [word for word in words if "=" in word]
    passes = matcher(filters, status=ON_DISK)
    named = [find(results_dir, word) for word in words if "=" not in word]
    found, unreadable = [], []
    for folder in named or folders([results_dir]):
        try:
            run = read(folder)
            if passes({**run.cell, "status": run.status.name}):
                found.append(run)
        except UserError as error:
            unreadable.append(error)
    return found, unreadable


def find(results_dir: Path, run: str | Path) -> Path:
    """The folder of a run: a path, a name, a signature, or how one of these two begins. Raises UserError otherwise."""
    if (Path(run) / "config.yaml").is_file():
        return Path(run)
    word = str(run)
    known = folders([results_dir])
    exact = [folder for folder in known if word in (folder.name, folder.name.rpartition("-")[2])]
    by_signature = [folder for folder in known if folder.name.rpartition("-")[2].startswith(word)]
    found = exact or by_signature or [folder for folder in known if folder.name.startswith(word)]
    if not found:
        raise UserError(
            f"{word}: no run of that name or signature in {results_dir}; `dbnrun runs ls` lists them, and "
            "results_dir=… names another folder."
        )
    if len(found) > 1:
        some = ", ".join(folder.name for folder in found[:3])
        raise UserError(f"{word}: {len(found)} runs begin so, such as {some}; expected one run.")
    return found[0]


def first_difference(a: Sequence[EpochRow], b: Sequence[EpochRow]) -> tuple[int, list[str]] | None:
    """The first epoch in which two runs differ, and in which columns; None where the rows that both have are equal.

    Seconds are no part of it: no two trainings take equally long.
    """
    names = [name for name in metrics.COLUMNS if name not in metrics.TIME_COLUMNS]
    for one, other in zip(a, b, strict=False):
        # as text, for NaN is not equal to itself
        if differing := [name for name in names if repr(getattr(one, name)) != repr(getattr(other, name))]:
            return one.epoch, differing
    return None


def remove(folder: Path, results_dir: Path) -> str:
    """Remove a run's folder; returns '', or why it stays: it is none of results_dir/runs, or a process trains it.

    The manifest goes first and config.yaml last: killed in between, it leaves a run without records, still listed.
    """
    ours = folder.parent.resolve() == (results_dir / "runs").resolve() and re.search("-[0-9a-f]{8}$", folder.name)
    if not ours or folder.is_symlink():
        return f"it is no folder that a run has made in {results_dir / 'runs'}"
    try:
        with leased(folder):
            last = [folder / "config.yaml", folder / "lock"]
            first = folder / "manifest.json"
            for path in [first, *(path for path in folder.iterdir() if path not in (first, *last)), last[0]]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
    except Held as held:
        return f"{held} trains it"
    except OSError as error:
        return str(error.strerror)
    with contextlib.suppress(OSError):  # another process has begun the same cell anew
        folder.rmdir()
    return ""
