"""Whether two answers are the same, kind by kind. Numbers are compared by SymPy, exactly or to 100 digits at points."""

import itertools
import re
import zlib
from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import lru_cache

import sympy
from sympy import Expr, FiniteSet, Float, I, Integer, Interval, Rational, S, Set, Symbol

from edge_grpo.rewards.answers import values as v
from edge_grpo.rewards.answers.rules import meaning_of_words
from edge_grpo.rewards.answers.units import DEGREE, ratio
from edge_grpo.rewards.answers.values import Number, Value

_DIGITS = 120
_AGREE = Float("1e-100", _DIGITS)
_TINY = Float("1e-100", _DIGITS)
_FAMILY = frozenset("nkm")
_WHOLE = frozenset("nkmN")
_STEPS = (sympy.floor, sympy.ceiling, sympy.Max, sympy.Min, sympy.sign, sympy.Abs, sympy.Sum, sympy.Product)
_SEQUENCES = frozenset({("", ""), ("(", ")"), ("[", "]"), ("<", ">")})
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


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
            if _names_agree(gold.name, answer.name):
                return self(gold.value, answer.value)
            first, second = _as_equation(gold), _as_equation(answer)  # x = y and y = x
            return first is not None and second is not None and _same_equation(first, second)
        named, other = (gold, answer) if isinstance(gold, v.Named) else (answer, gold)
        assert isinstance(named, v.Named)
        if isinstance(other, (v.Relation, v.Builder)) and _names_of(other) - {named.name}:
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
            factor = ratio(answer.unit, gold.unit)
            if factor is not None:
                return self._numbers(gold.number, Number(answer.number.expr * factor, answer.number.decimal))
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
                return _match(gold.rows, answer.rows, self._rows)
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
        if isinstance(other, v.Number) and (pair := _plus_minus(other)) is not None:
            return self(*(pair if side is other else side for side in (gold, answer)))
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
        if {gold.left, answer.left} <= {"(", "<"} or {gold.left, answer.left} <= {"", "(", "<", "["}:
            if "[" in (gold.left, answer.left) and len(gold.items) <= 2:
                return False  # an interval
            if "" in (gold.left, answer.left) and _may_be_interval(gold if gold.left else answer):
                bare = gold if not gold.left else answer
                if not all(isinstance(item, v.Named) for item in bare.items):
                    return False
            return self._in_order(gold, answer)
        return False

    def _lists(self, gold: Items[Value], answer: Items[Value]) -> bool:
        if any(item == v.DOTS for item in (*gold, *answer)):
            return self._rows(gold, answer)
        if sum(_distinct_names(side) and not any(isinstance(i, v.Named) for i in other) for side, other in
               ((gold, answer), (answer, gold))) and not _one_variable(gold) and not _one_variable(answer):  # fmt: skip
            return self._rows(_by_name(gold), _by_name(answer))
        if all(_one_variable(side) and side[0].name[:1] == "x" for side in (gold, answer)):  # type: ignore[union-attr]
            gold, answer = ([item.value for item in side] for side in (gold, answer))  # type: ignore[union-attr]
        return _match(gold, answer, self)

    def _in_order(self, gold: v.Sequence, answer: v.Sequence) -> bool:
        both = all(_distinct_names(side.items) for side in (gold, answer))
        sides = [_by_name(side.items) if both or not side.left else side.items for side in (gold, answer)]
        return self._rows(*sides)

    def _sets(self, gold: Value, answer: Value) -> bool:
        names, others = _variables(gold), _variables(answer)
        if names != others and ((names and others) or len(names | others) > 1):
            return False
        if isinstance(gold, v.Union) and isinstance(answer, v.Union) and gold.minus == answer.minus:
            same = self._rows if gold.minus else lambda a, b: _match(a, b, self)
            if same(gold.parts, answer.parts):
                return True
        if isinstance(gold, v.Builder) and isinstance(answer, v.Builder) and self(gold.condition, answer.condition):
            return True
        first, second = _as_set(gold), _as_set(answer)
        return first is not None and second is not None and _same_set(first, second)

    def _relations(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, v.Relation) and isinstance(answer, v.Relation):
            if len(gold.ops) != len(answer.ops):
                return False
            flipped = _turned(answer)
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
        pairs = [_plus_minus(side) for side in (gold, answer)]
        if all(pairs):
            return _match(pairs[0].items, pairs[1].items, self)  # type: ignore[union-attr]
        if _same_number(gold.expr, answer.expr):
            return True
        if self.tolerance is None or not (gold.decimal or answer.decimal):
            return False
        return _near(gold.expr, answer.expr, self.tolerance)


