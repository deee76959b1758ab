"""The paper's claims C1 to C5 judged by the rules of docs/claims.md, which were written before the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dbnrun.paper.protocols import PAPER_DATASETS
from dbnrun.report import compare, stats
from dbnrun.report.compare import Comparison
from dbnrun.report.names import ALPHA_ONE, ALPHA_ZERO, CONSTANTS, DATASETS, DIMINISHING, MODERN_BN, UNITS, name_of
from dbnrun.report.series import Setting
from dbnrun.report.tables import TOP

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "undecided", "not run"
MARGIN_PP = 0.05  # an interval within ± this is too near zero to be a gain
MARGIN_LOG = float(np.log(1.05))  # the same for a ratio of noises: five percent
MARGINS = {MARGIN_PP: f"±{MARGIN_PP} pp", MARGIN_LOG: "±5 %"}  # in words
SIMILAR = 1.0  # log2: a similar rate is within a factor of two
# What a run counts as that never reaches C3's loss, from the epochs trained: the least that it can have needed, and two
# doublings more than all of them.
NEVER: tuple[Callable[[int], int], ...] = (lambda epochs: epochs + 1, lambda epochs: 4 * epochs)
SURE, UNLIKELY = 0.95, 0.05  # C5: shares of seed resamples
RESAMPLES = 10_000
# The selection that the verdict stands on: the last epoch chooses nothing, on any data set.
PRIMARY = "last"

CLAIMS = {
    "C1": "Every constant 0 < α < 1 has a lower test error than α = 1",
    "C2 (m = epochs)": "1/m and 1/m² have a lower test error than α = 1, m counting epochs",
    "C2 (m = steps)": "1/m and 1/m² have a lower test error than α = 1, m counting steps",
    "C3 (m = epochs)": "α = 0 is erratic; all others converge at a similar rate, m counting epochs",
    "C3 (m = steps)": "α = 0 is erratic; all others converge at a similar rate, m counting steps",
    "C4": "Constants 0 < α < 1 vary less from epoch to epoch than α = 1",
    "C5 (m = epochs)": "α = 0.25 is among the three best on all three data sets, m counting epochs",
    "C5 (m = steps)": "α = 0.25 is among the three best on all three data sets, m counting steps",
}
# The claim and the data set whose rule was changed when their runs were complete; docs/claims.md tells how.
AMENDED = ("C3", "ni")
AMENDMENT = "by a rule that was changed after these runs were complete"


Finding = tuple[str, str]  # a verdict, and why, in a sentence
NO_REFERENCE = (NOT_RUN, "not run: the reference")
EMPTY = Setting(cell={}, series=[])  # of a data set that was not run


@dataclass(frozen=True)
class Verdict:
    """How one claim fares on one data set ('all' for C5) under one protocol, and why, in a sentence."""

    claim: str
    dataset: str
    protocol: str
    reference: str  # ALPHA_ONE or MODERN_BN; '' for C5
    selection: str  # a key of stats.SELECTIONS; '' where none applies
    verdict: str
    reason: str

    @property
    def is_primary(self) -> bool:
        """Against α = 1 and by the last epoch: the verdict proper; the others stand beside it."""
        return self.reference in (ALPHA_ONE, "") and self.selection in (PRIMARY, "")

    @property
    def is_amended(self) -> bool:
        """A claim that holds by a rule which is younger than its runs."""
        return self.verdict == HOLDS and (self.claim.partition(" ")[0], self.dataset) == AMENDED


def judge(mains: Mapping[str, Setting], protocols: Sequence[str]) -> list[Verdict]:
    """Every verdict on the paper's data sets, from the main setting of each."""
    verdicts = []
    for protocol in protocols:
        for dataset in PAPER_DATASETS:
            for reference in (ALPHA_ONE, MODERN_BN):
                for claim, selection, finding in _of_column(mains.get(dataset, EMPTY), protocol, reference):
                    verdicts.append(Verdict(claim, dataset, protocol, reference, selection, *finding))
        for selection in stats.SELECTIONS:
            for unit in UNITS:
                finding = _among_best(mains, protocol, selection, unit)
                verdicts.append(Verdict(f"C5 (m = {unit})", "all", protocol, "", selection, *finding))
    return verdicts


