"""Whether two answers are the same, kind by kind. Numbers are compared by SymPy, exactly or to 100 digits at points."""

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Items

import sympy
from sympy import Expr, Integer, Symbol

from edge_grpo.rewards.answers import values as v
from edge_grpo.rewards.answers.names import names_agree
from edge_grpo.rewards.answers.numbers import factor, near, same_expression, same_number
from edge_grpo.rewards.answers.rules import meaning_of_words
from edge_grpo.rewards.answers.sets import (
    FLIPPED,
    as_set,
    pair_up,
    same_set,
    turned,
    variables_of,
    variables_within,
)
from edge_grpo.rewards.answers.units import DEGREE, ratio
from edge_grpo.rewards.answers.values import Number, Value, both_signs

_SEQUENCES = frozenset({("", ""), ("(", ")"), ("[", "]"), ("<", ">")})


def equal(gold: Value, answer: Value, tolerance: float | None = None) -> bool:
    """Whether the answer is the gold answer.

    What the gold answer does not say (a unit, a name, a base, a modulus) may be in the answer; what it says and the
    answer leaves out is forgiven for units, names, bases and moduli; what both say must agree.

    Args:
        gold: what is right.
        answer: what was answered.
        tolerance: relative difference that is allowed where one of two numbers was written as a decimal; None: none.
    """
    return _Equality(tolerance)(gold, answer)


