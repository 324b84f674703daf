"""The reference solution as an off-policy row of its problem's group: LUFFY."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected, CorrectionTools, Encode
from edge_grpo.corrections.groups import (
    check_positive,
    grouped_correct,
    reference_length,
    reference_of,
    share_of_groups,
)
from edge_grpo.corrections.guided import rescored
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response
from edge_grpo.types.rollouts import ScoredRollout


@dataclass(frozen=True)
class ReferenceRow:
    """One row of a group becomes the reference, each of whose tokens weighs pi / (pi + gamma) (LUFFY, 2504.14945).

    pi is the token's probability under the policy: the ratio is taken against a sampling log-prob of 0. So the gradient
    of log pi weighs gamma pi / (pi + gamma)^2, most where pi = gamma and little where the policy is sure either way,
    and nothing is clipped. The row counts in the group's mean and deviation like any other.

    LUFFY's authors reserve one of 8 rows in every group for the reference. Here G rows have been sampled when a
    correction begins, so the row that leaves is drawn uniformly, right or wrong: in law the same G - 1 sampled rows, at
    the cost of sampling one more. They use no deviation, the `dr_grpo` aggregation and an entropy bonus:
    `advantage=dr_grpo loss=dr_grpo` for the first two. `when: all_wrong` is not theirs.

    Assumes references that the policy does not yet write itself. Degenerate case: an all-wrong group gets exactly one
    right row; of an all-right group the rewards stay equal. A problem without a reference, or with one that fails its
    own grading, is left alone ("no_reference").

    Args:
        when: always, or in all_wrong groups only.
        shaping: gamma, above 0; 0.1 in the paper.

    Raises:
        UserError: a value out of range.
    """

    when: Literal["always", "all_wrong"]
    shaping: float

    token_weight = UNIFORM_WEIGHT
    required_fields: ClassVar[frozenset[str]] = frozenset({"solution"})
    makes_off_policy: ClassVar[bool] = True
    metrics: ClassVar[StrategyMetrics] = {
        "reference_row/groups": StrategyMetric("share", "groups of which one row became the reference")
    }

    def __post_init__(self) -> None:
        if self.when not in ("always", "all_wrong"):
            raise UserError(f"correction.when={self.when}: expected always or all_wrong")
        check_positive(shaping=self.shaping)

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`."""
        return max(max_new_tokens, reference_length(problem))

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Put the references in and grade them."""
        rollout, g = scored.rollout, scored.rollout.num_generations
        # Drawn for every group, so that a group's row does not depend on what the others are.
        drawn = torch.randint(g, (len(rollout.problems),), generator=tools.generator).tolist()
        dead = ~grouped_correct(scored).any(1)
        branches: list[str | None] = [None] * rollout.num_rows
        edited: dict[int, Response] = {}
        for group, problem in enumerate(rollout.problems):
            if self.when == "all_wrong" and not dead[group]:
                continue
            row, reference = group * g + drawn[group], reference_of(problem, tools)
            branches[row] = "reference" if reference is not None else "no_reference"
            if reference is not None:
                edited[row] = replace(reference, off_policy=True, shaping=self.shaping)
        reports = {"reference_row/groups": share_of_groups({row // g for row in edited}, rollout)}
        return Corrected(rescored(scored, edited, tools), tuple(branches), reports)
