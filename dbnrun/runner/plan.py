"""Which cells a command asks for, and how each of them stands. Trains nothing and imports no torch."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode

from dbnrun import interrupt
from dbnrun.config import extensions, registry
from dbnrun.config.compose import Composer, loader_over
from dbnrun.config.identity import SETTINGS, cell_of, readable_name, signature
from dbnrun.config.overrides import TEXT, check_overrides, prepared, quoted
from dbnrun.config.registry import UserError, conf_dir
from dbnrun.config.schema import RunConfig, store_schema
from dbnrun.data import download
from dbnrun.runner.grouping import alone, trajectory
from dbnrun.runs import archive, layout, metrics
from dbnrun.runs.status import STATUSES, TO_TRAIN, RunStatus, status_of


def grid(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of the values that the overrides sweep over; of two for one key the later one counts."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep() and TEXT.fullmatch(f"{key}="):
            texts = (getattr(value, "text", value) for value in override.sweep_iterator())
            values[key] = [quoted(key, str(text)) for text in texts]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line}: expected values to sweep over, such as {key}=1,2,3 or range(1,4).")
    return [list(job) for job in itertools.product(*values.values())]


# Keys that are not swept over, and why.
NOT_SWEPT = {
    **{key: "it changes no result, so all its values are one run" for key in SETTINGS},
    "checkpoint.minutes": "it changes no result, so all its values are one run",
    "experiment": "each experiment is a sweep of its own",
}


@dataclass(frozen=True)
class PlannedCell:
    """A cell that a command asks for."""

    job: Sequence[str]  # the overrides that describe it
    config: RunConfig
    signature: str

    @functools.cached_property
    def cell(self) -> dict[str, Any]:
        """What decides its numbers."""
        return cell_of(self.config)

    @property
    def folder(self) -> Path:
        return layout.run_folder(Path(self.config.results_dir), self.cell, self.signature)

    @functools.cached_property
    def kind(self) -> tuple[str, ...]:
        """What decides how long an epoch takes, roughly."""
        names = self.config.dataset.name, self.config.model.slug, self.config.norm.name
        how = self.config.precision, str(self.config.train.batch_size)
        return *names, str(self.cell["norm"].get("train_stats")), *how

    def status(self) -> RunStatus:
        interrupt.check()
        return status_of(self.folder, self.config.dataset.name)


def planned(config: RunConfig, job: Sequence[str] = ()) -> PlannedCell:
    """A run config with its signature, and the words that make it."""
    return PlannedCell(job, config, signature(cell_of(config), config.dataset.digest_in(Path(config.data_dir))))


@dataclass(frozen=True)
class Plan:
    """The distinct cells of a command, and how many times one of them was named again."""

    cells: Sequence[PlannedCell]
    folded: int
    shares: bool = True  # whether the launcher trains once what can share a training run
    stacks: bool = False  # whether it trains several runs as one program


def plan(composer: Composer, params: Mapping[str, Any], overrides: Sequence[str]) -> Plan:
    """The cells that overrides ask for; they win over `params`, the sweep of an experiment file."""
    own = prepared([f"{key}={value}" for key, value in params.items()], sweep=True)
    parsed = OverridesParser.create(config_loader=composer.loader).parse_overrides([*own, *overrides])
    for override in parsed:
        if override.is_sweep_override() and override.key_or_group in NOT_SWEPT:
            raise UserError(f"{override.input_line}: expected one value; {NOT_SWEPT[override.key_or_group]}.")
    jobs = grid(parsed)
    if not jobs:
        empty = [o.input_line for o in parsed if o.is_sweep_override() and not list(o.sweep_string_iterator())]
        raise UserError(f"{', '.join(map(str, empty))}: matches nothing; expected at least one value.")
    taken = [composer.taken(job) for job in jobs]
    idle = {line for job in jobs for line in job}.difference(*taken)
    cells: dict[str, PlannedCell] = {}
    for job, kept in zip(jobs, taken, strict=True):
        lines = [line for line in job if line in kept or line in idle]  # what no run takes is refused
        cell = planned(composer(lines), lines)
        cells.setdefault(cell.signature, cell)
    launcher = composer.master.hydra.launcher
    shares = str(launcher.get("_target_", "")).endswith("FusedLauncher")
    return Plan(list(cells.values()), len(jobs) - len(cells), shares, launcher.get("max_stack", 1) != 1)


def statuses(cells: Sequence[PlannedCell]) -> list[RunStatus]:
    """Each cell's status in a sweep, after skip_recorded and retry."""
    skips = bool(cells) and cells[0].config.skip_recorded
    there = archive.signatures(Path(cells[0].config.results_dir) / "records") if skips else set()
    found = [cell.status() for cell in cells]
    return [_asked_for(cell, how, there) for cell, how in zip(cells, found, strict=True)]


