"""What the theorem says of a cell's schedule, in one line: for `theory=true`."""

from __future__ import annotations

from dbnrun.config.schema import RunConfig
from dbnrun.theory import sequences
from dbnrun.theory.conditions import FAILS, Report, check


def line(config: RunConfig) -> str:
    """One line on the conditions for the cell's alpha(m), and for its step sizes where the theorem knows such."""
    if not config.norm.scheduled:
        return f"theory: norm={config.norm.name} has no alpha(m); the theorem is about norm=dbn."
    alpha, optimizer = config.schedule.formula.replace("^", "**"), config.optimizer
    if config.norm.shares_runs:
        return (
            "theory: norm.train_stats=batch: training normalizes each batch by its own statistics. λ, averaged with "
            f"alpha(m) = {alpha}, plays no part in it and serves evaluation alone: the theorem does not apply."
        )
    # A step per epoch in place of one per update stretches m by a factor, which moves no condition for these schedules.
    constant = optimizer.name == "sgd" and not optimizer.settings()["momentum"] and not config.lr_schedule.varies
    # With eta = 1/m, the slowest-growing admissible power, Theorem 7 and Lemma 8 ask least of alpha.
    report = check(sequences.alpha(alpha), sequences.eta(repr(optimizer.lr) if constant else "1/m"))
    if constant:
        steps = f"; sgd's constant step {optimizer.lr:g} fails Assumption 3{_why(report, 'Assumption 3')}."
    else:
        stepper = f"lr_schedule={config.lr_schedule.name}" if config.lr_schedule.varies else optimizer.name
        steps = f" at the admissible eta(m) = 1/m; {stepper}'s steps are no sequence eta(m), so outside it."
    said = [f"{name} {report.verdict(name)}{_why(report, name)}" for name in ("Theorem 7", "Lemma 8")]
    caveat = "Full gradients are assumed; this run trains on mini-batches."
    return f"theory: alpha(m) = {alpha}: {', '.join(said)}{steps} {caveat}"


def _why(report: Report, name: str) -> str:
    """' (Σ m α = ∞: harmonic series)': the first of its own reasons where one fails."""
    failed = [c.reason for c in report.conditions if c.where == name and c.verdict == FAILS]
    return f" ({failed[0]})" if failed else ""
