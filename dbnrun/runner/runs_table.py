"""The verb `dbnrun runs`: what runs there are, one of them, two side by side, their export and their removal.

Only the export to TensorBoard imports torch. `dbnrun status` is for what is under way: progress, time left, holder.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dbnrun.config.differences import differing, said
from dbnrun.config.filters import options, why_none
from dbnrun.config.registry import UserError
from dbnrun.runner.plan import duration, plural
from dbnrun.runner.status_table import aligned, counted, shortened
from dbnrun.runs import catalog, live, metrics
from dbnrun.runs.catalog import Listed
from dbnrun.runs.load import RunRecord, read_run, readable
from dbnrun.runs.status import ON_DISK

WIDTH = 100  # characters that a line of `ls` has at most, unless settings are long
NAME = 24  # characters that the end of a name keeps: its seed and signature
HEAD = ("status", "epochs", "test error", "age", "run")
MADE_BY = ("git", "host", "device", "device_name", "threads", "compile", "deterministic", "data_digest")


def table(runs: Sequence[Listed]) -> Iterator[str]:
    """A line per run, in columns, and how many runs have each status."""
    *columns, names = zip(HEAD, *map(_line, runs), strict=True)
    settings = _settings(runs)
    after = [("settings", *settings)] if any(settings) else []
    room = max(NAME, WIDTH - sum(max(map(len, column)) + 2 for column in (*columns, *after)))
    names = [shortened(name, room) for name in names]
    yield from aligned(list(zip(*columns, names, *after, strict=True)))
    yield counted(run.status for run in runs)


def why_empty(where: Path, words: Sequence[str]) -> str:
    """What the runs in a results folder have of a filter that none of them passes."""
    every, _ = catalog.select(where, [])
    cells = [{**run.cell, "status": run.status.name} for run in every]
    return why_none(cells, words, status=ON_DISK) if cells else f"no runs in {where}"


def _line(run: Listed) -> tuple[str, ...]:
    try:
        epoch, error = run.reached
    except UserError:
        return run.status.name, f"?/{run.epochs}", "unreadable", _age(run), run.folder.name
    shown = "" if error is None else f"{error:.2f} %"
    return run.status.name, f"{epoch}/{run.epochs}", shown, _age(run), run.folder.name


def _settings(runs: Sequence[Listed]) -> list[str]:
    """What tells each run from those whose names differ from its own in the seed and the signature alone."""
    stems = [re.sub("-seed[0-9]+-[0-9a-f]{8}$", "", run.folder.name) for run in runs]
    alike: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for stem, run in zip(stems, runs, strict=True):
        alike[stem].append(run.options)
    keys = {stem: differing(group) for stem, group in alike.items()}
    return [
        ", ".join(said(key, run.options) for key in keys[stem] if key in run.options)
        for stem, run in zip(stems, runs, strict=True)
    ]


def _age(run: Listed) -> str:
    """How long ago something was recorded of a run last."""
    try:
        updated = datetime.fromisoformat(run.manifest["updated"]).timestamp()
    except (LookupError, TypeError, ValueError):
        return ""
    return duration(max(0.0, time.time() - updated))


def as_json(run: Listed) -> dict[str, Any]:
    """A run as plain data."""
    epoch, error = run.reached
    return {
        "name": run.folder.name,
        "folder": str(run.folder),
        "signature": run.signature,
        "status": run.status.name,
        "detail": run.status.detail,
        "epoch": epoch,
        "epochs": run.epochs,
        "test_error_pct": error if error is None or math.isfinite(error) else None,
        "updated": run.manifest.get("updated"),
        "options": run.options,
    }


def shown(folder: Path) -> Iterator[str]:
    """A run in full: how it stands, its options, its last epoch, what made it, and its files."""
    run, listed = read_run(folder), catalog.read(folder)
    status = listed.status
    yield f"{folder.name}: {status.name}" + (f" ({status.detail})" if status.detail else "")
    yield f"{len(run.rows)} of {listed.epochs} epochs, {_took(run.manifest)}, in {folder}"
    yield from _part("configuration", listed.options)
    if run.rows:
        yield from _part("last epoch", {name: getattr(run.rows[-1], name) for name in metrics.COLUMNS})
    yield from _part("made by", _made_by(run))
    command = shlex.join(map(str, run.manifest.get("command", [])))
    yield from textwrap.wrap(f"  command: {command}", WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    yield from _part("files", {path.name: _size(path) for path in sorted(folder.iterdir())})


def _took(manifest: Mapping[str, Any]) -> str:
    seconds = manifest.get("wall_seconds")
    return f"{duration(seconds)} in all" if isinstance(seconds, int | float) else "of unknown duration"


def _part(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield title
    yield from aligned([("", key, _text(value)) for key, value in values.items()])


def _text(value: Any) -> str:
    """A value as a command would have it; '-' for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _size(path: Path) -> str:
    return "folder" if path.is_dir() else f"{path.stat().st_size / 1000:.1f} kB"


