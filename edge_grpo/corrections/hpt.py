"""Supervised fine-tuning where the policy fails, policy gradient elsewhere: HPT."""

from dataclasses import dataclass, replace
from typing import ClassVar

from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected, CorrectionTools, Encode
from edge_grpo.corrections.groups import (
    check_positive,
    grouped_correct,
    reference_length,
    reference_of,
    rows_of,
    share_of_groups,
)
from edge_grpo.corrections.guided import rescored
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response
from edge_grpo.types.rollouts import ScoredRollout


@dataclass(frozen=True)
class HybridPostTraining:
    """A group with at most `gate` right rows leaves, and its reference enters with the loss of SFT (2509.04419).

    The first row becomes the reference with the advantage `coefficient` whatever the rewards; the others have the
    advantage 0 and leave the denominators. Where the importance ratio is 1 the policy gradient of that row is
    coefficient grad log pi of the reference's tokens, which is supervised fine-tuning. With several optimiser steps a
    rollout it has the loss's ratio and clip like every other row. The authors average SFT and policy gradient apart;
    here a reference is one row of the update, weighed as `loss.aggregation` weighs rows.

    Assumes references that pass their own grading; without one a group is left alone ("no_reference"). Degenerate case:
    an all-wrong group is trained on its reference, an all-right one is left as it is unless gate is G or more. With
    gate = -1 every group is left as it is.

    Args:
        gate: most right rows of a group that is replaced, at least -1; 0 in the paper, 2 of 8 for Llama.
        coefficient: above 0; 1 in the paper, 0.3 for its 1.5B model.

    Raises:
        UserError: a value out of range.
    """

    gate: int
    coefficient: float

    token_weight = UNIFORM_WEIGHT
    required_fields: ClassVar[frozenset[str]] = frozenset({"solution"})
    metrics: ClassVar[StrategyMetrics] = {
        "hpt/groups": StrategyMetric("share", "groups that are trained on their reference alone")
    }

    def __post_init__(self) -> None:
        if self.gate < -1:
            raise UserError(f"correction.gate={self.gate} must be at least -1")
        check_positive(coefficient=self.coefficient)

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`."""
        return max(max_new_tokens, reference_length(problem))

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Replace the groups; of their rows the references alone are graded."""
        rollout, responses = scored.rollout, list(scored.rollout.responses)
        branches: list[str | None] = [None] * rollout.num_rows
        edited: dict[int, Response] = {}
        for group, right in enumerate(grouped_correct(scored).sum(1).tolist()):
            if right > self.gate:
                continue
            first, *others = rows_of(group, rollout)
            reference = reference_of(rollout.problems[group], tools)
            if reference is None:
                branches[first] = "no_reference"
                continue
            edited[first], branches[first] = replace(reference, advantage=self.coefficient), "reference"
            for row in others:
                responses[row], branches[row] = replace(responses[row], advantage=0.0), "dropped"
        left = replace(scored, rollout=replace(rollout, responses=tuple(responses)))
        groups = {row // rollout.num_generations for row in edited}
        return Corrected(
            rescored(left, edited, tools), tuple(branches), {"hpt/groups": share_of_groups(groups, rollout)}
        )
