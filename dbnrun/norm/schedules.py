"""Averaging weights alpha(m) of Diminishing Batch Normalization: functions of the update counter m = 1, 2, ….

Each takes a Python number or a tensor and works elementwise, so that a layer can evaluate it on the
device without a host synchronization, and a person can evaluate it by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    alphas = _alphas(schedule, up_to)
    wrong = ~((alphas >= 0) & (alphas <= 1))  # true of NaN too
    if wrong.any():
        at = int(wrong.nonzero()[0])
        alpha = float(alphas[at])
        raise ValueError(f"schedule {schedule} gives alpha = {alpha:g} at m = {at + 1}; expected a number in [0, 1]")


def _alphas(schedule: Schedule, up_to: int) -> Tensor:
    """alpha(1), …, alpha(up_to): of all m in one call, or one by one where the schedule takes single numbers only."""
    cpu = torch.device("cpu")  # whatever device is the default where a layer is built
    try:
        alphas = schedule(torch.arange(1, up_to + 1, dtype=torch.float64, device=cpu))
        return torch.as_tensor(alphas, dtype=torch.float64, device=cpu).expand(up_to)  # a constant looks at no m
    except Exception:  # a schedule is anybody's function: what it raises on a tensor says nothing
        alphas = [float(schedule(m)) for m in range(1, up_to + 1)]
        return torch.tensor(alphas, dtype=torch.float64, device=cpu)
