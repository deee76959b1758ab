"""Sorts the recorded runs into what the report shows, and computes each statistic of them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from dbnrun.paper import normalizers, sensitivity, statistics, verdicts
from dbnrun.paper.protocols import LETTERS, PAPER_DATASETS, is_beside, is_papers, overridden
from dbnrun.paper.sensitivity import Variant
from dbnrun.paper.verdicts import Verdict
from dbnrun.report.names import DATASETS
from dbnrun.report.series import Setting, settings_of
from dbnrun.runs.load import RunRecord


@dataclass
class ResultSet:
    """What the page, the tables and the documents are drawn from."""

    runs: list[RunRecord]
    settings: list[Setting]  # of every run that does not vary one of the paper's
    variants: list[Variant]  # of those that do, by hyperparameter and value, beside the runs they vary

    @cached_property
    def mains(self) -> dict[str, Setting]:
        """By data set of the paper, its series in the setting with the most epochs in finished runs of them.

        One whose epochs are not all evaluated (train.eval_every) is main only where there is no other.
        """
        papers = [replace(one, series=[s for s in one.series if is_papers(s.cell)]) for one in self.settings]
        groups = {name: [one for one in papers if one.n and one.dataset == name] for name in PAPER_DATASETS}
        return {name: max(group, key=_weight) for name, group in groups.items() if group}

    @property
    def has_papers(self) -> bool:
        """Whether a run is one of the paper's own: its "BN" is α = 1, and PyTorch's is none."""
        return any(series.protocol for setting in self.mains.values() for series in setting.series)

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
    def sensitivity(self) -> Any:
        """The statistics of the sensitivity runs, a row a value and schedule."""
        return sensitivity.frame(self.variants, self.mains.values())

    @cached_property
    def normalizers(self) -> Any:
        """Every normalizer against BN, a row for each data set, batch size and place."""
        return normalizers.frame(self.runs)


def result_set(runs: Sequence[RunRecord]) -> ResultSet:
    """Sort recorded runs; a main setting's files are named by its data set alone, whatever else was run."""
    papers = [run for run in runs if run.cell["dataset"]["name"] in PAPER_DATASETS and not is_beside(run.cell)]
    variants = sensitivity.variants(papers)
    shown = {run.signature for variant in variants for series in variant.series.values() for run in series.runs}
    varying = {run.signature for run in runs if run.signature in shown and overridden(run.cell)}
    results = ResultSet(list(runs), settings_of([run for run in runs if run.signature not in varying]), variants)
    for dataset, main in results.mains.items():
        swapped = {dataset: main.slug, main.slug: dataset}
        for setting in [*results.settings, main]:
            setting.slug = swapped.get(setting.slug, setting.slug)
            setting.title = DATASETS[dataset] if setting.slug == dataset else setting.title
    results.settings = [part for setting in results.settings for part in _apart(setting)]
    return results


def _apart(setting: Setting) -> list[Setting]:
    """A setting without what only compares normalizers, and that in another, beside the baselines.

    The paper's figures and tables are the same whichever other normalizers were trained.
    """
    beside = [series for series in setting.series if is_beside(series.cell)]
    rest = [series for series in setting.series if not is_beside(series.cell)]
    if not beside or not rest:
        return [setting]
    baselines = [series for series in rest if not series.protocol]
    return [
        replace(setting, series=rest),
        replace(
            setting,
            series=[*baselines, *beside],
            slug=f"{setting.slug}-normalizers",
            title=f"{setting.title}, other normalizers",
        ),
    ]


def _weight(setting: Setting) -> tuple[bool, int]:
    """Epochs of all finished runs: a sweep of short trials does not outweigh a column that was trained."""
    return setting.series[0].is_whole, setting.n * setting.cell["train"]["epochs"]
