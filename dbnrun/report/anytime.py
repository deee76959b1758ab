"""Confidence sequences for a mean of Gaussian differences with unknown spread: valid at every look at once.

A 95 % confidence sequence covers the mean at all n together with probability 95 %, so one may look after each seed and
stop whenever one likes. Source: Wang and Ramdas, arXiv:2310.03722, the test martingale that mixes over mu/sigma with a
Gaussian and over sigma with the right Haar measure. With S and V the sums of n differences and of their squares,

    M_n = sqrt(c^2 / (n + c^2)) ((n + c^2) V / ((n + c^2) V - S^2))^(n/2)

is, under mean 0 and any sigma, a nonnegative martingale that starts at 1, and Ville's inequality bounds the chance that
it ever reaches 1 / alpha by alpha. The bound is over all n at once, so it holds for any rule that stops. Assumption:
the differences are independent and Gaussian with one mean and one spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# 1 / c^2 is the variance of mu / sigma in the mixture: effects of about one standard deviation are found soonest.
C_SQUARED = 1.0


def e_value(differences: np.ndarray) -> float:
    """M_n against mean 0, for `differences` (n,): how much the data speak against it; 1 where they say nothing."""
    n, total, squares = len(differences), float(np.sum(differences)), float(np.sum(np.square(differences)))
    if n < 2 or squares == 0:
        return 1.0
    within = (n + C_SQUARED) * squares
    return float(np.sqrt(C_SQUARED / (n + C_SQUARED)) * (within / (within - total**2)) ** (n / 2))


def interval(differences: np.ndarray, alpha: float) -> tuple[float, float]:
    """The (1 - alpha) confidence sequence of the mean at n = len(differences): the means m with M_n(x - m) < 1 / alpha.

    Infinite where n is too small to say anything; NaN where a difference is not finite.
    """
    n = len(differences)
    if not np.isfinite(differences).all():
        return float("nan"), float("nan")
    if n < 2:
        return -np.inf, np.inf
    bound = ((n + C_SQUARED) / (C_SQUARED * alpha**2)) ** (1 / n)
    rest = 1 - bound * C_SQUARED / (n + C_SQUARED)
    if rest <= 0:
        return -np.inf, np.inf
    half = float(np.std(differences) * np.sqrt((bound - 1) / rest))
    mean = float(np.mean(differences))
    return mean - half, mean + half


@dataclass(frozen=True)
class Decision:
    """What a confidence sequence says of a mean difference, and a margin within which differences do not matter."""

    low: float
    high: float
    margin: float

    @property
    def word(self) -> str:
        """'lower', 'higher', 'no relevant difference', or '' while it is undecided."""
        if self.high < 0:
            return "lower"
        if self.low > 0:
            return "higher"
        return "no relevant difference" if -self.margin <= self.low and self.high <= self.margin else ""


def decide(differences: np.ndarray, margin: float, alpha: float) -> Decision:
    """Whether differences decide a comparison: their sequence lies below 0, above 0, or within ± `margin`."""
    return Decision(*interval(differences, alpha), margin)
