"""Which cells a command asks for, and how each of them stands. Trains nothing and imports no torch."""

from __future__ import annotations

import copy
import functools
import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from dbnrun import interrupt, lease, recorded, records
from dbnrun.choices import UserError, conf_dir, files, of
from dbnrun.config import SETTINGS, RunConfig, cell_of, checked, readable_name, signature, store_schema
from dbnrun.data import download, expected_digest
from dbnrun.overrides import check_overrides

# How a cell can stand, in the order in which `dbnrun plan` counts them.
STANDINGS = {
    "done": "trained to its end",
    "diverged": "ended with a loss that is not finite; retry=diverged trains it again",
    "recorded": "in the committed records, and skip_recorded=true leaves it out",
    "running": "a live process trains it",
    "unfinished": "goes on from its last checkpoint",
    "failed": "raised an error; tried again when asked for",
    "left": "not of those that retry= asks for",
    "stale": "recorded by code whose numbers differ from this one's; trained again, the old records kept aside",
    "new": "nothing is recorded",
}
LEFT = ("unfinished", "failed", "stale", "new")  # what a sweep would train; retry=diverged adds those


SEED = re.compile(r"seed=([0-9]{1,19})")  # an override by a plain number
MAY_REFER_TO_SEED = re.compile(r"\$\{[^}]*(\bseed\b|\$\{)")  # in an interpolation, or put together by a nested one


class Composer:
    """Composes cells as Hydra does, each combination of group choices once; other values are merged into a copy.

    Cells that differ in their seed alone are merged and checked once, unless another value may refer to the seed.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master
        self.parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._twins: dict[tuple[str, ...], RunConfig] = {}  # by a job's overrides but for its seed

    def __call__(self, job: Sequence[str]) -> RunConfig:
        """The checked configuration of the cell that `job` describes by overrides of one value each."""
        interrupt.check()
        seeds = [match[1] for line in job if (match := SEED.fullmatch(line))]
        if len(seeds) != 1:
            return checked(self._merged(job))
        others = tuple(line for line in job if not SEED.fullmatch(line))
        if others in self._twins:
            return replace(self._twins[others], seed=int(seeds[0]))
        merged = self._merged(job)
        config = checked(merged)
        if not MAY_REFER_TO_SEED.search(str(OmegaConf.to_container(merged))):
            self._twins[others] = config
        return config

    def _merged(self, job: Sequence[str]) -> DictConfig:
        """The configuration of the cell that `job` describes, not yet checked."""
        overrides = [self._parse(line) for line in job]
        choices = tuple(str(override.input_line) for override in overrides if self._needs_hydra(override))
        config = copy.deepcopy(self._base(choices))
        ConfigLoaderImpl._apply_overrides_to_config([o for o in overrides if not self._needs_hydra(o)], config)
        return config

    def _needs_hydra(self, override: Override) -> bool:
        """Whether an override chooses files, or adds a key, and so is not a mere value."""
        return override.key_or_group in self.groups or override.is_add() or override.is_force_add()

    def _parse(self, line: str) -> Override:
        if line not in self._parsed:
            self._parsed[line] = self.parser.parse_overrides([line])[0]
        return self._parsed[line]

    def _base(self, choices: tuple[str, ...]) -> DictConfig:
        if choices not in self._composed:
            config = self.loader.load_sweep_config(self.master, list(choices))
            with open_dict(config):
                del config["hydra"]
            self._composed[choices] = config
        return self._composed[choices]

    @functools.cached_property
    def groups(self) -> frozenset[str]:
        return frozenset(files())


def grid(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination of the values that the overrides sweep over; of two for one key the later one counts."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line}: expected values to sweep over, such as {key}=1,2,3 or range(1,4).")
    return [list(job) for job in itertools.product(*values.values())]


# Keys that are not swept over, and why.
NOT_SWEPT = {
    **{key: "it changes no number, so all its values are one cell" for key in SETTINGS},
    "checkpoint.minutes": "it changes no number, so all its values are one cell",
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
        return records.run_folder(Path(self.config.results_dir), self.cell, self.signature)

    @functools.cached_property
    def kind(self) -> tuple[str, ...]:
        return recorded.kind_of(self.cell)

    def standing(self) -> Standing:
        interrupt.check()
        return standing(self.folder, self.config.dataset.name)


@dataclass(frozen=True)
class Plan:
    """The distinct cells of a command, and how many times one of them was named again."""

    cells: Sequence[PlannedCell]
    folded: int


def plan(composer: Composer, params: Mapping[str, Any], overrides: Sequence[str]) -> Plan:
    """The cells that overrides ask for; `params` are those that an experiment file sweeps, and the command's win."""
    own = [f"{key}={value}" for key, value in params.items()]
    parsed = OverridesParser.create(config_loader=composer.loader).parse_overrides([*own, *overrides])
    for override in parsed:
        if override.is_sweep_override() and override.key_or_group in NOT_SWEPT:
            raise UserError(f"{override.input_line}: expected one value; {NOT_SWEPT[override.key_or_group]}.")
    jobs = grid(parsed)
    if not jobs:
        empty = [o.input_line for o in parsed if o.is_sweep_override() and not list(o.sweep_string_iterator())]
        raise UserError(f"{', '.join(map(str, empty))}: matches nothing; expected at least one value.")
    cells: dict[str, PlannedCell] = {}
    for job in jobs:
        config = composer(job)
        sig = signature(cell_of(config), expected_digest(config.dataset.name))
        cells.setdefault(sig, PlannedCell(job, config, sig))
    return Plan(list(cells.values()), len(jobs) - len(cells))


