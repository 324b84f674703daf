"""Sampled completions with their rewards, branches and provenance: as JSON lines, and in the loggers that show them."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.callbacks.step_rows import append_rows, cut_back
from edge_grpo.corrections.base import Corrected
from edge_grpo.loggers.hooks import run_loggers
from edge_grpo.types import Provenance, Response


class SampleWriter(pl.Callback):
    """Appends some rows of the iteration to `<folder>/samples.jsonl`, and hands them to the loggers that show samples.

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
                _show(trainer, list(group), step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Mapping[str, Iteration], *args: Any
    ) -> None:
        step = trainer.current_epoch
        if not trainer.is_global_zero or step % self.every_n_iterations:
            return
        corrected = outputs["iteration"].corrected
        if corrected is None:  # nothing is sampled
            return
        rows = describe_rows(corrected, self.num_rows, pl_module.policy.decode)
        append_rows(self.path, step, rows)
        _show(trainer, [{"step": step, **row} for row in rows], step)


def _show(trainer: pl.Trainer, rows: list[dict[str, Any]], step: int) -> None:
    for logger in run_loggers(trainer.loggers) if rows else ():
        logger.log_samples(rows, step)


def describe_rows(corrected: Corrected, num_rows: int, decode: Callable[[Tensor], str]) -> list[dict[str, Any]]:
    """The first rows of a corrected rollout as flat records; `decode` turns token ids into text."""
    scored = corrected.scored
    records = []
    for row in range(min(num_rows, scored.rollout.num_rows)):
        problem, response = scored.rollout.problem_of(row), scored.rollout.responses[row]
        records.append(
            {
                "id": problem.id,
                "question": problem.transcript,
                "response": scored.texts[row],
                "gold": " | ".join(problem.answers),
                "correct": bool(scored.scores.correct[row]),
                "reward": float(scored.scores.rewards[row]),
                **{f"reward_{name}": float(part[row]) for name, part in scored.scores.parts.items()},
                "branch": corrected.branches[row] or "",
                "sampled_tokens": int((response.provenance == Provenance.SAMPLED).sum()),
                "tokens": len(response),
                "finish_reason": response.finish_reason,
                "pieces": pieces(response, decode),
            }
        )
    return records


def pieces(response: Response, decode: Callable[[Tensor], str]) -> list[list[str]]:
    """[provenance, text] of every run of tokens that one writer wrote, in order.

    Each is decoded alone, so a character whose bytes two writers share shows as a replacement character here.
    """
    kinds, lengths = torch.unique_consecutive(response.provenance, return_counts=True)
    parts = response.token_ids.split(lengths.tolist())
    texts = [[Provenance(int(kind)).name.lower(), decode(part)] for kind, part in zip(kinds, parts, strict=True)]
    return [[kind, text] for kind, text in texts if text]  # an EOS alone has no text
