"""Groups recorded runs into settings and series.

A *series* is what a curve shows: runs that differ only in seed. A *setting* is what one figure compares: series that
differ only in normalizer and schedule. Runs of different settings are never averaged or drawn together.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dbnrun.config import registry
from dbnrun.config.filters import matcher, why_none
from dbnrun.config.identity import choice_of, name_of_choice, protocol_of, schedule_key
from dbnrun.config.registry import UserError, number_text
from dbnrun.report.names import BASELINES, alpha_of, dataset_key, dataset_of, has_colour, name_of, natural
from dbnrun.runs import archive, metrics
from dbnrun.runs.load import HOW_TO_TRAIN, RunRecord, deduplicated, read_runs


@dataclass
class Series:
    """Runs that differ only in seed, with a label that is unique in its panel."""

    cell: dict[str, Any]  # of one of the runs
    runs: list[RunRecord] = field(default_factory=list)
    label: str = ""
    place: int = 0  # among those of its setting that have no colour of their own

    @cached_property
    def key(self) -> str:
        """Its schedule, or the name of its normalizer where that has none: '0.25', '1/m steps', 'bn'."""
        return schedule_key(self.cell)

    @cached_property
    def protocol(self) -> str:
        """'' for the baselines (bn, ln, …); else how training uses lambda."""
        return protocol_of(self.cell)

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

    def band(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A column's mean over the finished runs, and mean ± standard deviation: above 0, for a logarithmic axis."""
        values = self.column(name)
        mean = values.mean(0)
        sd = values.std(0, ddof=1) if self.n > 1 else np.zeros(len(mean))
        return mean, np.maximum(mean - sd, mean * 0.02), mean + sd


@dataclass
class Setting:
    """Series that differ only in normalizer and schedule."""

    cell: dict[str, Any]  # of one of the runs
    series: list[Series]
    identity: dict[str, Any] = field(default_factory=dict)  # what its runs share, by dotted key
    slug: str = ""  # names its files
    title: str = ""  # names it for people: 'MNIST, epochs=3'

    @property
    def n(self) -> int:
        """Finished runs; 0 makes a line in the table and no figure."""
        return sum(series.n for series in self.series)

    @property
    def dataset(self) -> str:
        """What files call it."""
        return dataset_key(self.cell)

    @property
    def test_records(self) -> float:
        """How many records a test error is a share of; NaN where neither the data set nor a run's manifest says it."""
        known = registry.of("dataset").get(self.cell["dataset"]["name"])
        if known and known.test_records:
            return known.test_records
        runs = [run for series in self.series for run in series.runs]
        return next((r.manifest["test_records"] for r in runs if "test_records" in r.manifest), float("nan"))

    @cached_property
    def protocols(self) -> list[str]:
        """The ways of using lambda that occur, in a fixed order; [''] where there are only baselines."""
        found = {series.protocol for series in self.series} - {""}
        return sorted(found, key=_protocol_rank) or [""]

    def panel(self, protocol: str) -> list[Series]:
        """The finished series of one protocol, with the baselines."""
        return [series for series in self.series if series.protocol in ("", protocol) and series.n]


def gather(paths: Sequence[Path], filters: Sequence[str] = (), *, strict: bool = False) -> list[Setting]:
    """The settings of the runs under `paths` that pass all filters, by data set; those without a finished run last.

    Raises UserError where no run passes or none is finished, or with `strict` at a folder that cannot be read.
    """
    passes = matcher(filters)
    archives = [path for path in paths if archive.is_archive(path)]
    found = [*itertools.chain.from_iterable(map(archive.read, archives)), *read_runs(paths, strict=strict)]
    runs = [run for run in found if passes(run.cell)]
    if found and not runs:
        raise UserError(why_none([run.cell for run in found], filters))
    settings = settings_of(deduplicated(runs))
    if not any(setting.n for setting in settings):
        raise nothing_to_report(paths, runs)
    return settings


def runs_of(settings: Iterable[Setting]) -> list[RunRecord]:
    """The runs of these settings."""
    return [run for setting in settings for series in setting.series for run in series.runs]


def nothing_to_report(paths: Sequence[Path], runs: Sequence[RunRecord]) -> UserError:
    """Why the runs under `paths` make no report: none is done."""
    cells = len({run.signature for run in runs})
    found = f"{cells} unfinished or diverged runs and none that is done" if runs else "no runs"
    return UserError(f"{', '.join(map(str, paths))}: {found}; {HOW_TO_TRAIN}.")


def settings_of(runs: Sequence[RunRecord]) -> list[Setting]:
    """The settings that distinct runs make, by data set; those without a finished run last."""
    shared = [json.dumps(_shared(run.cell), sort_keys=True) for run in runs]
    # A run whose manifest is lost does not say its data: it joins those that do.
    digests = {cell: run.data_digest for cell, run in zip(shared, runs, strict=True) if run.data_digest}
    groups: dict[tuple[str, str], dict[str, Series]] = defaultdict(dict)
    for cell, run in zip(shared, runs, strict=True):
        own = json.dumps([run.cell["norm"], run.cell.get("schedule")], sort_keys=True)
        group = groups[cell, run.data_digest or digests.get(cell, "")]
        group.setdefault(own, Series(run.cell)).runs.append(run)
    settings = [
        _setting(list(group.values()), json.loads(cell) | {"data": digest[:8]})
        for (cell, digest), group in groups.items()
    ]
    _name_files(settings)
    return sorted(settings, key=lambda setting: (not setting.n, setting.slug))


