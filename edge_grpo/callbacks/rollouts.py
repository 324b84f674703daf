"""Every response of every iteration as one line of numbers: what the analysis of a run reads."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from edge_grpo.algorithms.iteration import Iteration, TrainedRows
from edge_grpo.callbacks.step_rows import append_rows, cut_back
from edge_grpo.types import Provenance, Response


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

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Mapping[str, Iteration], *args: Any
    ) -> None:
        append_rows(self._path(trainer), trainer.current_epoch, rollout_rows(outputs["iteration"]))

    def _path(self, trainer: pl.Trainer) -> Path:
        rank = trainer.global_rank
        return self.path.with_stem(f"{self.path.stem}_rank{rank}") if rank else self.path


def rollout_rows(iteration: Iteration) -> list[dict[str, Any]]:
    """One record a row of the rollout; none where nothing was sampled.

    `advantage` (the mean over the row's tokens) and what the advantage strategy reports, such as `eda/multiplier`, are
    null for rows that the group filter took out; the latter also where all advantages of the group are 0. Where a
    replay has put another problem's group in a row's place, what is said of it after correction is of that group.
    """
    sampled, corrected, trained = iteration.sampled, iteration.corrected, iteration.trained
    if sampled is None or corrected is None or trained is None:
        return []
    taken = _advantages(trained)
    nothing = dict.fromkeys(("advantage", *trained.values))
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
            **taken.get(row, nothing),
        }
        for row in range(len(before))
    ]


def _advantages(trained: TrainedRows) -> dict[int, dict[str, float | None]]:
    """Row of the rollout -> its advantage and what the strategy reports of it."""
    columns = {"advantage": trained.advantages, **trained.values}
    lists = {name: values.tolist() for name, values in columns.items()}
    return {
        row: {name: _number(values[i]) for name, values in lists.items()}
        for i, row in enumerate(trained.row_ids.tolist())
    }


def _mean_entropy(response: Response) -> float | None:
    if response.entropies is None or not len(response):
        return None
    return _number(float(response.entropies.mean()))


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
