"""Sorts the recorded runs into what the report shows, and computes each statistic of them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from dbnrun.paper import sensitivity, statistics, verdicts
from dbnrun.paper.protocols import LETTERS, PAPER_DATASETS, overridden
from dbnrun.paper.sensitivity import Variant
from dbnrun.paper.verdicts import Verdict
from dbnrun.report.series import Setting, settings_of
from dbnrun.runs.load import RunRecord


@dataclass
class ResultSet:
    """What the page, the tables and the documents are drawn from."""

    runs: list[RunRecord]
    settings: list[Setting]  # every setting whose hyperparameters are those of the paper's runs

    @cached_property
    def mains(self) -> dict[str, Setting]:
        """By data set, the paper's first, the setting with the most epochs in finished runs (the first of equals).

        One whose epochs are not all evaluated (train.eval_every) is main only where there is no other.
        """
        finished = [setting for setting in self.settings if setting.n]
        names = dict.fromkeys([*PAPER_DATASETS, *(setting.dataset for setting in finished)])
        groups = {name: [setting for setting in finished if setting.dataset == name] for name in names}
        return {name: max(group, key=_weight) for name, group in groups.items() if group}

    @property
    def datasets(self) -> list[str]:
        """The paper's data sets, whether run or not, then the others."""
        return list(dict.fromkeys([*PAPER_DATASETS, *self.mains]))

    @property
    def protocols(self) -> list[str]:
        """A, B and C, whether run or not, then any other that was run."""
        found = {series.protocol for setting in self.mains.values() for series in setting.series}
        return [*filter(None, LETTERS), *sorted(found - LETTERS.keys())]

    @cached_property
    def statistics(self) -> Any:
        """The statistics of every main setting, a row a series and selection."""
        return pd.concat([statistics.frame(setting) for setting in self.mains.values()])

    @cached_property
    def verdicts(self) -> list[Verdict]:
        return verdicts.judge(self.mains, self.protocols)

    @cached_property
    def variants(self) -> list[Variant]:
        """The sensitivity runs by hyperparameter and value, beside the runs they vary."""
        return sensitivity.variants(self.runs)

    @cached_property
    def sensitivity(self) -> Any:
        """The statistics of the sensitivity runs, a row a value and schedule."""
        return sensitivity.frame(self.variants, self.mains.values())

    @property
    def in_no_table(self) -> list[RunRecord]:
        """The runs that no table shows: they change two hyperparameters, or have no comparable run."""
        shown = [one for setting in self.settings for one in setting.series]
        shown += [one for variant in self.variants for one in variant.series.values()]
        signatures = {run.signature for one in shown for run in one.runs}
        return [run for run in self.runs if run.signature not in signatures]


def result_set(runs: Sequence[RunRecord]) -> ResultSet:
    """Sort recorded runs; a main setting's files are named by its data set alone, whatever else was run."""
    results = ResultSet(list(runs), settings_of([run for run in runs if not overridden(run.cell)]))
    for dataset, setting in results.mains.items():
        setting.slug = dataset
    return results


def _weight(setting: Setting) -> tuple[bool, int]:
    """Epochs of all finished runs: a sweep of short trials does not outweigh a column that was trained."""
    return setting.series[0].is_whole, setting.n * setting.cell["train"]["epochs"]