@dataclass(frozen=True)
class Standing:
    """How a cell's folder stands: one of STANDINGS, and in words who holds it or what went wrong."""

    name: str
    detail: str = ""


def standing(folder: Path, dataset: str) -> Standing:
    """Read off the folder of a cell on a data set how it stands, changing nothing."""
    manifest = records.read_manifest(folder)
    holder = lease.look(folder)
    if holder is not None:
        return Standing("running", str(holder))
    if records.is_stale(manifest, dataset):
        return Standing("stale", f"by results version {manifest.get('results_version', 1)}")
    status = str(manifest.get("status", "new"))
    lost = status in records.FINISHED and not (folder / "metrics.csv").is_file()
    if lost or status in ("running", "interrupted"):  # a holder that is dead could not say so itself
        return Standing("unfinished", "its metrics.csv is gone" if lost else "")
    details = {"failed": str(manifest.get("error", "")), "diverged": records.divergence(manifest)}
    return Standing(status if status in STANDINGS else "new", details.get(status, ""))


def standings(cells: Sequence[PlannedCell]) -> list[Standing]:
    """How each cell stands for a sweep that asks for it, skip_recorded and retry included."""
    skips = bool(cells) and cells[0].config.skip_recorded
    there = recorded.signatures(Path(cells[0].config.results_dir)) if skips else set()
    found = [cell.standing() for cell in cells]
    return [_asked_for(cell, how, there) for cell, how in zip(cells, found, strict=True)]


def _asked_for(cell: PlannedCell, how: Standing, there: Set[str]) -> Standing:
    if how.name in records.FINISHED and how.name != cell.config.retry:
        return how
    if cell.signature in there:
        return Standing("recorded")
    return Standing("left", how.name) if cell.config.retry and how.name != cell.config.retry else how


@dataclass(frozen=True)
class Estimate:
    """The time that the unfinished cells need one after another."""

    seconds: float
    here: int  # cells whose time is judged by finished ones here
    elsewhere: int  # cells whose time is that of recorded runs, for want of finished ones
    unknown: int  # cells whose time nothing tells


def time_left(cells: Sequence[tuple[PlannedCell, Standing]]) -> Estimate:
    """What is left to train, at what finished cells of its data set, network and normalizer cost an epoch.

    That is their share of a shared run; a few are read, and their median taken. Where none is finished, what the
    committed records say that it took.
    """
    costs: dict[tuple[str, ...], list[float]] = {}
    for cell, how in cells:
        known = costs.setdefault(cell.kind, [])
        if how.name == "done" and len(known) < recorded.ENOUGH:
            rows = records.read_rows(cell.folder / "metrics.csv")
            known += [statistics.fmean(row.train_seconds + row.eval_seconds for row in rows)] if rows else []
    left = [(cell, how) for cell, how in cells if how.name in (*LEFT, cell.config.retry)]
    lacking = any(not costs[cell.kind] for cell, _ in left)
    there = recorded.epoch_seconds(Path(left[0][0].config.results_dir)) if lacking else {}
    seconds, sources = 0.0, Counter[str]()
    for cell, how in left:
        known = costs[cell.kind] or there.get(cell.kind, [])
        done = len(records.read_rows(cell.folder / "metrics.csv")) if how.name == "unfinished" else 0
        seconds += statistics.median(known) * (cell.config.train.epochs - done) if known else 0
        sources["here" if costs[cell.kind] else "elsewhere" if known else "unknown"] += 1
    return Estimate(seconds, sources["here"], sources["elsewhere"], sources["unknown"])


