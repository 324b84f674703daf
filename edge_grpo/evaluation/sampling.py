"""n responses to each problem of a set, each from a seed of its own."""

from collections.abc import Sequence

import torch

from edge_grpo.policy.base import Policy
from edge_grpo.rollouts.base import RolloutEngine, Sampling
from edge_grpo.seeding import stage_generator
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, written_response
from edge_grpo.types.rollouts import Rollout


def sample(
    engine: RolloutEngine,
    policy: Policy,
    problems: Sequence[Problem],
    *,
    num_samples: int,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    step: int = 0,
    stage: str = "evaluation",
) -> Rollout:
    """Sample j of a problem depends on (seed, stage, step, the problem's id, j) and on nothing else.

    So it is the same in whatever batch, on whatever rank and after whatever kill it is drawn, up to floating-point
    rounding. A response is as long as the model's context allows; without room for one token it is empty.

    Args:
        engine, policy: what generates.
        problems: P problems with their prompts as tokens.
        num_samples: n.
        sampling, max_new_tokens: of a response.
        seed: of the evaluation.
        step: updates that the policy has had.
        stage: what the samples are for.
    """
    rows = [(p, j) for p in problems for j in range(num_samples)]
    budgets = [room(p, policy, max_new_tokens) for p, _ in rows]
    able = [i for i, budget in enumerate(budgets) if budget > 0]
    responses = [written_response(torch.zeros(0, dtype=torch.long), Provenance.SAMPLED, "length")] * len(rows)
    sampled = engine.generate(
        policy,
        [rows[i][0].prompt_ids for i in able],
        [budgets[i] for i in able],
        sampling,
        [row_generator(seed, *rows[i], step=step, stage=stage) for i in able],
    )
    for i, response in zip(able, sampled, strict=True):
        responses[i] = response
    return Rollout(tuple(problems), tuple(responses), num_samples)


def room(problem: Problem, policy: Policy, max_new_tokens: int) -> int:
    """New tokens that the budget and the model's context allow."""
    limit = policy.context_length
    return max_new_tokens if limit is None else max(min(max_new_tokens, limit - len(problem.prompt_ids)), 0)


def row_generator(seed: int, problem: Problem, j: int, *, step: int = 0, stage: str = "evaluation") -> torch.Generator:
    """The generator of sample j of a problem."""
    return stage_generator(seed, f"{stage}/{problem.id}/{j}", iteration=step)
