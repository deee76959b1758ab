"""The leading term of a sequence as m → ∞, where it has the form c r^m m^p (log m)^q, found exactly.

A walk over sympy's expression with the rules of asymptotic comparison. It answers only what it can prove: everything
else (log log m, exp(-sqrt(m)), leading terms that cancel) raises Undecided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy

Exact = Any  # a sympy expression; its annotations know less than its objects
M = sympy.Symbol("m", positive=True, integer=True)
ZERO, ONE = sympy.Integer(0), sympy.Integer(1)
MAX_LOG = 1000  # the logarithm, in size, of the numbers that sympy may write out


class Undecided(Exception):
    """The sequence has no leading term of the form that is decided here; the message says what stood in the way."""


class Undefined(Undecided):
    """The sequence is no real number for large m."""


@dataclass(frozen=True)
class Growth:
    """c r^m m^p (log m)^q, exact numbers with r > 0; c = 0: the sequence is 0 from some m on."""

    c: Any = ONE
    r: Any = ONE
    p: Any = ZERO
    q: Any = ZERO

    @property
    def is_zero(self) -> bool:
        return bool(self.c == 0)

    def __mul__(self, other: Growth) -> Growth:
        if self.is_zero or other.is_zero:
            return Growth(ZERO)
        return Growth(self.c * other.c, self.r * other.r, self.p + other.p, self.q + other.q)

    def to(self, s: Any) -> Growth:
        """The power s, a real number."""
        if self.is_zero and sign(s) > 0:
            return self
        if self.is_zero:
            raise Undefined(f"the power {number(s)} of 0")
        if sign(self.c) < 0 and not s.is_integer:
            raise Undefined(f"the power {number(s)} of a negative number")
        return Growth(self.c**s, self.r**s, self.p * s, self.q * s)

    def text(self) -> str:
        """'0.5 m^-0.75 log(m)^2' for people."""
        if self.is_zero:
            return "0"
        factors = [] if self.c == 1 and (self.p != 0 or self.q != 0 or self.r != 1) else [number(self.c)]
        factors += [f"{_based(number(self.r))}^m"] if self.r != 1 else []
        factors += [power("m", self.p)] if self.p != 0 else []
        factors += [power("log(m)", self.q)] if self.q != 0 else []
        if len(factors) > 1 and " " in factors[0]:
            factors[0] = f"({factors[0]})"
        return " ".join(factors)


def number(x: Any) -> str:
    """A sympy number as people write it: 0.75 for 3/4, 1/3 and sqrt(2) as they are, '1 + 1e-20' close to 1."""
    text = _short(x)
    if text != "1" or x == 1:
        return text
    beyond = float(x - 1)  # of a ratio, what decides
    return f"1 {'+' if beyond > 0 else '-'} {abs(beyond):.3g}"


def _short(x: Any) -> str:
    if isinstance(x, sympy.Rational) and x.q != 1:
        short = f"{float(x):.6g}"
        return short if sympy.Rational(short) == x or x.p > 10**6 or x.q > 10**6 else str(x)
    return str(x) if len(str(x)) <= 24 else f"{float(x):.6g}"


def power(base: str, exponent: Any) -> str:
    return base if exponent == 1 else f"{base}^{_based(number(exponent))}"


def _based(text: str) -> str:
    return f"({text})" if any(sign in text for sign in "/*+ ") else text


def sign(x: Any) -> int:
    """The sign of an exact real number. Raises Undecided where it is too close to 0 to prove."""
    if x.is_zero:
        return 0
    if x.is_positive or x.is_negative:
        return 1 if x.is_positive else -1
    value = x.evalf(50)
    if value.is_real and abs(value) > sympy.Float("1e-30"):
        return 1 if value > 0 else -1
    if sympy.simplify(x) == 0:
        return 0
    raise Undecided(f"the sign of {x} could not be proved")


def compare(a: Growth, b: Growth) -> int:
    """1 where |a| outgrows |b|, -1 where b does, 0 where they differ by a factor. Neither is zero."""
    return sign(a.r - b.r) or sign(a.p - b.p) or sign(a.q - b.q)


def degree(e: Exact) -> int:
    """An upper bound of the degree of a polynomial or of numerator and denominator together, without expanding."""
    if isinstance(e, sympy.Pow) and isinstance(e.exp, sympy.Integer):
        return abs(int(e.exp)) * degree(e.base)
    return 1 if e == M else sum(degree(part) for part in e.args)


def leading(e: Exact) -> Growth:
    """The leading term of an expression in M. Raises Undecided."""
    if not e.has(M):
        sign(e)  # refuses what cannot be told from zero
        return Growth(e if sign(e) else ZERO)
    if e == M:
        return Growth(p=ONE)
    rule = next((rule for kind, rule in _RULES.items() if isinstance(e, kind)), None)
    if rule is None:
        raise Undecided(f"{e} has no rule")
    return rule(e)


def _product(e: Exact) -> Growth:
    product = Growth()
    for factor in e.args:
        product *= leading(factor)
    return product


def _power(e: Exact) -> Growth:
    if not e.exp.has(M):
        return leading(e.base).to(e.exp)
    if not e.base.has(M) and sign(e.base) > 0:
        return _exponential(e.exp * sympy.log(e.base))
    raise Undecided(f"{e} is neither a power of m nor geometric")


def _sum(e: Exact, simplified: bool = False) -> Growth:
    """The dominant term; terms that grow alike add up."""
    total = Growth(ZERO)
    for term in map(leading, e.args):
        if total.is_zero or term.is_zero:
            total = term if total.is_zero else total
            continue
        order = compare(term, total)
        total = term if order > 0 else total
        if order == 0:
            total = Growth(total.c + term.c, total.r, total.p, total.q)
            if sign(total.c) == 0:
                return _after_cancelling(e, simplified)
    return total


def _after_cancelling(e: Exact, simplified: bool) -> Growth:
    """Leading terms cancel: bring a rational function to one fraction, which shows what is left."""
    if not simplified and e.is_rational_function(M) and degree(e) <= 40:
        fraction = sympy.cancel(sympy.together(e))
        if fraction.has(M) and isinstance(fraction, sympy.Add):
            return _sum(fraction, simplified=True)
        return leading(fraction)
    raise Undecided(f"the leading terms of {e} cancel")


def _exponential(e: Exact) -> Growth:
    """exp(e), term by term: a m gives a rate, b log m a power, a constant a factor, what vanishes nothing."""
    result = Growth()
    for term in _terms(e):
        growth = leading(term)
        slope, rest = term.coeff(M), term.coeff(sympy.log(M))
        if not growth.is_zero and compare(growth, Growth()) < 0:
            continue
        if not term.has(M):
            result *= Growth(_exact_exp(term))
        elif not slope.has(M) and term == slope * M:
            # exp(m log(9/10)) is (9/10)^m: rates stay rational where they are.
            result *= Growth(r=_exact_exp(slope))
        elif not rest.has(M) and term == rest * sympy.log(M):
            result *= Growth(p=rest)
        else:
            raise Undecided(f"exp({term}) is neither geometric nor a power of m")
    return result


def _exact_exp(x: Exact) -> Exact:
    """exp(x) of a constant. Raises Undecided where sympy would write it out as a number of very many digits."""
    if x.has(sympy.log) and not abs(x.evalf()) <= MAX_LOG:
        raise Undecided(f"exp({x.evalf(6)}) is too far from 1 to be written out")
    return sympy.exp(x)


def _terms(e: Exact) -> tuple[Exact, ...]:
    return sympy.Add.make_args(sympy.expand(e) if degree(e) <= 40 else e)


def _log(e: Exact) -> Growth:
    """log of c r^m m^p (log m)^q, whose parts add up: m log r outgrows p log m, and that log c."""
    inner = leading(e.args[0])
    if inner.is_zero or sign(inner.c) < 0:
        raise Undefined("the log of a number that is not positive")
    if sign(inner.r - 1):
        return Growth(sympy.log(inner.r), p=ONE)
    if sign(inner.p):
        return Growth(inner.p, q=ONE)
    if sign(inner.q):
        raise Undecided(f"{e} grows like log log m")
    if sign(inner.c - 1) == 0:
        raise Undecided(f"the argument of {e} tends to 1")
    return Growth(sympy.log(inner.c))


def _extreme(e: Exact) -> Growth:
    """max or min: the argument that is in the end the larger, or the smaller, by its leading term."""
    largest = isinstance(e, sympy.Max)
    best = leading(e.args[0])
    for argument in e.args[1:]:
        other = leading(argument)
        higher = _order(other, best)
        if (higher > 0) == largest and higher != 0:
            best = other
    return best


def _order(a: Growth, b: Growth) -> int:
    """The sign of a - b for large m; 0 where they have the same leading term."""
    if a == b:
        return 0
    signs = sign(a.c), sign(b.c)
    if signs[0] != signs[1] or 0 in signs:
        return 1 if signs[0] > signs[1] else -1
    return (compare(a, b) * signs[0]) or sign(a.c - b.c)


_RULES: dict[Any, Callable[[Any], Growth]] = {
    sympy.Add: _sum,
    sympy.Mul: _product,
    sympy.exp: lambda e: _exponential(e.args[0]),
    sympy.Pow: _power,
    sympy.log: _log,
    sympy.Max: _extreme,
    sympy.Min: _extreme,
}
