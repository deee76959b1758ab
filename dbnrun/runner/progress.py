"""What a training shows of its progress: a bar in a terminal, elsewhere a line an epoch, at most every 30 seconds."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from dbnrun.config.schema import RunConfig
from dbnrun.runner.status_table import shortened
from dbnrun.runs.checkpoint import Position
from dbnrun.runs.metrics import EpochRow

EVERY = 30.0  # seconds between two lines, where there is no terminal
FORMAT = "{desc} {percentage:3.0f}%|{bar}|{elapsed}<{remaining}{postfix}"
BESIDE = 47  # columns for what stands beside the name, a bar of some letters with it


class Progress:
    """The progress of one run, or of a stack of runs that train together, from a position on.

    `names` are the folders' names of all runs that are trained; the first stands for them.
    """

    def __init__(self, names: Sequence[str], config: RunConfig, steps: int, position: Position) -> None:
        self.name = names[0].rpartition("-")[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")
        self.config = config
        self.lines = config.progress and not sys.stderr.isatty()
        self.said = time.monotonic()
        self.bar = tqdm(
            total=config.train.epochs * steps,
            initial=position[0] * steps + position[1],
            desc=shortened(self.name, shutil.get_terminal_size().columns - BESIDE),
            bar_format=FORMAT,
            unit="step",
            leave=False,
            disable=None if config.progress else True,  # None: hidden where stderr is no terminal
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self) -> None:
        """One step more."""
        self.bar.update()

    def evaluating(self) -> None:
        """The epoch's last step is done."""
        self.bar.set_postfix_str("evaluating")

    def epoch(self, number: int, rows_by_run: Sequence[Sequence[EpochRow]]) -> None:
        """An epoch has ended, with the rows of each run."""
        said = shown(rows_by_run)
        self.bar.set_postfix_str(said)
        if self.lines and time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            line = f"{self.name}: epoch {number} of {self.config.train.epochs}, {said}"
            print(line, file=sys.stderr, flush=True)


def shown(rows_by_run: Sequence[Sequence[EpochRow]]) -> str:
    """An epoch in short: a run's loss and test error, or the range of several runs' losses."""
    rows = [rows[0] for rows in rows_by_run if rows]
    losses = [row.train_loss for row in rows]
    if len(rows_by_run) > 1:
        return f"loss={min(losses):.3f} to {max(losses):.3f}" if losses else ""
    error = rows[0].test_error_pct
    return f"loss={losses[0]:.3f}" + ("" if error is None else f", test={error:.2f}%")
