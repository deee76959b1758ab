"""What is compared: a *method* is finished runs that differ in their seed alone, reduced to the columns asked for."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dbnrun.config.differences import differing, said, under
from dbnrun.config.filters import meant_choice, options
from dbnrun.config.identity import schedule_key, slug_of
from dbnrun.config.registry import GROUPS, UserError, one_of
from dbnrun.report import stats
from dbnrun.report.names import name_of
from dbnrun.runs import archive, layout, load, metrics
from dbnrun.runs.load import HOW_TO_TRAIN, RunRecord
from dbnrun.runs.metrics import EpochRow

SELECTIONS = {"last": "last", "best_val": "best_on_val", "best_test": "best_on_test"}  # as `stats` calls them
CHOOSERS = {"best_val": "val_error_pct", "best_test": "test_error_pct"}
MANY = 6  # values that are listed, of those that were tried
METRICS = [each.name for each in fields(EpochRow) if each.name != "epoch"]


@dataclass(frozen=True)
class Reading:
    """Which number of a run counts: a column of its metrics.csv, at an epoch."""

    metric: str = "test_error_pct"
    select: str = "last"
    at: int | None = None  # an epoch, in place of `select`

    def __post_init__(self) -> None:
        one_of("--metric", self.metric, METRICS)
        if self.at is not None and self.at < 1:
            raise UserError(f"--at {self.at}: expected an epoch, from 1.")

    @property
    def columns(self) -> list[str]:
        """What it needs of a run, and what tuning needs."""
        return list(dict.fromkeys([self.metric, *CHOOSERS.values()]))

    @property
    def unit(self) -> str:
        words = self.metric.split("_")
        return "%" if "pct" in words else "nat" if "loss" in words else "s" if "seconds" in words else ""

    @property
    def difference_unit(self) -> str:
        return "pp" if self.unit == "%" else self.unit

    @property
    def quantity(self) -> str:
        """'test error [%]'."""
        name, population, _ = self.metric.partition("_population")
        words = name.replace("_pct", "").replace("val_", "validation_").replace("_", " ")
        return words + (" with population statistics" if population else "") + (f" [{self.unit}]" if self.unit else "")

    @property
    def when(self) -> str:
        """'last epoch', 'epoch 3', or which epoch is the best."""
        return f"epoch {self.at}" if self.at else stats.SELECTIONS[SELECTIONS[self.select]]

    @property
    def is_optimistic(self) -> bool:
        return self.at is None and self.select == "best_test"

    def of(self, method: Method) -> dict[int, float]:
        """The number of each run, by seed."""
        values = method.column(self.metric)
        if self.at is not None:
            chosen = values[:, self.at - 1]
        elif self.select == "last":
            chosen = values[:, -1]
        else:
            evaluated = method.evaluated
            by = method.column(CHOOSERS[self.select])[:, evaluated]
            chosen = stats.select(values[:, evaluated], by, "best_on_val")
        return dict(zip(method.seeds, chosen.tolist(), strict=True))


@dataclass
class Method:
    """Runs that differ in their seed alone."""

    cell: dict[str, Any]  # of one of the runs
    digest: str  # of the data; '' where no manifest says it
    runs: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # by seed: columns, NaN where a field is empty
    left_out: Counter[str] = field(default_factory=Counter)  # runs that are not finished, by status
    label: str = ""

    @property
    def seeds(self) -> list[int]:
        return sorted(self.runs)

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def epochs(self) -> int:
        return int(self.cell["train"]["epochs"])

    @property
    def evaluated(self) -> np.ndarray:
        """The places of the epochs that were evaluated."""
        every = self.cell["train"].get("eval_every", 1)
        return np.array([i for i in range(self.epochs) if metrics.is_evaluated(i + 1, self.epochs, every)])

    @cached_property
    def key(self) -> str:
        """Its schedule, or the name of its normalizer where that has none."""
        return schedule_key(self.cell)

    @cached_property
    def options(self) -> dict[str, Any]:
        """What it is made of, by the keys of a command, but for the seed."""
        return {key: value for key, value in options(self.cell).items() if key != "seed"}

    @property
    def is_trial(self) -> bool:
        return bool(archive.TRIAL & self.cell["train"].keys())

    def column(self, name: str) -> np.ndarray:
        """A column by seed and epoch."""
        return np.array([self.runs[seed][name] for seed in self.seeds]).reshape(self.n, self.epochs)

    def only(self, seeds: Iterable[int]) -> Method:
        return replace(self, runs={seed: self.runs[seed] for seed in seeds if seed in self.runs})


def runs_under(paths: Sequence[Path]) -> list[RunRecord]:
    """The recorded runs under `paths`, then the run folders without their rows. UserError where there are none."""
    for path in paths:
        if not path.exists() and path == layout.results_dir():
            raise UserError(f"{path}: no runs; {HOW_TO_TRAIN}.")
        if not path.exists():
            raise UserError(
                f"{path}: there is no such folder; expected one, or a filter such as norm=bn.{meant_choice(str(path))}"
            )
    records = [path if archive.is_archive(path) else path / "records" for path in paths]
    recorded = itertools.chain.from_iterable(map(archive.read, records))
    found = itertools.chain(recorded, load.readable(load.described, load.folders(paths)))
    runs = list(map(load.as_auto, found))
    if not runs:
        raise UserError(f"{', '.join(map(str, paths))}: no runs; {HOW_TO_TRAIN}.")
    return runs


def methods_of(runs: Iterable[RunRecord], columns: Sequence[str]) -> list[Method]:
    """The methods that runs make. Of several copies of a run the first finished one counts.

    The rows of a run folder are read here, and only one run's are held at a time.
    """
    copies: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        copies[run.signature].append(run)
    return _methods(_distinct(copies.values()), columns)


def _distinct(copies: Iterable[Sequence[RunRecord]]) -> Iterator[RunRecord]:
    """Each run once, with its rows; at the end a line says how far copies with other numbers are apart."""
    unlike: list[load.Pair] = []
    for runs in copies:
        whole = load.readable(lambda run: run if run.rows else load.with_rows(run), runs)
        kept, more = load.distinct(whole)
        unlike += more
        yield from kept
    load.say_unlike(unlike)


def _methods(runs: Iterable[RunRecord], columns: Sequence[str]) -> list[Method]:
    found: dict[str, dict[str, Method]] = defaultdict(dict)  # by what decides the numbers, and by data
    for run in runs:
        method = found[_identity(run.cell)].setdefault(run.data_digest, Method(run.cell, run.data_digest))
        if run.status == "done":
            method.runs.setdefault(run.cell["seed"], {name: _column(run, name) for name in columns})
        else:
            method.left_out[run.status or "unfinished"] += 1
    return [method for alike in found.values() for method in _joined(alike)]


def _column(run: RunRecord, name: str) -> np.ndarray:
    return np.array([getattr(row, name) for row in run.rows], dtype=float)


def _joined(alike: dict[str, Method]) -> list[Method]:
    """Runs whose manifest is lost do not say their data: they join those that do."""
    lost = alike.pop("", None)
    if lost is not None and not alike:
        return [lost]
    if lost is not None:
        first = next(iter(alike.values()))
        first.runs = lost.runs | first.runs
        first.left_out += lost.left_out
    return list(alike.values())


def _identity(cell: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    """What decides a method's numbers, as text: its options without the seed and without the keys to tune."""
    kept = {
        key: value
        for key, value in options(cell).items()
        # A group's own key is its name in folders, which says the options below it, too.
        if key != "seed" and not under(key, without) and not any(each.startswith(f"{key}.") for each in without)
    }
    names = [cell[group]["name"] for group in GROUPS if group in cell and group not in without]
    # A parameter joins the first group that fits, so that their order matters too.
    return json.dumps([kept, names, list(cell["optimizer"]["groups"])], sort_keys=True)


