"""The reward that decides what is right: the last boxed answer against the gold answers."""

import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.rewards.answers.options import with_options
from edge_grpo.rewards.boxed import final_answers, last_boxed
from edge_grpo.rewards.verifier import AnswerVerifier, Pair
from edge_grpo.types.problems import Problem

log = logging.getLogger(__name__)

_SHOWN = 3


class Accuracy:
    r"""1 if the last complete `\boxed{...}` (or the list of boxes that it ends) equals a gold answer, else 0.

    In a multiple choice the option's text and its letter are the same answer.

    Degenerate case: a response without a box is wrong, whatever it says.

    Args:
        verifier: decides equality; graded in one call, so that it can work in parallel.
        last_box_only: the last box alone counts (the released code), without the boxes of a list before it, a
            comparison outside of it, and the options of a multiple choice.
    """

    def __init__(self, verifier: AnswerVerifier, last_box_only: bool = False) -> None:
        self.verifier = verifier
        self.last_box_only = last_box_only

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
        return torch.tensor(_any(self._pairs(problems, texts), self.verifier), dtype=torch.float32)

    def unparsed(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
        """Which texts, graded before, hold no boxed answer or one that the verifier (if it tells) could not read."""
        rows = self._pairs(problems, texts)
        if not hasattr(self.verifier, "known"):
            return [pairs[0][0] is None for pairs in rows]
        return [all(verdict == "unparsed" for verdict in self.verifier.known(pairs)) for pairs in rows]

    def ungradable(self, problems: Sequence[Problem]) -> list[str | None]:
        """What is wrong with each problem's gold answers and what was expected; None where an answer can be graded.

        Gold answers that are no mathematics are compared as text; a warning says how many there are. Without the
        verifier's `unreadable` any gold answer will do.
        """
        golds = list(dict.fromkeys(gold for problem in problems for gold in problem.answers))
        unreadable = getattr(self.verifier, "unreadable", None)
        text = [gold for gold, is_text in zip(golds, unreadable(golds), strict=True) if is_text] if unreadable else []
        broken = {gold for gold in text if _is_broken(gold)}
        if words := [gold for gold in text if gold not in broken]:
            shown = ", ".join(repr(gold[:60]) for gold in words[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")
            log.warning(
                "%d of %d different gold answers are no mathematics, or none that can be read whole, and are compared "
                "as text: only the same words match: %s",
                len(words),
                len(golds),
                shown,
            )
        return [_complaint(problem.answers, broken) for problem in problems]

    def _pairs(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[list[Pair]]:
        """Of each row the readings of its answer, at least one (None: it has no answer)."""
        rows = zip(problems, texts, strict=True)
        if self.last_box_only:
            return [[(last_boxed(text), problem.answers)] for problem, text in rows]
        return [
            [(answer, with_options(problem.question, problem.answers)) for answer in final_answers(text) or (None,)]
            for problem, text in rows
        ]

    def state_dict(self) -> dict[str, Any]:
        """The verifier's state; empty if it has none."""
        return self.verifier.state_dict() if hasattr(self.verifier, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand the verifier its state; a verifier without any ignores that of another."""
        if hasattr(self.verifier, "load_state_dict"):
            self.verifier.load_state_dict(state)


def _any(rows: Sequence[Sequence[Pair]], verifier: AnswerVerifier) -> list[bool]:
    """Whether any reading of a row is right; all are graded in one call."""
    verdicts = iter(verifier([pair for pairs in rows for pair in pairs]))
    return [any(list(itertools.islice(verdicts, len(pairs)))) for pairs in rows]


def _is_broken(gold: str) -> bool:
    """Whether a gold answer that is no mathematics is no text either: blank, or cut off inside brackets.

    >>> [_is_broken(gold) for gold in ("(1,", " ", r"\frac{1}{", "Paris", "]x, y[")]
    [True, True, True, False, False]
    """
    counts = [sum(gold.count(bracket) for bracket in pair) for pair in ("([", ")]", "{", "}")]
    return not gold.strip() or counts[0] != counts[1] or counts[2] != counts[3]


def _complaint(golds: Sequence[str], broken: Collection[str]) -> str | None:
    """
    >>> _complaint(("5", "(1,"), {"(1,"}) is None, _complaint((), set())
    (True, 'no gold answer: expected at least one')
    """
    if not golds:
        return "no gold answer: expected at least one"
    if any(gold not in broken for gold in golds):
        return None
    named = " and ".join(repr(gold) for gold in golds)
    return f"gold answer {named} is blank or cut off: expected a number, LaTeX such as \\frac{{1}}{{2}}, or words"
