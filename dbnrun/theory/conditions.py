"""The paper's conditions on (alpha, eta), decided exactly: each holds or fails, with a reason.

All terms are non-negative, so sums may be exchanged (Tonelli), and with H(i) = sum_{n<=i} eta(n)

    Theorem 7   sum_m sum_{n<=m} alpha(m) eta(n)                = sum_m alpha(m) H(m)
    Lemma 8     sum_m sum_{i>=m} sum_{n<=i} alpha(i) eta(n)     = sum_i i alpha(i) H(i)
                sum_m sum_{n>=m} alpha(n)                       = sum_n n alpha(n)

Each is one series of terms like m^-p (log m)^-q, which converges exactly for p > 1, or p = 1 and q > 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dbnrun.theory.sequences import Sequence

HOLDS, FAILS = "holds", "fails"


@dataclass(frozen=True)
class Condition:
    """One condition on the sequences: where the paper asks it, what it says, whether it holds, and why."""

    where: str
    says: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Theorem:
    """What the conditions together give: `verdict` holds where all do."""

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
    alpha_grows: str
    eta: str
    eta_grows: str
    conditions: list[Condition]
    theorems: list[Theorem]
    h: str | None  # exact exponents where both are powers, or constants
    k: str | None
    regions: list[Region]

    def verdict(self, name: str) -> str:
        return next(t.verdict for t in self.theorems if t.name == name)


@dataclass(frozen=True)
class Terms:
    """c m^-p (log m)^-q, what the terms of a series are like for large m; beside c = 0, c decides nothing."""

    c: Fraction = Fraction(1)
    p: Fraction = Fraction(0)
    q: Fraction = Fraction(0)

    def __mul__(self, other: Terms) -> Terms:
        return Terms(self.c * other.c, self.p + other.p, self.q + other.q)

    def __str__(self) -> str:
        """'0.5 m^-0.75 log(m)^2'."""
        if not self.c or (not self.p and not self.q):
            return _number(self.c)
        factors = [] if self.c == 1 else [_number(self.c)]
        for base, power in (("m", -self.p), ("log(m)", -self.q)):
            if power:
                factors.append(base if power == 1 else f"{base}^{_number(power)}")
        return " ".join(factors)


def check(alpha: Sequence, eta: Sequence) -> Report:
    """Decide every condition for a pair of sequences."""
    a, e = Terms(alpha.c, alpha.p, alpha.q), Terms(eta.c, eta.p, eta.q)
    m, sums = Terms(p=Fraction(-1)), partial_sums(e)
    conditions = [
        _summable("Assumption 3", "Σ η = ∞", "η", e, wanted=False),
        _summable("Assumption 3", "Σ η² < ∞", "η²", e * e),
        _summable("Theorem 7", "Σ α < ∞", "α", a),
        _summable("Theorem 7", "Σ_m Σ_{n≤m} α(m) η(n) < ∞", "α(m) H(m)", a * sums),
        _summable("Lemma 8", "Σ_m Σ_{i≥m} Σ_{n≤i} α(i) η(n) < ∞", "m α(m) H(m)", m * a * sums),
        _summable("Lemma 8", "Σ_m Σ_{n≥m} α(n) < ∞", "m α(m)", m * a),
    ]
    h, k = alpha.exponent, eta.exponent
    return Report(
        alpha.text,
        f"~ {a}",
        eta.text,
        f"~ {e}",
        conditions,
        _theorems(conditions),
        None if h is None else str(h),
        None if k is None else str(k),
        [] if h is None or k is None else _regions(h, k),
    )


def partial_sums(e: Terms) -> Terms:
    """The growth of H(m) = sum_{n<=m} of terms like e, up to a factor: by comparison with the integral.

    log log m, from e = c/(m log m), is given as 1: beside m^-p (log m)^-q it moves no series across the line between
    convergence and divergence, since sum 1/(m (log m)^s) converges for s > 1 with it, diverges for s <= 1 without it.
    """
    if not e.c:
        return e
    if _converges(e)[0]:
        return Terms()  # H tends to a number above 0
    if e.p < 1:
        return Terms(p=e.p - 1, q=e.q)
    return Terms(q=e.q - 1)  # p = 1 and q < 1, or q = 1: log log m


def _summable(where: str, says: str, term: str, terms: Terms, wanted: bool = True) -> Condition:
    """The condition that a series converges, or, where not `wanted`, that it diverges."""
    converges, reason = _converges(terms)
    sum_is = f"Σ {term} {'< ∞' if converges else '= ∞'}"
    return Condition(where, says, HOLDS if converges == wanted else FAILS, f"{sum_is}: {reason}")


def _converges(terms: Terms) -> tuple[bool, str]:
    """Whether the series converges, and by which test."""
    if not terms.c:
        return True, "all terms are 0"
    p, q, like = terms.p, terms.q, Terms(p=terms.p, q=terms.q)
    if p < 0 or (p == 0 and q <= 0):
        return False, f"terms like {like} do not tend to 0"
    if p != 1:
        return p > 1, f"terms like {like}, and {_number(p)} {'>' if p > 1 else '<'} 1"
    if q == 0:
        return False, "harmonic series"
    return q > 1, f"terms like {like}, and Σ 1/(m log(m)^s) converges only for s > 1"


def _theorems(conditions: list[Condition]) -> list[Theorem]:
    steps, seven, eight = "Assumption 3", "Theorem 7", "Lemma 8"
    stated = [
        (steps, "both conditions on η", (steps,), "steps that can go any distance and yet settle"),
        (seven, "its two sums", (seven,), "λ(m) converges"),
        (eight, "Theorem 7's sums and its own two", (seven, eight), "λ(m) converges fast"),
        ("Theorem 11", "Assumption 3 and Lemma 8's conditions", (steps, seven, eight), "‖∇f̄(θ(m), λ(m))‖² → 0"),
    ]
    failed = {condition.where for condition in conditions if condition.verdict == FAILS}
    return [
        Theorem(name, needs, FAILS if failed.intersection(where) else HOLDS, gives)
        for name, needs, where, gives in stated
    ]


def _regions(h: Fraction, k: Fraction) -> list[Region]:
    """The paper's sets, which it calls necessary and sufficient, and those that its sums give (docs/theory.md)."""
    slow = min(k, Fraction(1))  # beyond k = 1, H is bounded and k plays no part
    sets = {
        "paper, Theorem 7: h > 1 and k ≥ 1": h > 1 and k >= 1,
        "its sums: h > 1 for k > 1, h > 2 − k for k ≤ 1": h > 2 - slow,
        "paper, Lemma 8: h > 2 and k ≥ 1": h > 2 and k >= 1,
        "its sums: h > 2 for k > 1, h > 3 − k for k ≤ 1": h > 3 - slow,
        "worked out, with Assumption 3: ½ < k ≤ 1 and h > 3 − k": Fraction(1, 2) < k <= 1 and h > 3 - k,
    }
    return [Region(stated, "inside" if inside else "outside") for stated, inside in sets.items()]


def _number(x: Fraction) -> str:
    """0.75 for 3/4; a number of more than six digits as its exact fraction: '1 > 1' would be no reason."""
    short = f"{float(x):g}"
    return short if Fraction(short) == x else f"({x})"
