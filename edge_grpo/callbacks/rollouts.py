"""Every response of every iteration as one line of numbers: what the analysis of a run reads."""

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.callbacks.step_rows import append_rows, cut_back
from edge_grpo.corrections.base import Corrected
from edge_grpo.types import Provenance, Response, ScoredRollout


class RolloutRecords(pl.Callback):
    """Appends a line a response to `<folder>/rollouts.jsonl`, without texts (those are in samples.jsonl).

    Args:
        folder: of the file; other ranks than the first have `rollouts_rank<r>.jsonl` beside it.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "rollouts.jsonl"

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drop what a resumed run will write again."""
        cut_back(self._path(trainer), trainer.current_epoch)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        rows = rollout_rows(pl_module.sampled, pl_module.corrected, pl_module.update)
        append_rows(self._path(trainer), trainer.current_epoch, rows)

    def _path(self, trainer: pl.Trainer) -> Path:
        rank = trainer.global_rank
        return self.path.with_stem(f"{self.path.stem}_rank{rank}") if rank else self.path


def rollout_rows(sampled: ScoredRollout, corrected: Corrected, update: GRPOUpdate) -> list[dict[str, Any]]:
    """One record a row of the rollout.

    `advantage` (the mean over the row's tokens), `multiplier` and `clamped` (EDA's 1 / P^) are null for rows that the
    group filter took out; the multiplier also where all advantages of its group are 0.
    """
    taken = _advantages(update)
    before, after = sampled.rollout.responses, corrected.scored.rollout.responses
    g = sampled.rollout.num_generations
    return [
        {
            "problem": sampled.rollout.problem_of(row).id,
            "row": row % g,
            "correct": bool(sampled.scores.correct[row]),
            "correct_after": bool(corrected.scored.scores.correct[row]),
            "reward": float(sampled.scores.rewards[row]),
            "reward_after": float(corrected.scored.scores.rewards[row]),
            "branch": corrected.branches[row] or "",
            "tokens": len(before[row]),
            "tokens_after": len(after[row]),
            "sampled_tokens_after": int((after[row].provenance == Provenance.SAMPLED).sum()),
            "entropy": _mean_entropy(before[row]),
            **taken.get(row, {"advantage": None, "multiplier": None, "clamped": None}),
        }
        for row in range(len(before))
    ]


def _advantages(update: GRPOUpdate) -> dict[int, dict[str, Any]]:
    """Row of the rollout -> what the update made of it."""
    mask = update.batch.completion_mask
    means = ((update.advantages * mask).sum(1) / mask.sum(1).clamp(min=1)).tolist()
    nothing = torch.full((len(means),), torch.nan, device=mask.device)
    # Where every group has collapsed one of them is computed all the same, so that every rank takes part.
    collapsed = (update.advantages * mask).abs().sum(1).view(-1, update.num_generations).sum(1) == 0
    idle = collapsed.repeat_interleave(update.num_generations)
    multipliers = update.extras.get("eda/multiplier", nothing).masked_fill(idle, torch.nan).tolist()
    clamped = update.extras.get("eda/clamped", nothing).masked_fill(idle, torch.nan).tolist()
    return {
        row: {
            "advantage": _number(means[i]),
            "multiplier": _number(multipliers[i]),
            "clamped": None if math.isnan(clamped[i]) else bool(clamped[i]),
        }
        for i, row in enumerate(update.batch.row_ids.tolist())
    }


def _mean_entropy(response: Response) -> float | None:
    return _number(float(response.entropies.mean())) if len(response) else None


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
