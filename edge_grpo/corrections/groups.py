"""What the corrections share that put references, or rows of another iteration, into groups."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from edge_grpo.corrections.base import CorrectionTools
from edge_grpo.errors import UserError
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response, reference_response
from edge_grpo.types.rollouts import Rollout, ScoredRollout


def reference_of(problem: Problem, tools: CorrectionTools) -> Response | None:
    """The reference with the tokenizer's EOS; None if there is none, or one that fails its own grading."""
    if not problem.solution_ids or not problem.solution_passes:
        return None
    return reference_response((*problem.solution_ids, *tools.eos_ids[:1]))


def reference_length(problem: Problem) -> int:
    """Tokens of `reference_of`; 0 if there is none."""
    return len(problem.solution_ids) + 1 if problem.solution_ids and problem.solution_passes else 0


def grouped_correct(scored: ScoredRollout) -> Tensor:
    """[P, G] bool, by the accuracy reward alone."""
    return scored.scores.correct.view(-1, scored.rollout.num_generations)


def all_wrong_groups(scored: ScoredRollout) -> list[int]:
    """Groups without a right row."""
    return (~grouped_correct(scored).any(1)).nonzero().flatten().tolist()


def groups_with_equal_rewards(scored: ScoredRollout) -> list[int]:
    """The groups whose rewards are all equal, by equality."""
    rewards = scored.scores.rewards.view(-1, scored.rollout.num_generations)
    return (rewards == rewards[:, :1]).all(1).nonzero().flatten().tolist()


def rows_of(group: int, rollout: Rollout) -> list[int]:
    """The rows of a group."""
    return list(range(group * rollout.num_generations, (group + 1) * rollout.num_generations))


def sampled_groups(scored: ScoredRollout) -> list[int]:
    """The groups of which the policy of this iteration wrote every row: what a replay may store."""
    rollout = scored.rollout
    groups = range(len(rollout.problems))
    return [g for g in groups if all(rollout.responses[row].as_sampled for row in rows_of(g, rollout))]


def with_groups(scored: ScoredRollout, new: Mapping[int, ScoredRollout]) -> ScoredRollout:
    """`scored` with other groups in some places.

    Args:
        new: place -> one graded group of as many rows; its `drawn` is taken over where `scored` has one.
    """
    rollout, scores = scored.rollout, scored.scores
    problems, responses = list(rollout.problems), list(rollout.responses)
    texts, drawn = list(scored.texts), list(scored.drawn)
    for group, one in new.items():
        rows = rows_of(group, rollout)
        problems[group], responses[rows[0] : rows[-1] + 1] = one.rollout.problems[0], one.rollout.responses
        texts[rows[0] : rows[-1] + 1] = one.texts
        scores = scores.replaced(rows, one.scores)
        if drawn:
            drawn[group] = one.drawn[0]
    return ScoredRollout(
        Rollout(tuple(problems), tuple(responses), rollout.num_generations), tuple(texts), scores, tuple(drawn)
    )


def of_groups(values: Mapping[int, float], rollout: Rollout, otherwise: float = torch.nan) -> Tensor:
    """[N], of every row the value of its group."""
    per_group = [values.get(group, otherwise) for group in range(len(rollout.problems))]
    return torch.tensor(per_group, dtype=torch.float32).repeat_interleave(rollout.num_generations)


def share_of_groups(groups: Collection[int], rollout: Rollout) -> Tensor:
    """[N], 1 for the rows of these groups and 0 for the others; the mean is their share."""
    return of_groups(dict.fromkeys(groups, 1.0), rollout, otherwise=0.0)


def kept(response: Response) -> Response:
    """The response in memory of its own, to be stored: a rollout's may be slices of a far larger tensor."""
    return replace(
        response,
        token_ids=response.token_ids.clone(),
        sampling_logprobs=response.sampling_logprobs.clone(),
        entropies=None if response.entropies is None else response.entropies.clone(),
        provenance=response.provenance.clone(),
    )


def check_positive(**values: float) -> None:
    """Raise a UserError naming the first value that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"correction.{name}={value} must be above 0")
