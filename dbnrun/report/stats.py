"""The statistics, on arrays alone: selections of an epoch, intervals, paired tests, the noise of one reading.

`docs/claims.md` says which of them decide what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import special, stats

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # a corrected p-value below this rejects
EXACT_UP_TO = 16  # differences; beyond, 9,999 sign flips are drawn
POWER = 0.8  # with which the seeds needed would show an effect
MOST_SEEDS = 10_000  # looked for
SELECTIONS = {
    "last": "last epoch",
    "best_on_val": "best epoch on the validation part",
    "best_on_test": "best epoch on the test set (the paper's; optimistic)",
}


def select(test: np.ndarray, val: np.ndarray, selection: str) -> np.ndarray:
    """The test error of the epoch that `selection` names, from (runs, epochs) of test and validation error: (runs,).

    Of equal epochs the earliest; NaN where a run's curve holds one, so that no selection hides a broken epoch.
    """
    if selection == "last":
        return test[:, -1]
    if selection == "best_on_test":
        return test.min(1)
    chosen = np.take_along_axis(test, np.argmin(val, axis=1)[:, None], 1)[:, 0]
    return np.where(np.isnan(val).any(1), np.nan, chosen)


@dataclass(frozen=True)
class Summary:
    """A sample's mean and spread; NaN for what its size does not allow."""

    n: int
    mean: float
    sd: float  # sample standard deviation, n - 1
    low: float  # 95 % Student t interval of the mean
    high: float