def _asked_for(cell: PlannedCell, how: RunStatus, there: Set[str]) -> RunStatus:
    if how.name in layout.FINISHED and how.name != cell.config.retry:
        return RunStatus("forced", how.name) if cell.config.force else how
    if cell.signature in there:
        return RunStatus("recorded")
    return RunStatus("left", how.name) if cell.config.retry and how.name != cell.config.retry else how


TIMED = ("done", "running", "unfinished")  # runs whose epochs tell how long the others take
ENOUGH = 5  # of a kind


@dataclass(frozen=True)
class Estimate:
    """Sequential time for the cells to train, how many those are, in how many training runs, how many are unknown."""

    seconds: float
    cells: int
    trainings: int
    unknown: int


Statuses = Sequence[tuple[PlannedCell, RunStatus]]


def time_left(cells: Statuses, shares: bool = True) -> Estimate:
    """Epochs left, times the median epoch time of a few cells of the same kind that have finished an epoch.

    Of a kind are cells of one data set, network, normalizer, precision and batch size. Cells that share a training run
    train once, and each is evaluated.
    """
    costs = _costs(cells)
    trainings: dict[str, float] = {}  # the longest of those that share a run
    seconds, number, unknown = 0.0, 0, 0
    for cell, how in cells:
        if how.name not in (*TO_TRAIN, cell.config.retry):
            continue
        done = len(metrics.read_rows(cell.folder / "metrics.csv")) if how.name in ("unfinished", "failed") else 0
        left, known = cell.config.train.epochs - done, costs[cell.kind]
        number, unknown = number + 1, unknown + (not known)
        train, evaluate = map(statistics.median, zip(*known, strict=True)) if known else (0.0, 0.0)
        run = trajectory(cell.config) if shares and cell.config.norm.shares_runs else cell.signature
        trainings[run] = max(trainings.get(run, 0.0), left * train)
        seconds += left * evaluate
    return Estimate(seconds + sum(trainings.values()), number, len(trainings), unknown)


def _costs(cells: Statuses) -> dict[tuple[str, ...], list[tuple[float, float]]]:
    """For each kind, what an epoch of a few cells took: to train a run, and to evaluate one cell of it [s]."""
    costs: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for cell, how in cells:
        known = costs.setdefault(cell.kind, [])
        on_disk = how.detail if how.name in ("forced", "left") else how.name
        if on_disk in TIMED and len(known) < ENOUGH:
            rows = metrics.read_rows(cell.folder / "metrics.csv")
            manifest = layout.read_manifest(cell.folder)
            sharing = manifest.get("together", 1) / manifest.get("stacked", 1)  # cells a run; each has its share
            train, evaluate = ([getattr(row, name) for row in rows] for name in metrics.TIME_COLUMNS)
            known += [(sharing * statistics.fmean(train), statistics.fmean(evaluate))] if rows else []
    return costs


def in_records(cells: Statuses) -> int:
    """How many of the cells to train the committed records hold, where they can be read."""
    wanted = [cell for cell, how in cells if how.name in TO_TRAIN]
    if not wanted:
        return 0
    try:
        there = archive.signatures(Path(wanted[0].config.results_dir) / "records")
    except UserError:
        return 0
    return len(there & {cell.signature for cell in wanted})


def missing_data(cells: Sequence[PlannedCell]) -> list[str]:
    """The data sets that the cells need and that are not there, each with the first file that is missing."""
    wanted = {(cell.config.dataset.name, cell.config.data_dir) for cell in cells}
    lines = []
    for name, data_dir in sorted(wanted):
        if files := download.missing(registry.of("dataset")[name], Path(data_dir)):
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            lines.append(f"{name}: {files[0]}{more}; downloaded when a run needs it, or now with `dbnrun data {name}`")
    return lines


