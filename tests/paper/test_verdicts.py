"""Verdicts: each rule of docs/claims.md on numbers made for it, and the whole on data of known truth."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from synthetic import cell, constant, run, table_1

from dbnrun.paper import verdicts
from dbnrun.paper.result_set import result_set
from dbnrun.paper.verdicts import FAILS, HOLDS, NOT_RUN, OPEN, beats, share_among_best, similar
from dbnrun.report import compare
from dbnrun.report.compare import Comparison
from dbnrun.report.names import CONSTANTS
from dbnrun.report.series import settings_of
from dbnrun.report.stats import Summary

NAMED = ("0.5", "0.25")


def comparison(key="0.5", mean=-0.2, half=0.1, p=0.01, n=10):
    return Comparison(key, Summary(n, mean, 0.1, mean - half, mean + half), p, p, 11)


def verdict_of(*comparisons):
    return beats({one.key: one for one in comparisons}, NAMED, 0.05, lambda one: f"α = {one.key}")


def test_holds_where_every_named_comparison_rejects_below_zero():
    assert verdict_of(comparison("0.5"), comparison("0.25"))[0] == HOLDS


def test_a_comparison_that_the_claim_does_not_name_changes_nothing():
    assert verdict_of(comparison("0.5"), comparison("0.25"), comparison("0", mean=20.0))[0] == HOLDS


@pytest.mark.parametrize(
    ("mean", "half", "why"),
    [
        (0.3, 0.1, "higher"),
        (0.0, 0.04, "no gain, within the equivalence margin of ±0.05 pp"),
        (-0.02, 0.02, "no gain, within the equivalence margin of ±0.05 pp"),
    ],
    ids=["wrong side", "near zero", "near zero, negative"],
)
def test_does_not_hold_where_one_interval_contradicts_and_says_how(mean, half, why):
    found, reason = verdict_of(comparison("0.5"), comparison("0.25", mean, half, p=0.5))
    assert found == FAILS and reason == f"α = 0.25: {why}"


def test_undecided_says_which_comparison_does_not_reject():
    found, reason = verdict_of(comparison("0.5"), comparison("0.25", -0.1, 0.2, p=0.3))
    assert found == OPEN and reason == "1 of 2 comparisons do not reject, such as α = 0.25"


def test_undecided_says_where_so_few_seeds_can_never_reject():
    found, reason = verdict_of(*(comparison(key, p=1.0, n=3) for key in NAMED))
    assert found == OPEN and reason == "n = 3 seeds can never reject among 11 comparisons"


def test_what_was_not_run_is_said_unless_what_was_run_contradicts():
    assert verdict_of(comparison("0.5")) == (NOT_RUN, "not run: α = 0.25")
    assert verdict_of(comparison("0.5", 0.3, 0.1, p=1.0))[0] == FAILS
    assert verdict_of() == (NOT_RUN, "not run: α = 0.5, α = 0.25")
    assert beats(None, NAMED, 0.05, str) == (NOT_RUN, "not run: the reference")


def test_ten_seeds_can_reject_in_a_column_of_eleven_and_three_never():
    assert comparison(n=10).can_reject and not comparison(n=8).can_reject and not comparison(n=3).can_reject
    assert comparison(n=3).word == "n too small: 3 seeds can never reject here"
    assert comparison(n=10).word == "differs" and comparison(p=0.2).word == "no difference shown"


def third(zero, *, most=None, **others):
    """The verdict on C3 of what each schedule's comparison is, and of those that are another at the most."""
    named = [key.replace("_", ".") for key in others]
    least = {"0": comparison("0", *zero)} | {
        key: comparison(key, *value) for key, value in zip(named, others.values(), strict=True)
    }
    return similar(least, least | {key: comparison(key, *value) for key, value in (most or {}).items()}, named)[0]