def summarize(values: np.ndarray) -> Summary:
    """Mean, sample standard deviation and 95 % Student t interval; NaN throughout where a value is not finite."""
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        return Summary(n, *[float("nan")] * 4)
    mean = float(np.mean(values))
    if n == 1:
        return Summary(1, mean, *[float("nan")] * 3)
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / n**0.5
    return Summary(n, mean, sd, mean - half, mean + half)


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p-value of the mean difference among all 2^n ways to sign the differences: exact up to n = 16.

    1 where every difference is 0; NaN without two finite differences.
    """
    if len(differences) < 2 or not np.isfinite(differences).all():
        return float("nan")
    n, exact = len(differences), len(differences) <= EXACT_UP_TO
    means = _mean((_signs(n) if exact else _drawn_signs(n)) * differences, axis=1)
    as_far = np.abs(means) >= np.abs(_mean(differences, axis=0))
    # Of drawn flips the one that was observed counts among them, so that p is never 0.
    return float(np.mean(as_far) if exact else (np.sum(as_far) + 1) / (len(as_far) + 1))


@cache
def _signs(n: int) -> np.ndarray:
    """Half of the ways to sign n numbers, (2^(n-1), n): the other half is its mirror, with the same |mean|.

    scipy.stats.permutation_test gives the same p (a test holds them together) in 6 ms at n = 10, building each signing
    in Python; this takes 0.05 ms, and a report makes thousands of tests.
    """
    return 1.0 - 2.0 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1)


@cache
def _drawn_signs(n: int) -> np.ndarray:
    """9,999 ways to sign n numbers, the same in every run."""
    return np.random.default_rng(0).choice([-1.0, 1.0], (9_999, n))


def _mean(x: np.ndarray, axis: int) -> np.ndarray:
    # Errors are counts over a data set: sums that are equal on paper must not differ by the last bit.
    return np.round(np.mean(x, axis=axis), 7)


def least_p(n: int) -> float:
    """The smallest p-value that n paired differences can give: all of one sign, or all of the other."""
    return 2.0 ** (1 - n)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's correction over the comparisons that were made; NaN stays NaN and counts for none.

    Holm (1979): the i-th smallest of k is multiplied by k - i + 1, and none falls below the one before. A test holds it
    to statsmodels' `multipletests`, which collects garbage at each call: 80 ms in a report.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)  # NaN last
    made = int(np.isfinite(p).sum())
    corrected = np.full(len(p), np.nan)
    steps = p[order[:made]] * np.arange(made, 0, -1)
    corrected[order[:made]] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def welch(values: np.ndarray, others: np.ndarray) -> tuple[Summary, float]:
    """The difference of two independent samples' means, with Welch's 95 % interval, and Welch's two-sided p-value.

    `n` is the smaller sample's size, `sd` the root mean square of the two standard deviations. NaN where a sample has
    fewer than two values or one that is not finite, or where neither sample varies.
    """
    n = min(len(values), len(others))
    if n == 0 or not np.isfinite([*values, *others]).all():
        return Summary(n, *[float("nan")] * 4), float("nan")
    mean = float(np.mean(values) - np.mean(others))
    if n < 2:
        return Summary(n, mean, *[float("nan")] * 3), float("nan")
    sd = float(((np.var(values, ddof=1) + np.var(others, ddof=1)) / 2) ** 0.5)
    if sd == 0:
        return Summary(n, mean, 0.0, float("nan"), float("nan")), float("nan")
    found: Any = stats.ttest_ind(values, others, equal_var=False)
    low, high = found.confidence_interval(LEVEL)
    return Summary(n, mean, sd, float(low), float(high)), float(found.pvalue)


def p_improvement(values: np.ndarray, others: np.ndarray) -> float:
    """P(value < other) over all pairs of runs, ties counting one half (Agarwal et al. 2021): 1 where all are lower."""
    if not len(values) or not len(others) or not np.isfinite([*values, *others]).all():
        return float("nan")
    steps = np.sign(others[None, :] - values[:, None])
    return float((steps.mean() + 1) / 2)


def power(n: int, effect: float, sd: float, *, paired: bool) -> float:
    """The power of the two-sided t test at 5 %: of n differences with that standard deviation, or of n a sample."""
    df, root = (n - 1, n**0.5) if paired else (2 * n - 2, (n / 2) ** 0.5)
    critical, shift = special.stdtrit(df, 1 - ALPHA / 2), abs(effect) / sd * root
    found = 1 - special.nctdtr(df, shift, critical) + special.nctdtr(df, shift, -critical)
    if np.isfinite(found):
        return float(found)
    # scipy's noncentral t has gaps at large effects: there, the mean over quantiles of the estimated deviation.
    deviation = np.sqrt(2 / df * special.gammaincinv(df / 2, (np.arange(4000) + 0.5) / 4000))
    return float(np.mean(special.ndtr(shift - critical * deviation) + special.ndtr(-shift - critical * deviation)))


def seeds_needed(effect: float, sd: float, *, paired: bool, least: int = 2) -> float:
    """The least number of seeds, of `least` or more, with which the t test shows an effect with a power of 80 %.

    NaN where no spread is known, infinity where more than MOST_SEEDS are needed.
    """
    if not np.isfinite(sd):
        return float("nan")
    low = high = max(least, 2)
    while sd > 0 and power(high, effect, sd, paired=paired) < POWER:  # the power grows with n
        if high > MOST_SEEDS:
            return float("inf")
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect, sd, paired=paired) >= POWER else (middle, high)
    return high if high <= MOST_SEEDS else float("inf")


def least_seeds(made: int) -> int:
    """The least number of paired seeds with which one of so many comparisons can reject after Holm's correction."""
    n = 2
    while least_p(n) * made >= ALPHA:
        n += 1
    return n


def noise_floor(error_pct: float, records: float) -> float:
    """Binomial standard error [pp] of one reading of `error_pct` on so many test records.

    It says how far a reading lies from the error on fresh records. Paired differences on one test set do not have it.
    """
    share = error_pct / 100
    return 100 * (share * (1 - share) / records) ** 0.5


def jitter(test: np.ndarray) -> np.ndarray:
    """Epoch-to-epoch noise [pp] of each run: the standard deviation of successive differences over the last half, / √2.

    For independent noise of equal variance around a slow trend it estimates that noise's standard deviation. NaN where
    the last half has fewer than two differences.
    """
    steps = np.diff(test[:, test.shape[1] // 2 :], axis=1)
    if steps.shape[1] < 2:
        return np.full(len(test), np.nan)
    return steps.std(axis=1, ddof=1) / 2**0.5


def epochs_to_reach(loss: np.ndarray, target: np.ndarray, never: float) -> np.ndarray:
    """The first epoch (from 1) whose loss is at most each run's target; `never` where none is."""
    reached = loss <= target[:, None]
    return np.where(reached.any(1), reached.argmax(1) + 1, never).astype(float)