def _shared(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What a run shares with its setting: its cell by dotted key, without seed, normalizer and schedule."""
    kept = {key: value for key, value in cell.items() if key not in ("seed", "norm", "schedule")}
    # A parameter joins the first group that fits, so that their order matters too.
    return dotted(kept) | {"optimizer.order": list(cell["optimizer"]["groups"])}


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _setting(series: list[Series], identity: dict[str, Any]) -> Setting:
    """The series in Table 1's order; where those of a protocol differ in the normalizer's options, labels say how."""
    groups: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        groups[one.protocol or one.key].append(one)
    for group in groups.values():
        norms = [dotted(one.cell["norm"]) for one in group]
        keys = _differing(norms)
        for one, norm in zip(group, norms, strict=True):
            words = (f", {_option(key)}={_text(norm[key])}" for key in keys if key in norm)
            one.label = name_of(one.key) + "".join(words)
    ordered = sorted(series, key=_rank)
    for place, one in enumerate(one for one in ordered if not has_colour(one.key)):
        one.place = place
    return Setting(series[0].cell, ordered, identity)


def _place(key: str) -> int:
    """Where a normalizer without a schedule stands among the others; one of the user's own comes last."""
    known = list(BASELINES)
    return known.index(key) if key in known else len(known)


def _rank(series: Series) -> tuple[Any, ...]:
    """The baselines, then a block a protocol: constants from 1 down, the diminishing ones, then 0."""
    if not series.protocol:
        return (0, _place(series.key), natural(series.label))
    alpha = alpha_of(series.key)
    place = (2, 0) if alpha is None else (1 if alpha else 3, -alpha)
    return (1, _protocol_rank(series.protocol), place, natural(series.label))


def _protocol_rank(name: str) -> tuple[bool, str]:
    """The paper's likeliest procedure first."""
    return (not name.startswith("dbn_inference"), name)


def _differing(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = sorted({key for tree in trees for key in tree})
    return [key for key in keys if len({json.dumps(tree.get(key)) for tree in trees}) > 1]


def _option(key: str) -> str:
    """A dotted key as a label shows it: an option of the user's own class, or of a parameter group, without prefix."""
    return key.removeprefix("options.").removeprefix("groups.")


def _text(value: Any) -> str:
    """A value as a label or a file name shows it: '0.1', 'true', '300x300'; of a digest its first eight digits."""
    if str(value).startswith("sha256:"):
        return value.removeprefix("sha256:")[:8]
    if isinstance(value, list):
        return "x".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return number_text(value) if isinstance(value, float) else str(value)


def _name_files(settings: Sequence[Setting]) -> None:
    """Name each setting by its data set, and by what distinguishes it from others of that data set: 'mnist-epochs3'.

    Another network, optimizer or learning-rate schedule is named, and its options are not: 'mnist-cosine'. A setting
    without a finished run has no files, and so does not lengthen the names of those that have.
    """
    taken: set[str] = set()
    for setting in sorted(settings, key=lambda setting: not setting.n):
        alike = [one for one in settings if one.dataset == setting.dataset and (one.n or not setting.n)]
        own = _words(setting, alike)
        setting.title = ", ".join([dataset_of(setting.cell), *(f"{key}={text}" if key else text for key, text in own)])
        words = [setting.dataset, *(key + text for key, text in own)]
        slug = "".join(letter for letter in "-".join(words) if letter.isalnum() or letter in "-._")
        numbered = itertools.chain([slug], (f"{slug}-{number}" for number in itertools.count(2)))
        # Some file systems do not know case.
        setting.slug = next(name for name in numbered if name.lower() not in taken)
        taken.add(setting.slug.lower())


def _words(setting: Setting, alike: Sequence[Setting]) -> list[tuple[str, str]]:
    """What distinguishes a setting from those like it: choices as ('', name), options of the same choice as
    (key, value).
    """
    words = []
    groups = {key.partition(".")[0] for one in alike for key in one.identity}
    for group in [*filter(groups.__contains__, registry.GROUPS), *sorted(groups - registry.GROUPS.keys())]:
        chosen = {id(one): _chosen(one, group) for one in alike}
        name = chosen[id(setting)]
        if len(set(chosen.values())) > 1 and name:
            words.append(("", name))
        trees = [one.identity for one in alike if chosen[id(one)] == name]
        keys = [key for key in _differing(trees) if key.partition(".")[0] == group]
        texts = {key: _text(setting.identity.get(key, "")) for key in keys}
        rates = {key: text for key, text in texts.items() if re.fullmatch(r"optimizer\.groups\.\w+\.lr", key) and text}
        if len(rates) > 1 and len({*rates.values()}) == 1:  # one learning rate for all groups
            words.append(("lr", next(iter(rates.values()))))
            texts = {key: text for key, text in texts.items() if key not in rates}
        words += [(_option(key.partition(".")[2] or key), text) for key, text in texts.items() if text]
    return words


def _chosen(setting: Setting, group: str) -> str:
    """The name of a setting's choice of a group; '' where it has none, and of what is no group of choices."""
    recorded = setting.cell.get(group)
    if not isinstance(recorded, Mapping) or "name" not in recorded:
        return ""
    return choice_of(group, recorded).slug if group == "model" else name_of_choice(group, recorded)
