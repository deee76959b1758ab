"""How the runs in a results folder stand, at a glance: read off their files, writing nothing. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dbnrun.config.registry import UserError
from dbnrun.runs import layout, metrics
from dbnrun.runs.metrics import EpochRow
from dbnrun.runs.status import STATUSES, RunStatus, duration, status_of

ORDER = ("running", "failed", "unfinished", "stale", "diverged", "done", "new")
HEAD = ("status", "epochs", "test error", "an epoch", "left", "run", "")


@dataclass(frozen=True)
class Run:
    """A run's folder and what its files say."""

    folder: Path
    status: RunStatus
    rows: Sequence[EpochRow]
    epochs: int | None  # asked for
    together: int = 1  # cells that share the wall clock, along one run or stacked
    eval_every: int = 1

    @property
    def epoch_seconds(self) -> float | None:
        """The wall clock of its last epochs, evaluation included, of all cells that train together."""
        last = self.rows[-max(3, self.eval_every) :]
        if not last:
            return None
        return self.together * sum(row.train_seconds + row.eval_seconds for row in last) / len(last)

    @property
    def seconds_left(self) -> float | None:
        if self.status.name not in ("running", "unfinished") or not self.epochs or self.epoch_seconds is None:
            return None
        return (self.epochs - len(self.rows)) * self.epoch_seconds


def folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders in results folders, or given themselves. Raises UserError where a path holds none."""
    found: list[Path] = []
    for path in paths:
        runs = path / "runs" if (path / "runs").is_dir() else path
        here = [path] if (path / "config.yaml").is_file() else sorted(runs.glob("*/config.yaml"))
        if not here:
            raise UserError(f"{path}: no runs there; expected a results folder, such as the one of results_dir=….")
        found += [config.parent if config.is_file() else config for config in here]
    return list(dict.fromkeys(found))


def read(folder: Path) -> Run:
    """A run as it stands; a torn or foreign file shows as its failure, not ours."""
    try:
        how = _status(folder)
        rows = metrics.read_rows(folder / "metrics.csv")
        cell = OmegaConf.load(folder / "config.yaml")
        epochs = OmegaConf.select(cell, "train.epochs")
        eval_every = int(OmegaConf.select(cell, "train.eval_every") or 1)
        together = int(layout.read_manifest(folder).get("together", 1))
    except (UserError, OSError, OmegaConfBaseException, YAMLError, KeyError, TypeError, ValueError) as error:
        told = str(error).strip().splitlines()
        return Run(folder, RunStatus("failed", told[0] if told else type(error).__name__), [], None)
    return Run(folder, how, rows, epochs, together, eval_every)


def _status(folder: Path) -> RunStatus:
    # The folder's name begins with its data set's; a foreign one is judged as the others are.
    dataset = folder.name.partition("-")[0]
    return status_of(folder, dataset if dataset in layout.RESULTS_VERSIONS else "digits")


def table(paths: Sequence[Path], everything: bool) -> Iterator[str]:
    """A line for each run that is not done (or for all), in columns, and how many stand how."""
    statuses = {folder: _status(folder) for folder in folders(paths)}
    shown = [folder for folder, how in statuses.items() if everything or how.name != "done"]
    runs = sorted(map(read, shown), key=lambda run: (ORDER.index(run.status.name), run.folder.name))
    cells = [HEAD, *map(_cells, runs)] if runs else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
    counts = Counter(how.name for how in statuses.values())
    yield ", ".join(f"{counts[name]} {name}" for name in STATUSES if counts[name])


def _cells(run: Run) -> tuple[str, ...]:
    errors = [f"{row.test_error_pct:.2f} %" for row in run.rows if row.test_error_pct is not None]
    took, left = run.epoch_seconds, run.seconds_left
    return (
        run.status.name,
        f"{len(run.rows)}/{run.epochs or '?'}",
        errors[-1] if errors else "",
        "" if took is None else f"{took:.1f} s",
        "" if left is None else duration(left),
        run.folder.name,
        run.status.detail,
    )


def watch(paths: Sequence[Path], everything: bool, every: float, wait: Callable[[float], object] = time.sleep) -> None:
    """Print the table anew every so many seconds, until interrupted."""
    try:
        while True:
            lines = list(table(paths, everything))
            clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
            print(clear + time.strftime("%H:%M:%S") + "\n" + "\n".join(lines), flush=True)
            wait(every)
    except KeyboardInterrupt:
        pass
