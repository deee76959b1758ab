"""Run folders in, settings and series out.

A *series* is what a curve shows: runs that differ only in seed. A *setting* is what one figure compares: series that
differ only in normalizer and schedule. Runs of different settings are never averaged or drawn together.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dbnrun.config.identity import norm_label, protocol_of, schedule_key
from dbnrun.config.registry import UserError, number_text
from dbnrun.report.names import BASELINES, name_of
from dbnrun.runs import metrics
from dbnrun.runs.load import HOW_TO_RECORD, RunRecord, counted, read_runs


@dataclass
class Series:
    """Runs that differ only in seed, with a label that is unique in its panel."""

    cell: dict[str, Any]  # of one of the runs
    runs: list[RunRecord] = field(default_factory=list)
    label: str = ""

    @property
    def protocol(self) -> str:
        """'' for the peers (bn, ln, …); else how training uses lambda."""
        return protocol_of(self.cell["norm"])

    @property
    def finished(self) -> list[RunRecord]:
        """The runs that count: a mean over an unfinished or diverged run's last row would compare unlike things."""
        return [run for run in self.runs if run.status == "done"]

    @property
    def n(self) -> int:
        return len(self.finished)

    def left_out(self) -> str:
        """'1 diverged, 2 unfinished', or ''."""
        kinds = Counter(run.status for run in self.runs if run.status != "done")
        return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))

    @cached_property
    def epochs(self) -> np.ndarray:
        """The epochs, from 1, after which its runs were evaluated: all of them, but where train.eval_every is set."""
        train = self.cell["train"]
        last, every = train["epochs"], train.get("eval_every", 1)
        return np.array([epoch for epoch in range(1, last + 1) if metrics.is_evaluated(epoch, last, every)])

    @property
    def is_whole(self) -> bool:
        """Whether every epoch was evaluated: what goes by successive epochs has no meaning elsewhere."""
        return len(self.epochs) == self.cell["train"]["epochs"]

    def column(self, name: str) -> np.ndarray:
        """A column of the finished runs at the evaluated `epochs`, (n, len(epochs)); NaN where a field is empty."""
        values = [[getattr(run.rows[epoch - 1], name) for epoch in self.epochs] for run in self.finished]
        return np.array(values, dtype=float).reshape(self.n, len(self.epochs))


@dataclass
class Setting:
    """Series that differ only in normalizer and schedule."""

    cell: dict[str, Any]  # of one of the runs
    series: list[Series]
    identity: dict[str, Any] = field(default_factory=dict)  # what its runs share, flat
    slug: str = ""  # names its files

    @property
    def n(self) -> int:
        """Finished runs; 0 makes a line in the table and no figure."""
        return sum(series.n for series in self.series)

    @property
    def dataset(self) -> str:
        return self.cell["dataset"]["name"]

    @cached_property
    def protocols(self) -> list[str]:
        """The ways of using lambda that occur, in a fixed order; [''] where there are only peers."""
        found = {series.protocol for series in self.series} - {""}
        return sorted(found, key=_protocol_rank) or [""]

    def panel(self, protocol: str) -> list[Series]:
        """The series of one protocol, with the peers."""
        return [series for series in self.series if series.protocol in ("", protocol)]


def _protocol_rank(name: str) -> tuple[bool, str]:
    """The paper's likeliest procedure first."""
    return (not name.startswith("dbn_inference"), name)


def gather(paths: Sequence[Path], *, strict: bool = False) -> list[Setting]:
    """The settings found under `paths`, by data set; those without a finished run last.

    Raises UserError where no run is finished, or with `strict` at a folder that cannot be read.
    """
    runs = read_runs(paths, strict=strict)
    settings = settings_of(counted(runs))
    if not any(setting.n for setting in settings):
        raise nothing_to_report(paths, runs)
    return settings


def nothing_to_report(paths: Sequence[Path], runs: Sequence[RunRecord]) -> UserError:
    """Why the runs under `paths` make no report: none is done, or none belongs to a main setting."""
    if any(run.status == "done" for run in runs):
        return UserError(
            "only sensitivity runs, or trials with train.limit_batches or train.limit_eval; draw them with `dbnrun "
            "report RUNS --out DIR`, or record main ones with `dbnrun experiment=paper_mnist_a`."
        )
    cells = len({run.signature for run in runs})
    found = f"{cells} unfinished or diverged runs and none that is done" if runs else "no runs"
    return UserError(f"{', '.join(map(str, paths))}: {found}; {HOW_TO_RECORD}.")


