"""A sequence in m from text such as 0.5*m**-0.75 or 1/(m*log(m + 1)**2); what is hostile is refused in one line.

The text is parsed by Python's `ast` alone and walked over a whitelist: nothing is evaluated that is not a number, m,
an operator or a listed function. sympy's own parser would evaluate. Numbers stay exact (0.1 is 1/10), so that an
exponent on a boundary is seen to lie on it.
"""

from __future__ import annotations

import ast
import contextlib
import math
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import sympy

from dbnrun.config.registry import UserError
from dbnrun.theory.growth import MAX_LOG, ONE, Exact, M, Undecided, Undefined, degree, leading, sign

NAMED = {"harmonic": "1/m", "inverse_square": "1/m**2"}
GRAMMAR = "expected harmonic, inverse_square or an expression of numbers, m, + - * / **, log, exp, sqrt, min, max"

MAX_LENGTH = 200
MAX_DEPTH = 25
MAX_EXPONENT = 100  # of one power, and of powers within powers multiplied
MAX_NUMBER = 1e100
CHECKED_TO = 1_000_000  # every m up to here is evaluated; beyond it, a few up to 1e15

_BINARY: dict[type[ast.operator], tuple[Callable[..., Any], Callable[..., Any]]] = {
    ast.Add: (operator.add, np.add),
    ast.Sub: (operator.sub, np.subtract),
    ast.Mult: (operator.mul, np.multiply),
    ast.Div: (operator.truediv, np.divide),
    ast.Pow: (operator.pow, np.power),
}
_FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], range]] = {
    "log": (sympy.log, np.log, range(1, 2)),
    "exp": (sympy.exp, np.exp, range(1, 2)),
    "sqrt": (sympy.sqrt, np.sqrt, range(1, 2)),
    "min": (lambda *a: _extreme(sympy.Min, a), lambda *a: reduce(np.minimum, a), range(2, 5)),
    "max": (lambda *a: _extreme(sympy.Max, a), lambda *a: reduce(np.maximum, a), range(2, 5)),
}


@dataclass(frozen=True)
class Expression:
    """A sequence: its text, its exact form in sympy's symbol M, and, called, its values at an array of m."""

    text: str
    symbolic: Exact
    tree: ast.expr

    def __call__(self, m: np.ndarray) -> np.ndarray:
        """Values (len(m),) float64 at m (float64). Where the expression is undefined, inf or NaN."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(_value(self.tree, np.asarray(m, dtype=float)), np.shape(m))


def alpha(text: str) -> Expression:
    """An averaging weight: refused unless alpha(m) is a number in [0, 1]. Raises UserError."""
    return _checked(text, "alpha", 1.0)


def eta(text: str) -> Expression:
    """A step size: refused unless eta(m) is a number of at least 0. Raises UserError."""
    return _checked(text, "eta", math.inf)


def parse(text: str, name: str = "expression") -> Expression:
    """The expression, its values unchecked. Raises UserError where the text is none, or too much of one."""
    shown = f"{name} {_shortened(text)}"
    if len(text) > MAX_LENGTH:
        raise UserError(f"{shown}: {len(text)} characters; expected at most {MAX_LENGTH}. Write it shorter.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # '0.5if m else 1' is warned of on stderr otherwise
            tree = ast.parse(NAMED.get(text.strip(), text.strip()), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError, Warning):
        raise UserError(f"{shown}: not an expression; {GRAMMAR}.") from None
    try:
        _check_tree(tree)
        return Expression(text.strip(), _symbolic(tree), tree)
    except (_Refused, Undecided) as refused:
        raise UserError(f"{shown}: {refused}.") from None


class _Refused(Exception):
    """Why an expression is not taken: the end of the line that its user reads."""


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _check_tree(node: ast.expr, depth: int = 1, power: float = 1.0) -> None:
    """Refuse what is not whitelisted, too deep or too large, before anything is built from it."""
    if depth > MAX_DEPTH:
        raise _Refused(f"nested deeper than {MAX_DEPTH}; write it flatter")
    if not _depends_on_m(node):
        _check_constant(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not _depends_on_m(node.right):
        _check_tree(node.right, depth + 1, power)
        power *= max(1.0, abs(float(_value(node.right, np.float64(1)))))
        if not power <= MAX_EXPONENT:
            raise _Refused(f"powers that multiply to {power:g}; expected at most {MAX_EXPONENT} in size")
    for child in _operands(node):
        _check_tree(child, depth + 1, power)


def _operands(node: ast.expr) -> list[ast.expr]:
    """What a whitelisted node is made of; refuses any other node."""
    match node:
        case ast.Name(id="m") | ast.Constant():
            return []
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return [left, right]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            if len(args) in _FUNCTIONS[name][2]:
                return args
            raise _Refused(f"{name} with {len(args)} arguments; {GRAMMAR}")
        case ast.BinOp(op=ast.BitXor()):
            raise _Refused("^ is no operator here; write ** for a power")
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            raise _Refused(f"{_shortened(name)} is not known; {GRAMMAR}")
        case _:
            raise _Refused(f"{type(node).__name__} is not allowed; {GRAMMAR}")


def _depends_on_m(node: ast.expr) -> bool:
    return any(isinstance(part, ast.Name) and part.id == "m" for part in ast.walk(node))


def _check_constant(node: ast.expr) -> None:
    """Refuse numbers that are none, or so large that exact arithmetic on them would take long."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise _Refused(f"{_shortened(str(node.value))} is no real number; {GRAMMAR}")
        if not abs(node.value) <= MAX_NUMBER:
            raise _Refused(f"a number beyond {MAX_NUMBER:g}; expected smaller ones")


