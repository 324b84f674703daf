"""Which rows of a rollout enter an update, and which of these are computed."""

from typing import Any

import torch
from torch import Tensor

from edge_grpo.advantages.base import Advantage, AdvantageInputs
from edge_grpo.corrections.base import Correction
from edge_grpo.losses.base import Loss
from edge_grpo.policy.base import Policy
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.types import Provenance, Rollout, UpdateBatch


def kept_rows(rollout: Rollout, kept: Tensor, correction: Correction, policy: Policy, device: Any) -> UpdateBatch:
    """The rows of the groups that the group filter keeps.

    Where it keeps none, the first group stands in with weight 0, because every rank takes part in the update.

    Args:
        rollout: P problems, G responses each.
        kept: [P] bool.
        correction: says what a token weighs by who wrote it.
        policy: its padding token.
        device: of the tensors.
    """
    weight = correction.token_weight
    if not kept.any():
        kept, weight = torch.arange(len(kept), device=kept.device) == 0, dict.fromkeys(Provenance, 0.0)
    rows = kept.repeat_interleave(rollout.num_generations).nonzero().flatten().tolist()
    return to_update_batch(rollout, rows, token_weight=weight, pad_id=policy.pad_id, device=device)


def computed_rows(
    batch: UpdateBatch, rewards: Tensor, advantage: Advantage, loss: Loss, num_generations: int
) -> Tensor:
    """[M] rows of the batch, ascending and in whole groups, that can move the policy; at least one group.

    Where all advantages of a group are 0 and no KL term reaches it, its gradient is exactly 0: forward and backward
    would be for nothing. One group stays, so that every rank takes part in the update.

    Args:
        batch: N rows of whole groups.
        rewards: [N].
    """
    inputs = AdvantageInputs(rewards, num_generations, batch.completion_mask, batch.sampled_mask)
    skipped = advantage.zero_advantage_groups(inputs)
    if loss.reads_every_row:
        skipped = torch.zeros_like(skipped)
    if skipped.all():
        skipped[0] = False
    return torch.arange(batch.num_rows, device=rewards.device).view(-1, num_generations)[~skipped].flatten()
