"""Learning-rate schedules: by what a run multiplies the learning rate of every parameter group before each update.

A factor depends on the update alone, so that a run that goes on from a checkpoint needs nothing but its counter.
`update` counts from 0: before the first update no update has been made. Momentum stays as it is. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dbnrun.config.registry import Choice, UserError, choice, option


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    epochs: int
    updates_per_epoch: int

    @property
    def updates(self) -> int:
        return self.epochs * self.updates_per_epoch


@dataclass
class LRSchedule(Choice):
    """A factor for each update of a run."""

    @property
    def varies(self) -> bool:
        """Whether any update has another learning rate than its parameter group states."""
        return True

    def check_epochs(self, epochs: int) -> None:
        """Raise UserError where the schedule does not fit a run of so many epochs."""

    def at(self, update: int, length: Length) -> float:
        """The factor of update 0, 1, …, length.updates - 1 of a run."""
        raise NotImplementedError


@dataclass
class WarmedUp(LRSchedule):
    """A schedule whose rate grows linearly over the first `warmup` epochs, rounded to W whole updates.

    Update t < W takes (t + 1) / (W + 1) of the rate, a line from 0 before the first update to the whole at update W.
    """

    warmup: float = option(0.0, at_least=0)

    def check_epochs(self, epochs: int) -> None:
        if self.warmup > epochs:
            raise UserError(
                f"lr_schedule.warmup={self.warmup:g}: expected at most train.epochs={epochs}, the length of the run."
            )

    def warm(self, length: Length) -> int:
        """W, the updates of the warm-up."""
        return round(self.warmup * length.updates_per_epoch)

    def growth(self, update: int, length: Length) -> float:
        """The share of the rate that the warm-up allows; 1 after it."""
        return min(1.0, (update + 1) / (self.warm(length) + 1))


@choice("lr_schedule", "constant")
@dataclass
class Constant(WarmedUp):
    """Each parameter group's own learning rate at every update, after the warm-up."""

    @property
    def varies(self) -> bool:
        return self.warmup > 0

    def at(self, update: int, length: Length) -> float:
        return self.growth(update, length)


@choice("lr_schedule", "cosine")
@dataclass
class Cosine(WarmedUp):
    """Half a cosine from 1 after the warm-up to `final` at the end of the run, Loshchilov and Hutter 2017."""

    final: float = option(0.0, at_least=0, at_most=1)

    def at(self, update: int, length: Length) -> float:
        warm = self.warm(length)
        if update < warm:
            return self.growth(update, length)
        return _cosine(1.0, self.final, (update - warm) / (length.updates - warm))


@choice("lr_schedule", "step")
@dataclass
class Step(WarmedUp):
    """Multiplied by `factor` at each milestone.

    Milestones are epochs since the beginning of the run, warm-up included; those of `every` are its multiples. With
    neither they are half and three quarters of the run, as He et al. 2016 train residual networks.
    """

    milestones: list[float] = option([], above=0)  # noqa: RUF009 - a field, as dataclasses.field
    every: float = option(0.0, at_least=0)
    factor: float = option(0.1, above=0, at_most=1)

    def check(self) -> None:
        if self.milestones and self.every:
            raise UserError(
                f"lr_schedule.every={self.every:g}: expected one of every and milestones; leave out the other."
            )
        if any(late >= next_one for late, next_one in pairwise(self.milestones)):
            raise UserError(
                f"lr_schedule.milestones={self.milestones}: expected epochs in increasing order, such as [5,8]."
            )

    def identity(self) -> dict[str, Any]:
        options = super().identity()
        for key in ("milestones", "every"):
            if not options[key]:
                del options[key]
        return options

    def at(self, update: int, length: Length) -> float:
        if self.every:
            passed = update // max(1, round(self.every * length.updates_per_epoch))
        else:
            milestones = self.milestones or [length.epochs / 2, 3 * length.epochs / 4]
            passed = sum(update >= round(milestone * length.updates_per_epoch) for milestone in milestones)
        return self.growth(update, length) * self.factor**passed


@choice("lr_schedule", "one_cycle")
@dataclass
class OneCycle(LRSchedule):
    """Up from 1/div_factor to 1 and down again, Smith and Topin 2018; the groups' own rates are the highest.

    As torch's OneCycleLR, whose defaults these are, without cycling momentum. Down to
    1/(div_factor * final_div_factor), where `three_phase` after a way back to 1/div_factor as long as the way up.
    """

    pct_start: float = option(0.3, at_least=0, at_most=1)
    anneal: str = option("cos", among=("cos", "linear"))
    div_factor: float = option(25.0, at_least=1)
    final_div_factor: float = option(1e4, at_least=1)
    three_phase: bool = False

    def check(self) -> None:
        if self.three_phase and self.pct_start > 0.5:
            raise UserError(
                f"lr_schedule.pct_start={self.pct_start:g}: expected at most 0.5 with lr_schedule.three_phase=true, "
                "whose second phase is as long as the first."
            )

    def at(self, update: int, length: Length) -> float:
        low, lowest = 1 / self.div_factor, 1 / (self.div_factor * self.final_div_factor)
        up, last = self.pct_start * length.updates - 1, length.updates - 1
        phases = [(up, low, 1.0), (last, 1.0, lowest)]
        if self.three_phase:
            phases = [(up, low, 1.0), (2 * up, 1.0, low), (last, low, lowest)]
        begun = 0.0
        for end, start, goal in phases[:-1]:
            if update <= end:
                return self._between(start, goal, update, begun, end)
            begun = end
        end, start, goal = phases[-1]
        return self._between(start, goal, update, begun, end)

    def _between(self, start: float, goal: float, update: int, begun: float, end: float) -> float:
        share = (update - begun) / (end - begun) if end > begun else 1.0
        return _cosine(start, goal, share) if self.anneal == "cos" else start + (goal - start) * share


def _cosine(start: float, goal: float, share: float) -> float:
    """From start at share 0 to goal at share 1 by half a cosine."""
    return goal + (start - goal) * (1 + math.cos(math.pi * share)) / 2
