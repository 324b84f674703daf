"""What one iteration has made: handed to callbacks, read by metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edge_grpo.algorithms.reports import row_means
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.corrections.base import Corrected
from edge_grpo.types.rollouts import ScoredRollout
from edge_grpo.types.update import Step


@dataclass(frozen=True)
class TrainedRows:
    """What the update made of the rows that the group filter kept.

    Args:
        row_ids: [M], the rows of the rollout.
        advantages: [M], mean over the row's tokens.
        values: name -> [M], what the advantage reports of each row; NaN where a row was not computed or all
            advantages of its group are 0.
    """

    row_ids: Tensor
    advantages: Tensor
    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Iteration:
    """Callbacks get it as `outputs["iteration"]` of `on_train_batch_end`.

    Args:
        metrics: logged name -> number, of all ranks.
        bad_rows: the rows behind optimiser steps that were skipped, as records.
        bad_steps: optimiser steps in a row, up to this one, that were skipped.
        sampled, corrected: the rollout before and after correction; None where the algorithm samples nothing.
        trained: see `TrainedRows`; None in the same case.
    """

    metrics: Mapping[str, float]
    bad_rows: Sequence[dict[str, Any]] = field(default_factory=tuple)
    bad_steps: int = 0
    sampled: ScoredRollout | None = None
    corrected: Corrected | None = None
    trained: TrainedRows | None = None


def trained_rows(update: GRPOUpdate) -> TrainedRows:
    """What the update knows of its rows."""
    mask = update.batch.completion_mask
    # Where every group has collapsed one of them is computed all the same, so that every rank takes part.
    zero = ((update.advantages * mask) == 0).view(-1, update.num_generations * mask.shape[1]).all(1)
    zero = zero.repeat_interleave(update.num_generations).cpu()
    values = {name: of.masked_fill(zero, torch.nan) for name, of in update.of_advantage.rows().items()}
    return TrainedRows(update.batch.row_ids, row_means(update.advantages, mask), values)


def bad_rows(steps: Sequence[Step], update: GRPOUpdate, corrected: Corrected) -> list[dict[str, Any]]:
    """The rows of the micro-batches behind steps that were skipped, for the person who looks for what broke them."""
    found = {row for step in steps for i in step.bad or () for row in update.microbatches[i].tolist()}
    return [_bad_row(row, update, corrected) for row in sorted(found)]


def _bad_row(row: int, update: GRPOUpdate, corrected: Corrected) -> dict[str, Any]:
    scored, i = corrected.scored, int(update.batch.row_ids[row])
    problem = scored.rollout.problem_of(i)
    return {
        "problem": problem.id,
        "origin": problem.origin,
        "question": problem.transcript,
        "response": scored.texts[i],
        "branch": corrected.branches[i] or "",
        "reward": float(scored.scores.rewards[i]),
        "logprobs_finite": bool(update.old_logprobs[row].isfinite().all()),
        "advantages_finite": bool(update.advantages[row].isfinite().all()),
    }