class _Equality:
    def __init__(self, tolerance: float | None) -> None:
        self.tolerance = tolerance

    def __call__(self, gold: Value, answer: Value) -> bool:
        if gold == answer:
            return True
        if (letters := _letters(gold)) and letters == _letters(answer):
            return True
        for kind, compare in self._kinds():
            if isinstance(gold, kind) or isinstance(answer, kind):
                return compare(gold, answer)
        return False

    def _kinds(self) -> tuple[tuple[type, Callable[[Value, Value], bool]], ...]:
        """The first kind that either side is decides."""
        return (
            (v.Choice, self._choices),
            (v.Named, self._named),
            (v.Approximation, self._approximations),
            (v.Residue, self._residues),
            (v.Based, self._based),
            (v.Clock, self._clocks),
            (v.Date, lambda gold, answer: gold == answer),
            (v.Text, self._texts),
            (v.Ratio, self._ratios),
            (v.Percent, self._percents),
            (v.Quantity, self._quantities),
            (v.Table, self._tables),
            (v.Builder, self._sets),
            (v.Relation, self._relations),
            (v.Union, self._sets),
            (v.Reals, self._sets),
            (v.Sequence, self._sequences),
            (v.Equation, self._equations),
            (v.Number, self._numbers),
        )

    def _texts(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Text) and isinstance(answer, v.Text):
            return gold.key == answer.key
        text, other = (gold, answer) if isinstance(gold, v.Text) else (answer, gold)
        assert isinstance(text, v.Text)
        return bool(letters := _spelled(other)) and letters == sorted(text.key) and not meaning_of_words(text.key)

    def _choices(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Choice) and isinstance(answer, v.Choice):
            return gold.letter == answer.letter
        choice, other, is_gold = (gold, answer, True) if isinstance(gold, v.Choice) else (answer, gold, False)
        assert isinstance(choice, v.Choice)
        if isinstance(other, v.Named) and other.name in ("answer", "option", "choice"):
            return self(choice, other.value) if is_gold else self(other.value, choice)
        if choice.content is not None:
            return self(choice.content, other) if is_gold else self(other, choice.content)
        symbol = Number(Symbol(choice.letter))
        return not isinstance(other, v.Choice) and (self(symbol, other) if is_gold else self(other, symbol))

    def _named(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Named) and isinstance(answer, v.Named):
            if names_agree(gold.name, answer.name):
                return self(gold.value, answer.value)
            first, second = _as_equation(gold), _as_equation(answer)  # x = y and y = x
            return first is not None and second is not None and _same_equation(first, second)
        named, other = (gold, answer) if isinstance(gold, v.Named) else (answer, gold)
        assert isinstance(named, v.Named)
        if isinstance(other, (v.Relation, v.Builder)) and variables_of(other) - {named.name}:
            return False
        if isinstance(other, v.Equation):
            equation = _as_equation(named)
            return equation is not None and _same_equation(equation, other)
        if isinstance(other, v.Text) and isinstance(named.value, v.Text):
            return other.key == named.value.key
        return self(gold.value if gold is named else gold, answer.value if answer is named else answer)

    def _approximations(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Approximation):
            readings = (gold.exact,) if isinstance(answer, v.Approximation) else (gold.exact, gold.rounded)
            return any(self(reading, answer) for reading in readings)
        assert isinstance(answer, v.Approximation)
        return self(gold, answer.exact) or self(gold, answer.rounded)

    def _residues(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Residue) and isinstance(answer, v.Residue):
            if gold.modulus != answer.modulus:
                return False
            return self(_reduced(gold), _reduced(answer))
        return self(*(side.value if isinstance(side, v.Residue) else side for side in (gold, answer)))

    def _based(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Based) and isinstance(answer, v.Based):
            return gold == answer
        based, other = (gold, answer) if isinstance(gold, v.Based) else (answer, gold)
        assert isinstance(based, v.Based)
        if isinstance(other, v.Number) and based.digits.isdigit():
            return other.expr == Integer(based.digits)
        if isinstance(other, v.Text):
            return other.key.upper() == based.digits
        return isinstance(other, v.Number) and str(other.expr).replace("*", "").upper() == based.digits

    def _clocks(self, gold: Value, answer: Value) -> bool:
        if not (isinstance(gold, v.Clock) and isinstance(answer, v.Clock)):
            return False
        if gold.half and not answer.half and 0 < answer.fields[0] <= 12:
            return False
        halves = (gold.half, answer.half) if gold.half and answer.half else None
        if halves is not None and halves[0] != halves[1]:
            return False
        return _on_24_hours(gold, answer) == _on_24_hours(answer, gold)

    def _ratios(self, gold: Value, answer: Value) -> bool:
        sides = []
        for side in (gold, answer):
            if isinstance(side, v.Ratio):
                sides.append([part.expr for part in side.parts])
            elif isinstance(side, v.Number):
                sides.append([side.expr, Integer(1)])
            else:
                return False
        first, second = sides
        if len(first) != len(second) or any(part == 0 for part in (*first, *second)):
            return False
        return all(same_expression(a * second[0], b * first[0]) for a, b in zip(first[1:], second[1:], strict=True))

    def _percents(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Percent) and isinstance(answer, v.Percent):
            return self._numbers(gold.number, answer.number)
        percent, other = (gold, answer) if isinstance(gold, v.Percent) else (answer, gold)
        assert isinstance(percent, v.Percent)
        if not isinstance(other, v.Number):
            return False
        part = Number(percent.number.expr / 100, percent.number.decimal)
        whole = percent.number
        # A bare number may be the percentage, unless it is small enough to be the proportion.
        candidates = [part, whole] if _constant_above_one(whole.expr) else [part]
        pairs = [(c, other) if gold is percent else (other, c) for c in candidates]
        return any(self._numbers(a, b) for a, b in pairs)

    def _quantities(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Quantity) and isinstance(answer, v.Quantity):
            times = ratio(answer.unit, gold.unit)
            if times is not None:
                return self._numbers(gold.number, Number(answer.number.expr * times, answer.number.decimal))
            return bool(gold.otherwise and answer.otherwise and self._numbers(gold.otherwise, answer.otherwise))
        quantity, other = (gold, answer) if isinstance(gold, v.Quantity) else (answer, gold)
        assert isinstance(quantity, v.Quantity)
        if not isinstance(other, v.Number):
            return False
        first, second = (quantity.number, other) if gold is quantity else (other, quantity.number)
        if quantity.otherwise is not None:
            pair = (quantity.otherwise, other) if gold is quantity else (other, quantity.otherwise)
            if self._numbers(*pair):
                return True
            if gold is quantity:  # `6 m` may be six times m
                return False
        if self._numbers(first, second):
            return True
        if quantity.unit == DEGREE:
            radians = Number(quantity.number.expr * sympy.pi / 180)
            return other.expr.has(sympy.pi) and self._numbers(radians, other)
        return False

    def _tables(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Table) and isinstance(answer, v.Table):
            if gold.cases != answer.cases or len(gold.rows) != len(answer.rows):
                return False
            if gold.cases:
                return pair_up(gold.rows, answer.rows, self._rows)
            return all(self._rows(a, b) for a, b in zip(gold.rows, answer.rows, strict=True))
        table, other = (gold, answer) if isinstance(gold, v.Table) else (answer, gold)
        assert isinstance(table, v.Table)
        if table.cases or not isinstance(other, v.Sequence) or other.left not in ("(", "<"):
            return False
        column = [row[0] for row in table.rows] if all(len(row) == 1 for row in table.rows) else None
        entries = column if column is not None else (list(table.rows[0]) if len(table.rows) == 1 else None)
        if entries is None:
            return False
        return self._rows(entries, other.items) if gold is table else self._rows(other.items, entries)

    def _rows(self, gold: Items[Value], answer: Items[Value]) -> bool:
        return len(gold) == len(answer) and all(self(a, b) for a, b in zip(gold, answer, strict=True))

    def _sequences(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Sequence) and isinstance(answer, v.Sequence):
            return self._both_sequences(gold, answer)
        sequence, other = (gold, answer) if isinstance(gold, v.Sequence) else (answer, gold)
        assert isinstance(sequence, v.Sequence)
        if isinstance(other, Number) and other.grouped and sequence.left == "" and other.expr.is_Integer:
            parts = tuple(Number(Integer(part)) for part in f"{int(other.expr):,}".split(","))
            return self._lists(*(parts if side is other else _expanded(side) for side in (gold, answer)))  # type: ignore[arg-type]
        if isinstance(other, Number) and (pair := both_signs(other)):
            return self(*(v.Sequence("", pair, "") if side is other else side for side in (gold, answer)))
        if sequence.left in ("{", "") and len(sequence.items) == 1:
            return self(*(side.items[0] if isinstance(side, v.Sequence) else side for side in (gold, answer)))
        return False

    def _both_sequences(self, gold: v.Sequence, answer: v.Sequence) -> bool:
        if any(side.left == "" and isinstance(side.items[0], v.Relation) for side in (gold, answer)):
            return (gold.left == answer.left and self._lists(gold.items, answer.items)) or self._sets(gold, answer)
        if (gold.left, gold.right) == (answer.left, answer.right) and gold.left not in ("", "{"):
            return self._in_order(gold, answer)
        if {gold.left, answer.left} <= {"", "{"}:
            pair = [_expanded(side) for side in (gold, answer)]
            if gold.left == answer.left == "":
                return self._lists(*pair)
            pair = [
                _once(items, self) if side.left == "{" else items
                for side, items in zip((gold, answer), pair, strict=True)
            ]
            return self._lists(*pair)
        if any((side.left, side.right) not in _SEQUENCES for side in (gold, answer)):
            return False
        if "[" in (gold.left, answer.left) and len(gold.items) <= 2:
            return False  # an interval
        if "" in (gold.left, answer.left) and _may_be_interval(gold if gold.left else answer):
            bare = gold if not gold.left else answer
            if not all(isinstance(item, v.Named) for item in bare.items):
                return False
        return self._in_order(gold, answer)

    def _lists(self, gold: Items[Value], answer: Items[Value]) -> bool:
        if any(item == v.DOTS for item in (*gold, *answer)):
            return self._rows(gold, answer)
        if sum(_distinct_names(side) and not any(isinstance(i, v.Named) for i in other) for side, other in
               ((gold, answer), (answer, gold))) and not _one_variable(gold) and not _one_variable(answer):  # fmt: skip
            return self._rows(_by_name(gold), _by_name(answer))
        if all(_one_variable(side) and side[0].name[:1] == "x" for side in (gold, answer)):  # type: ignore[union-attr]
            gold, answer = ([item.value for item in side] for side in (gold, answer))  # type: ignore[union-attr]
        return pair_up(gold, answer, self)

    def _in_order(self, gold: v.Sequence, answer: v.Sequence) -> bool:
        both = all(_distinct_names(side.items) for side in (gold, answer))
        sides = [_by_name(side.items) if both or not side.left else side.items for side in (gold, answer)]
        return self._rows(*sides)

    def _sets(self, gold: Value, answer: Value) -> bool:
        names, others = variables_within(gold), variables_within(answer)
        if names != others and ((names and others) or len(names | others) > 1):
            return False
        if isinstance(gold, v.Union) and isinstance(answer, v.Union) and gold.minus == answer.minus:
            same = self._rows if gold.minus else lambda a, b: pair_up(a, b, self)
            if same(gold.parts, answer.parts):
                return True
        if isinstance(gold, v.Builder) and isinstance(answer, v.Builder) and self(gold.condition, answer.condition):
            return True
        first, second = as_set(gold), as_set(answer)
        return first is not None and second is not None and same_set(first, second)

    def _relations(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Relation) and isinstance(answer, v.Relation):
            if len(gold.ops) != len(answer.ops):
                return False
            flipped = turned(answer)
            if any(gold.ops == side.ops and self._rows(gold.items, side.items) for side in (answer, flipped)):
                return True
            return len(gold.ops) == 1 and _same_inequality(gold, answer)
        if not all(isinstance(side, (v.Relation, v.Sequence, v.Union, v.Reals)) for side in (gold, answer)):
            return False
        return self._sets(gold, answer)

    def _equations(self, gold: Value, answer: Value) -> bool:
        gold, answer = (_total(side) if isinstance(other, Number) else side for side, other in
                        ((gold, answer), (answer, gold)))  # fmt: skip
        if isinstance(gold, Number):
            return self._numbers(gold, answer)
        return isinstance(gold, v.Equation) and isinstance(answer, v.Equation) and _same_equation(gold, answer)

    def _numbers(self, gold: Value, answer: Value) -> bool:
        if not (isinstance(gold, Number) and isinstance(answer, Number)):
            return False
        first, second = both_signs(gold), both_signs(answer)
        if first and second:
            return pair_up(first, second, self)
        if same_number(gold.expr, answer.expr):
            return True
        if self.tolerance is None or not (gold.decimal or answer.decimal):
            return False
        return near(gold.expr, answer.expr, self.tolerance)


