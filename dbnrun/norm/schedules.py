"""Averaging weights alpha(m) of Diminishing Batch Normalization: functions of the update counter m = 1, 2, ….

Each takes a Python number or a tensor and works elementwise, so that a layer can evaluate it on the device without a
host synchronization, and a person can evaluate it by hand. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dbnrun.config.registry import Choice, choice, number_text, of, one_of, option

Alpha = Callable[[Any], Any]  # m to alpha(m)


@dataclass
class Schedule(Choice):
    """A function alpha(m). `unit`: what m counts, steps or epochs; lambda moves at every step either way."""

    unit: str = option("step", among=("step", "epoch"))

    def __call__(self, m: Any) -> Any:
        """alpha(m) by the paper's formula, whatever m counts."""
        raise NotImplementedError

    def of_steps(self, steps_per_epoch: int) -> Alpha:
        """alpha as a function of the step."""
        return PerEpoch(self, steps_per_epoch) if self.unit == "epoch" else self

    @property
    def formula(self) -> str:
        """'0.25', '1/m', 'm^-1.5', …."""
        raise NotImplementedError

    @property
    def key(self) -> str:
        """What the records call it, such as '0.25', '1/m steps' or '1/m^2 epochs'. A public format."""
        return f"{self.formula} {self.unit}s"

    @property
    def slug(self) -> str:
        """What folders call it, such as 'alpha0.25', 'harmonic' or 'power1.5_epoch'. A public format."""
        numbers = "".join(f"{value:g}" for option, value in vars(self).items() if option not in ("name", "unit"))
        return self.name + numbers + ("_epoch" if self.unit == "epoch" else "")


@choice("schedule", "constant")
@dataclass
class Constant(Schedule):
    """alpha(m) = alpha."""

    alpha: float = option(0.1, at_least=0, at_most=1)

    def __call__(self, m: Any) -> float:
        return self.alpha

    def of_steps(self, steps_per_epoch: int) -> Alpha:
        return self

    def identity(self) -> dict[str, Any]:
        options = super().identity()
        del options["unit"]  # a constant counts nothing
        return options

    @property
    def formula(self) -> str:
        return number_text(self.alpha)

    @property
    def key(self) -> str:
        return self.formula

    @property
    def slug(self) -> str:
        return f"alpha{self.alpha:g}"


@choice("schedule", "harmonic")
@dataclass
class Harmonic(Schedule):
    """alpha(m) = 1/m: lambda becomes the plain mean of all batches so far."""

    def __call__(self, m: Any) -> Any:
        return 1 / m

    @property
    def formula(self) -> str:
        return "1/m"


@choice("schedule", "inverse_square")
@dataclass
class InverseSquare(Schedule):
    """alpha(m) = 1/m^2."""

    def __call__(self, m: Any) -> Any:
        return 1 / m**2

    @property
    def formula(self) -> str:
        return "1/m^2"


@choice("schedule", "power")
@dataclass
class Power(Schedule):
    """alpha(m) = m^-h; the exponent h is the paper's letter in the conditions of Theorem 7 and Lemma 8."""

    exponent: float = option(1.5, at_least=0, at_most=100)

    def __call__(self, m: Any) -> Any:
        return m**-self.exponent

    @property
    def formula(self) -> str:
        return f"m^-{number_text(self.exponent)}"


def named(name: str) -> Schedule:
    """The schedule of a name, as a command gives it: 'harmonic', 'inverse_square', … with its defaults, or 'alpha_0.1'.

    Raises UserError where there is none of that name, or the constant lies outside [0, 1].
    """
    constant = re.fullmatch(r"alpha_(\d*\.?\d+)", name)
    if constant:
        return Constant(alpha=float(constant[1]))
    known = of("schedule")
    one_of("schedule", name, [*known, "alpha_0.1"])  # the last for any constant
    return known[name]()


@dataclass(frozen=True)
class PerEpoch:
    """A schedule whose m counts epochs while lambda moves at every step: alpha(⌈m / steps per epoch⌉)."""

    schedule: Alpha
    steps_per_epoch: int

    def __call__(self, m: Any) -> Any:
        return self.schedule((m + (self.steps_per_epoch - 1)) // self.steps_per_epoch)
