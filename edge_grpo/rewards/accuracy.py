"""The reward that decides what is right: the last boxed answer against the gold answers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.rewards.verifier import AnswerVerifier
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
        pairs = [(last_boxed(text), problem.answers) for problem, text in zip(problems, texts, strict=True)]
        return torch.tensor(self.verifier(pairs), dtype=torch.float32)