def _of_column(setting: Setting, protocol: str, reference: str) -> Iterator[tuple[str, str, Finding]]:
    """C1 to C4 on one data set under one protocol against one reference: claim, selection, and what is found."""
    for selection in stats.SELECTIONS:
        compared = compare.column(setting, protocol, compare.ERRORS[selection], reference)
        yield "C1", selection, beats(compared, CONSTANTS, MARGIN_PP, _pp)
        for unit in UNITS:
            yield f"C2 (m = {unit})", selection, beats(compared, DIMINISHING[unit], MARGIN_PP, _pp)
    for unit in UNITS:
        yield f"C3 (m = {unit})", "", _third(setting, protocol, reference, unit)
    compared = compare.column(setting, protocol, compare.log_jitter, reference)
    yield "C4", "", beats(compared, CONSTANTS, MARGIN_LOG, _noise)


def beats(
    compared: Mapping[str, Comparison] | None, named: Sequence[str], margin: float, say: Callable[[Comparison], str]
) -> Finding:
    """The verdict on 'every named series has less than the reference', and the reason.

    Holds: every corrected p < 0.05, below 0. Does not hold: some 95 % interval wholly above 0 or within ± margin.
    """
    if compared is None:
        return NO_REFERENCE
    there = [compared[key] for key in named if key in compared]
    missing = [key for key in named if key not in compared]
    if not there:
        return NOT_RUN, f"not run: {_listed(named)}"
    if not missing and all(_less(one) for one in there):
        weakest = max(there, key=lambda one: one.difference.mean)
        return HOLDS, f"{len(there)} of {len(there)} comparisons reject; the smallest gain: {say(weakest)}"
    against = [one for one in there if _contradicts(one, margin)]
    if against:
        return FAILS, "; ".join(f"{say(one)}: {_how_it_fails(one, margin)}" for one in against)
    if missing:
        return NOT_RUN, f"not run: {_listed(missing)}"
    silent = [one for one in there if not _less(one)]
    return OPEN, _silence(silent, len(there), say)


ONE_SEED = "n = 1: one seed has neither interval nor test"
NO_NUMBER = "no test: a number is missing, of an epoch that was not evaluated or is not finite"


def _less(one: Comparison) -> bool:
    return one.p_holm < stats.ALPHA and one.difference.mean < 0


def _more(one: Comparison) -> bool:
    return one.p_holm < stats.ALPHA and one.difference.mean > 0


def _contradicts(one: Comparison, margin: float) -> bool:
    low, high = one.difference.low, one.difference.high
    return low > 0 or (low >= -margin and high <= margin)


def _how_it_fails(one: Comparison, margin: float) -> str:
    """In words, which of the two ways to contradict a gain an interval takes."""
    return "higher" if one.difference.low > 0 else f"no gain, within the equivalence margin of {MARGINS[margin]}"


def _silence(silent: Sequence[Comparison], made: int, say: Callable[[Comparison], str]) -> str:
    """Why comparisons do not reject: too few seeds to ever do so, or what they show."""
    fewest = min(one.difference.n for one in silent)
    if fewest < 2:
        return ONE_SEED
    if not any(one.can_reject for one in silent):
        return f"n = {fewest} seeds can never reject among {silent[0].made} comparisons"
    first = max(silent, key=lambda one: one.p_holm if np.isfinite(one.p_holm) else 2)
    if not np.isfinite(first.difference.mean):
        return NO_NUMBER
    return f"{len(silent)} of {made} comparisons do not reject, such as {say(first)}"


def _third(setting: Setting, protocol: str, reference: str, unit: str) -> Finding:
    """C3, by the epochs to reach 1.05 times the reference's least validation loss, as ratios to the reference's."""
    base = compare.reference_of(setting, protocol, reference)
    if base is None:
        return NO_REFERENCE
    column = compare.series_of(setting, protocol)
    least, most = (compare.against(base, column, compare.log_epochs(base, never)) for never in NEVER)
    constants = [ALPHA_ONE, *CONSTANTS] if reference == MODERN_BN else CONSTANTS
    return similar(least, most, [*constants, *DIMINISHING[unit]])


