"""Compares the runs that change one hyperparameter with those that they vary."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from dbnrun.config.identity import protocol_of, schedule_key
from dbnrun.paper.protocols import HYPERPARAMETERS, family_of, letter, overridden, values_of
from dbnrun.paper.statistics import Row, difference, fields, p_text, with_interval
from dbnrun.report import compare
from dbnrun.report.names import ALPHA_ONE, dataset_key, name_of
from dbnrun.report.series import Series, Setting
from dbnrun.report.tables import describe, from_to, markdown
from dbnrun.runs.load import RunRecord

NOTE = """# Sensitivity: one setting changes at a time

Last-epoch test error [%], mean [95 % interval], and the paired difference [pp] to α = 1 with the same setting;
p is the exact two-sided sign-flip test, Holm-corrected over the schedules of that value.

"""


@dataclass
class Variant:
    """Series that share everything but the schedule, with one hyperparameter at one value."""

    hyperparameter: str
    value: str
    reference: bool  # the value of the paper's runs
    family: str  # what it shares with the other values of the hyperparameter; unique
    cell: dict[str, Any]  # of one of the runs
    series: dict[str, Series]  # by key


def variants(runs: Sequence[RunRecord]) -> list[Variant]:
    """By hyperparameter and value, runs that are alike but for it, seed and schedule; none where it has one value."""
    done = [(run, values_of(run.cell), overridden(run.cell)) for run in runs if run.status == "done"]
    # Most hyperparameters were never changed: nothing to look for.
    changed = dict.fromkeys(name for _, _, changes in done for name in changes)
    ordered = [*(name for name in HYPERPARAMETERS if name in changed), *changed]
    families: dict[tuple[str, str], dict[str, Variant]] = defaultdict(dict)
    for name in dict.fromkeys(ordered):
        for run, values, changes in done:
            if name not in values or changes.keys() - {name}:
                continue
            family, value = _family(run, name), str(values[name])
            fresh = Variant(name, value, name not in changes, family, run.cell, {})
            variant = families[name, family].setdefault(value, fresh)
            variant.series.setdefault(schedule_key(run.cell), Series(run.cell)).runs.append(run)
    several = [family for family in families.values() if len(family) > 1]
    return [variant for family in several for variant in sorted(family.values(), key=_by_value)]


def _family(run: RunRecord, name: str = "") -> str:
    return json.dumps([family_of(run.cell, name), run.data_digest], sort_keys=True)


def _by_value(variant: Variant) -> tuple[float, str]:
    """Numbers by size; names by the alphabet."""
    try:
        return float(variant.value), ""
    except ValueError:
        return 0.0, variant.value


def frame(variants: Sequence[Variant], mains: Iterable[Setting]) -> pd.DataFrame:
    """A row a value and schedule: last-epoch test error [%], and the paired difference [pp] to its own α = 1."""
    families = list(dict.fromkeys(variant.family for variant in variants))
    main = {_family(one.runs[0]) for setting in mains for one in setting.series}
    # A family is described as the paper's runs are, where it has them: the last of those sorted.
    cells = {variant.family: variant.cell for variant in sorted(variants, key=lambda variant: variant.reference)}
    rows = []
    for variant in variants:
        base = variant.series.get(ALPHA_ONE)
        compared = compare.against(base, variant.series, compare.ERRORS["last"]) if base else {}
        for key, series in variant.series.items():
            row = {
                "dataset": dataset_key(variant.cell),
                "knob": variant.hyperparameter,
                "value": variant.value,
                "paper_value": variant.reference,
                "protocol": letter(protocol_of(variant.cell)),
                "family": families.index(variant.family),
                "main": variant.family in main,
                "setting": describe(cells[variant.family]),
                "curve": key,
                **asdict(compare.summary(series, "last")),
                "best_on_test_mean": compare.summary(series, "best_on_test").mean,
            }
            rows.append(row | fields("vs_alpha_1", compared.get(key)))
    return pd.DataFrame(rows)


def by_value(table: Any) -> Iterator[tuple[str, str, str, dict[str, Row]]]:
    """For each value in rows of `frame`: its hyperparameter, '0.001', '3 to 10' seeds, and its rows by schedule."""
    for (name, value), found in table.groupby(["knob", "value"], sort=False):
        rows = {row["curve"]: row for row in found.to_dict("records")}
        main = " (main)" if found["paper_value"].any() else ""
        yield name, value + main, from_to(found["n"]), rows


def as_markdown(table: pd.DataFrame) -> str:
    """The rows of `frame` for a reader."""
    texts = pd.DataFrame(
        {
            "data set": row["dataset"],
            "setting": row["setting"],
            "protocol": row["protocol"],
            "knob": row["knob"],
            "value": row["value"] + (" (paper's runs)" if row["paper_value"] else ""),
            "curve": name_of(row["curve"]),
            "n": str(row["n"]),
            "test error": with_interval(row),
            "to α = 1": difference(row),
            "p": p_text(row),
        }
        for row in table.to_dict("records")
    )
    return NOTE + markdown(texts) + "\n"