# Tuning


@dataclass
class Tuning:
    """Which keys each method chose its own values of, on which seeds, and a line for each method."""

    keys: list[str]
    seeds: list[int]
    lines: list[str] = field(default_factory=list)


def tuned(
    methods: Sequence[Method], keys: Sequence[str], seeds: Sequence[int] | None, reading: Reading
) -> tuple[list[Method], Tuning]:
    """Each method with the value of `keys` whose validation error is least on average over the tuning seeds.

    The runs of those seeds are left out of what is returned. A value counts where every tuning seed is finished.
    """
    families: dict[str, list[Method]] = defaultdict(list)
    for method in methods:
        if not any(key in method.options or under(each, [key]) for key in keys for each in method.options):
            raise UserError(f"--tune {','.join(keys)}: {method_name(method)} has no such key.")
        families[_identity(method.cell, keys) + method.digest].append(method)
    known = sorted({seed for method in methods for seed in method.seeds})
    tuning = Tuning(list(keys), list(seeds) if seeds else known[: max(1, len(known) // 3)])
    if not set(known) - set(tuning.seeds):
        raise UserError(
            f"--tune-seeds {_listed(tuning.seeds)}: no other seeds are finished, and the comparison needs some."
        )
    heads = [replace(family[0]) for family in families.values()]
    name_all(heads, without=keys)
    labelled = zip(families.values(), heads, strict=True)
    chosen = [_chosen(family, head.label, tuning, reading) for family, head in labelled]
    return [method for method in chosen if method is not None], tuning


def _chosen(family: Sequence[Method], name: str, tuning: Tuning, reading: Reading) -> Method | None:
    """The family's best method on the other seeds; None, and a line that says why, where there is none."""
    validation = replace(reading, metric="val_error_pct")
    scores = {}
    for method in sorted(family, key=lambda method: _sortable(method, tuning.keys)):
        if set(tuning.seeds) <= set(method.seeds):
            score = float(np.mean(list(validation.of(method.only(tuning.seeds)).values())))
            if np.isfinite(score):
                scores[_values(method, tuning.keys)] = (score, method)
    if not scores:
        tuning.lines.append(f"{name}: left out; no value has finished runs of the seeds {_listed(tuning.seeds)}")
        return None
    value, (score, method) = min(scores.items(), key=lambda item: item[1][0])
    line = f"{name}: {value}, with a validation error of {score:.2f} %"
    if others := [f"{other} {scores[other][0]:.2f} %" for other in scores if other != value]:
        line += f"; {', '.join(others[:MANY])}" + (f" and {len(others) - MANY} more" if len(others) > MANY else "")
    if len(scores) > 2 and value in (next(iter(scores)), next(reversed(scores))):
        line += "; it is at the edge of what was tried"
    if skipped := [said for said in map(lambda one: _values(one, tuning.keys), family) if said not in scores]:
        line += f"; not finished on these seeds: {', '.join(skipped[:MANY])}" + (", …" if len(skipped) > MANY else "")
    rest = method.only(set(method.seeds) - set(tuning.seeds))
    if not rest.n:
        line += "; left out, as no other seed is finished with that value"
    tuning.lines.append(line)
    return rest if rest.n else None


def _sortable(method: Method, keys: Sequence[str]) -> list[tuple[bool, Any]]:
    values = [method.options.get(key) for key in keys]
    return [
        (not isinstance(value, int | float), value if isinstance(value, int | float) else str(value))
        for value in values
    ]


def _values(method: Method, keys: Sequence[str]) -> str:
    """'lr=0.03', or the values of several keys."""
    return ", ".join(said(key, method.options) for key in keys)


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


# Names


def name_all(methods: Sequence[Method], always: Sequence[str] = (), without: Sequence[str] = ()) -> None:
    """Give each method a label that is unique among them: its normalizer and schedule, and what else differs.

    `always`: keys that every label states. `without`: keys that a heading states.
    """
    keys = [
        key
        for key in differing([method.options for method in methods])
        if not under(key, without) and key not in always
    ]
    for method in methods:
        own = [said(key, method.options) for key in (*keys, *always) if key in method.options]
        method.label = ", ".join([method_name(method), *own]) + (" (trial)" if method.is_trial else "")
    for label, count in Counter(method.label for method in methods).items():
        alike = [method for method in methods if method.label == label]
        for number, method in enumerate(alike, 1):
            method.label += f", data {method.digest[:8] or number}" if count > 1 else ""


def method_name(method: Method) -> str:
    """'BN (PyTorch)', or 'dbn, α = 0.25': a normalizer with a schedule as `norm=` has it."""
    if "schedule" not in method.cell:
        return name_of(method.key)
    return f"{slug_of('norm', method.cell['norm'])}, {name_of(method.key)}"
