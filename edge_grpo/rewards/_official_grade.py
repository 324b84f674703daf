"""The released code's grading, run inside a grading worker: `reward=official` only.

An answer is right if PRM800K's grader (the package mathruler: MATH's normalised strings, then SymPy on what is left of
the LaTeX) or math-verify says so. Both find fragments and forgive much, and the first evaluates what a model wrote.
The project's own grader is `_grade`.
"""

import logging

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from mathruler.grader import grade_answer

from edge_grpo.rewards._grade import USUAL, Verdict
from edge_grpo.rewards.boxed import last_boxed

# It warns that its own (SIGALRM) time-outs are off; the pool's replace them.
logging.getLogger("math_verify").setLevel(logging.ERROR)
_EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def grade(item: tuple[str, tuple[str, ...], float | None]) -> Verdict:
    r"""Whether the answer is one of the gold answers to the released grader.

    >>> grade(("0.5", (r"x = \\frac{1}{2}",), None)), grade(("3", (r"3 \\mid n",), None)), grade(("4", ("5",), None))
    ('right', 'right', 'wrong')
    """
    answer, golds, _ = item
    return "right" if any(_equal(answer, gold) for gold in golds) else "wrong"


def warm_up() -> None:
    """Fill the caches of the parser and of sympy, which every process that is forked from this one then has."""
    for answer, gold in USUAL:
        grade((answer, (gold,), None))


def _equal(answer: str, gold: str) -> bool:
    gold = (last_boxed(gold) or gold) if "\\boxed" in gold else gold
    return grade_answer(answer, gold) or _equal_to_math_verify(answer, gold)


def _equal_to_math_verify(answer: str, gold: str) -> bool:
    return bool(verify(_parsed(gold), _parsed(answer), timeout_seconds=None))


def _parsed(text: str) -> list[object]:
    source = text if "$" in text else f"${text}$"
    return parse(source, _EXTRACTION, fallback_mode="no_fallback", parsing_timeout=None)
