"""The paper's conditions on (alpha, eta), decided from leading terms: each holds, fails or is unknown, with a reason.

All terms are non-negative, so sums may be exchanged (Tonelli), and with H(i) = sum_{n<=i} eta(n)

    Theorem 7   sum_m sum_{n<=m} alpha(m) eta(n)                = sum_m alpha(m) H(m)
    Lemma 8     sum_m sum_{i>=m} sum_{n<=i} alpha(i) eta(n)     = sum_i i alpha(i) H(i)
                sum_m sum_{n>=m} alpha(n)                       = sum_n n alpha(n)

Each is one series, whose terms have a leading term c r^m m^p (log m)^q where alpha and eta have.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import sympy

from dbnrun.theory import growth
from dbnrun.theory.expression import Expression
from dbnrun.theory.growth import ONE, Growth, Undecided, number

HOLDS, FAILS, UNKNOWN = "holds", "fails", "unknown"
HALF = sympy.Rational(1, 2)


@dataclass(frozen=True)
class Condition:
    """One condition on the sequences: where the paper asks it, what it says, whether it holds, and why."""

    where: str
    says: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Theorem:
    """What the conditions together give: `verdict` holds where all do, fails where one does, else unknown."""

    name: str
    needs: str
    verdict: str
    gives: str


@dataclass(frozen=True)
class Region:
    """Whether (h, k) lies in a set that is stated for powers; only for alpha = a m^-h and eta = b m^-k."""

    stated: str
    verdict: str


@dataclass(frozen=True)
class Report:
    """Everything `dbnrun theory check` says about a pair."""

    alpha: str
    alpha_grows: str  # the leading term, or why there is none
    eta: str
    eta_grows: str
    conditions: list[Condition]
    theorems: list[Theorem]
    h: str | None  # exact exponents where both are powers, or constants
    k: str | None
    regions: list[Region]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def verdict(self, name: str) -> str:
        return next(t.verdict for t in self.theorems if t.name == name)


def check(alpha: Expression, eta: Expression) -> Report:
    """Decide every condition for a pair of sequences."""
    a, e = _growth(alpha), _growth(eta)
    sums = Growth(growth.ZERO) if eta.symbolic == 0 else _partial_sums(e)
    conditions = [
        _summable("Assumption 3", "Σ η = ∞", "η", e, wanted=False),
        _summable("Assumption 3", "Σ η² < ∞", "η²", _times(e, e)),
        _summable("Theorem 7", "Σ α < ∞", "α", a),
        _summable("Theorem 7", "Σ_m Σ_{n≤m} α(m) η(n) < ∞", "α(m) H(m)", _times(a, sums)),
        _summable("Lemma 8", "Σ_m Σ_{i≥m} Σ_{n≤i} α(i) η(n) < ∞", "m α(m) H(m)", _times(_times(_M, a), sums)),
        _summable("Lemma 8", "Σ_m Σ_{n≥m} α(n) < ∞", "m α(m)", _times(_M, a)),
    ]
    h, k = _exponent(a), _exponent(e)
    return Report(
        alpha.text,
        _said(a),
        eta.text,
        _said(e),
        conditions,
        _theorems(conditions),
        None if h is None else str(h),
        None if k is None else str(k),
        [] if h is None or k is None else _regions(h, k),
    )


_M = Growth(p=ONE)


def _growth(sequence: Expression) -> Growth | str:
    """The leading term, or why it is unknown."""
    try:
        return growth.leading(sequence.symbolic)
    except Undecided as undecided:
        return str(undecided)


def _said(g: Growth | str) -> str:
    return f"unknown: {g}" if isinstance(g, str) else f"~ {g.text()}"


def _times(a: Growth | str, b: Growth | str) -> Growth | str:
    if isinstance(a, str) or isinstance(b, str):
        # A zero factor settles it, whatever the other is.
        zero = next((g for g in (a, b) if isinstance(g, Growth) and g.is_zero), None)
        return zero or (a if isinstance(a, str) else str(b))
    return a * b


def _partial_sums(e: Growth | str) -> Growth | str:
    """The leading term of H(m), up to a factor, or why it is unknown."""
    try:
        return e if isinstance(e, str) else partial_sums(e)
    except Undecided as undecided:
        return str(undecided)


def partial_sums(e: Growth) -> Growth:
    """The growth of H(m) = sum_{n<=m} of terms like e, up to a factor: by comparison with the integral.

    log log m, from e = c/(m log m), is given as 1: beside m^p (log m)^q it moves no series across the line between
    convergence and divergence, since sum 1/(m (log m)^s) converges for s > 1 with it, diverges for s <= 1 without it.
    """
    if e.is_zero or _converges(e)[0]:
        return Growth()  # H tends to a number above 0
    if growth.sign(e.r - 1) > 0:
        return Growth(ONE, e.r, e.p, e.q)  # a geometric sum is dominated by its last terms
    if growth.sign(e.p + 1) > 0:
        return Growth(p=e.p + 1, q=e.q)
    return Growth(q=e.q + 1)  # p = -1 and q > -1, or q = -1: log log m


def _summable(where: str, says: str, term: str, g: Growth | str, wanted: bool = True) -> Condition:
    """The condition that a series of terms g converges, or, where not `wanted`, that it diverges."""
    if isinstance(g, str):
        return Condition(where, says, UNKNOWN, g)
    try:
        converges, reason = _converges(g)
    except Undecided as undecided:
        return Condition(where, says, UNKNOWN, str(undecided))
    sum_is = f"Σ {term} {'< ∞' if converges else '= ∞'}"
    return Condition(where, says, HOLDS if converges == wanted else FAILS, f"{sum_is}: {reason}")


def _converges(g: Growth) -> tuple[bool, str]:
    """Whether the series of terms c r^m m^p (log m)^q converges, and by which test."""
    if g.is_zero:
        return True, "all terms are 0 from some m on"
    rate, p, q = growth.sign(g.r - 1), growth.sign(g.p + 1), growth.sign(g.q + 1)
    if rate:
        return rate < 0, f"geometric, ratio {number(g.r)} {'<' if rate < 0 else '>'} 1"
    terms = Growth(p=g.p, q=g.q).text()
    if p:
        if growth.sign(g.p) > 0 or (growth.sign(g.p) == 0 and growth.sign(g.q) >= 0):
            return False, f"terms like {terms} do not tend to 0"
        return p < 0, f"terms like {terms}, and {number(-g.p)} {'>' if p < 0 else '<'} 1"
    if growth.sign(g.q) == 0:
        return False, "harmonic series"
    return q < 0, f"terms like {terms}, and Σ 1/(m log(m)^s) converges only for s > 1"


def _theorems(conditions: list[Condition]) -> list[Theorem]:
    def all_of(*where: str) -> str:
        verdicts = {condition.verdict for condition in conditions if condition.where in where}
        return FAILS if FAILS in verdicts else UNKNOWN if UNKNOWN in verdicts else HOLDS

    return [
        Theorem("Assumption 3", "both conditions on η", all_of("Assumption 3"), "step sizes that reach and settle"),
        Theorem("Theorem 7", "its two sums", all_of("Theorem 7"), "λ(m) converges"),
        Theorem("Lemma 8", "Theorem 7's sums and its own two", all_of("Theorem 7", "Lemma 8"), "λ(m) converges fast"),
        Theorem(
            "Theorem 11",
            "Assumption 3 and Lemma 8's conditions",
            all_of("Assumption 3", "Theorem 7", "Lemma 8"),
            "‖∇f̄(θ(m), λ(m))‖² → 0",
        ),
    ]


def _exponent(g: Growth | str) -> Any:
    """h of c m^-h; None where it is no power."""
    if isinstance(g, str) or g.is_zero or g.r != 1 or g.q != 0:
        return None
    return -g.p


def _regions(h: Any, k: Any) -> list[Region]:
    """The paper's sets, which it calls necessary and sufficient, and those that its sums give (docs/theory.md)."""

    def inside(*differences: Any, at_least: tuple[Any, ...] = ()) -> str:
        signs = [growth.sign(d) > 0 for d in differences] + [growth.sign(d) >= 0 for d in at_least]
        return "inside" if all(signs) else "outside"

    slow = sympy.Min(k, ONE)  # beyond k = 1, H is bounded and k plays no part
    return [
        Region("paper, Theorem 7: h > 1 and k ≥ 1", inside(h - 1, at_least=(k - 1,))),
        Region("its sums: h > 1 for k > 1, h > 2 − k for k ≤ 1", inside(h - 2 + slow)),
        Region("paper, Lemma 8: h > 2 and k ≥ 1", inside(h - 2, at_least=(k - 1,))),
        Region("its sums: h > 2 for k > 1, h > 3 − k for k ≤ 1", inside(h - 3 + slow)),
        Region(
            "worked out, with Assumption 3: ½ < k ≤ 1 and h > 3 − k", inside(k - HALF, h - 3 + k, at_least=(ONE - k,))
        ),
    ]
