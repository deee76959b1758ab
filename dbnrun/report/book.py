"""The recorded runs sorted into what the report shows: a main setting a data set, other settings, sensitivity runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dbnrun.report.gather import Run, Series, Setting, settings_of
from dbnrun.report.protocols import (
    KNOBS,
    LETTERS,
    PAPER_DATASETS,
    at_reference,
    knobs,
    protocol_of,
    schedule_key,
    turned,
)


@dataclass
class Variant:
    """Series that share everything but the schedule, with one knob at one value."""

    dataset: str
    knob: str
    value: str
    reference: bool  # the value of the paper's runs
    epochs: int
    protocol: str  # '' for a peer
    series: dict[str, Series]  # by schedule_key


@dataclass
class Book:
    """What the page and the tables are drawn from."""

    runs: list[Run]
    settings: list[Setting]  # every setting with all knobs where the paper's runs have them

    @property
    def mains(self) -> dict[str, Setting]:
        """By data set, the paper's first, the setting with the most epochs in finished runs (the first of equals)."""
        mains: dict[str, Setting] = {}
        for setting in self.settings:
            if _epochs(setting) > (_epochs(mains[setting.dataset]) if setting.dataset in mains else 0):
                mains[setting.dataset] = setting
        order = [name for name in PAPER_DATASETS if name in mains]
        return {name: mains[name] for name in [*order, *(name for name in mains if name not in order)]}

    @property
    def protocols(self) -> list[str]:
        """A, B and C, whether run or not, then any other that was run."""
        found = {series.protocol for setting in self.mains.values() for series in setting.series} - {""}
        return [*LETTERS, *sorted(found - set(LETTERS))]

    @property
    def variants(self) -> list[Variant]:
        """The sensitivity runs by knob and value, beside the runs they vary."""
        done = [(run, knobs(run.cell), turned(run.cell)) for run in self.runs if run.status == "done"]
        # Most knobs were never turned: nothing to look for.
        moved = [knob for knob in KNOBS if any(knob in off for _, _, off in done)]
        return [variant for knob in moved for variant in _variants(done, knob)]


def book_of(runs: Sequence[Run]) -> Book:
    """Sort recorded runs; a main setting's files are named by its data set alone, whatever else was run."""
    book = Book(list(runs), settings_of([run for run in runs if not turned(run.cell)]))
    for dataset, setting in book.mains.items():
        setting.slug = dataset
    return book


def _epochs(setting: Setting) -> int:
    """Epochs of all finished runs: a sweep of short trials does not outweigh a column that was trained."""
    return sum(series.n for series in setting.series) * setting.cell["train"]["epochs"]


def _by_value(variant: Variant) -> tuple[float, str]:
    """Numbers by size; names by the alphabet."""
    try:
        return float(variant.value), ""
    except ValueError:
        return 0.0, variant.value


def _variants(done: Sequence[tuple[Run, dict[str, Any], dict[str, Any]]], knob: str) -> list[Variant]:
    """The values of one knob among runs that are alike but for it, seed and schedule: none where only one is."""
    families: dict[str, dict[str, Variant]] = defaultdict(dict)
    for run, values, off in done:
        if knob not in values or any(name != knob for name in off):
            continue
        alike = {key: value for key, value in at_reference(run.cell, knob).items() if key not in ("seed", "schedule")}
        value = values[knob]
        variant = families[json.dumps([alike, run.data_digest], sort_keys=True)].setdefault(
            str(value),
            Variant(
                dataset=run.cell["dataset"]["name"],
                knob=knob,
                value=str(value),
                reference=value == KNOBS[knob][1],
                epochs=run.cell["train"]["epochs"],
                protocol=protocol_of(run.cell["norm"]),
                series={},
            ),
        )
        variant.series.setdefault(schedule_key(run.cell), Series(run.cell)).runs.append(run)
    return [
        variant for family in families.values() if len(family) > 1 for variant in sorted(family.values(), key=_by_value)
    ]