def _match(gold: Items, answer: Items, same: Callable) -> bool:
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


def _once(items: Items[Value], same: Callable[[Value, Value], bool]) -> tuple[Value, ...]:
    kept: list[Value] = []
    for item in items:
        if not any(same(other, item) for other in kept):
            kept.append(item)
    return tuple(kept)


_PLUS_MINUS = Symbol("pm")


def _plus_minus(number: Number) -> v.Sequence | None:
    if _PLUS_MINUS not in number.expr.free_symbols:
        return None
    both = tuple(Number(number.expr.xreplace({_PLUS_MINUS: Integer(sign)}), number.decimal) for sign in (1, -1))
    return v.Sequence("", both, "")


def _expanded(sequence: v.Sequence) -> tuple[Value, ...]:
    items: list[Value] = []
    for item in sequence.items:
        inner = item.value if isinstance(item, v.Named) else item
        pair = _plus_minus(inner) if isinstance(inner, Number) else None
        items.extend(pair.items if pair is not None else (item,))
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


_GENERIC = frozenset(("answer", "final answer", "result", "value", "solution", "total", "option", "choice"))


def _names_agree(gold: str, answer: str) -> bool:
    """Symbols must be the same, except that a curve may be y or a function; words may name what a symbol stands for.

    >>> _names_agree("x", "y"), _names_agree("y", "f(x)"), _names_agree("area", "S"), _names_agree("k", "f(x)")
    (False, True, True, False)
    >>> _names_agree("f(x)", "g(x)"), _names_agree("f'(x)", "f(x)"), _names_agree("total cost", "cost")
    (True, False, True)
    >>> _names_agree("a_1", "a_2"), _names_agree("|ab|", "ba"), _names_agree("length", "width")
    (False, True, False)
    """
    if gold == answer or gold in _GENERIC or answer in _GENERIC:
        return True
    words = [re.fullmatch(r"[a-z ]{4,}|[一-鿿]+", name) is not None for name in (gold, answer)]
    if all(words):
        return set(gold.split()) <= set(answer.split()) or set(gold.split()) >= set(answer.split())
    if any(words):
        return True
    (base, place, order, at), (other_base, other_place, other_order, other_at) = (_parts(n) for n in (gold, answer))
    if order != other_order:
        return False
    if base != other_base:
        if "|" in base + other_base:
            return False
        curves = {name for name, argument in ((base, at), (other_base, other_at)) if not argument.isalpha()}
        plain = len(base) == 1 and len(other_base) == 1
        if at.islower() and other_at.islower():  # a function may be called g
            return plain and not (place or other_place)
        return curves == {"y"} if plain else not (place or other_place) and 1 in (len(base), len(other_base))
    same_place = place == other_place or not (place and other_place)
    same_argument = at == other_at or not (at and other_at) or (at.islower() and other_at.islower())
    return same_place and same_argument


def _parts(name: str) -> tuple[str, str, int, str]:
    """Letter(s), subscript, order of the derivative and argument of a symbol.

    >>> _parts("f''(x)"), _parts("a_{n}"), _parts(r"\\frac{dy}{dx}"), _parts("ba")
    (('f', '', 2, 'x'), ('a', 'n', 0, ''), ('y', '', 1, ''), ('ab', '', 0, ''))
    """
    text = re.sub(r"\\(?:overline|angle|triangle|vec|overrightarrow|hat)(?![a-zA-Z])|[{}\s]", "", name)
    text = re.sub(r"^\|([A-Za-z]{2,})\|$", r"\1", text)
    if match := re.fullmatch(r"\\frac(?:d|\\partial)([a-zA-Z]?)(?:d|\\partial)[a-zA-Z]", text):
        return (match[1] or "y", "", 1, "")
    match = re.fullmatch(r"(.+?)(?:_([^'(^]+))?('*)(\^-1)?(?:\((.*)\))?", text)
    if match is None:
        return (text, "", 0, "")
    base = "".join(sorted(match[1].lower())) if match[1].isalpha() and len(match[1]) == 2 else match[1]
    return (base + (match[4] or ""), match[2] or "", len(match[3]), match[5] or "")


