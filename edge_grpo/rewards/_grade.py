r"""Mathematical equivalence, as run inside a grading worker. Imported there, so it must stay light: no torch.

Known limits, all of math-verify: `5 6` is 11 (a mixed number without its fraction), `pi` without backslash is a
product of letters, of `5|6` only the 5 is read, `x > 3` is not `(3, \infty)`, the base of `10101_2` is dropped, and
an unknown unit in plain letters (`5 m/s`, `5 dollars`) becomes symbols. Units in `\text` or `\mathrm` are dropped.
"""

import logging
import math
import re
from typing import Literal

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Expr

# It warns that its own (SIGALRM) time-outs are off; the pool's replace them.
logging.getLogger("math_verify").setLevel(logging.ERROR)

Verdict = Literal["right", "wrong", "unparsed"]

_PLACES = 6  # at which math-verify compares decimal numbers
_EXTRACTION = (LatexExtractionConfig(), ExprExtractionConfig())
_MIXED = re.compile(r"([+-]?\d+)[ ~]+(\d+)/(\d+)")  # else read as 3 + 1/2 -> 2
_POWER_OF_TEN = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")  # else the product 4.5 * e * 33
_PERCENTAGE = re.compile(r"([^%,]+?)\s*\\?%")
# Answers of the usual kinds, each with a gold answer that costs a comparison.
_USUAL = (
    (r"62.5\%", "5/8"),
    (r"3\frac{1}{2}", r"\frac{14}{4}"),
    (r"-\frac{1}{4}", "0.26"),
    (r"2\sqrt{12}", r"\sqrt{48}"),
    ("x^2 + 3x + 2", "(x+1)(x+3)"),
    (r"12\text{ cm}^2", r"12\,\mathrm{kg}"),
    (r"\left( \frac{1}{2}, -3 \right)", "(0.5, -2)"),
    ("3, -1, 2", "$3, 2, 1$"),
    (r"(1, 2] \cup [4, \infty)", r"(1, 2)\cup[4,\infty)"),
    (r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    (r"1.5 \times 10^{7}", "1.5e8"),
    (r"\ln 2 + \frac{i\pi}{3}", r"\frac{\pi i}{3} + \ln 3"),
    (r"\text{Monday}", "even"),
    (r"90^\circ", "1,000"),
    (r"y = \sin(2x) + \cos x", r"\tan^2 x \le 5"),
    (r"\{1, 2\}", r"n! \binom{5}{2}"),
)
_THOUSANDS = re.compile(r"(?<=\d)(?:\\!)?\\,(?:\\!)?(?=\d{3}(?!\d))")  # else 10\,000 is the product 10 * 0


def grade(pair: tuple[str, tuple[str, ...]]) -> Verdict:
    """Whether the answer equals any of the gold answers, by math-verify; "unparsed" if it is no mathematics to it."""
    answer, golds = pair
    prediction = _parsed(answer)
    if any(_equal(_parsed(gold), prediction) for gold in golds):
        return "right"
    return "wrong" if _has_mathematics(prediction) else "unparsed"


def warm_up() -> None:
    """Fill the caches of the parser and of sympy, which every process that is forked from this one then has."""
    for answer, gold in _USUAL:
        grade((answer, (gold,)))


def is_readable(text: str) -> bool:
    """Whether math-verify reads mathematics in the text, rather than nothing or mere characters."""
    return _has_mathematics(_parsed(text))


def _equal(gold: list[object], prediction: list[object]) -> bool:
    return verify(gold, prediction, float_rounding=_places(gold), timeout_seconds=None)


def _places(gold: list[object]) -> int:
    """Decimal places to compare at: more for a small gold answer, which `0.0` would equal otherwise."""
    value = next((v for v in gold if isinstance(v, Expr) and v.is_number and v.is_real), None)
    size = 0 if value is None else abs(value.evalf())
    return _PLACES - math.floor(math.log10(size)) if 0 < size < 1 else _PLACES


def _has_mathematics(parsed: list[object]) -> bool:
    return any(not isinstance(value, str) for value in parsed)


def _parsed(text: str) -> list[object]:
    # One maths environment around the whole text, which is where math-verify reads LaTeX best (percentages fail in
    # \boxed). Dollar signs or line breaks of its own would split it and leave only its last piece to be graded.
    bare = " ".join(text.replace(r"\$", "").replace("$", "").split())
    bare = _THOUSANDS.sub("", bare)
    if match := _MIXED.fullmatch(bare):
        bare = rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}"
    elif match := _POWER_OF_TEN.fullmatch(bare):
        bare = rf"{match[1]} \times 10^{{{match[2]}}}"
    # Behind the environment a percent sign holds for all of it, inside only for a plain number without backslash.
    match = _PERCENTAGE.fullmatch(bare)
    source = f"${match[1]}$%" if match else f"${bare}$"
    return parse(source, _EXTRACTION, parsing_timeout=None)
