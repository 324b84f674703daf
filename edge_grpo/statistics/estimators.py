"""Estimators of evaluation: from n graded samples of one problem to pass@k and maj@n."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

_PLAIN_NUMBER = re.compile(r"([+-]?)0*(\d+)(?:\.(\d*?)0*)?")


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased probability that one of k responses is right: 1 - C(n - c, k) / C(n, k) (2107.03374, eq. 1).

    Args:
        n: samples of the problem.
        c: right ones.
        k: in [1, n].

    >>> pass_at_k(4, 1, 2)  # of the 6 pairs 3 hold the right one
    0.5
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} right among {n}")
    # The product form of C(n - c, k) / C(n, k): no large numbers.
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1))) if n - c >= k else 1.0


def majority(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """maj@n of one problem: whether the most frequent answer is right (2203.11171, self-consistency).

    Answers count as the same where their text is, up to spaces and the form of a plain number; responses without an
    answer have no vote. Degenerate cases: a tie counts as its expectation under a fair draw; without any vote 0.

    >>> majority(["7", "7.0", "8", None], [True, True, False, False])
    1.0
    >>> majority(["7", "8"], [True, False])
    0.5
    """
    votes: dict[str, list[bool]] = defaultdict(list)
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            votes[_vote(answer)].append(right)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    # Equal texts may be graded unequally only where a grading was lost.
    winners = [any(rights) for rights in votes.values() if len(rights) == most]
    return sum(winners) / len(winners)


def _vote(answer: str) -> str:
    """What equal answers share.

    >>> [_vote(text) for text in ("07.50", " 7.5", "x + 1", "x+1", "-0", "1,000")]
    ['7.5', '7.5', 'x+1', 'x+1', '0', '1000']
    """
    text = "".join(answer.split())
    number = _PLAIN_NUMBER.fullmatch(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text))
    if number is None:
        return text
    sign, whole, places = number[1], number[2], number[3] or ""
    value = f"{whole}.{places}" if places else whole
    return f"-{value}" if sign == "-" and value != "0" else value