def test_c3_wants_the_others_within_a_factor_of_two_and_zero_slower():
    slow, alike, unsure, slower = (3.0, 0.3, 0.01), (0.1, 0.3, 0.5), (0.5, 0.8, 0.5), (2.0, 0.5, 0.01)
    assert third(slow, _5=alike, _25=alike) == HOLDS
    assert third(slow, _5=alike, _25=unsure) == OPEN
    assert third(slow, _5=alike, _25=slower) == FAILS
    assert third(slow, _5=(-2.0, 0.5, 0.01)) == FAILS  # much faster is not similar either
    assert third(alike, _5=alike) == FAILS  # α = 0 converges like the others
    assert third((2.0, 1.5, 0.2), _5=alike) == OPEN
    assert similar({}, {}, ["0.5"])[0] == NOT_RUN


def test_c3_says_only_what_holds_however_much_a_run_counts_that_never_arrives():
    alike, slow, more = (0.1, 0.3, 0.5), (1.5, 0.3, 0.01), (3.0, 0.3, 0.01)
    assert third(alike, most={"0": slow}, _5=alike) == OPEN  # α = 0 never arrives, soon after the others did
    assert third(slow, most={".5": more}, _5=alike) == OPEN  # nor does α = 0.5: it may be similar or not
    assert third(slow, most={".5": more}, _5=slow) == FAILS  # too late at the least
    assert third(slow, most={"0": more}, _5=alike) == HOLDS
    # One seed of several never arrives: later on average at the most, and with a wider interval.
    assert third(slow, most={".5": (1.57, 1.03, 0.1)}, _5=(1.2, 0.01, 0.01)) == OPEN
    assert third(slow, most={"0": (3.5, 1.0, 0.2)}, _5=alike) == OPEN


def test_the_epochs_of_c3_are_paired_with_the_references_loss_of_the_same_seed():
    base = [
        run(cell(constant(1.0), seed), [3.0] * 4, val_loss=loss)
        for seed, loss in enumerate(([4, 2, 2, 2], [8, 8, 8, 4]))
    ]
    other = [
        run(cell(constant(0.5), seed), [3.0] * 4, val_loss=loss)
        for seed, loss in enumerate(([3, 3, 3, 2.1], [4.2, 4, 4, 4]))
    ]
    (setting,) = settings_of([*base, *other])
    series = compare.series_of(setting, "dbn_inference")
    measure = compare.log_epochs(series["1"], lambda epochs: 4 * epochs)
    assert measure(series["1"]) == {0: 1.0, 1: 2.0}  # epochs 2 and 4
    assert measure(series["0.5"]) == {0: 2.0, 1: 0.0}  # 1.05 · 2 at epoch 4, 1.05 · 4 at epoch 1
    assert compare.log_epochs(series["1"], lambda epochs: 4 * epochs, factor=1)(series["0.5"]) == {0: 4.0, 1: 1.0}


def test_a_column_is_paired_over_the_seeds_that_both_have():
    runs = [run(cell(constant(1.0), seed), [3.0, 2.0 + seed]) for seed in range(4)]
    runs += [run(cell(constant(0.5), seed), [3.0, 1.5 + seed]) for seed in range(1, 6)]
    (setting,) = settings_of(runs)
    column = compare.column(setting, "dbn_inference", compare.ERRORS["last"], "1")
    assert list(column) == ["0.5"] and column["0.5"].difference.n == 3
    assert column["0.5"].difference.mean == pytest.approx(-0.5) and column["0.5"].p == 0.25


def test_holm_counts_the_whole_column():
    runs = [
        run(cell(constant(alpha), seed), [3.0, 2.0 + alpha + 0.01 * seed])
        for alpha in (1.0, 0.5, 0.25)
        for seed in range(10)
    ]
    (setting,) = settings_of(runs)
    column = compare.column(setting, "dbn_inference", compare.ERRORS["last"], "1")
    assert [one.p_holm for one in column.values()] == pytest.approx([2 * 2 / 1024] * 2)


def exact_share(errors, chosen):
    """By writing out every resample of three seeds."""

    def places(error):
        for draw in itertools.product(range(error.shape[1]), repeat=error.shape[1]):
            means = error[:, list(draw)].mean(1)
            yield (means < means[chosen]).sum() < 3

    return np.prod([np.mean(list(places(error))) for error in errors])