def _once(items: Items[Value], same: Callable[[Value, Value], bool]) -> tuple[Value, ...]:
    kept: list[Value] = []
    for item in items:
        if not any(same(other, item) for other in kept):
            kept.append(item)
    return tuple(kept)


def _expanded(sequence: v.Sequence) -> tuple[Value, ...]:
    items: list[Value] = []
    for item in sequence.items:
        inner = item.value if isinstance(item, v.Named) else item
        items.extend((isinstance(inner, Number) and both_signs(inner)) or (item,))
    return tuple(items)


def _distinct_names(items: Items[Value]) -> bool:
    names = [item.name for item in items if isinstance(item, v.Named)]
    return len(names) == len(items) > 1 and len(set(names)) == len(names)


def _by_name(items: Items[Value]) -> tuple[Value, ...]:
    """`y = 2, x = 1` as x, y; other items stay in their order."""
    return tuple(sorted(items, key=lambda item: item.name)) if _distinct_names(items) else tuple(items)  # type: ignore[union-attr]


def _one_variable(items: Items[Value]) -> bool:
    """Whether the names are those of several roots: `x_1 = -3, x_2 = 4`."""
    return _distinct_names(items) and len({item.name[:1] for item in items}) == 1  # type: ignore[union-attr]


def _letters(value: Value) -> str:
    """The letters of several choices, `A, C` or `AC`, if they rise; else nothing."""
    if isinstance(value, v.Sequence) and value.left in ("", "{") and len(value.items) > 1:
        letters = "".join(
            item.letter if isinstance(item, v.Choice) and item.content is None else "?" for item in value.items
        )
    elif isinstance(value, Number) and value.expr.is_Mul:
        letters = "".join(sorted(str(part) for part in value.expr.args))
    elif isinstance(value, v.Text):
        letters = value.key.upper()
        letters = "".join(sorted(letters)) if len(letters) == 2 else letters
    else:
        return ""
    rising = all(a < b for a, b in itertools.pairwise(letters))
    return letters if rising and len(letters) > 1 and all("A" <= letter <= "J" for letter in letters) else ""


