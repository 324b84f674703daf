"""What an answer can be. Every part of the text is in its value: nothing that could not be read is left out."""

from dataclasses import dataclass

from sympy import Expr, Integer, Symbol


@dataclass(frozen=True)
class Text:
    """What is not mathematics, or could not be read as such: equal only to the same text."""

    key: str


@dataclass(frozen=True)
class Number:
    """An expression, with or without symbols.

    Args:
        expr: decimals are exact fractions in it.
        decimal: it was written as a decimal, so that a tolerance may hold for it.
        grouped: it was written as `100,200`, which may be a list.
    """

    expr: Expr
    decimal: bool = False
    grouped: bool = False


@dataclass(frozen=True)
class Quantity:
    """A number with a unit, `unit` a SymPy expression; `otherwise`: what it is if the letters are no unit (`6 m`)."""

    number: Number
    unit: Expr
    otherwise: Number | None = None


@dataclass(frozen=True)
class Percent:
    """A number before a percent sign."""

    number: Number


@dataclass(frozen=True)
class Approximation:
    """A number and its rounding, `4\\pi \\approx 12.57`, either of which is the answer."""

    exact: Number
    rounded: "Value"


@dataclass(frozen=True)
class Sequence:
    """Several values. `left` and `right` are the brackets, empty for a bare list; `{` holds a set."""

    left: str
    items: tuple["Value", ...]
    right: str

    @property
    def ordered(self) -> bool:
        """Whether the order counts: not in sets and bare lists, unless dots stand in it."""
        return self.left not in ("", "{") or any(item == DOTS for item in self.items)


@dataclass(frozen=True)
class Union:
    """A union of intervals and sets; with `minus`, `parts[0]` without `parts[1]`."""

    parts: tuple["Value", ...]
    minus: bool = False


@dataclass(frozen=True)
class Reals:
    """All real numbers."""


@dataclass(frozen=True)
class Named:
    """`name = value`: the value counts; names matter only between two values that both have one."""

    name: str
    value: "Value"


@dataclass(frozen=True)
class Equation:
    """An equation between two expressions."""

    left: Expr
    right: Expr


@dataclass(frozen=True)
class Relation:
    """A chain of comparisons, `ops[i]` (<, <=, >, >=, !=) between `items[i]` and `items[i + 1]`."""

    items: tuple["Value", ...]
    ops: tuple[str, ...]


@dataclass(frozen=True)
class Builder:
    """A set by its condition."""

    condition: "Value"


@dataclass(frozen=True)
class Ratio:
    """`2 : 3`, `1 : 2 : 3`."""

    parts: tuple[Number, ...]


@dataclass(frozen=True)
class Clock:
    """A time of day: minutes (or seconds) since midnight as written, and am or pm if it is said."""

    fields: tuple[int, ...]
    half: str


@dataclass(frozen=True)
class Date:
    """The month and the numbers beside it."""

    month: str
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class Based:
    """Digits in a base that is written out."""

    digits: str
    base: str


@dataclass(frozen=True)
class Residue:
    """`value` modulo `modulus`."""

    value: "Value"
    modulus: str


@dataclass(frozen=True)
class Choice:
    """A letter of a multiple choice, and what stands beside it."""

    letter: str
    content: "Value | None" = None


@dataclass(frozen=True)
class Table:
    """A matrix, a column, or the cases of a definition (`cases`)."""

    rows: tuple[tuple["Value", ...], ...]
    cases: bool = False


PLUS_MINUS = Symbol("pm")
"""stands for 1 and -1 in an expression"""


def both_signs(number: Number) -> tuple[Number, Number] | None:
    r"""The two numbers of one with `\pm`; None of any other."""
    if PLUS_MINUS not in number.expr.free_symbols:
        return None
    plus, minus = (number.expr.xreplace({PLUS_MINUS: Integer(sign)}) for sign in (1, -1))
    return Number(plus, number.decimal), Number(minus, number.decimal)


Value = (
    Text
    | Number
    | Quantity
    | Percent
    | Approximation
    | Sequence
    | Union
    | Reals
    | Named
    | Equation
    | Relation
    | Builder
    | Ratio
    | Clock
    | Date
    | Based
    | Residue
    | Choice
    | Table
)
DOTS = Text("...")
"""an ellipsis among the items of a list"""
