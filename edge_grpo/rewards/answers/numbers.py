"""Whether two expressions are the same number or function, by SymPy: exactly, or to 100 digits at points."""

import zlib
from collections.abc import Sequence as Items
from functools import lru_cache

import sympy
from sympy import Expr, Float, I, Rational, Symbol

_DIGITS = 120
_AGREE = Float("1e-100", _DIGITS)
_TINY = Float("1e-100", _DIGITS)
_FAMILY = frozenset("nkm")
_WHOLE = frozenset("nkmN")
_STEPS = (sympy.floor, sympy.ceiling, sympy.Max, sympy.Min, sympy.sign, sympy.Abs, sympy.Sum, sympy.Product)


def factor(first: Expr, second: Expr) -> Expr | None:
    """The constant real c with first = c * second, None if there is none (or both are numbers)."""
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    if not symbols or first.free_symbols != second.free_symbols:
        return None
    factors = []
    for point in _points(symbols):
        a, b = _at(first, point), _at(second, point)
        if a is None or b is None or abs(b) < _TINY or abs(a) < _TINY:
            continue
        factors.append(a / b)
    if len(factors) < 2 or any(abs(f - factors[0]) > _AGREE * abs(factors[0]) for f in factors):
        return None
    return factors[0] if abs(sympy.im(factors[0])) < _AGREE else None


def same_number(gold: Expr, answer: Expr) -> bool:
    """As expressions; besides, one integer parameter may have another letter, and the answer may end in `+ C`."""
    if same_expression(gold, answer):
        return True
    if (renamed := _other_letter(gold, answer)) is not None and same_expression(gold, renamed):
        return True
    constant = Symbol("C")
    if constant in answer.free_symbols and constant not in gold.free_symbols and gold.free_symbols:
        rest = answer - constant
        return constant not in rest.free_symbols and same_expression(gold, rest)
    return False


def _other_letter(gold: Expr, answer: Expr) -> Expr | None:
    """The answer with the gold answer's letter for the integer, if both are families of angles."""
    integer = Symbol("integer")
    letters = [
        {s for s in side.free_symbols if s == integer or (s.name in _FAMILY and side.has(sympy.pi))}
        for side in (gold, answer)
    ]
    if not all(len(found) == 1 for found in letters):
        return None
    (one,), (other,) = letters
    return None if one == other else answer.xreplace({other: one})


def near(gold: Expr, answer: Expr, tolerance: float) -> bool:
    if gold.free_symbols or answer.free_symbols:
        return False
    a, b = _at(gold, {}), _at(answer, {})
    return a is not None and b is not None and bool(abs(a - b) <= tolerance * abs(a))


@lru_cache(maxsize=4096)
def same_expression(first: Expr, second: Expr) -> bool:
    r"""Whether two expressions are equal: as written, or to 100 digits at four points of both signs.

    >>> x = Symbol("x")
    >>> same_expression(sympy.sqrt(8), 2 * sympy.sqrt(2)), same_expression(x, abs(x))
    (True, False)
    >>> same_expression(sympy.Integer(2) ** 100, sympy.Integer(2) ** 100 + 1), same_expression(x / 2, 2 / x)
    (False, False)
    """
    first, second = (side.doit() if side.has(sympy.Sum, sympy.Product) else side for side in (first, second))
    if first == second:
        return True
    if any(side.has(sympy.oo, sympy.zoo, -sympy.oo, sympy.nan) for side in (first, second)):
        return False
    if first.is_Rational and second.is_Rational:
        return False
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    seen = 0
    has_steps = any(side.has(*_STEPS) for side in (first, second))
    for point in _points(symbols, many=has_steps) if symbols else ({},):
        a, b = _at(first, point), _at(second, point)
        if a is None and b is None:
            continue
        if a is None or b is None:
            return False
        if a.is_Rational and b.is_Rational:
            if a != b:
                return False
            seen += 1
            continue
        size = max(abs(a), abs(b))
        if size < _TINY:
            if symbols:
                continue
            return bool(first.equals(second))
        if abs(a - b) > _AGREE * size:
            return False
        seen += 1
    return seen > 0 or bool(sympy.simplify(first - second) == 0)


def _points(symbols: Items[Symbol], *, many: bool = False) -> list[dict[Symbol, Expr]]:
    """Four points that differ in size and in the signs of their coordinates, the same for every expression.

    Args:
        symbols: of the expressions.
        many: 40 more with coordinates up to 1,000 in size, since functions with steps agree at few points by chance;
            n, k, m and N are whole numbers at all of them.
    """
    scales = [Rational(7, 5), Rational(-9, 7), Rational(3, 11), Rational(31, 9)]
    scales += [Rational((-1) ** n * (3 * n) ** 2, 14) for n in range(1, 41)] if many else []
    points = []
    for n, scale in enumerate(scales):
        point: dict[Symbol, Expr] = {}
        for place, symbol in enumerate(symbols):
            spread = Rational(zlib.crc32(f"{symbol.name}{n}".encode()) % 997 + 1, 1009)
            value = scale + spread * (-1 if (n + place) % 3 == 2 else 1)
            point[symbol] = sympy.floor(value) if many and symbol.name in _WHOLE else value
        points.append(point)
    return points


def _at(expr: Expr, point: dict[Symbol, Expr]) -> Expr | None:
    """The number that the expression is at a point, to 120 digits; None where it has none."""
    value = expr.subs(point) if point else expr
    try:
        value = value.doit()
    except RecursionError:  # a sum up to 7/5
        return None
    if value.free_symbols:
        return None
    if value.is_Rational:
        return value
    number = value.evalf(_DIGITS)
    if number.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    real, imaginary = number.as_real_imag()
    if not (real.is_Number and imaginary.is_Number):
        return None
    return real + I * imaginary if abs(imaginary) > _TINY * (1 + abs(real)) else real