def _symbolic(node: ast.expr) -> Exact:
    """The exact expression. `node` has passed _check_tree."""
    match node:
        case ast.Constant(value=value):
            return sympy.Rational(repr(value))
        case ast.UnaryOp(op=op, operand=operand):
            inner = _symbolic(operand)
            return -inner if isinstance(op, ast.USub) else inner
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _symbolic(left), _symbolic(right)
            divisor = b if isinstance(op, ast.Div) else a if isinstance(op, ast.Pow) and not b.is_nonnegative else None
            if divisor is not None:
                _check_divisor(divisor)
            if isinstance(op, ast.Pow):
                _check_power(a, b)
            return _real(_BINARY[type(op)][0](a, b))
        case ast.Call(func=ast.Name(id=name), args=args):
            values = [_symbolic(arg) for arg in args]
            if name == "exp":
                _check_power(sympy.E, values[0])
            return _real(_FUNCTIONS[name][0](*values))
        case _:
            return M


def _extreme(kind: Exact, values: tuple[Exact, ...]) -> Exact:
    """The largest or smallest. Left as it stands where it depends on m: sympy's simplification of it raises errors."""
    if any(value.has(M) for value in values):
        return kind(*values, evaluate=False)
    way = 1 if kind is sympy.Max else -1
    return reduce(lambda best, value: value if sign(value - best) == way else best, values)


def _check_power(base: Exact, exponent: Exact) -> None:
    """Refuse a power that sympy would write out as a number of very many digits; exp(c log f) is f^c to it."""
    for term in sympy.Add.make_args(exponent):
        factor, rest = term.as_independent(M)
        if base == sympy.E and isinstance(rest, sympy.log):
            powered = rest.args[0]
        elif rest == ONE and base != 0:
            powered = base
        else:
            continue  # a power with m in its exponent stays as it stands
        size, most = (factor, MAX_EXPONENT) if powered.has(M) else (factor * sympy.log(abs(powered)), MAX_LOG)
        if not abs(size.evalf()) <= most:
            raise _Refused(
                f"a power too large to be exact; expected m to the power of at most {MAX_EXPONENT} in size, "
                f"and numbers from exp(-{MAX_LOG}) to exp({MAX_LOG})"
            )


def _real(value: Exact) -> Exact:
    if value.has(sympy.zoo, sympy.oo, sympy.nan, sympy.I) or (not value.has(M) and value.is_extended_real is False):
        raise _Refused("a constant part of it is not a finite real number (division by zero, log 0, root of -1)")
    return value


def _check_divisor(divisor: Exact) -> None:
    """Refuse a divisor with a zero at some whole m, however far out: values are evaluated only up to 10^6."""
    if not divisor.has(M):
        if divisor.is_zero:
            raise _Refused("division by zero")
        return
    with contextlib.suppress(Undecided):
        if leading(divisor).is_zero:
            raise _Refused("division by zero for large m")
    for factor in sympy.Mul.make_args(divisor):
        base = factor.base if isinstance(factor, sympy.Pow) else factor
        if not base.is_polynomial(M) or degree(base) > 4:
            continue
        for root in sympy.Poly(base, M).ground_roots():
            if root.is_integer and root.is_positive:
                raise _Refused(f"division by zero at m = {root}")


def _value(node: ast.expr, m: Any) -> Any:
    """The value at m, float64, by numpy on the text as written: a division by zero that sympy cancels is seen."""
    match node:
        case ast.Constant(value=value):
            return np.float64(value)  # pyright: ignore[reportArgumentType]
        case ast.UnaryOp(op=op, operand=operand):
            inner = _value(operand, m)
            return -inner if isinstance(op, ast.USub) else inner
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)][1](_value(left, m), _value(right, m))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name][1](*(_value(arg, m) for arg in args))
        case _:
            return m


def _checked(text: str, name: str, most: float) -> Expression:
    expression = parse(text, name)
    wanted = "a number in [0, 1]" if most == 1 else "a number of at least 0"
    why = _wrong_somewhere(expression, most) or _wrong_in_the_end(expression.symbolic, most)
    if why:
        raise UserError(
            f"{name} {_shortened(text)}: {why}; expected {wanted} at every m = 1, 2, …; "
            "shift m, such as log(m + 1), or bound it with min and max."
        )
    return expression


def _wrong_somewhere(expression: Expression, most: float) -> str:
    """'gives -1 at m = 3' for the first m that is tried and whose value is not in [0, most]; '' where all are."""
    for m in _blocks():
        values = expression(m)
        # Rounding may put 1 a little above 1; NaN fails every comparison.
        wrong = np.flatnonzero(~((values >= -1e-12) & (values <= most * (1 + 1e-12)) & np.isfinite(values)))
        if len(wrong):
            at, value = m[wrong[0]], values[wrong[0]]
            why = "" if np.isfinite(value) else " (division by zero, overflow, or the root or log of a negative number)"
            return f"gives {value:.6g} at m = {at:.0f}{why}"
    return ""


def _wrong_in_the_end(e: Exact, most: float) -> str:
    """'is negative for large m, …' where the leading term proves values outside [0, most]; '' where it does not."""
    try:
        end = leading(e)
        if sign(end.c) < 0:
            return f"is negative for large m, where it is like {end.text()}"
        above = most == 1 and sign(leading(e - ONE).c) > 0
        return f"exceeds 1 for large m, where it is like {end.text()}" if above else ""
    except Undefined as undefined:
        return f"is undefined for large m ({undefined})"
    except Undecided:  # nothing is proved against it, nor will any condition be
        return ""


def _blocks() -> Iterator[np.ndarray]:
    yield np.arange(1, 1001, dtype=float)  # most mistakes show here
    yield np.arange(1001, CHECKED_TO + 1, dtype=float)
    yield np.round(10.0 ** np.arange(6, 15.1, 0.25))
