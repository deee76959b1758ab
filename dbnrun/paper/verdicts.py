"""The paper's claims C1 to C5 judged by the rules of docs/claims.md, which were written before the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dbnrun.paper.protocols import PAPER_DATASETS
from dbnrun.report import compare, stats
from dbnrun.report.compare import ALPHA_ONE, MODERN_BN, Comparison
from dbnrun.report.names import DATASETS, name_of
from dbnrun.report.series import Setting
from dbnrun.report.tables import write_texts

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "undecided", "not run"
CONSTANTS = ("0.75", "0.5", "0.25", "0.1", "0.01", "0.001")  # 0 < α < 1
UNITS = ("epochs", "steps")  # what m counts; the paper does not say
MARGIN_PP = 0.05  # an interval within ± this is too near zero to be a gain
MARGIN_LOG = float(np.log(1.05))  # the same for a ratio of noises: five percent
SIMILAR = 1.0  # log2: a similar rate is within a factor of two
# What a run counts as that never reaches C3's loss, from the epochs trained: the least that it can have needed, and two
# doublings more than all of them.
NEVER: tuple[Callable[[int], int], ...] = (lambda epochs: epochs + 1, lambda epochs: 4 * epochs)
SURE, UNLIKELY = 0.95, 0.05  # C5: shares of seed resamples
RESAMPLES = 10_000
TOP = 3
# The selection that the verdict stands on: the last epoch chooses nothing, on any data set.
PRIMARY = "last"

CLAIMS = {
    "C1": "Every constant 0 < α < 1 has less test error than α = 1",
    "C2 (m = epochs)": "1/m and 1/m² have less test error than α = 1, m counting epochs",
    "C2 (m = steps)": "1/m and 1/m² have less test error than α = 1, m counting steps",
    "C3 (m = epochs)": "α = 0 is erratic; all others converge at a similar rate, m counting epochs",
    "C3 (m = steps)": "α = 0 is erratic; all others converge at a similar rate, m counting steps",
    "C4": "Constants 0 < α < 1 vary less from epoch to epoch than α = 1",
    "C5 (m = epochs)": "α = 0.25 is among the three best on all three data sets, m counting epochs",
    "C5 (m = steps)": "α = 0.25 is among the three best on all three data sets, m counting steps",
}


@dataclass(frozen=True, kw_only=True)
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


def judge(mains: Mapping[str, Setting], protocols: Sequence[str]) -> list[Verdict]:
    """Every verdict on the paper's data sets (and others that were run), from the main setting of each."""
    datasets = [*PAPER_DATASETS, *(name for name in mains if name not in PAPER_DATASETS)]
    verdicts = []
    for protocol in protocols:
        for dataset in datasets:
            setting = mains.get(dataset)
            for reference in (ALPHA_ONE, MODERN_BN):
                verdicts += _of_column(dataset, setting, protocol, reference)
        verdicts += _fifth(mains, protocol)
    return verdicts


def _of_column(dataset: str, setting: Setting | None, protocol: str, reference: str) -> list[Verdict]:
    """C1 to C4 on one data set under one protocol against one reference."""
    verdicts = []

    def add(claim: str, selection: str, found: tuple[str, str]) -> None:
        verdicts.append(
            Verdict(
                claim=claim,
                dataset=dataset,
                protocol=protocol,
                reference=reference,
                selection=selection,
                verdict=found[0],
                reason=found[1],
            )
        )

    for selection in stats.SELECTIONS:
        compared = _column(setting, protocol, compare.selected_error(selection), reference)
        add("C1", selection, beats(compared, CONSTANTS, MARGIN_PP, _pp))
        for unit in UNITS:
            named = (f"1/m {unit}", f"1/m^2 {unit}")
            add(f"C2 (m = {unit})", selection, beats(compared, named, MARGIN_PP, _pp))
    for unit in UNITS:
        add(f"C3 (m = {unit})", "", _third(setting, protocol, reference, unit))
    compared = _column(setting, protocol, compare.log_jitter, reference)
    add("C4", "", beats(compared, CONSTANTS, MARGIN_LOG, _ratio))
    return verdicts


def _column(
    setting: Setting | None, protocol: str, measure: compare.Measure, reference: str
) -> dict[str, Comparison] | None:
    """The comparisons of a column; None where the reference has not been run."""
    if setting is None or compare.reference_of(setting, protocol, reference) is None:
        return None
    return compare.column(setting, protocol, measure, reference)


def beats(
    compared: Mapping[str, Comparison] | None, named: Sequence[str], margin: float, say: Callable[[Comparison], str]
) -> tuple[str, str]:
    """The verdict on 'every named series has less than the reference', and the reason.

    Holds: every corrected p < 0.05, below 0. Does not hold: some 95 % interval wholly above 0 or within ± margin.
    """
    if compared is None:
        return NOT_RUN, "not run: the reference"
    there = [compared[key] for key in named if key in compared]
    missing = [key for key in named if key not in compared]
    if not there:
        return NOT_RUN, f"not run: {_listed(named)}"
    if not missing and all(_less(one) for one in there):
        weakest = max(there, key=lambda one: one.difference.mean)
        return HOLDS, f"{len(there)} of {len(there)} comparisons reject; the smallest gain: {say(weakest)}"
    against = [one for one in there if _contradicts(one, margin)]
    if against:
        return FAILS, "; ".join(say(one) for one in against)
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