def as_json(asked: Plan, statuses: Sequence[RunStatus]) -> dict[str, Any]:
    """The whole plan as plain data."""
    pairs = list(zip(asked.cells, statuses, strict=True))
    left = time_left(pairs, asked.shares)
    return {
        "cells": [
            {
                "name": f"{readable_name(cell.cell)}-{cell.signature}",
                "folder": str(cell.folder),
                "overrides": list(cell.job),
                "standing": how.name,
                "detail": how.detail,
            }
            for cell, how in zip(asked.cells, statuses, strict=True)
        ],
        "counts": dict(Counter(how.name for how in statuses)),
        "duplicates_folded": asked.folded,
        "in_records": in_records(pairs),
        "training_runs": left.trainings,
        "missing_data": missing_data(asked.cells),
        "seconds_left": round(left.seconds, 1),
        "cells_without_estimate": left.unknown,
    }


def asked(arguments: Sequence[str], config_dir: str | None = None) -> Plan:
    """The plan of a whole command line, as `dbnrun -m` would sweep it. Raises what a refused command raises."""
    arguments = prepared(arguments, sweep=True)
    extensions.load(arguments)
    folders = extensions.folders(config_dir, arguments)
    check_overrides(arguments, folders)
    store_schema(folders)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = loader_over([config_dir] if config_dir else [])
        master = loader.load_configuration("config", list(arguments), RunMode.MULTIRUN)
        return plan(Composer(loader, master), master.hydra.sweeper.params or {}, list(master.hydra.overrides.task))


def duplicates(folded: int) -> str:
    """'2 duplicates left out', with the reason."""
    return f"{plural(folded, 'duplicate')} left out (given twice, or different only in settings without effect)"


def plural(number: int, thing: str) -> str:
    """'1 run', '2 runs'."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def lines(found: Plan, statuses: Sequence[RunStatus], everything: bool) -> Iterator[str]:
    """The plan for people: counts, the cells that are not done (all with `everything`), missing data, time left."""
    counts, pairs = Counter(how.name for how in statuses), list(zip(found.cells, statuses, strict=True))
    folded = f", {duplicates(found.folded)}" if found.folded else ""
    yield plural(len(found.cells), "run") + folded
    for name, meaning in STATUSES.items():
        if counts[name]:
            yield f"{counts[name]:7} {name:10}  {meaning}"
    shown = [(cell, how) for cell, how in pairs if everything or how.name not in QUIET]
    for cell, how in shown[: None if everything else MOST_SHOWN]:
        yield f"  {how.name:10}  {cell.folder.name}" + (f"  ({how.detail})" if how.detail else "")
    if not everything and len(shown) > MOST_SHOWN:
        yield f"  … and {len(shown) - MOST_SHOWN} more; --all lists every run"
    if recorded := in_records(pairs):
        are, them = ("is", "it") if recorded == 1 else ("are", "them")
        yield f"{plural(recorded, 'run')} to train {are} in the records: skip_recorded=true leaves {them} out"
    lone = sorted({choice for cell in found.cells for choice in alone(cell.config)})
    if found.stacks and lone:
        yield f"{', '.join(lone)}: these runs train one by one, because stacks do not support them"
    yield from (f"missing data  {line}" for line in missing_data(found.cells))
    yield from _time(time_left(pairs, found.shares))


def _time(left: Estimate) -> Iterator[str]:
    """How long the cells may take to train, and what cannot be said."""
    if left.trainings < left.cells:
        yield f"{left.cells} runs share {plural(left.trainings, 'training')}: they differ only in what evaluation uses"
    if left.seconds:
        yield f"about {duration(left.seconds)} to train, one after another, judging by finished epochs of the same kind"
    if left.unknown:
        yield f"no estimate for {plural(left.unknown, 'run')}: none of the same kind has finished an epoch"


QUIET = ("done", "forced", "recorded", "left", "new")  # statuses that need no line of their own
MOST_SHOWN = 30


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{int(hours)} h {int(minutes % 60)} min" if hours < 48 else f"{int(hours // 24)} d {int(hours % 24)} h"
