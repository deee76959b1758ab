"""The recorded runs sorted into what the report shows: a main setting a data set, other settings, sensitivity runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dbnrun.config.identity import protocol_of, schedule_key
from dbnrun.paper.protocols import KNOBS, LETTERS, PAPER_DATASETS, at_reference, knobs, turned
from dbnrun.report.series import Series, Setting, settings_of
from dbnrun.runs.load import RunRecord


@dataclass
class Variant:
    """Series that share everything but the schedule, with one knob at one value."""

    dataset: str
    knob: str
    value: str
    reference: bool  # the value of the paper's runs
    family: str  # what it shares with the other values of the knob; unique
    main: bool  # whether that is a main setting
    cell: dict[str, Any]  # of the family, the knob where the paper's runs have it
    protocol: str  # '' for a peer
    series: dict[str, Series]  # by schedule_key


@dataclass
class ResultSet:
    """What the page and the tables are drawn from."""

    runs: list[RunRecord]
    settings: list[Setting]  # every setting with all knobs where the paper's runs have them

    @property
    def mains(self) -> dict[str, Setting]:
        """By data set, the paper's first, the setting with the most epochs in finished runs (the first of equals).

        One whose epochs are not all evaluated (train.eval_every) is main only where there is no other.
        """
        mains: dict[str, Setting] = {}
        for setting in filter(_epochs, self.settings):
            if setting.dataset not in mains or _weight(setting) > _weight(mains[setting.dataset]):
                mains[setting.dataset] = setting
        order = [name for name in PAPER_DATASETS if name in mains]
        return {name: mains[name] for name in [*order, *(name for name in mains if name not in order)]}

    @property
    def datasets(self) -> list[str]:
        """The paper's data sets, whether run or not, then the others."""
        return [*PAPER_DATASETS, *(name for name in self.mains if name not in PAPER_DATASETS)]

    @property
    def protocols(self) -> list[str]:
        """A, B and C, whether run or not, then any other that was run."""
        found = {series.protocol for setting in self.mains.values() for series in setting.series} - {""}
        return [*LETTERS, *sorted(found - set(LETTERS))]

    @cached_property
    def variants(self) -> list[Variant]:
        """The sensitivity runs by knob and value, beside the runs they vary."""
        done = [(run, knobs(run.cell), turned(run.cell)) for run in self.runs if run.status == "done"]
        # Most knobs were never turned: nothing to look for.
        moved = dict.fromkeys(knob for _, _, off in done for knob in off)
        mains = {_family(one.cell, one.runs[0]) for setting in self.mains.values() for one in setting.series}
        known = [*(knob for knob in KNOBS if knob in moved), *(knob for knob in moved if knob not in KNOBS)]
        return [variant for knob in known for variant in _variants(done, knob, mains)]

    @property
    def nowhere(self) -> list[RunRecord]:
        """The runs that no table shows: of two knobs turned at once, or with nothing beside them to compare."""
        shown = [run for setting in self.settings for one in setting.series for run in one.runs]
        shown += [run for variant in self.variants for one in variant.series.values() for run in one.runs]
        signatures = {run.signature for run in shown}
        return [run for run in self.runs if run.signature not in signatures]


def result_set(runs: Sequence[RunRecord]) -> ResultSet:
    """Sort recorded runs; a main setting's files are named by its data set alone, whatever else was run."""
    book = ResultSet(list(runs), settings_of([run for run in runs if not turned(run.cell)]))
    for dataset, setting in book.mains.items():
        setting.slug = dataset
    return book


def _epochs(setting: Setting) -> int:
    """Epochs of all finished runs: a sweep of short trials does not outweigh a column that was trained."""
    return sum(series.n for series in setting.series) * setting.cell["train"]["epochs"]


def _weight(setting: Setting) -> tuple[bool, int]:
    """What makes a main setting of one that has finished runs."""
    return setting.series[0].is_whole, _epochs(setting)


def _by_value(variant: Variant) -> tuple[float, str]:
    """Numbers by size; names by the alphabet."""
    try:
        return float(variant.value), ""
    except ValueError:
        return 0.0, variant.value


def _family(cell: Mapping[str, Any], run: RunRecord) -> str:
    """What a cell shares with those that differ from it in seed and schedule alone, as text."""
    alike = {key: value for key, value in cell.items() if key not in ("seed", "schedule")}
    return json.dumps([alike, run.data_digest], sort_keys=True)


def _variants(
    done: Sequence[tuple[RunRecord, dict[str, Any], dict[str, Any]]], knob: str, mains: Set[str]
) -> list[Variant]:
    """The values of one knob among runs that are alike but for it, seed and schedule: none where only one is."""
    families: dict[str, dict[str, Variant]] = defaultdict(dict)
    for run, values, off in done:
        if knob not in values or any(name != knob for name in off):
            continue
        cell, value = at_reference(run.cell, knob), values[knob]
        family = _family(cell, run)
        variant = families[family].setdefault(
            str(value),
            Variant(
                dataset=run.cell["dataset"]["name"],
                knob=knob,
                value=str(value),
                reference=knob not in off,
                family=family,
                main=family in mains,
                cell=cell,
                protocol=protocol_of(run.cell["norm"]),
                series={},
            ),
        )
        variant.series.setdefault(schedule_key(run.cell), Series(run.cell)).runs.append(run)
    return [
        variant for family in families.values() if len(family) > 1 for variant in sorted(family.values(), key=_by_value)
    ]
