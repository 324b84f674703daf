r"""Which answers the released EDGE-GRPO grader counts right."""

import re
from collections.abc import Sequence

from edge_grpo.rewards import _official_grade
from edge_grpo.rewards._grade import Verdict
from edge_grpo.rewards.verifier import MathVerifier, Pair

_TEXT = re.compile(r"\\text\{((?:[^{}]|\{[^{}]*\})+)\}")  # around the whole answer; braces inside, one level deep
_ASSIGNED = re.compile(r"[A-Za-z]\s*=([^=]+)")
_BEFORE_DOT = re.compile(r"(.*[^.\s])\s*\.", re.DOTALL)


class OfficialVerifier(MathVerifier):
    r"""math-verify's verdict on answers and gold answers without `\text{}` around, `x =` before or a dot behind them.

    The released grader (arXiv 2507.21848, released code) takes these off before it compares, so that an answer matches
    a gold answer written in any of these ways, or one for another letter. What else it does differently is listed
    under "Not reproduced" in docs/departures.md.

    Args:
        workers, timeout_s, max_answer_chars, memory_limit_gb: see `MathVerifier`.
    """

    _grade = staticmethod(_official_grade.grade)
    _is_readable = staticmethod(_official_grade.is_readable)

    def __init__(self, workers: int, timeout_s: float, max_answer_chars: int, memory_limit_gb: float) -> None:
        super().__init__(workers, timeout_s, max_answer_chars, memory_limit_gb)

    def __call__(self, pairs: Sequence[Pair]) -> list[bool]:
        """See `MathVerifier`."""
        return super().__call__(_bare_pairs(pairs))

    def known(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """See `MathVerifier.known`."""
        return super().known(_bare_pairs(pairs))

    def unreadable(self, golds: Sequence[str]) -> list[bool]:
        """See `MathVerifier.unreadable`."""
        return super().unreadable([bare(gold) for gold in golds])


def _bare_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    return [(None if answer is None else bare(answer), tuple(map(bare, golds))) for answer, golds in pairs]


def bare(answer: str) -> str:
    r"""The answer itself, out of what may stand around it; as it is if nothing would be left.

    >>> bare(r"\text{Monday}."), bare(r"x = \text{\frac{1}{2}}"), bare("f(x) = 2."), bare(r"\text{a} or \text{b}")
    ('Monday', '\\frac{1}{2}', 'f(x) = 2', '\\text{a} or \\text{b}')
    >>> bare("1, 2, ..."), bare("x = y = 5"), bare(".")
    ('1, 2, ...', 'x = y = 5', '.')
    """
    answer = answer.strip()
    for around in (_TEXT, _ASSIGNED, _BEFORE_DOT):
        inside = around.fullmatch(answer)
        if inside and inside[1].strip():
            return bare(inside[1])
    return answer