def _names_of(value: Value) -> set[str]:
    if isinstance(value, v.Builder):
        return set()
    if isinstance(value, v.Relation):
        return {str(s) for item in value.items if isinstance(item, Number) for s in item.expr.free_symbols}
    return set()


def _variables(value: Value) -> set[str]:
    """The variables of the comparisons in a set of numbers; none in intervals and in sets by their condition."""
    if isinstance(value, (v.Union, v.Sequence)):
        parts = value.parts if isinstance(value, v.Union) else value.items
        return {name for part in parts for name in _variables(part)}
    return _names_of(value)


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


def _turned(relation: v.Relation) -> v.Relation:
    return v.Relation(relation.items[::-1], tuple(_FLIPPED[op] for op in relation.ops[::-1]))


def _sides(relation: v.Relation) -> tuple[Expr, str] | None:
    """`difference op 0`, with > or >= or !=."""
    if not all(isinstance(item, Number) for item in relation.items):
        return None
    left, right = (item.expr for item in relation.items)  # type: ignore[union-attr]
    op = relation.ops[0]
    return (left - right, op) if op in (">", ">=", "!=") else (right - left, _FLIPPED[op])


def _same_inequality(gold: v.Relation, answer: v.Relation) -> bool:
    first, second = _sides(gold), _sides(answer)
    if first is None or second is None or first[1] != second[1]:
        return False
    factor = _factor(first[0], second[0])
    return factor is not None and (factor > 0 or first[1] == "!=")


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
    return _factor(gold.left - gold.right, answer.left - answer.right) is not None


def _factor(first: Expr, second: Expr) -> Expr | None:
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


def _as_set(value: Value) -> Set | None:
    """The set of real numbers that the value is, None if it is none."""
    if isinstance(value, v.Reals):
        return S.Reals
    if isinstance(value, v.Builder):
        return _as_set(value.condition)
    if isinstance(value, v.Named):
        return _as_set(value.value)
    if isinstance(value, v.Relation):
        return _solution(value)
    if isinstance(value, v.Union):
        parts = [_as_set(part) for part in value.parts]
        if any(part is None for part in parts):
            return None
        if len(_variables(value)) > 1:
            return None
        return sympy.Complement(*parts) if value.minus else sympy.Union(*parts)
    if isinstance(value, v.Sequence):
        return _sequence_as_set(value)
    return None


def _sequence_as_set(value: v.Sequence) -> Set | None:
    if value.left == "" and all(isinstance(item, v.Relation) for item in value.items):
        parts = [_as_set(item) for item in value.items]
        if any(part is None for part in parts) or len(_variables(value)) > 1:
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
    names = _names_of(relation)
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
        op = op if slope > 0 else _FLIPPED[op]
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
    side = relation if isinstance(relation.items[0].expr, sympy.Abs) else _turned(relation)  # type: ignore[union-attr]
    inner, bound, op = side.items[0].expr, side.items[1].expr, side.ops[0]  # type: ignore[union-attr]
    if not isinstance(inner, sympy.Abs) or not bound.is_positive or op == "!=":
        return None
    inside, low, high = Number(inner.args[0]), Number(-bound), Number(bound)
    if op in ("<", "<="):
        return (v.Relation((low, inside, high), (op, op)),)
    return v.Relation((inside, high), (op,)), v.Relation((inside, low), (_FLIPPED[op],))


def _same_set(first: Set, second: Set) -> bool:
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
    return _match(first.args, second.args, same_expression)


def _same_number(gold: Expr, answer: Expr) -> bool:
    """As expressions; besides, one integer parameter may have another letter, and `+ C` may be left out of neither."""
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


def _near(gold: Expr, answer: Expr, tolerance: float) -> bool:
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
    >>> same_expression(Integer(2) ** 100, Integer(2) ** 100 + 1), same_expression(x / 2, 2 / x)
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
