"""Answers as sets of real numbers: intervals, unions, inequalities, conditions."""

from collections.abc import Callable
from collections.abc import Sequence as Items

import sympy
from sympy import FiniteSet, Interval, S, Set, Symbol

from edge_grpo.rewards.answers import values as v
from edge_grpo.rewards.answers.numbers import same_expression
from edge_grpo.rewards.answers.values import Number, Value

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


def as_set(value: Value) -> Set | None:
    """The set of real numbers that the value is, None if it is none."""
    if isinstance(value, v.Reals):
        return S.Reals
    if isinstance(value, v.Builder):
        return as_set(value.condition)
    if isinstance(value, v.Named):
        return as_set(value.value)
    if isinstance(value, v.Relation):
        return _solution(value)
    if isinstance(value, v.Union):
        parts = [as_set(part) for part in value.parts]
        if any(part is None for part in parts):
            return None
        if len(variables_within(value)) > 1:
            return None
        return sympy.Complement(*parts) if value.minus else sympy.Union(*parts)
    if isinstance(value, v.Sequence):
        return _sequence_as_set(value)
    return None


def _sequence_as_set(value: v.Sequence) -> Set | None:
    if value.left == "" and all(isinstance(item, v.Relation) for item in value.items):
        parts = [as_set(item) for item in value.items]
        if any(part is None for part in parts) or len(variables_within(value)) > 1:
            return None
        both = sympy.Intersection(*parts)
        return sympy.Union(*parts) if both is S.EmptySet else both  # `x < 1, x > 3` says "or"
    if not all(isinstance(item, Number) and not item.expr.free_symbols for item in value.items):
        return None
    numbers = [item.expr for item in value.items]  # type: ignore[union-attr]
    if not all(number.is_extended_real for number in numbers):
        return None
    if value.left == "{":
        return FiniteSet(*numbers)
    if value.left in ("(", "[") and value.right in (")", "]") and len(numbers) == 2 and numbers[0] < numbers[1]:
        return Interval(*numbers, left_open=value.left == "(", right_open=value.right == ")")
    return None


def _solution(relation: v.Relation) -> Set | None:
    """The solution set of a chain that is linear in its one variable."""
    names = variables_of(relation)
    if len(names) != 1 or not all(isinstance(item, Number) for item in relation.items):
        return None
    symbol = Symbol(next(iter(names)))
    whole: Set = S.Reals
    if len(relation.ops) == 1 and (parts := _without_bars(relation)) is not None:
        solutions = [_solution(part) for part in parts]
        return None if any(part is None for part in solutions) else sympy.Union(*solutions)
    items = [item.expr for item in relation.items]  # type: ignore[union-attr]
    for left, right, op in zip(items, items[1:], relation.ops, strict=False):
        difference = sympy.expand(left - right)
        if not difference.has(symbol):
            return None
        slope = sympy.diff(difference, symbol)
        if slope.free_symbols or slope == 0 or not slope.is_real:
            return None
        root = sympy.nsimplify(sympy.expand(-(difference - slope * symbol) / slope), rational=False)
        if not root.is_real:
            return None
        op = op if slope > 0 else FLIPPED[op]
        whole = whole.intersect(
            {
                "<": Interval.open(-sympy.oo, root),
                "<=": Interval(-sympy.oo, root),
                ">": Interval.open(root, sympy.oo),
                ">=": Interval(root, sympy.oo),
                "!=": S.Reals - FiniteSet(root),
            }[op]
        )
    return whole


def _without_bars(relation: v.Relation) -> tuple[v.Relation, ...] | None:
    """`|x| < 2` as -2 < x < 2, `|x| > 2` as x > 2 or x < -2; None for anything else."""
    side = relation if isinstance(relation.items[0].expr, sympy.Abs) else turned(relation)  # type: ignore[union-attr]
    inner, bound, op = side.items[0].expr, side.items[1].expr, side.ops[0]  # type: ignore[union-attr]
    if not isinstance(inner, sympy.Abs) or not bound.is_positive or op == "!=":
        return None
    inside, low, high = Number(inner.args[0]), Number(-bound), Number(bound)
    if op in ("<", "<="):
        return (v.Relation((low, inside, high), (op, op)),)
    return v.Relation((inside, high), (op,)), v.Relation((inside, low), (FLIPPED[op],))


def same_set(first: Set, second: Set) -> bool:
    if first == second:
        return True
    parts = []
    for whole in (first, second):
        pieces = whole.args if isinstance(whole, sympy.Union) else (whole,)
        if not all(isinstance(piece, (Interval, FiniteSet)) for piece in pieces):
            return False
        parts.append(sorted(pieces, key=lambda piece: float(piece.inf)))
    if [type(piece) for piece in parts[0]] != [type(piece) for piece in parts[1]]:
        return False
    return all(_same_piece(a, b) for a, b in zip(*parts, strict=True))


def _same_piece(first: Set, second: Set) -> bool:
    if isinstance(first, Interval) and isinstance(second, Interval):
        ends = (first.left_open, first.right_open) == (second.left_open, second.right_open)
        return ends and same_expression(first.start, second.start) and same_expression(first.end, second.end)
    return pair_up(first.args, second.args, same_expression)


def variables_of(value: Value) -> set[str]:
    if isinstance(value, v.Builder):
        return set()
    if isinstance(value, v.Relation):
        return {str(s) for item in value.items if isinstance(item, Number) for s in item.expr.free_symbols}
    return set()


def variables_within(value: Value) -> set[str]:
    """The variables of the comparisons in a set of numbers; none in intervals and in sets by their condition."""
    if isinstance(value, (v.Union, v.Sequence)):
        parts = value.parts if isinstance(value, v.Union) else value.items
        return {name for part in parts for name in variables_within(part)}
    return variables_of(value)


def turned(relation: v.Relation) -> v.Relation:
    return v.Relation(relation.items[::-1], tuple(FLIPPED[op] for op in relation.ops[::-1]))


def pair_up(gold: Items, answer: Items, same: Callable) -> bool:
    """Whether the items pair up one to one, in any order."""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        found = next((i for i, other in enumerate(left) if same(item, other)), None)
        if found is None:
            return False
        del left[found]
    return True
