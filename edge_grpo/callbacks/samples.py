"""Sampled completions with their rewards and branches, as JSON lines and as a W&B table."""

import itertools
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from edge_grpo.callbacks.step_rows import append_rows, cut_back
from edge_grpo.corrections.base import Corrected
from edge_grpo.loggers.wandb import WandbMetrics
from edge_grpo.types import Provenance


class SampleWriter(pl.Callback):
    """Appends some rows of the iteration to `<folder>/samples.jsonl`, and logs them to W&B as a table.

    The rows are those of the first problems of the iteration, whole groups first to last.

    Args:
        folder: of the file.
        every_n_iterations: at least 1.
        num_rows: rows a time.
    """

    def __init__(self, folder: str, every_n_iterations: int, num_rows: int) -> None:
        self.path = Path(folder) / "samples.jsonl"
        self.every_n_iterations, self.num_rows = max(every_n_iterations, 1), num_rows

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drop what a resumed run will write again; log what it will not, for a logger that has lost it."""
        if trainer.is_global_zero:
            rows = cut_back(self.path, trainer.current_epoch)
            for step, group in itertools.groupby(rows, key=lambda row: row["step"]):
                _log_table(trainer, list(group), step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        step = trainer.current_epoch
        if not trainer.is_global_zero or step % self.every_n_iterations:
            return
        rows = describe_rows(pl_module.corrected, self.num_rows)
        append_rows(self.path, step, rows)
        _log_table(trainer, [{"step": step, **row} for row in rows], step)


def _log_table(trainer: pl.Trainer, rows: list[dict[str, Any]], step: int) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbMetrics) and rows:
            logger.log_table("samples", list(rows[0]), [list(row.values()) for row in rows], step=step)


def describe_rows(corrected: Corrected, num_rows: int) -> list[dict[str, Any]]:
    """The first rows of a corrected rollout as flat records."""
    scored = corrected.scored
    records = []
    for row in range(min(num_rows, scored.rollout.num_rows)):
        problem, response = scored.rollout.problem_of(row), scored.rollout.responses[row]
        records.append(
            {
                "id": problem.id,
                "question": problem.question,
                "response": scored.texts[row],
                "gold": " | ".join(problem.answers),
                "correct": bool(scored.scores.correct[row]),
                "reward": float(scored.scores.rewards[row]),
                **{f"reward_{name}": float(part[row]) for name, part in scored.scores.parts.items()},
                "branch": corrected.branches[row] or "",
                "sampled_tokens": int((response.provenance == Provenance.SAMPLED).sum()),
                "tokens": len(response),
                "finish_reason": response.finish_reason,
            }
        )
    return records