def _spelled(value: Value) -> list[str]:
    r"""The letters of a product of different letters, which `\text{AB}` is too; empty for anything else."""
    if not isinstance(value, Number) or not value.expr.is_Mul:
        return []
    letters = [str(part) for part in value.expr.args]
    return sorted(letter.lower() for letter in letters) if all(len(letter) == 1 for letter in letters) else []


def _reduced(residue: v.Residue) -> Value:
    def reduce(value: Value) -> Value:
        if isinstance(value, Number) and value.expr.is_Integer and residue.modulus.isdigit() and int(residue.modulus):
            return Number(value.expr % int(residue.modulus))
        if isinstance(value, v.Sequence):
            return v.Sequence(value.left, tuple(reduce(item) for item in value.items), value.right)
        return value

    return reduce(residue.value)


def _on_24_hours(clock: v.Clock, other: v.Clock) -> tuple[int, ...]:
    hour, *rest = clock.fields
    if clock.half and (other.half or other.fields[0] > 12 or other.fields[0] == 0):
        hour = hour % 12 + (12 if clock.half == "p" else 0)
    return (hour, *rest)


def _constant_above_one(expr: Expr) -> bool:
    return bool(not expr.free_symbols and expr.is_real and abs(expr.evalf(20)) > 1)


def _may_be_interval(sequence: v.Sequence) -> bool:
    """Whether two brackets hold two numbers in rising order."""
    items = sequence.items
    if len(items) != 2 or not all(isinstance(item, Number) for item in items):
        return False
    low, high = (item.expr for item in items)  # type: ignore[union-attr]
    if low.free_symbols or high.free_symbols:
        return True
    return not (low.is_real and high.is_real) or bool(low.evalf(30) < high.evalf(30))