def similar(least: Mapping[str, Comparison], most: Mapping[str, Comparison], named: Sequence[str]) -> Finding:
    """The verdict on C3 from log2 ratios of epochs: those named within a factor of two, α = 0 slower.

    Runs that never arrived count for little in `least` and for much in `most`; what is said holds of both.
    """
    others = [key for key in named if key in most]
    missing = [key for key in [*named, ALPHA_ZERO] if key not in most]
    both = {key: (least[key].difference, most[key].difference) for key in most}
    outside = [
        key for key in others if all(d.low > SIMILAR for d in both[key]) or all(d.high < -SIMILAR for d in both[key])
    ]
    tame = [ALPHA_ZERO] if ALPHA_ZERO in both and all(d.high <= SIMILAR for d in both[ALPHA_ZERO]) else []
    if outside or tame:
        return FAILS, "; ".join(_times(least[key]) for key in [*outside, *tame])
    if missing:
        return NOT_RUN, f"not run: {_listed(missing)}"
    unsure = [key for key in others if any(d.low < -SIMILAR or d.high > SIMILAR for d in both[key])]
    if not unsure and _more(least[ALPHA_ZERO]) and _more(most[ALPHA_ZERO]):
        return HOLDS, f"all {len(others)} within a factor of two; {_times(least[ALPHA_ZERO])}"
    unsure = unsure or [ALPHA_ZERO]
    if min(most[key].difference.n for key in unsure) < 2:
        return OPEN, ONE_SEED
    if not np.isfinite(most[unsure[0]].difference.mean):
        return OPEN, NO_NUMBER
    such = _times(least[unsure[0]])
    if least[unsure[0]].difference != most[unsure[0]].difference:
        such += f"; {_times(most[unsure[0]])} where runs that never arrive count for more"
    return OPEN, f"{len(unsure)} of {len(others) + 1} comparisons leave it open, such as {such}"


def _among_best(mains: Mapping[str, Setting], protocol: str, selection: str, unit: str) -> Finding:
    """C5, by the share of seed resamples in which α = 0.25 is among the three best of Table 1 on every data set."""
    candidates = [ALPHA_ONE, *CONSTANTS, *DIMINISHING[unit], ALPHA_ZERO]
    chosen = candidates.index("0.25")
    errors, missing = [], []
    for dataset in PAPER_DATASETS:
        series = compare.series_of(mains.get(dataset, EMPTY), protocol)
        lacking = [key for key in candidates if key not in series]
        if lacking:
            missing.append(DATASETS[dataset] + (f" ({_listed(lacking)})" if len(lacking) < len(candidates) else ""))
            continue
        measured = [compare.ERRORS[selection](series[key]) for key in candidates]
        seeds = sorted(set.intersection(*(set(one) for one in measured)))
        errors.append(np.array([[one[seed] for seed in seeds] for one in measured]))
    if missing:
        return NOT_RUN, f"not run: {', '.join(missing)}"
    share = share_among_best(errors, chosen)
    counts = ", ".join(str(one.shape[1]) for one in errors)
    reason = f"in all three top threes in {100 * share:.1f} % of seed resamples (n = {counts})"
    resampled = [one for one in errors if one.shape[1] > 1]
    if len(resampled) < len(errors) and share_among_best(resampled, chosen) > UNLIKELY:
        return OPEN, f"{reason}; one seed alone has nothing to resample"
    return (HOLDS if share >= SURE else FAILS if share <= UNLIKELY else OPEN), reason


def share_among_best(errors: Sequence[np.ndarray], chosen: int) -> float:
    """Share of seed resamples in which row `chosen` is among the three least means of every (schedules, seeds) array.

    Each array's seeds are drawn with replacement, all its schedules with the same draw; NaN ranks last.
    """
    rng = np.random.default_rng(0)
    always = np.ones(RESAMPLES, dtype=bool)
    for error in errors:
        drawn = rng.integers(error.shape[1], size=(RESAMPLES, error.shape[1]))
        means = np.nan_to_num(error[:, drawn].mean(2), nan=np.inf)  # (schedules, resamples)
        always &= (means < means[chosen]).sum(0) < TOP
        always &= np.isfinite(means[chosen])
    return float(always.mean())


def _pp(one: Comparison) -> str:
    d = one.difference
    return f"{name_of(one.key)}: {d.mean:+.2f} [{d.low:+.2f}, {d.high:+.2f}] pp{_p(one)}"


def _noise(one: Comparison) -> str:
    return _ratio(one, "noise", np.exp)


def _times(one: Comparison) -> str:
    return _ratio(one, "epochs", np.exp2)


def _ratio(one: Comparison, what: str, of_log: Callable[[float], Any]) -> str:
    mean, low, high = (of_log(value) for value in (one.difference.mean, one.difference.low, one.difference.high))
    return f"{name_of(one.key)}: {what} × {mean:.2f} [{low:.2f}, {high:.2f}]{_p(one)}"


def _p(one: Comparison) -> str:
    return f", p = {one.p_holm:.2g}" if np.isfinite(one.p_holm) and one.can_reject else ""


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(name_of(key) for key in keys)
