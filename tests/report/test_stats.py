"""The statistics against scipy, hand calculations, enumerations, and simulated data of known truth."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from dbnrun.report import stats


def test_the_interval_is_scipys_student_interval_of_the_mean():
    values = np.random.default_rng(0).normal(2, 0.3, 10)
    ours, reference = stats.summarize(values), scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), rel=1e-12)
    assert ours.n == 10 and ours.mean == pytest.approx(values.mean()) and ours.sd == pytest.approx(values.std(ddof=1))


def test_three_values_by_hand():
    # mean 2, sd 1, standard error 1/√3, t(0.975, 2) = 4.302653
    found = stats.summarize(np.array([1.0, 2.0, 3.0]))
    assert (found.mean, found.sd) == (2, 1)
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)


def test_what_a_sample_is_too_small_for_is_not_a_number():
    assert np.isnan(stats.summarize(np.array([])).mean)
    one = stats.summarize(np.array([2.0]))
    assert one.mean == 2 and np.isnan([one.sd, one.low, one.high]).all()
    assert np.isnan(stats.summarize(np.array([1.0, np.nan, 2.0])).mean)


@pytest.mark.parametrize("n", [3, 10])
def test_the_interval_covers_the_true_mean_in_95_percent_of_samples(n):
    samples = np.random.default_rng(1).normal(5, 2, (4000, n))
    covered = np.mean([found.low <= 5 <= found.high for found in map(stats.summarize, samples)])
    assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / 4000) ** 0.5  # four binomial standard errors


def enumerated_p(differences):
    """Two-sided p by writing out every way to sign the differences, in exact integers."""
    whole = np.round(np.asarray(differences) * 1e6).astype(int).tolist()
    sums = [
        abs(sum(s * d for s, d in zip(signs, whole, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(whole))
    ]
    return sum(one >= abs(sum(whole)) for one in sums) / len(sums)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10])
def test_the_sign_flip_p_is_that_of_all_signings_written_out(n):
    rng = np.random.default_rng(n)
    for centre in (0.0, 0.05, 0.3):
        # Differences of errors on 10,000 records: hundredths, so that many signings tie.
        differences = np.round(rng.normal(centre, 0.1, n), 2)
        assert stats.sign_flip_p(differences) == pytest.approx(enumerated_p(differences), abs=1e-12)


@pytest.mark.parametrize("n", [4, 9])
def test_the_sign_flip_p_is_scipys(n):
    differences = np.round(np.random.default_rng(n).normal(0.05, 0.1, n), 2)
    reference = scipy_stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=2**n)
    assert stats.sign_flip_p(differences) == pytest.approx(reference.pvalue, abs=1e-12)


def test_beyond_sixteen_seeds_the_sign_flips_are_drawn_alike_each_time():
    differences = np.random.default_rng(0).normal(0.05, 0.1, 17)
    p = stats.sign_flip_p(differences)
    assert p == stats.sign_flip_p(differences)
    # A draw of 9,999 from the signings: its standard error is at most 0.005.
    assert p == pytest.approx(scipy_stats.ttest_1samp(differences, 0).pvalue, abs=0.03)


def test_ties_of_errors_on_nis_records_are_ties():
    counts = np.array([30, -12, 18, 12, -30, 42])
    errors = 100 * (23_000 + counts) / 311_029 - 100 * 23_000 / 311_029  # equal on paper, not in the last bit
    assert stats.sign_flip_p(errors) == pytest.approx(enumerated_p(counts), abs=1e-12)


@pytest.mark.parametrize("n", [3, 6, 10])
def test_differences_of_one_sign_have_the_least_p(n):
    assert stats.sign_flip_p(-np.linspace(0.1, 0.2, n)) == stats.least_p(n) == 2 / 2**n


def test_no_difference_at_all_has_p_one_and_one_seed_has_none():
    assert stats.sign_flip_p(np.zeros(5)) == 1
    assert np.isnan(stats.sign_flip_p(np.array([0.3])))
    assert np.isnan(stats.sign_flip_p(np.array([0.3, np.nan])))


def test_holm_by_hand():
    # Sorted 0.01·3, 0.03·2, then never below the one before.
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = stats.holm([0.01, np.nan, 0.04])  # what was not tested corrects nothing
    assert corrected[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(corrected[1])
    assert np.isnan(stats.holm([np.nan])).all()


@pytest.mark.parametrize("k", [1, 2, 11, 40])
def test_holm_is_that_of_statsmodels(k):
    p = np.round(np.random.default_rng(k).uniform(0, 0.2, k), 2)  # with ties
    assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def rejections(effect, trials, comparisons=1, n=10, sd=0.3):
    """Share of trials in which at least one of the Holm-corrected comparisons rejects."""
    rng = np.random.default_rng(2)
    draws = rng.normal(effect, sd, (trials, comparisons, n))
    return np.mean([stats.holm([stats.sign_flip_p(one) for one in trial]).min() < stats.ALPHA for trial in draws])


def test_without_an_effect_five_percent_are_rejected():
    share, trials = rejections(0.0, 4000), 4000
    # p < 0.05 is reached by 50 of the 1024 signings.
    assert abs(share - 50 / 1024) < 4 * (0.05 * 0.95 / trials) ** 0.5


def test_without_an_effect_a_whole_column_rejects_at_most_five_percent():
    share, trials = rejections(0.0, 1000, comparisons=11), 1000
    assert share <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_an_effect_of_half_a_point_is_found(record_property):
    power = rejections(0.5, 2000)
    record_property("power of 10 seeds, effect 0.5 pp, sd of differences 0.3 pp", float(power))
    # The t test of the same design: its power from the noncentral t distribution.
    shift, critical = 0.5 / 0.3 * 10**0.5, scipy_stats.t.ppf(0.975, 9)
    reference = scipy_stats.nct.sf(critical, 9, shift) + scipy_stats.nct.cdf(-critical, 9, shift)
    assert abs(power - reference) < 0.03


@pytest.mark.parametrize(("error", "records", "floor"), [(2.7, 10_000, 0.16), (17, 10_000, 0.38), (7.4, 311_029, 0.05)])
def test_the_noise_floor_of_a_reading_is_binomial(error, records, floor):
    assert stats.noise_floor(error, records) == pytest.approx(floor, abs=0.005)
    draws = np.random.default_rng(3).binomial(records, error / 100, 20_000) / records * 100
    assert stats.noise_floor(error, records) == pytest.approx(draws.std(), rel=0.03)


def test_the_three_selections_by_hand():
    test = np.array([[5.0, 2.0, 3.0, 4.0], [6.0, 4.5, 4.0, 4.25]])
    val = np.array([[5.0, 3.0, 2.0, 2.0], [1.0, 4.5, 4.0, 4.25]])
    assert stats.select(test, val, "last").tolist() == [4.0, 4.25]
    assert stats.select(test, val, "best_on_val").tolist() == [3.0, 6.0]  # the earliest of equal epochs
    assert stats.select(test, val, "best_on_test").tolist() == [2.0, 4.0]


def test_no_selection_hides_a_broken_epoch():
    test, val = np.array([[5.0, np.nan, 3.0]]), np.array([[5.0, np.nan, 3.0]])
    assert stats.select(test, val, "last").tolist() == [3.0]
    assert np.isnan(stats.select(test, val, "best_on_val")).all()
    assert np.isnan(stats.select(test, val, "best_on_test")).all()


def test_jitter_estimates_the_noise_around_a_trend():
    rng = np.random.default_rng(4)
    trend = np.linspace(3, 2.5, 400)
    noisy = trend + rng.normal(0, 0.2, (50, 400))
    assert stats.jitter(noisy).mean() == pytest.approx(0.2, rel=0.03)
    # By hand: the last half 1, 2, 1 has steps 1, −1, of sample standard deviation √2.
    assert stats.jitter(np.array([[9.0, 9.0, 1.0, 2.0, 1.0]])) == pytest.approx([1.0])
    assert np.isnan(stats.jitter(np.array([[1.0, 2.0, 3.0]]))).all()


def test_epochs_to_reach_counts_from_one_and_as_said_where_never():
    loss = np.array([[0.5, 0.3, 0.2], [0.5, 0.5, 0.5], [0.1, 0.5, 0.1]])
    assert stats.epochs_to_reach(loss, np.array([0.3, 0.4, 0.2]), never=12).tolist() == [2, 12, 1]
