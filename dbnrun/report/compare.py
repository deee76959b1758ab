"""Series of one setting against a reference, paired by seed.

A *column* is what Holm's correction covers: every schedule of one protocol (or every baseline) against one reference,
in one measure. A measure gives each seed of a series one number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dbnrun.report import stats
from dbnrun.report.series import Series, Setting

Measure = Callable[[Series], dict[int, float]]


@dataclass(frozen=True)
class Comparison:
    """A series minus the reference, paired by seed unless it says why not; below 0 the series has less."""

    key: str
    difference: stats.Summary
    p: float
    p_holm: float
    made: int  # comparisons in the column
    unpaired: str = ""  # why runs of one seed are no pairs

    @property
    def can_reject(self) -> bool:
        """Whether so few seeds could reach a corrected p below 0.05 at all."""
        least = 0 if self.unpaired else stats.least_p(self.difference.n)
        return self.difference.n > 1 and least * self.made < stats.ALPHA

    @property
    def word(self) -> str:
        """The p-value in plain words."""
        if self.difference.n < 2:
            return "n too small: no test"
        if not np.isfinite(self.p_holm):
            return "no test: a number is missing"
        if not self.can_reject:
            return f"n too small: {self.difference.n} seeds can never reject here"
        return "differs" if self.p_holm < stats.ALPHA else "no difference shown"


def series_of(setting: Setting, protocol: str) -> dict[str, Series]:
    """The finished series of a protocol ('' for the baselines) by key."""
    found = [one for one in setting.series if one.protocol == protocol and one.n]
    by_key = {one.key: one for one in found}
    assert len(by_key) == len(found), "a setting of the paper has one series a schedule"
    return by_key


def reference_of(setting: Setting, protocol: str, reference: str) -> Series | None:
    """α = 1 of the same protocol, or a baseline; None where it has not been run."""
    return (series_of(setting, "") | series_of(setting, protocol)).get(reference)


def column(setting: Setting, protocol: str, measure: Measure, reference: str) -> dict[str, Comparison] | None:
    """Every series of the protocol (or every baseline) against the reference, by key; None where that is missing."""
    base = reference_of(setting, protocol, reference)
    return against(base, series_of(setting, protocol), measure) if base else None


def against(base: Series, column: Mapping[str, Series], measure: Measure) -> dict[str, Comparison]:
    """Every other series of a column against `base`, by key; p Holm-corrected over them."""
    zero = measure(base)
    found = [by_pairs(key, measure(one), zero) for key, one in column.items() if one is not base]
    return {one.key: one for one in corrected(found)}


def by_pairs(key: str, values: Mapping[int, float], zero: Mapping[int, float]) -> Comparison:
    """Numbers by seed minus those of the reference; not yet corrected."""
    differences = paired(values, zero)
    p = stats.sign_flip_p(differences)
    return Comparison(key, stats.summarize(differences), p, p, 0)


def corrected(column: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of a column with Holm's correction over them."""
    raw = [one.p for one in column]
    made = int(np.isfinite(raw).sum())
    return [replace(one, p_holm=float(p), made=made) for one, p in zip(column, stats.holm(raw), strict=True)]


def paired(values: Mapping[int, float], zero: Mapping[int, float]) -> np.ndarray:
    """Differences over the seeds that both have."""
    return np.array([values[seed] - zero[seed] for seed in sorted(values.keys() & zero.keys())], dtype=float)


def by_seed(series: Series, values: Sequence[float] | np.ndarray) -> dict[int, float]:
    """One value per finished run, by its seed."""
    return {run.cell["seed"]: float(value) for run, value in zip(series.finished, values, strict=True)}


def selected_error(series: Series, selection: str) -> dict[int, float]:
    """Test error [%] at the epoch that a selection names."""
    return by_seed(series, stats.select(series.column("test_error_pct"), series.column("val_error_pct"), selection))


def population_error(series: Series) -> dict[int, float]:
    """Test error [%] of the last epoch's weights with the statistics of the whole training part."""
    return by_seed(series, series.column("test_error_pct_population")[:, -1])


# Test errors by the name of how they are measured.
ERRORS: dict[str, Measure] = {name: partial(selected_error, selection=name) for name in stats.SELECTIONS}
ERRORS["population"] = population_error


def summary(series: Series, name: str) -> stats.Summary:
    """The mean of a test error over the finished runs, with its spread."""
    return stats.summarize(np.array(list(ERRORS[name](series).values())))


def log_jitter(series: Series) -> dict[int, float]:
    """Natural logarithm of the epoch-to-epoch noise of the test error; NaN where it is 0 or epochs are skipped."""
    noise = stats.jitter(series.column("test_error_pct")) if series.is_whole else np.full(series.n, np.nan)
    return by_seed(series, np.log(np.where(noise > 0, noise, np.nan)))


def log_epochs(base: Series, never: Callable[[int], int], factor: float = 1.05) -> Measure:
    """Base-2 logarithm of the epochs to reach `factor` times the least validation loss of `base`, seed by seed.

    A run that never reaches it counts as `never`(the epochs trained). NaN where epochs are skipped.
    """
    target = by_seed(base, factor * base.column("val_loss").min(1))

    def measure(series: Series) -> dict[int, float]:
        if not series.is_whole:
            return by_seed(series, np.full(series.n, np.nan))
        goals = np.array([target.get(run.cell["seed"], np.nan) for run in series.finished])
        epochs = stats.epochs_to_reach(series.column("val_loss"), goals, never(len(series.epochs)))
        return {seed: value for seed, value in by_seed(series, np.log2(epochs)).items() if seed in target}

    return measure