def _sides(relation: v.Relation) -> tuple[Expr, str] | None:
    """`difference op 0`, with > or >= or !=."""
    if not all(isinstance(item, Number) for item in relation.items):
        return None
    left, right = (item.expr for item in relation.items)  # type: ignore[union-attr]
    op = relation.ops[0]
    return (left - right, op) if op in (">", ">=", "!=") else (right - left, FLIPPED[op])


def _same_inequality(gold: v.Relation, answer: v.Relation) -> bool:
    first, second = _sides(gold), _sides(answer)
    if first is None or second is None or first[1] != second[1]:
        return False
    ratio_of_sides = factor(first[0], second[0])
    return ratio_of_sides is not None and (ratio_of_sides > 0 or first[1] == "!=")


def _total(value: Value) -> Value:
    """The 5 of `a + b = 5` and `ab = 5`, whose left side is letters alone; any other value as it is."""
    if not isinstance(value, v.Equation) or value.right.free_symbols:
        return value
    left = value.left
    letters = (left.is_Add or left.is_Mul) and all(part.is_Symbol for part in left.args)
    return Number(value.right) if letters else value


def _as_equation(named: v.Named) -> v.Equation | None:
    if isinstance(named.value, Number) and len(named.name) == 1:
        return v.Equation(Symbol(named.name), named.value.expr)
    return None


def _same_equation(gold: v.Equation, answer: v.Equation) -> bool:
    """Whether one is the other times a number."""
    return factor(gold.left - gold.right, answer.left - answer.right) is not None
