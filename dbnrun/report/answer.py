"""Says in a sentence what the series of a setting show against its baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dbnrun.config import registry
from dbnrun.report import compare, stats
from dbnrun.report.compare import Comparison
from dbnrun.report.names import ALPHA_ONE, MODERN_BN, alpha_of
from dbnrun.report.series import Series, Setting

BREAKS_UP_TO = 0.25  # docs/findings.md: every constant α up to this is worse than α = 1 on MNIST


def baseline_of(setting: Setting) -> Series | None:
    """PyTorch's BN, else α = 1, else the first in the table; None where there is nothing to compare.

    Of several BN the one with most of PyTorch's defaults.
    """
    done = [series for series in setting.series if series.n]
    ranked = sorted(done, key=lambda one: (one.key != MODERN_BN, one.key != ALPHA_ONE, _off_defaults(one)))
    return ranked[0] if len(done) > 1 else None


def _off_defaults(series: Series) -> int:
    """How many options of its normalizer are not at their defaults; 0 where these are not known here."""
    norm = series.cell["norm"]
    kind = registry.of("norm").get(norm["name"])
    defaults = registry.defaults_of(kind) if kind else {}
    return sum(norm.get(key, value) != value for key, value in defaults.items())


def against_baseline(setting: Setting) -> dict[str, Comparison]:
    """Last-epoch test error [pp] of every other series minus the baseline's, by name; p Holm-corrected over them."""
    done = {name(series): series for series in setting.series if series.n}
    base = baseline_of(setting)
    return compare.against(base, done, compare.ERRORS["last"]) if base else {}


def name(series: Series) -> str:
    """The label of a series with its protocol: unique in a setting."""
    return f"{series.protocol} {series.label}".strip()


def sentence(setting: Setting) -> str:
    """What has the least test error, and what differs from the baseline."""
    means = {name(one): compare.summary(one, "last") for one in setting.series if one.n}
    ranked = sorted((one for one in means if np.isfinite(means[one].mean)), key=lambda one: means[one].mean)
    if not ranked:
        return "No finished run has a test error at its last epoch."
    least = means[ranked[0]]
    spread = "" if np.isnan(least.low) else f" [{least.low:.2f}, {least.high:.2f}]"
    counts = {one.n for one in means.values()}
    seeds = f" over {least.n} seed{'s' * (least.n > 1)}" if len(counts) > 1 else ""
    which = "the lowest mean test error" if len(ranked) > 1 else "this mean test error"
    head = f"{ranked[0]} has {which} after the last epoch: {least.mean:.2f} %{spread}{seeds}."
    base = baseline_of(setting)
    return f"{head} {_compared(name(base), against_baseline(setting))}" if base else head


def _compared(base: str, found: Mapping[str, Comparison]) -> str:
    """What the comparisons with the baseline show: by the corrected test, or by intervals where n is too small."""
    tested = [one for one in found.values() if one.can_reject and np.isfinite(one.p_holm)]
    if tested:
        clear = [one for one in tested if one.word == "differs"]
        return f"After Holm's correction, {_lower_and_higher(base, clear)}."
    few = max(one.difference.n for one in found.values())
    if few < 2:
        return f"With fewer than two shared seeds, a difference to {base} has neither an interval nor a test."
    clear = [one for one in found.values() if one.difference.low > 0 or one.difference.high < 0]
    needed = max(stats.least_seeds(one.made) for one in found.values())
    few_for = f"{few} seeds are too few for a test, which needs {needed}."
    return f"{few_for} By the 95 % intervals alone, {_lower_and_higher(base, clear)}."


def _lower_and_higher(base: str, clear: Sequence[Comparison]) -> str:
    """'a (−0.20 pp) has a lower error than BN (PyTorch)', or that nothing is shown to differ."""
    groups = {
        "lower": [one for one in clear if one.difference.mean < 0],
        "higher": [one for one in clear if one.difference.mean > 0],
    }
    parts = [
        f"{_listed(ones)} {'have' if len(ones) > 1 else 'has'} a {word} error than {base}"
        for word, ones in groups.items()
        if ones
    ]
    return ", and ".join(parts) or f"no method is shown to differ from {base}"


def _listed(ones: Sequence[Comparison]) -> str:
    """'a (+0.20 pp), b (+0.30 pp) and c (+0.40 pp)'."""
    *first, last = [f"{one.key} ({_signed(one.difference.mean)} pp)" for one in ones]
    return f"{', '.join(first)} and {last}" if first else last


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def note(setting: Setting) -> str:
    """Why a small constant α broke the training, where the rows show it; else ''."""
    found = against_baseline(setting)
    broken = [
        name(series)
        for series in setting.series
        if series.n
        and series.protocol.startswith("dbn")
        and not series.protocol.startswith("dbn_inference")
        and "stats_grad=mean" not in series.protocol
        and 0 < (alpha_of(series.key) or 0) <= BREAKS_UP_TO
        and name(series) in found
        and found[name(series)].difference.low > 0
    ]
    if not broken or setting.cell["model"].get("norm_position") == "after":
        return ""
    return (
        f"{' and '.join(broken)}: here λ, a moving average, normalizes in training too. At a small constant α the "
        "gradient hardly sees that λ follows the weights, and training can break (MNIST: docs/findings.md in dbnrun's "
        "repository). 1/m and 1/m² let λ come to rest; norm=dbn_inference trains with each "
        "batch's own statistics."
    )