def _third(setting: Setting | None, protocol: str, reference: str, unit: str) -> tuple[str, str]:
    """C3, by the epochs to reach 1.05 times the reference's least validation loss, as ratios to the reference's."""
    base = setting and compare.reference_of(setting, protocol, reference)
    if setting is None or base is None:
        return NOT_RUN, "not run: the reference"
    least, most = (compare.column(setting, protocol, compare.log_epochs(base, never), reference) for never in NEVER)
    constants = ["1", *CONSTANTS] if reference == MODERN_BN else CONSTANTS
    return similar(least, most, [*constants, f"1/m {unit}", f"1/m^2 {unit}"])


def similar(least: Mapping[str, Comparison], most: Mapping[str, Comparison], named: Sequence[str]) -> tuple[str, str]:
    """The verdict on C3 from log2 ratios of epochs: those named within a factor of two, α = 0 slower.

    Runs that never arrived count for little in `least` and for much in `most`; what is said holds of both.
    """
    others = [key for key in named if key in most]
    missing = [key for key in [*named, "0"] if key not in most]
    both = {key: (least[key].difference, most[key].difference) for key in most}
    outside = [
        key for key in others if all(d.low > SIMILAR for d in both[key]) or all(d.high < -SIMILAR for d in both[key])
    ]
    tame = ["0"] if "0" in both and all(d.high <= SIMILAR for d in both["0"]) else []
    if outside or tame:
        return FAILS, "; ".join(_times(least[key]) for key in [*outside, *tame])
    if missing:
        return NOT_RUN, f"not run: {_listed(missing)}"
    unsure = [key for key in others if any(d.low < -SIMILAR or d.high > SIMILAR for d in both[key])]
    if not unsure and _more(least["0"]) and _more(most["0"]):
        return HOLDS, f"all {len(others)} within a factor of two; {_times(least['0'])}"
    unsure = unsure or ["0"]
    if min(most[key].difference.n for key in unsure) < 2:
        return OPEN, ONE_SEED
    if not np.isfinite(most[unsure[0]].difference.mean):
        return OPEN, NO_NUMBER
    such = _times(least[unsure[0]])
    if least[unsure[0]].difference != most[unsure[0]].difference:
        such += f"; {_times(most[unsure[0]])} where runs that never arrive count for more"
    return OPEN, f"{len(unsure)} of {len(others) + 1} comparisons leave it open, such as {such}"


def _fifth(mains: Mapping[str, Setting], protocol: str) -> list[Verdict]:
    verdicts = []
    for selection in stats.SELECTIONS:
        for unit in UNITS:
            found, reason = _among_best(mains, protocol, selection, unit)
            verdicts.append(
                Verdict(
                    claim=f"C5 (m = {unit})",
                    dataset="all",
                    protocol=protocol,
                    reference="",
                    selection=selection,
                    verdict=found,
                    reason=reason,
                )
            )
    return verdicts


def _among_best(mains: Mapping[str, Setting], protocol: str, selection: str, unit: str) -> tuple[str, str]:
    candidates = ["1", *CONSTANTS, f"1/m {unit}", f"1/m^2 {unit}", "0"]
    errors, missing = [], []
    for dataset in PAPER_DATASETS:
        series = compare.series_of(mains[dataset], protocol) if dataset in mains else {}
        lacking = [key for key in candidates if key not in series]
        if lacking:
            missing.append(DATASETS[dataset] + (f" ({_listed(lacking)})" if len(lacking) < len(candidates) else ""))
            continue
        measured = [compare.selected_error(selection)(series[key]) for key in candidates]
        seeds = sorted(set.intersection(*(set(one) for one in measured)))
        errors.append(np.array([[one[seed] for seed in seeds] for one in measured]))
    if missing:
        return NOT_RUN, f"not run: {', '.join(missing)}"
    share = share_among_best(errors, candidates.index("0.25"))
    counts = ", ".join(str(one.shape[1]) for one in errors)
    reason = f"in all three top threes in {100 * share:.1f} % of seed resamples (n = {counts})"
    resampled = [one for one in errors if one.shape[1] > 1]
    if len(resampled) < len(errors) and share_among_best(resampled, candidates.index("0.25")) > UNLIKELY:
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
    return f"{name_of(one.key)}: {_interval(one.difference, 1, 2)} pp{_p(one)}"


def _ratio(one: Comparison) -> str:
    d = one.difference
    return f"{name_of(one.key)}: noise × {np.exp(d.mean):.2f} [{np.exp(d.low):.2f}, {np.exp(d.high):.2f}]{_p(one)}"


def _times(one: Comparison) -> str:
    d = one.difference
    return f"{name_of(one.key)}: epochs × {2**d.mean:.2f} [{2**d.low:.2f}, {2**d.high:.2f}]{_p(one)}"


def _interval(d: stats.Summary, scale: float, digits: int) -> str:
    return f"{d.mean * scale:+.{digits}f} [{d.low * scale:+.{digits}f}, {d.high * scale:+.{digits}f}]"


def _p(one: Comparison) -> str:
    return f", p = {one.p_holm:.2g}" if np.isfinite(one.p_holm) and one.can_reject else ""


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(name_of(key) for key in keys)


def as_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row a verdict."""
    return pd.DataFrame([asdict(verdict) for verdict in verdicts])


def write(verdicts: Sequence[Verdict], folder: Path) -> list[Path]:
    """Write verdicts.csv below `folder`; returns it."""
    return write_texts(folder, {"verdicts.csv": as_table(verdicts).to_csv(index=False)})
