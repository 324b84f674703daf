"""The correction stage: wrong responses of a scored rollout are edited before the advantage is taken.

A correction never imports another stage: what it needs of rollout and grading is handed to it as `CorrectionTools`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from edge_grpo.types import Problem, Provenance, Response, ScoredRollout, Scores


@dataclass(frozen=True)
class CorrectionTools:
    """What the training loop lends to a correction.

    Args:
        generate: (token prefixes, budgets) -> continuations by the policy, in order.
        score: (problems, texts) -> their scores; each call grades.
        encode: text -> token ids, no special tokens added.
        decode: token ids -> text without special tokens.
        eos_ids: tokens that end a response; the first one is written where an edit ends.
        generator: CPU generator of this stage and iteration.
        max_new_tokens: the rollout's budget.
        max_reward: the reward of a perfect response.
    """

    generate: Callable[[list[list[int]], list[int]], list[Response]]
    score: Callable[[Sequence[Problem], Sequence[str]], Scores]
    encode: Callable[[str], tuple[int, ...]]
    decode: Callable[[torch.Tensor], str]
    eos_ids: tuple[int, ...]
    generator: torch.Generator
    max_new_tokens: int
    max_reward: float


@dataclass(frozen=True)
class Corrected:
    """The rollout after correction.

    Args:
        scored: same problems, same rows; only edited rows differ.
        branches: [N] name of the branch a row took, None where it was left alone.
        reports: name -> [N], what the correction reports of each row, NaN for rows of which it says nothing; its
            attribute `metrics` says how each is logged (see `StrategyMetric`).
    """

    scored: ScoredRollout
    branches: tuple[str | None, ...]
    reports: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Correction(Protocol):
    """Correction strategy."""

    token_weight: Mapping[Provenance, float]
    """loss weight of a token by who wrote it"""

    @property
    def required_fields(self) -> frozenset[str]:
        """Fields of `Problem` that the correction reads, so that every training problem must have them."""
        ...

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected: ...


UNIFORM_WEIGHT: Mapping[Provenance, float] = dict.fromkeys(Provenance, 1.0)
