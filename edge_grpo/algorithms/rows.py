"""Which rows of a rollout enter an update, and which of these are computed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edge_grpo.advantages.base import Advantage, AdvantageInputs, Grading, UpdateGroups
from edge_grpo.corrections.base import Correction
from edge_grpo.losses.base import Loss
from edge_grpo.policy.base import Policy
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.token_filters.base import TokenFilterInputs
from edge_grpo.types.history import History
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.returned import check_tensor, who
from edge_grpo.types.rollouts import Rollout, ScoredRollout
from edge_grpo.types.update import UpdateBatch


def kept_rows(
    rollout: Rollout,
    kept: Tensor,
    correction: Correction,
    policy: Policy,
    device: Any,
    *,
    mask_truncated: bool = False,
) -> UpdateBatch:
    """The rows of the groups that the group filter keeps.

    Where it keeps none, the first group stands in with weight 0, because every rank takes part in the update.

    Args:
        rollout: P problems, G responses each.
        kept: [P] bool.
        correction: says what a token weighs by who wrote it.
        policy: its padding token.
        device: of the tensors.
        mask_truncated: responses that the budget ended weigh 0 (DAPO's overlong filtering, 2503.14476). They leave the
            denominators; their rewards stay in their group's advantages.
    """
    weight = correction.token_weight
    if not kept.any():
        kept, weight = torch.arange(len(kept), device=kept.device) == 0, dict.fromkeys(Provenance, 0.0)
    rows = kept.repeat_interleave(rollout.num_generations).nonzero().flatten().tolist()
    batch = to_update_batch(rollout, rows, token_weight=weight, pad_id=policy.pad_id, device=device)
    if mask_truncated:
        cut = torch.tensor([rollout.responses[row].finish_reason == "length" for row in rows], device=device)
        batch = replace(batch, token_weights=batch.token_weights.masked_fill(cut[:, None], 0.0))
    return batch


def minibatches(
    batch: UpdateBatch, rollout: Rollout, minibatch_rows: int | None, gathered: Callable[[Any], list[Any]]
) -> list[Tensor] | None:
    """The rows of each optimiser step of an epoch, in the rollout's order.

    They are cut before the group filter, so that every rank has as many of them; one may be left with no rows.

    Args:
        batch: the kept rows.
        rollout: groups of G rows.
        minibatch_rows: of a minibatch over all ranks, whole groups on each; the last one may have fewer. None: one
            step of all rows.
        gathered: one rank's value -> those of all ranks; every rank calls it.
    """
    if minibatch_rows is None:
        return None
    of_ranks = gathered(len(rollout.problems))  # an allocation may choose fewer groups on one rank than on another
    groups = minibatch_rows // (rollout.num_generations * len(of_ranks))
    step_of = batch.problem_ids // groups
    return [(step_of == step).nonzero().flatten() for step in range(math.ceil(max(of_ranks) / groups))]


def recorded(
    batch: UpdateBatch, rollout: Rollout, gathered: Callable[[Any], list[Any]], generator: Callable[[], torch.Generator]
) -> TokenFilterInputs:
    """What the rollout recorded of the batch's tokens, for a token filter; without advantages."""
    return TokenFilterInputs(
        entropy=_recorded_entropies(batch, rollout),
        sampling_logprobs=batch.sampling_logprobs,
        trained=batch.trained,
        sampled=batch.sampled_mask,
        advantages=None,
        over_ranks=lambda values: torch.cat(gathered(values.cpu())).to(values.device),
        generator=generator,
    )


def _recorded_entropies(batch: UpdateBatch, rollout: Rollout) -> Tensor | None:
    """[N, T], or None where a row has none."""
    entropy = torch.zeros_like(batch.sampling_logprobs)
    for i, row in enumerate(batch.row_ids.tolist()):
        response = rollout.responses[row]
        if response.entropies is None:
            return None
        entropy[i, : len(response)] = response.entropies
    return entropy


def grading_of(
    batch: UpdateBatch,
    scored: ScoredRollout,
    rewards: WeightedRewards,
    history: History,
    gathered: Callable[[Any], list[Any]],
    *,
    stands_in: bool,
) -> Grading:
    """What grading says of the batch's rows, and of all groups of the update.

    Args:
        batch: N rows of whole groups.
        scored: the rollout that they are of, on the CPU.
        rewards: their weights and the reward of a perfect response.
        history: of the iterations before.
        gathered: one rank's value -> those of all ranks; every rank calls it.
        stands_in: whether the filter keeps no group and the batch is one that stands in (see `kept_rows`). It is in no
            statistic, unless there is no other on any rank: then those that stand in are, of all ranks.
    """
    rollout, scores, num_generations = scored.rollout, scored.scores, scored.rollout.num_generations
    rows = batch.row_ids.cpu()
    parts = {name: part[rows] for name, part in scores.parts.items()}
    here = UpdateGroups(
        rewards=scores.rewards[rows].view(-1, num_generations),
        correct=scores.correct[rows].view(-1, num_generations),
        tokens=batch.response_lengths.cpu().view(-1, num_generations).sum(1),
        parts={name: part.view(-1, num_generations) for name, part in parts.items()},
        entropies=_sampled_entropies([rollout.responses[row] for row in rows.tolist()], num_generations),
    )
    there = [groups for groups in gathered(None if stands_in else here) if groups is not None]
    there = there or gathered(here)  # of all ranks again: what strategies keep of it must not differ between them
    device = batch.tokens.device
    return Grading(
        correct=scores.correct[rows].to(device),
        parts={name: part.to(device) for name, part in parts.items()},
        weights=rewards.weights,
        max_reward=rewards.max_reward,
        update=UpdateGroups.joined(there),
        drawn=[scored.drawn[row // num_generations] for row in rows.tolist()] if scored.drawn else (),
        visits=[history.of(rollout.problem_of(row).id) for row in rows.tolist()],
    )


def _sampled_entropies(responses: Sequence[Response], num_generations: int) -> Tensor | None:
    """[M, 2] float64, of each group the sampled tokens and the sum of their entropies; None where a row has none."""
    sums = []
    for response in responses:
        if response.entropies is None:
            return None
        sampled = response.provenance == Provenance.SAMPLED
        sums.append((int(sampled.sum()), float(response.entropies[sampled].sum())))
    return torch.tensor(sums, dtype=torch.float64).view(-1, num_generations, 2).sum(1)


def computed_rows(
    batch: UpdateBatch,
    rewards: Tensor,
    advantage: Advantage,
    loss: Loss,
    num_generations: int,
    grading: Grading | None = None,
) -> Tensor:
    """[M] rows of the batch, ascending and in whole groups, that can move the policy; at least one group.

    Where all advantages of a group are 0 and no KL term reaches it, its gradient is exactly 0: forward and backward
    would be for nothing. One group stays, so that every rank takes part in the update. A group with a row that brings
    its own advantage stays too.

    Args:
        batch: N rows of whole groups.
        rewards: [N].
        grading: of the rows; None where the advantage reads none.
    """
    skipped = skipped_groups(batch, rewards, advantage, loss, num_generations, grading)
    if skipped.all():
        skipped[0] = False
    return torch.arange(batch.num_rows, device=rewards.device).view(-1, num_generations)[~skipped].flatten()


def skipped_groups(
    batch: UpdateBatch,
    rewards: Tensor,
    advantage: Advantage,
    loss: Loss,
    num_generations: int,
    grading: Grading | None = None,
) -> Tensor:
    """[groups] bool: which groups of the batch cannot move the policy; arguments as of `computed_rows`."""
    inputs = AdvantageInputs(rewards, num_generations, batch.completion_mask, batch.sampled_mask, grading=grading)
    brings = (batch.fixed_advantages.nan_to_num() != 0).view(-1, num_generations).any(1)
    skipped = advantage.zero_advantage_groups(inputs)
    name = f"{who('advantage', advantage)}: zero_advantage_groups"
    check_tensor(name, "groups without advantage", skipped, {"[P]": tuple(brings.shape)}, "bool", rewards)
    skipped = skipped & ~brings
    return torch.zeros_like(skipped) if loss.reads_every_row else skipped


def group_tokens(batch: UpdateBatch, skipped: Tensor, num_groups: int, *, packing: bool) -> list[int]:
    """Tokens that the update computes of each group of the rollout, 0 of those that it leaves out.

    Args:
        batch: the kept rows.
        skipped: see `skipped_groups`.
        num_groups: of the rollout.
        packing: whether the rows of a group share a prompt's tokens.
    """
    tokens = [0] * num_groups
    live = (~skipped).repeat_interleave(batch.num_rows // len(skipped)).nonzero().flatten()
    of_rows = (batch.problem_ids, batch.prompt_keys, batch.prompt_lengths, batch.response_lengths)
    counted = set()
    for group, prompt, before, length in zip(*(values[live].tolist() for values in of_rows), strict=True):
        tokens[group] += length + (0 if packing and (group, prompt) in counted else before)
        counted.add((group, prompt))
    return tokens
