r"""Mathematical equivalence as math-verify alone sees it, run inside a grading worker: `reward=official` only.

It finds fragments of what it cannot read whole: of `5|6` the 5, of `3 \mid n` the 3. The project's own grader is
`_grade`; this one stands for the released code's, which is as lenient.
"""

import logging
import math
import re

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Expr

from edge_grpo.rewards._grade import USUAL, Verdict

# It warns that its own (SIGALRM) time-outs are off; the pool's replace them.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_PLACES = 6  # at which math-verify compares decimal numbers
_EXTRACTION = (LatexExtractionConfig(), ExprExtractionConfig())
_MIXED = re.compile(r"([+-]?\d+)[ ~]+(\d+)/(\d+)")  # else read as 3 + 1/2 -> 2
_POWER_OF_TEN = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")  # else the product 4.5 * e * 33
_PERCENTAGE = re.compile(r"([^%,]+?)\s*\\?%")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\!)?\\,(?:\\!)?(?=\d{3}(?!\d))")  # else 10\,000 is the product 10 * 0


def grade(item: tuple[str, tuple[str, ...], float | None]) -> Verdict:
    """Whether the answer equals any of the gold answers, by math-verify; "unparsed" if it is no mathematics to it."""
    answer, golds, _ = item
    prediction = _parsed(answer)
    if any(_equal(_parsed(gold), prediction) for gold in golds):
        return "right"
    return "wrong" if _has_mathematics(prediction) else "unparsed"


def warm_up() -> None:
    """Fill the caches of the parser and of sympy, which every process that is forked from this one then has."""
    for answer, gold in USUAL:
        grade((answer, (gold,), None))


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