def settings_of(runs: Sequence[RunRecord]) -> list[Setting]:
    """The settings that distinct runs make, by data set; those without a finished run last."""
    by_setting: dict[str, dict[str, Series]] = defaultdict(dict)
    for run, identity in zip(runs, _identities(runs), strict=True):
        own = json.dumps([run.cell["norm"], run.cell.get("schedule")], sort_keys=True)
        series = by_setting[json.dumps(identity, sort_keys=True)].setdefault(own, Series(run.cell))
        series.runs.append(run)
    settings = [_setting(list(series.values()), json.loads(key)) for key, series in by_setting.items()]
    _name(settings)
    return sorted(settings, key=lambda setting: (not setting.n, setting.slug))


def _identities(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """What each run shares with its setting, flat: the cell without seed, normalizer and schedule, and its data.

    A run whose manifest is lost joins those that do name their data.
    """
    cells = [_flat(run.cell) for run in runs]
    known: dict[str, str] = {}
    for run, cell in zip(runs, cells, strict=True):
        if run.data_digest:
            known.setdefault(json.dumps(cell, sort_keys=True), run.data_digest)
    return [
        cell | {"data": run.data_digest or known.get(json.dumps(cell, sort_keys=True), "")}
        for run, cell in zip(runs, cells, strict=True)
    ]


def _setting(series: list[Series], identity: dict[str, Any]) -> Setting:
    for one in series:
        one.label = name_of(schedule_key(one.cell))
    _tell_apart(series)
    return Setting(series[0].cell, sorted(series, key=_rank), identity)


def _rank(series: Series) -> tuple[Any, ...]:
    """The peers, then a block a protocol in Table 1's order: constants from 1 down, the diminishing ones, then 0."""
    if not series.protocol:
        return (0, list(BASELINES).index(norm_label(series.cell)), series.label)
    schedule, block = series.cell["schedule"], (1, _protocol_rank(series.protocol))
    if schedule["name"] == "constant":
        return (*block, 3 if schedule["alpha"] == 0 else 1, -schedule["alpha"], series.label)
    return (*block, 2, 0, series.label)


def _tell_apart(series: list[Series]) -> None:
    """Where the series of a protocol, or of a peer, differ in the normalizer's axes, each label says its own."""
    groups: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        groups[one.protocol or one.label].append(one)
    for group in groups.values():
        keys = _differing([one.cell["norm"] for one in group])
        for one in group:
            norm = one.cell["norm"]
            one.label += "".join(f", {key}={_text(norm[key])}" for key in keys if key in norm)


def _differing(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = sorted({key for tree in trees for key in tree})
    return [key for key in keys if len({json.dumps(tree.get(key)) for tree in trees}) > 1]


def _text(value: Any) -> str:
    """A value as a label or a file name shows it: '0.1', 'true', '300x300'."""
    if isinstance(value, list):
        return "x".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return number_text(value) if isinstance(value, float) else str(value)


def _name(settings: list[Setting]) -> None:
    """The data set's name, and for several settings of one data set what distinguishes each.

    A setting without a finished run has no files, and so does not lengthen the names of those that have.
    """
    taken: set[str] = set()
    for setting in sorted(settings, key=lambda setting: not setting.n):
        peers = [
            other.identity for other in settings if other.dataset == setting.dataset and (other.n or not setting.n)
        ]
        parts = [setting.dataset, *(_part(key, setting.identity.get(key, "")) for key in _differing(peers))]
        letters = "-".join(filter(None, parts))
        slug = name = "".join(letter if letter.isalnum() or letter in "-._" else "" for letter in letters)
        number = 2
        while slug.lower() in taken:  # some file systems do not know case
            slug, number = f"{name}-{number}", number + 1
        taken.add(slug.lower())
        setting.slug = slug


def _part(key: str, value: Any) -> str:
    """'epochs3', 'weights.lr0.01', 'data1a2b3c4d'; '' where this setting has no such key."""
    if value == "":
        return ""
    group, _, name = key.removeprefix("optimizer.groups.").rpartition(".")
    short = f"{group}.{name}" if key.startswith("optimizer.groups.") else name
    return short + (value[:8] if key == "data" else _text(value))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; seed, normalizer and schedule left out."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not prefix and key in ("seed", "norm", "schedule"):
            continue
        if isinstance(value, Mapping):
            if prefix + key == "optimizer.groups":
                flat["optimizer.order"] = list(value)  # a parameter joins the first group that fits
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
