"""How far the rollout engine is from the trainer: pure functions of one iteration's update."""

from collections.abc import Callable
from typing import Any

from edge_grpo.algorithms.states import parts_of
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.importance_corrections.base import Mismatch


def foreign_logprobs(correction: Any) -> bool:
    """Whether its rows, or those of a step of it, can have log-probs of something else (see `Correction`)."""
    return any(getattr(part, "foreign_logprobs", False) for _, part in parts_of({"correction": correction}))


def mismatch_metrics(update: GRPOUpdate, total_over_ranks: Callable[..., list[float]]) -> dict[str, float]:
    """`mismatch/*` after an update, over the `Mismatch.known` tokens of computed rows; nothing where no rank has one.

    Args:
        total_over_ranks: sums over ranks, which all call it once.
    """
    batch = update.batch.select(update.computed)
    width = batch.token_weights.shape[1]
    mismatch = Mismatch.of(batch, update.old_logprobs[update.computed, :width])
    weights, capped = (of_tokens[mismatch.known] for of_tokens in update.importance_correction(mismatch))
    log_ratio = mismatch.log_ratio[mismatch.known].cpu().double()
    ratio, size = log_ratio.exp(), log_ratio.abs()
    sums = (size.sum(), capped.sum(), weights.sum(), ratio.sum(), ratio.square().sum())
    tokens, *totals = total_over_ranks(len(ratio), *map(float, sums))
    if not tokens:
        return {}
    absolute, out_of_bounds, weight, ratios, squares = totals
    largest = {"mismatch/abs_log_ratio_max": float(size.max())} if len(size) else {}
    return {
        "mismatch/abs_log_ratio_mean": absolute / tokens,
        **largest,
        "mismatch/effective_samples": ratios**2 / (tokens * squares),
        "mismatch/capped": out_of_bounds / tokens,
        "mismatch/weight_mean": weight / tokens,
    }
