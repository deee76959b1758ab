"""The confidence sequence: its formula, that it holds over all looks, and how many seeds it takes."""

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from dbnrun.report import anytime

SIMULATED, LOOKS = 4000, 40


def first_look(decided: np.ndarray) -> np.ndarray:
    """The n, from 1, of the first look that decided, for (simulations, looks); LOOKS + 1 where none did."""
    return np.where(decided.any(1), decided.argmax(1) + 1, LOOKS + 1)


def intervals(x: np.ndarray, alpha: float) -> np.ndarray:
    """The sequences of many simulations at every n: (simulations, LOOKS, 2)."""
    return np.array([[anytime.interval(row[:n], alpha) for n in range(1, LOOKS + 1)] for row in x])


def naive_p(x: np.ndarray) -> np.ndarray:
    """p of Student's t test at every n from 2, (simulations, LOOKS); 1 at n = 1."""
    p = np.ones(x.shape)
    for n in range(2, LOOKS + 1):
        p[:, n - 1] = stats.ttest_1samp(x[:, :n], 0, axis=1).pvalue
    return p


@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_e_value_is_the_bayes_factor_of_t_against_a_gaussian_mixture_of_noncentral_t(n):
    x = np.random.default_rng(n).normal(0.4, 1.3, n)
    t = np.sqrt(n) * x.mean() / x.std(ddof=1)

    def integrand(delta):
        prior = stats.norm.pdf(delta, scale=1 / np.sqrt(anytime.C_SQUARED))
        return stats.nct.pdf(t, n - 1, np.sqrt(n) * delta) * prior

    mixed, _ = integrate.quad(integrand, -8, 8)
    assert anytime.e_value(x) == pytest.approx(mixed / stats.t.pdf(t, n - 1), rel=1e-5)


def test_the_interval_holds_the_means_that_the_e_value_does_not_reject():
    x = np.random.default_rng(0).normal(2, 3, 12)
    low, high = anytime.interval(x, 0.05)

    def beyond(mean):
        return anytime.e_value(x - mean) - 1 / 0.05

    assert low == pytest.approx(optimize.brentq(beyond, x.mean() - 100, x.mean()))
    assert high == pytest.approx(optimize.brentq(beyond, x.mean(), x.mean() + 100))


def test_few_seeds_say_nothing_and_a_lost_number_says_so():
    assert anytime.interval(np.array([0.3]), 0.05) == (-np.inf, np.inf)
    assert anytime.interval(np.array([0.3, 0.4]), 1e-9) == (-np.inf, np.inf)
    assert np.isnan(anytime.interval(np.array([0.3, np.nan]), 0.05)).all()


def test_looking_after_each_seed_rejects_no_more_than_five_in_a_hundred_without_an_effect():
    x = np.random.default_rng(1).normal(0, 0.15, (SIMULATED, LOOKS))
    sequence = intervals(x, 0.05)
    wrong = ((sequence[..., 0] > 0) | (sequence[..., 1] < 0)).any(1).mean()
    naive = (naive_p(x) < 0.05).any(1).mean()
    assert wrong <= 0.05, wrong
    assert naive > 0.2, naive  # the t test, looked at after each seed


def test_an_effect_of_half_a_point_at_the_spread_of_mnist_takes_few_more_seeds_than_a_test_of_fixed_n():
    # The paired differences of ten seeds on MNIST have standard deviations of 0.1 to 0.2 pp.
    x = np.random.default_rng(2).normal(-0.5, 0.2, (1000, LOOKS))
    sequence = intervals(x, 0.05)
    seeds = first_look(sequence[..., 1] < 0)
    assert seeds.max() <= LOOKS and 5 < seeds.mean() < 7.5, seeds.mean()
    power = [_power(n) for n in range(2, 10)]
    fixed = 2 + next(i for i, each in enumerate(power) if each >= 0.8)
    assert fixed == 4  # what one would choose knowing the effect and the spread; it then has one look


def _power(n: int) -> float:
    """Of the two-sided t test at 5 %, for -0.5 at a spread of 0.2."""
    critical = stats.t.ppf(0.975, n - 1)
    return float(stats.nct.cdf(-critical, n - 1, -2.5 * np.sqrt(n)))


@pytest.mark.parametrize(
    ("mean", "word"), [(-1, "lower"), (1, "higher"), (0, "no relevant difference")]
)  # fmt: skip
def test_a_decision_is_below_above_or_within_the_margin(mean, word):
    x = np.random.default_rng(3).normal(mean, 0.2, 30)
    assert anytime.decide(x, 0.3, 0.05).word == word
    assert anytime.decide(x[:2], 0.3, 0.05).word == ""
