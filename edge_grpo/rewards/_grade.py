"""Whether an answer is the gold answer, as run inside a grading worker. Imported there, so it stays light: no torch."""

import warnings
from typing import Literal

from edge_grpo.rewards.answers.equality import equal
from edge_grpo.rewards.answers.reading import is_text, read
from edge_grpo.rewards.answers.values import Choice

Verdict = Literal["right", "wrong", "unparsed"]

warnings.filterwarnings("ignore", module=r"latex2sympy2_extended|sympy|antlr4")

USUAL = (
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
    (r"x \ge 3", r"[3, \infty)"),
)
"""answers of the usual kinds, each with a gold answer that costs a comparison"""


def grade(item: tuple[str, tuple[str, ...], float | None]) -> Verdict:
    r"""Whether the answer is one of the gold answers; "unparsed" if it is no mathematics and they are.

    Args:
        item: the answer, the gold answers, and the relative tolerance for decimals (None: none).

    >>> grade((r"\frac{1}{2}", ("0.5",), None)), grade(("3", (r"3 \mid n",), None)), grade(("?", ("5",), None))
    ('right', 'wrong', 'unparsed')
    """
    text, golds, tolerance = item
    answer, values = read(text), [read(gold) for gold in golds]
    if isinstance(answer, Choice) and any(isinstance(value, Choice) for value in values):
        values = [value for value in values if isinstance(value, Choice)]  # the letter says which option was chosen
    if any(equal(value, answer, tolerance) for value in values):
        return "right"
    return "unparsed" if is_text(answer) and not all(is_text(value) for value in values) else "wrong"


def warm_up() -> None:
    """Fill the caches of the parser and of sympy, which every process that is forked from this one then has."""
    for answer, gold in USUAL:
        grade((answer, (gold,), None))


def is_readable(text: str) -> bool:
    """Whether all of the text is read as mathematics, rather than compared as text."""
    return not is_text(read(text))
