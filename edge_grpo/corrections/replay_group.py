"""Groups of earlier iterations in the place of dead ones: TRL's replay buffer."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected, CorrectionTools, Encode
from edge_grpo.corrections.groups import (
    groups_with_equal_rewards,
    kept,
    of_groups,
    rows_of,
    sampled_groups,
    share_of_groups,
    with_groups,
)
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores


@dataclass(frozen=True)
class StoredGroup:
    """A group as it was sampled, without its problem's contents."""

    problem_id: str
    iteration: int
    responses: tuple[Response, ...]
    scores: Scores
    drawn: Tensor
    """see `ScoredRollout`"""

    def state(self) -> dict[str, Any]:
        """In plain types."""
        return vars(self) | {"responses": [dict(vars(r)) for r in self.responses], "scores": dict(vars(self.scores))}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "StoredGroup":
        """The group that `state` gave."""
        responses = tuple(Response(**response) for response in state["responses"])
        return cls(**(dict(state) | {"responses": responses, "scores": Scores(**state["scores"])}))


class ReplayGroup:
    """A group of equal rewards is replaced, problem and all, by a stored group of unequal ones (TRL's replay buffer).

    Every live group that the policy sampled is stored with the score sum_i abs(A_i) s, A = (r - mean) / (s + 1e-4) and
    s the standard deviation (G - 1) of its rewards, whatever the advantage strategy is; a full store gives up its
    lowest score for a higher one. Then each dead group is replaced by a stored one drawn with probability proportional
    to score, without repetition as long as there are enough. So a group of this very iteration may come again, as in
    TRL. Its rows are off-policy: the importance ratio is against the log-probs recorded when they were sampled, and the
    loss's clip bounds it. Its advantages are taken again from the stored rewards, where TRL keeps the advantages.

    Only groups that the policy wrote in this iteration are stored, never what a correction before this one, or a
    replay, made. Every rank has a store of its own; it is in the checkpoint. There is no limit of age, which
    `replay_group/age` shows. Assumes a store that has seen live groups: while it is empty dead groups stay. Degenerate
    case: all-right groups and all-wrong ones are replaced alike; where every group is live nothing is.

    Example: rewards (1, 0, 0, 0) have s = 1/2 and A = (1.4997, -0.4999, -0.4999, -0.4999), so the score is 1.4997.

    Args:
        capacity: groups that are stored, at least 1; 64 in TRL.

    Raises:
        UserError: a value out of range.
    """

    token_weight = UNIFORM_WEIGHT
    required_fields: frozenset[str] = frozenset()
    makes_off_policy = True
    reads_sampling_logprobs = True
    metrics: ClassVar[StrategyMetrics] = {
        "replay_group/groups": StrategyMetric("share", "groups that a stored group replaced"),
        "replay_group/age": StrategyMetric("iterations", "since a replayed group was sampled, mean over these groups"),
        "replay_group/stored": StrategyMetric("groups", "in the store of a rank"),
    }

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise UserError(f"correction.capacity={capacity} must be at least 1")
        self.capacity = capacity
        # (score, number, group): among equal scores the oldest leaves first.
        self._heap: list[tuple[float, int, StoredGroup]] = []
        self._stored = 0

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`."""
        return max_new_tokens

    def state_dict(self) -> dict[str, Any]:
        """A snapshot in plain types."""
        return {"heap": [(score, n, group.state()) for score, n, group in self._heap], "stored": self._stored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        self._heap = [(score, n, StoredGroup.of_state(group)) for score, n, group in state["heap"]]
        self._stored = state["stored"]

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Store the live groups, then replace the dead ones."""
        rollout, dead = scored.rollout, groups_with_equal_rewards(scored)
        for group in sampled_groups(scored):
            if group not in dead:
                self._store(scored, group, tools.iteration)
        drawn = dict(zip(dead, self._drawn(len(dead), tools.generator), strict=False))
        branches: list[str | None] = [None] * rollout.num_rows
        for group in drawn:
            for row in rows_of(group, rollout):
                branches[row] = "replayed"
        ages = {group: float(tools.iteration - stored.iteration) for group, stored in drawn.items()}
        reports = {
            "replay_group/groups": share_of_groups(drawn, rollout),
            "replay_group/age": of_groups(ages, rollout),
            "replay_group/stored": of_groups({}, rollout, otherwise=len(self._heap)),
        }
        new = {group: _replayed(stored, tools) for group, stored in drawn.items()}
        return Corrected(with_groups(scored, new), tuple(branches), reports)

    def _store(self, scored: ScoredRollout, group: int, iteration: int) -> None:
        rows = rows_of(group, scored.rollout)
        scores = scored.scores.selected(rows)
        stored = StoredGroup(
            problem_id=scored.rollout.problems[group].id,
            iteration=iteration,
            responses=tuple(kept(scored.rollout.responses[row]) for row in rows),
            scores=scores,
            drawn=scored.drawn[group] if scored.drawn else scores.rewards,
        )
        entry = (group_score(scores.rewards), self._stored, stored)
        self._stored += 1
        if len(self._heap) < self.capacity:
            heapq.heappush(self._heap, entry)
        elif entry[0] > self._heap[0][0]:
            heapq.heapreplace(self._heap, entry)

    def _drawn(self, count: int, generator: torch.Generator) -> list[StoredGroup]:
        """As many stored groups; none if the store is empty."""
        if not self._heap or not count:
            return []
        scores = torch.tensor([score for score, *_ in self._heap], dtype=torch.float64)
        chosen = torch.multinomial(scores, count, replacement=count > len(scores), generator=generator)
        return [self._heap[i][2] for i in chosen.tolist()]


def group_score(rewards: Tensor) -> float:
    """sum_i abs(A_i) s of the rewards [G] of one group.

    >>> round(group_score(torch.tensor([1.0, 0.0, 0.0, 0.0])), 4)
    1.4997
    """
    r = rewards.double()
    s = r.std()
    return float(((r - r.mean()) / (s + 1e-4)).abs().sum() * s)


def _replayed(stored: StoredGroup, tools: CorrectionTools) -> ScoredRollout:
    """The stored group as one of this iteration."""
    responses = tuple(replace(response, off_policy=True) for response in stored.responses)
    return ScoredRollout(
        Rollout((tools.problem(stored.problem_id),), responses, len(responses)),
        tuple(tools.decode(response.token_ids) for response in responses),
        stored.scores,
        (stored.drawn,),
    )
