"""What the theorem says of a cell's schedule, in one line: for `theory=true`."""

from __future__ import annotations

from dbnrun.config import RunConfig
from dbnrun.theory import sequences
from dbnrun.theory.conditions import Report, check


def line(config: RunConfig) -> str:
    """One line on the conditions for the cell's alpha(m), and for its step sizes where the theorem knows such."""
    if not config.norm.scheduled:
        return f"theory: norm={config.norm.name} has no alpha(m); the theorem is about norm=dbn."
    alpha = config.schedule.expression
    if config.norm.shares_runs:
        return (
            "theory: norm.train_stats=batch: training normalizes each batch by its own statistics. λ, averaged with "
            f"alpha(m) = {alpha}, plays no part in it and serves evaluation alone: the theorem does not apply."
        )
    # A step per epoch in place of one per update stretches m by a factor, which moves no condition for these schedules.
    text = f"theory: alpha(m) = {alpha}: "
    if config.optimizer.name == "sgd" and not config.optimizer.settings()["momentum"]:
        report = check(sequences.alpha(alpha), sequences.eta(repr(config.optimizer.lr)))
        return text + _theorems(report) + f"; sgd's constant step {config.optimizer.lr:g} {_steps(report)}." + _caveat()
    # With eta = 1/m, the slowest-growing admissible power, Theorem 7 and Lemma 8 ask least of alpha.
    report = check(sequences.alpha(alpha), sequences.eta("1/m"))
    return (
        text
        + _theorems(report)
        + f" at the admissible eta(m) = 1/m; {config.optimizer.name}'s steps are no sequence eta(m), so outside it."
        + _caveat()
    )


def _theorems(report: Report) -> str:
    """'Theorem 7 holds, Lemma 8 fails (Σ m α = ∞: harmonic series)': the first of its own reasons where one fails."""
    said = []
    for name in ("Theorem 7", "Lemma 8"):
        verdict = report.verdict(name)
        why = next((c.reason for c in report.conditions if c.where == name and c.verdict == "fails"), "")
        said.append(f"{name} {verdict}" + (f" ({why})" if why else ""))
    return ", ".join(said)


def _steps(report: Report) -> str:
    if report.verdict("Assumption 3") == "holds":
        return "meets Assumption 3"
    why = next(c.reason for c in report.conditions if c.where == "Assumption 3" and c.verdict != "holds")
    return f"fails Assumption 3 ({why})"


def _caveat() -> str:
    return " Full gradients are assumed; this cell trains on mini-batches."