def test_the_share_of_c5_is_that_of_all_resamples_written_out():
    rng = np.random.default_rng(5)
    errors = [rng.normal(2, 0.3, (10, 3)) for _ in range(3)]
    for error in errors:
        error[3] -= 0.45
    exact = exact_share(errors, 3)
    assert 0.1 < exact < 0.9
    assert share_among_best(errors, 3) == pytest.approx(exact, abs=0.02)  # 10,000 draws: standard error 0.005


def test_c5_counts_ties_in_favour_and_a_broken_schedule_last():
    equal = [np.ones((10, 4))]
    assert share_among_best(equal, 3) == 1
    broken = [np.ones((10, 4))]
    broken[0][3] = np.nan
    assert share_among_best(broken, 3) == 0


@pytest.fixture(scope="module")
def judged():
    results = result_set(table_1(seeds=10, epochs=20))
    return {(one.claim, one.dataset, one.protocol): one for one in results.verdicts if one.is_primary}


def test_claims_that_are_true_of_the_data_hold(judged):
    for dataset in ("mnist", "ni", "cifar10"):
        for claim in ("C1", "C2 (m = epochs)", "C2 (m = steps)", "C3 (m = epochs)", "C4"):
            assert judged[claim, dataset, "dbn_inference"].verdict == HOLDS, judged[claim, dataset, "dbn_inference"]
    assert judged["C5 (m = epochs)", "all", "dbn"].verdict == HOLDS


def test_claims_that_are_false_of_the_data_do_not_hold():
    results = result_set(table_1(datasets=["mnist"], protocols="A", seeds=10, epochs=20, gain=-0.5))
    judged = {
        one.claim: one
        for one in results.verdicts
        if one.is_primary and one.dataset == "mnist" and one.protocol == "dbn_inference"
    }
    assert judged["C1"].verdict == FAILS and "α = 0.25: +0.59" in judged["C1"].reason
    assert judged["C4"].verdict == HOLDS


def test_of_equal_schedules_no_claim_of_a_gain_holds():
    results = result_set(table_1(datasets=["mnist"], protocols="A", seeds=10, epochs=20, gain=0.0))
    judged = [one for one in results.verdicts if one.is_primary and one.dataset == "mnist"]
    assert all(one.verdict != HOLDS for one in judged if one.claim[:2] in ("C1", "C2"))


def test_every_data_set_protocol_and_claim_has_one_verdict_and_what_was_not_run_says_so(judged):
    results = result_set(table_1(datasets=["mnist"], protocols="A"))
    found = [one for one in results.verdicts if one.is_primary]
    names = [(one.claim, one.dataset, one.protocol) for one in found]
    assert len(names) == len(set(names)) and set(names) == set(judged)
    assert {one.verdict for one in found if one.dataset == "ni" or one.protocol == "dbn"} == {NOT_RUN}
    fifth = next(one for one in found if one.claim.startswith("C5") and one.protocol == "dbn_inference")
    assert fifth.reason == "not run: NI (KDD Cup 1999), CIFAR-10"


def test_the_rules_are_those_that_the_document_states():
    assert [never(10) for never in verdicts.NEVER] == [11, 40]
    text = " ".join((Path(__file__).parents[2] / "docs" / "claims.md").read_text().split())
    assert f"± {verdicts.MARGIN_PP} pp" in text and f"{verdicts.RESAMPLES:,} times" in text
    assert f"≥ {verdicts.SURE} *holds*, ≤ {verdicts.UNLIKELY} *does not hold*" in text
    assert "log 1.05" in text and "a factor of two" in text and "the **last epoch**" in text
    assert ", ".join(CONSTANTS) in text


def test_of_one_seed_no_verdict_speaks_of_intervals_or_tests():
    results = result_set(table_1(datasets=["mnist"], protocols="A", seeds=1))
    mine = [one for one in results.verdicts if one.dataset == "mnist" and one.protocol == "dbn_inference"]
    assert {one.reason for one in mine if one.verdict == OPEN} == {"n = 1: one seed has neither interval nor test"}
    assert not any("nan" in one.reason for one in mine) and not {HOLDS, FAILS} & {one.verdict for one in mine}
