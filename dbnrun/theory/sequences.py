"""Sequences c m^-p log(m + 2)^-q: exact numbers from text, values in float64.

The paper speaks of powers; the logarithm is there because it decides on a boundary. c, p and q are exact (0.1 is 1/10),
so that an exponent on a boundary is seen to lie on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dbnrun.config.registry import UserError

NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
NAMED = {"harmonic": "1/m", "inverse_square": "1/m**2"}
EXPECTED = (
    "expected c*m**-p*log(m + 2)**-q with decimal numbers c, p and q, c of at least 0, such as 0.5*m**-0.75 "
    "or m**-2*log(m + 2)**-3; or 0.1, 1/m, 1/m**2, harmonic, inverse_square"
)
MAX_LENGTH = 100
_FORM = re.compile(
    rf"(?P<constant>{NUMBER})"
    rf"|(?:(?P<c>{NUMBER})(?:\*|(?P<over>/)))?(?P<m>m)(?:\*\*(?P<p>[-+]?{NUMBER}))?"
    rf"(?P<log>\*log\(m\+2\)(?:\*\*(?P<q>[-+]?{NUMBER}))?)?"
)


@dataclass(frozen=True)
class Sequence:
    """c m^-p log(m + 2)^-q: its text, its exact numbers, and, called, its values."""

    text: str
    c: Fraction
    p: Fraction
    q: Fraction

    def __call__(self, m: np.ndarray) -> np.ndarray:
        """Values (len(m),) float64 at m (float64)."""
        # This order of operations is part of the records: another one changes last bits.
        return float(self.c) * np.power(m, -float(self.p)) * np.power(np.log(m + 2), -float(self.q))

    @property
    def exponent(self) -> Fraction | None:
        """p of c m^-p; None where a logarithm or c = 0 makes it no power."""
        return self.p if self.c and not self.q else None


def alpha(text: str) -> Sequence:
    """An averaging weight: refused unless it decreases, or stays, from an alpha(1) of at most 1. Raises UserError."""
    sequence = _parsed("alpha", text)
    if sequence.p < 0 or sequence.q < 0:
        raise UserError(
            f"alpha {_shown(text)}: a factor grows with m; expected c*m**-p*log(m + 2)**-q with p and q of at least 0."
        )
    # log(m + 2) > 1, so both factors decrease and alpha(1) is the largest value.
    first = sequence.c if not sequence.q else sequence(np.ones(1))[0]
    if first > 1:
        raise UserError(f"alpha {_shown(text)}: above 1 at m = 1; expected a number in [0, 1].")
    return sequence


def eta(text: str) -> Sequence:
    """A step size: any sequence of the family, as c is at least 0. Raises UserError."""
    return _parsed("eta", text)


def _parsed(name: str, text: str) -> Sequence:
    match = _FORM.fullmatch(NAMED.get(text.strip(), text).replace(" ", "")) if len(text) <= MAX_LENGTH else None
    if match is None:
        raise UserError(f"{name} {_shown(text)}: {EXPECTED}.")
    c = Fraction(match["constant"] or match["c"] or 1)
    p = Fraction(match["p"] or 1) * (1 if match["over"] else -1) if match["m"] else Fraction(0)
    q = -Fraction(match["q"] or 1) if match["log"] else Fraction(0)
    if c > 10**100 or not -10 <= p <= 100 or abs(q) > 100:  # else a value could overflow before m = 10^8
        raise UserError(f"{name} {_shown(text)}: expected c up to 1e100, p from -10 to 100 and q from -100 to 100.")
    return Sequence(text.strip(), c, p, q)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
