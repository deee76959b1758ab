"""How the runs in a results folder stand, at a glance: read off their files, writing nothing. Imports no torch.

For what is under way: who trains what, how long that takes. What runs there are, in all, is `runs_table`.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dbnrun.config.registry import UserError
from dbnrun.runner.plan import duration
from dbnrun.runs.load import RunRecord, folders, read_run
from dbnrun.runs.status import ON_DISK, STATUSES, RunStatus, status_of

HEAD = ("status", "epochs", "error", "an epoch", "left", "run", "")
RECENT = 10  # finished runs that are listed unless all are asked for: those that ended last


def table(paths: Sequence[Path], everything: bool, width: int | None = None) -> Iterator[str]:
    """A line for each run that is not done, and for the last that are (or all), in columns, and how many stand how.

    With a `width` no line is longer. Raises UserError where a path holds no run.
    """
    statuses = _statuses(paths)
    done = sorted((folder for folder, how in statuses.items() if how.name == "done"), key=_ended, reverse=True)
    left_out = set() if everything else set(done[RECENT:])
    lines = [_line(standing(folder, how)) for folder, how in statuses.items() if folder not in left_out]
    lines.sort(key=lambda line: (ON_DISK.index(line[0]), line[5]))
    yield from fitted([HEAD, *lines], width) if width else aligned([HEAD, *lines])
    hint = f" ({len(left_out)} finished ones not listed: --all)" if left_out else ""
    yield (counted(statuses.values()) + hint)[:width]


def _statuses(paths: Sequence[Path]) -> dict[Path, RunStatus]:
    for path in paths:
        if not folders([path]):
            raise UserError(f"{path}: it holds no runs; expected a results folder, such as that of results_dir=….")
    # The folder's name begins with its data set's.
    return {folder: status_of(folder, folder.name.partition("-")[0]) for folder in folders(paths)}


def _ended(folder: Path) -> float:
    try:
        return (folder / "manifest.json").stat().st_mtime
    except OSError:  # removed in between
        return 0.0


def as_json(paths: Sequence[Path]) -> dict[str, Any]:
    """Every run, and how many stand how, as plain data. Raises UserError where a path holds no run."""
    statuses = _statuses(paths)
    counts = Counter(how.name for how in statuses.values())
    return {"runs": [standing(folder, how) for folder, how in statuses.items()], "counts": dict(counts)}


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of words as columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def fitted(lines: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """The same, no line longer than `width`: a name loses its beginning, and details have a line of their own."""
    columns = list(aligned([line[:-2] for line in lines]))
    before = max(map(len, columns)) + 2
    room = max(width - before, 12)
    for column, (*_, name, detail) in zip(columns, lines, strict=True):
        yield column.ljust(before) + shortened(name, room)
        if detail:
            yield f"    {detail}"[:width]


def shortened(name: str, room: int) -> str:
    """A name in so many letters; it loses its beginning, because its end tells it from others."""
    return name if len(name) <= room else "…" + name[1 - room :]


def counted(statuses: Iterable[RunStatus]) -> str:
    """How many runs stand how: '3 done, 1 failed'."""
    counts = Counter(how.name for how in statuses)
    return ", ".join(f"{counts[name]} {name}" for name in STATUSES if counts[name])


def standing(folder: Path, how: RunStatus) -> dict[str, Any]:
    """How a run stands, as plain data; a damaged or foreign folder shows as failed, with the reason."""
    try:
        run = read_run(folder)
    except UserError as error:
        return {"name": folder.name, "folder": str(folder), "status": "failed", "detail": str(error), "epoch": 0}
    epochs, took = run.cell["train"]["epochs"], epoch_seconds(run)
    errors = [row.test_error_pct for row in run.rows if row.test_error_pct is not None]
    error = errors[-1] if errors and math.isfinite(errors[-1]) else None  # JSON has no NaN
    under_way = how.name in ("running", "unfinished") and took is not None
    return {
        "name": folder.name,
        "folder": str(folder),
        "status": how.name,
        "detail": how.detail,
        "epoch": len(run.rows),
        "epochs": epochs,
        "test_error_pct": error,
        "seconds_per_epoch": took,
        "seconds_left": (epochs - len(run.rows)) * took if under_way else None,
    }


def _line(run: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands under HEAD for a run."""
    error, took, left = (run.get(key) for key in ("test_error_pct", "seconds_per_epoch", "seconds_left"))
    return (
        run["status"],
        f"{run['epoch']}/{run.get('epochs', '?')}",
        "" if error is None else f"{error:.2f} %",
        "" if took is None else f"{took:.1f} s",
        "" if left is None else duration(left),
        run["name"],
        run["detail"],
    )


def epoch_seconds(run: RunRecord) -> float | None:
    """Mean wall time of a recent epoch [s], evaluation included, of all cells that train together."""
    last = run.rows[-max(3, run.cell["train"].get("eval_every", 1)) :]
    if not last:
        return None
    return run.manifest.get("together", 1) * sum(row.train_seconds + row.eval_seconds for row in last) / len(last)


def watch(paths: Sequence[Path], everything: bool, every: float, wait: Callable[[float], object] = time.sleep) -> None:
    """Print the table anew every so many seconds, as wide as the terminal (80 columns without), until interrupted."""
    try:
        while True:
            lines = list(table(paths, everything, shutil.get_terminal_size().columns))
            clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
            print(clear + time.strftime("%H:%M:%S") + "\n" + "\n".join(lines), flush=True)
            wait(every)
    except KeyboardInterrupt:
        pass
