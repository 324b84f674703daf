"""The reward that decides what is right: the last boxed answer against the gold answers."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.rewards.verifier import AnswerVerifier, Pair
from edge_grpo.types import Problem


class Accuracy:
    r"""1 if the content of the last complete `\boxed{...}` equals a gold answer, else 0.

    Degenerate case: a response without a box is wrong, whatever it says.

    Args:
        verifier: decides equality; graded in one call, so that it can work in parallel.
    """

    def __init__(self, verifier: AnswerVerifier) -> None:
        self.verifier = verifier

    @property
    def counts(self) -> dict[str, int]:
        """How answers were decided so far, if the verifier counts it."""
        return getattr(self.verifier, "counts", {})

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tensor:
        """[n] float32, 0 or 1.

        Raises:
            UserError: a problem without a gold answer.
        """
        for problem in problems:
            if not problem.answers:
                raise UserError(f"{problem.origin or problem.id}: no gold answer, so nothing can be graded")
        return torch.tensor(self.verifier(_pairs(problems, texts)), dtype=torch.float32)

    def unparsed(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
        """Which texts, graded before, hold no boxed answer or one that the verifier (if it tells) could not read."""
        pairs = _pairs(problems, texts)
        if not hasattr(self.verifier, "known"):
            return [answer is None for answer, _ in pairs]
        return [verdict == "unparsed" for verdict in self.verifier.known(pairs)]

    def ungradable(self, problems: Sequence[Problem]) -> list[str | None]:
        """What is wrong with each problem's gold answers and what was expected; None where an answer can be graded.

        A problem may have unreadable gold answers besides a readable one. Without the verifier's `unreadable` any
        gold answer will do.
        """
        golds = list(dict.fromkeys(gold for problem in problems for gold in problem.answers))
        unreadable = getattr(self.verifier, "unreadable", None)
        bad = {gold for gold, is_bad in zip(golds, unreadable(golds), strict=True) if is_bad} if unreadable else set()
        return [_complaint(problem.answers, bad) for problem in problems]

    def state_dict(self) -> dict[str, Any]:
        """The verifier's state; empty if it has none."""
        return self.verifier.state_dict() if hasattr(self.verifier, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand the verifier its state; a verifier without any ignores that of another."""
        if hasattr(self.verifier, "load_state_dict"):
            self.verifier.load_state_dict(state)


def _pairs(problems: Sequence[Problem], texts: Sequence[str]) -> list[Pair]:
    return [(last_boxed(text), problem.answers) for problem, text in zip(problems, texts, strict=True)]


def _complaint(golds: Sequence[str], unreadable: Collection[str]) -> str | None:
    """
    >>> _complaint(("5", "(1,"), {"(1,"}) is None, _complaint((), set())
    (True, 'no gold answer: expected at least one')
    """
    if not golds:
        return "no gold answer: expected at least one"
    if any(gold not in unreadable for gold in golds):
        return None
    named = " and ".join(repr(gold) for gold in golds)
    return f"gold answer {named} cannot be read as mathematics: expected a number or LaTeX such as \\frac{{1}}{{2}}"