def _made_by(run: RunRecord) -> dict[str, Any]:
    """Versions, and what else of a run's manifest tells where its numbers come from."""
    versions = run.manifest.get("versions")
    found = dict(versions) if isinstance(versions, Mapping) else {}
    return found | {key: run.manifest.get(key) for key in MADE_BY}


def differences(a: Path, b: Path) -> Iterator[str]:
    """Two runs side by side: options and versions that differ, the last epoch of both, and the first that differs."""
    one, other = read_run(a), read_run(b)
    yield f"A  {a.name}: {one.status}"
    yield f"B  {b.name}: {other.status}"
    yield from _differing("configuration", options(one.cell), options(other.cell))
    yield from _differing("made by", _made_by(one), _made_by(other))
    both = min(len(one.rows), len(other.rows))
    if not both:
        yield "\nboth have recorded no common epoch"
        return
    yield f"\nepoch {one.rows[both - 1].epoch}, the last of both"
    rows = [vars(run.rows[both - 1]) for run in (one, other)]
    lines = [(name, *_side_by_side(rows[0][name], rows[1][name])) for name in metrics.COLUMNS]
    yield from aligned([("", "", "A", "B", "B - A"), *(("", *line) for line in lines)])
    yield ""
    first = catalog.first_difference(one.rows, other.rows)
    if first is None:
        yield f"the rows of {plural(both, 'epoch')} are equal, except for the seconds"
    else:
        yield from textwrap.wrap(f"first epoch that differs: {first[0]} ({', '.join(first[1])})", WIDTH)


def _differing(title: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
    yield ""
    if keys:
        yield title
        yield from aligned(
            [("", "", "A", "B"), *(("", key, _text(one.get(key)), _text(other.get(key))) for key in keys)]
        )
    else:
        yield f"{title}: the same"


def _side_by_side(a: float | None, b: float | None) -> tuple[str, str, str]:
    return _text(a), _text(b), "" if a is None or b is None else f"{b - a:+.3g}"


def _apart(runs: Sequence[Listed]) -> tuple[list[Listed], list[str]]:
    """The runs that no process trains, and the others' names with who does."""
    busy = [run for run in runs if run.status.name == "running"]
    return [run for run in runs if run not in busy], [
        f"{run.folder.name} ({run.status.detail} trains it)" for run in busy
    ]


def exported(runs: Sequence[Listed], to: str) -> Iterator[str]:
    """Show recorded runs in a logger; one that trains shows itself. Raises UserError where the logger fails."""
    idle, trained = _apart(runs)
    yield from (f"left out: {name}" for name in trained)
    count = 0
    for run in readable(read_run, [run.folder for run in idle]):
        if run.rows:
            live.show(to, run.folder, run.signature, run.cell, run.rows, run.status)
            count += 1
    yield f"{plural(count, 'run')} exported to {to}"


def remove(results_dir: Path, runs: Sequence[Listed], sure: bool) -> Iterator[str]:
    """Remove runs, after asking unless `sure`; what a process trains stays. Records are no runs, and stay too."""
    idle, trained = _apart(runs)
    yield from (f"kept: {name}" for name in trained)
    if not idle:
        yield "nothing to remove"
        return
    if not sure:
        yield from table(idle)
        if not sys.stdin.isatty():
            raise UserError(
                f"runs rm: it asks before it removes {plural(len(idle), 'run')}, which needs a terminal; or add --yes."
            )
        if input(f"Remove {plural(len(idle), 'run')} with all files? [y/N] ").strip().lower() not in ("y", "yes"):
            yield "nothing removed"
            return
    stayed = {run.folder.name: why for run in idle if (why := catalog.remove(run.folder, results_dir))}
    yield from (f"kept: {name} ({why})" for name, why in stayed.items())
    yield f"{plural(len(idle) - len(stayed), 'run')} removed"
