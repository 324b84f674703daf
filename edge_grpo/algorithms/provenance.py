"""How much of an update's gradient comes from whom: tokens that were sampled, injected, or of a reference."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edge_grpo.algorithms.reports import Reports
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.losses.base import UpdateSize
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.policy.token_stats import TokenStats
from edge_grpo.types.responses import Provenance
from edge_grpo.types.rollouts import Rollout
from edge_grpo.types.update import UpdateBatch


def provenance_of(batch: UpdateBatch, rollout: Rollout) -> Tensor:
    """[N, T] int8, values of `Provenance`; -1 outside the response."""
    found = torch.full(batch.token_weights.shape, -1, dtype=torch.int8)
    for i, row in enumerate(batch.row_ids.tolist()):
        provenance = rollout.responses[row].provenance
        found[i, : len(provenance)] = provenance
    return found.to(batch.tokens.device)


def gradient_norms(
    update: GRPOUpdate, rollout: Rollout, sizes: Sequence[UpdateSize], over_ranks: Callable[[Tensor], Tensor]
) -> dict[Provenance, float]:
    """Norm of the part of the update's gradient that comes through the tokens of each writer.

    The loss is the update's own, with its denominators; what it gives back is let through at the log-probs and
    entropies of one writer's tokens only, so that the parts add up to the gradient. Of all optimiser steps of an epoch,
    at the policy before the first. The update and its strategies stay as they are: copies are worked on, gradients go
    to no parameter, and the global generators are put back.

    Args:
        update: prepared, and not run.
        rollout: whose rows it has.
        sizes: of each step, see `GRPOUpdate.run`.
        over_ranks: sums a tensor over ranks; every rank calls it equally often.

    Returns:
        0 for a writer without a trained token.
    """
    provenance = provenance_of(update.batch, rollout)
    parameters = [parameter for parameter in update.model.parameters() if parameter.requires_grad]
    for parameter in parameters:  # the optimiser does so too before its step; the head's gradient would join it
        parameter.grad = None
    devices = [update.batch.tokens.device] if update.batch.tokens.is_cuda else []
    norms = {}
    for writer in Provenance:
        with torch.random.fork_rng(devices):
            parts = gradient_through(update, provenance == writer, parameters, sizes)
        norms[writer] = float(sum(float(over_ranks(part).double().square().sum()) for part in parts)) ** 0.5
    return norms


def gradient_through(
    update: GRPOUpdate, through: Tensor, parameters: Sequence[Tensor], sizes: Sequence[UpdateSize]
) -> list[Tensor]:
    """The gradient of all micro-batches of an epoch that comes through the marked tokens.

    Args:
        update: is left as it is.
        through: [N, T] bool.
        parameters: without a `grad`.
        sizes: of each step.

    Returns:
        A tensor a parameter.
    """
    update = _copied(update, through)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    with update.forward.on(update.model, training=True):
        for step, size in enumerate(sizes):
            for rows in update.steps[step] if size.rows else ():  # without rows there is no step
                loss = update.microbatch_loss(rows, size=size, step=step, epoch=0)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                for kept, new in zip(total, found, strict=True):
                    if new is not None:
                        kept += new
    return total


def _copied(update: GRPOUpdate, through: Tensor) -> GRPOUpdate:
    """An update of the same rows that keeps nothing in the given one; its forward lets `through` [N, T] back."""
    own = copy(update)
    own.loss, own.advantage = deepcopy(update.loss), deepcopy(update.advantage)
    for kept in ("advantages", "old_logprobs", "entropy"):
        setattr(own, kept, getattr(update, kept).clone())
    own.of_advantage, own.of_loss = (Reports(strategy, update.batch.num_rows) for strategy in (own.advantage, own.loss))
    own.batch = _Marked(**vars(update.batch), through=through)
    own.forward = _Through(**vars(update.forward))
    return own


@dataclass(frozen=True)
class _Marked(UpdateBatch):
    """A batch that knows which of its tokens [N, T] give a gradient back."""

    through: Tensor

    def select(self, rows: Tensor) -> "_Marked":
        """See `UpdateBatch.select`."""
        part = super().select(rows)
        return _Marked(**vars(part), through=self.through[rows, : part.token_weights.shape[1]])


class _Through(MicrobatchForward):
    """A forward whose statistics give back the gradient of marked tokens only."""

    def __call__(self, model: Any, part: UpdateBatch, *, entropy_grad: bool = False) -> TokenStats:
        """See `MicrobatchForward.__call__`."""
        assert isinstance(part, _Marked)
        stats = super().__call__(model, part, entropy_grad=entropy_grad)
        mark = part.through
        return TokenStats(_only(stats.logprobs, mark), _only(stats.entropy, mark))


def _only(values: Tensor, mark: Tensor) -> Tensor:
    """The same values, whose gradient is 0 where `mark` is false."""
    return torch.where(mark, values, values.detach())


def shares(norms: Mapping[Provenance, float]) -> dict[str, float]:
    """`gradient/*`: each norm, and its share of their sum; no shares where there is no gradient.

    >>> shares({Provenance.SAMPLED: 3.0, Provenance.REFERENCE: 1.0})["gradient/reference/share"]
    0.25
    """
    total = sum(norms.values())
    found = {f"gradient/{writer.name.lower()}/norm": norm for writer, norm in norms.items()}
    if total > 0:
        found |= {f"gradient/{writer.name.lower()}/share": norm / total for writer, norm in norms.items()}
    return found