def missing_data(cells: Sequence[PlannedCell]) -> list[str]:
    """The data sets that the cells need and that are not there, each with the first file that is missing."""
    wanted = {(cell.config.dataset.name, cell.config.data_dir) for cell in cells}
    lines = []
    for name, data_dir in sorted(wanted):
        if files := download.missing(of("dataset")[name], Path(data_dir)):
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            lines.append(f"{name}: {files[0]}{more}; fetched when a cell needs it, or now by `dbnrun data {name}`")
    return lines


def as_json(asked: Plan, standings: Sequence[Standing]) -> dict[str, Any]:
    """The whole plan as plain data."""
    left = time_left(list(zip(asked.cells, standings, strict=True)))
    return {
        "cells": [
            {
                "name": f"{readable_name(cell.cell)}-{cell.signature}",
                "folder": str(cell.folder),
                "overrides": list(cell.job),
                "standing": how.name,
                "detail": how.detail,
            }
            for cell, how in zip(asked.cells, standings, strict=True)
        ],
        "counts": dict(Counter(how.name for how in standings)),
        "duplicates_folded": asked.folded,
        "missing_data": missing_data(asked.cells),
        "seconds_left": round(left.seconds, 1),
        "cells_estimated_by_records": left.elsewhere,
        "cells_without_estimate": left.unknown,
    }


def asked(arguments: Sequence[str]) -> Plan:
    """The plan of a whole command line, as `dbnrun -m` would sweep it. Raises what a refused command raises."""
    check_overrides(arguments)
    store_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", list(arguments), RunMode.MULTIRUN)
        return plan(Composer(loader, master), master.hydra.sweeper.params or {}, list(master.hydra.overrides.task))


def counted(number: int, thing: str) -> str:
    """'1 cell', '2 cells'."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def lines(found: Plan, standings: Sequence[Standing], everything: bool) -> Iterator[str]:
    """The plan for people: counts, the cells that are not done (all with `everything`), missing data, time left."""
    counts = Counter(how.name for how in standings)
    folded = f", {counted(found.folded, 'duplicate')} folded" if found.folded else ""
    yield counted(len(found.cells), "cell") + folded
    for name, meaning in STANDINGS.items():
        if counts[name]:
            yield f"{counts[name]:7} {name:10}  {meaning}"
    shown = [(c, how) for c, how in zip(found.cells, standings, strict=True) if everything or how.name not in QUIET]
    for cell, how in shown[: None if everything else MOST_SHOWN]:
        yield f"  {how.name:10}  {cell.folder.name}" + (f"  ({how.detail})" if how.detail else "")
    if not everything and len(shown) > MOST_SHOWN:
        yield f"  … and {len(shown) - MOST_SHOWN} more; --all lists every cell"
    if alone := sorted({cell.config.norm.name for cell in found.cells if not cell.config.norm.stacks}):
        yield f"norm={', '.join(alone)}: trains alone, for a stack does not know its layers"
    yield from (f"missing data  {line}" for line in missing_data(found.cells))
    left = time_left(list(zip(found.cells, standings, strict=True)))
    if left.seconds:
        took = "finished cells took" if left.here else "recorded runs of their kind took, where they were trained"
        more = f" ({left.elsewhere} of them: by recorded runs)" if left.here and left.elsewhere else ""
        yield f"about {duration(left.seconds)} to train, one after another, by what {took}{more}"
    if left.unknown:
        yield f"no estimate for {left.unknown} of the cells: none of their kind is finished"


QUIET = ("done", "recorded", "left", "new")  # standings that need no line of their own
MOST_SHOWN = 30


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{int(hours)} h {int(minutes % 60)} min" if hours < 48 else f"{int(hours // 24)} d {int(hours % 24)} h"
