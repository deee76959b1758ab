"""How the runs in a results folder stand, at a glance: read off their files, writing nothing. Imports no torch.

For what is under way: who trains what, how long that takes. What runs there are, in all, is `runs_table`.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dbnrun.config.registry import UserError
from dbnrun.runner.plan import duration
from dbnrun.runs.load import RunRecord, folders, read_run
from dbnrun.runs.status import ON_DISK, STATUSES, RunStatus, status_of

HEAD = ("status", "epochs", "test error", "an epoch", "left", "run", "")


def table(paths: Sequence[Path], everything: bool) -> Iterator[str]:
    """A line for each run that is not done (or for all), in columns, and how many stand how.

    Raises UserError where a path holds no run.
    """
    for path in paths:
        if not folders([path]):
            raise UserError(f"{path}: no runs there; expected a results folder, such as the one of results_dir=….")
    # The folder's name begins with its data set's.
    statuses = {folder: status_of(folder, folder.name.partition("-")[0]) for folder in folders(paths)}
    shown = [_line(folder, how) for folder, how in statuses.items() if everything or how.name != "done"]
    lines = [HEAD, *sorted(shown, key=lambda line: (ON_DISK.index(line[0]), line[5]))] if shown else []
    yield from aligned(lines)
    yield counted(statuses.values())


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of words as columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def counted(statuses: Iterable[RunStatus]) -> str:
    """How many runs stand how: '3 done, 1 failed'."""
    counts = Counter(how.name for how in statuses)
    return ", ".join(f"{counts[name]} {name}" for name in STATUSES if counts[name])


def _line(folder: Path, how: RunStatus) -> tuple[str, ...]:
    """What stands under HEAD for a run; a damaged or foreign folder shows as failed, with the reason."""
    try:
        run = read_run(folder)
    except UserError as error:
        return "failed", "0/?", "", "", "", folder.name, str(error)
    epochs, took = run.cell["train"]["epochs"], epoch_seconds(run)
    errors = [f"{row.test_error_pct:.2f} %" for row in run.rows if row.test_error_pct is not None]
    left = "" if took is None else duration((epochs - len(run.rows)) * took)
    return (
        how.name,
        f"{len(run.rows)}/{epochs}",
        errors[-1] if errors else "",
        "" if took is None else f"{took:.1f} s",
        left if how.name in ("running", "unfinished") else "",
        folder.name,
        how.detail,
    )


def epoch_seconds(run: RunRecord) -> float | None:
    """Mean wall time of a recent epoch [s], evaluation included, of all cells that train together."""
    last = run.rows[-max(3, run.cell["train"].get("eval_every", 1)) :]
    if not last:
        return None
    return run.manifest.get("together", 1) * sum(row.train_seconds + row.eval_seconds for row in last) / len(last)


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
