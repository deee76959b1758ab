"""Averaging weights alpha(m) of Diminishing Batch Normalization: functions of the update counter m = 1, 2, ….

Each takes a Python number or a tensor and works elementwise, so that a layer can evaluate it on the
device without a host synchronization, and a person can evaluate it by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dbnrun.config import ScheduleConfig

Schedule = Callable[[Any], Any]


@dataclass(frozen=True)
class Constant:
    """alpha(m) = alpha."""

    alpha: float

    def __call__(self, m: Any) -> float:  # noqa: ARG002 - a constant looks at no counter
        return self.alpha


@dataclass(frozen=True)
class Harmonic:
    """alpha(m) = 1/m: lambda becomes the plain mean of all batches so far."""

    def __call__(self, m: Any) -> Any:
        return 1 / m


@dataclass(frozen=True)
class InverseSquare:
    """alpha(m) = 1/m^2."""

    def __call__(self, m: Any) -> Any:
        return 1 / m**2


@dataclass(frozen=True)
class Power:
    """alpha(m) = m^-h; h is the paper's letter in the conditions of Theorem 7 and Lemma 8."""

    exponent: float

    def __call__(self, m: Any) -> Any:
        return m**-self.exponent


@dataclass(frozen=True)
class PerEpoch:
    """A schedule whose m counts epochs while lambda moves at every step: alpha(⌈m / steps per epoch⌉)."""

    schedule: Schedule
    steps_per_epoch: int

    def __call__(self, m: Any) -> Any:
        return self.schedule((m + (self.steps_per_epoch - 1)) // self.steps_per_epoch)


def check_schedule(schedule: Schedule, up_to: int = 10_000) -> None:
    """Raise ValueError at the first m in 1 … up_to at which alpha(m) is not a number in [0, 1]."""
    for m in range(1, up_to + 1):
        alpha = float(schedule(m))
        if not 0 <= alpha <= 1:
            raise ValueError(f"schedule {schedule} gives alpha = {alpha:g} at m = {m}; expected a number in [0, 1]")


def build_schedule(config: ScheduleConfig, steps_per_epoch: int) -> Schedule:
    """The schedule that conf/schedule names."""
    schedules: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: Constant(config.alpha or 0.0),
        "harmonic": Harmonic,
        "inverse_square": InverseSquare,
        "power": lambda: Power(config.exponent or 0.0),
    }
    schedule = schedules[config.name]()
    counts_epochs = config.unit == "epoch" and config.name != "constant"
    return PerEpoch(schedule, steps_per_epoch) if counts_epochs else schedule
