"""Sampled completions with their rewards, branches and provenance, in the loggers that show them."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.callbacks.token_texts import TokenTexts
from edge_grpo.corrections.base import Corrected
from edge_grpo.errors import UserError
from edge_grpo.loggers.hooks import run_loggers
from edge_grpo.runs.rollout_files import TOKENS, read_iteration, rollout_files
from edge_grpo.types.responses import Provenance

log = logging.getLogger(__name__)


class Samples(pl.Callback):
    """Hands some rows of the iteration, after correction, to the loggers that show samples.

    The rows are those of the first problems of the iteration, whole groups first to last. A run that is resumed hands
    over again those that its `rollouts/` still has, for a logger that has lost them.

    Args:
        folder: of the run.
        every_n_iterations: at least 1.
        num_rows: rows a time, at least 1.

    Raises:
        UserError: a value below 1.
    """

    def __init__(self, folder: str, every_n_iterations: int, num_rows: int) -> None:
        if every_n_iterations < 1 or num_rows < 1:
            raise UserError(
                f"callbacks.samples.every_n_iterations={every_n_iterations} and num_rows={num_rows} must be at least "
                "1; callbacks.samples=null shows none"
            )
        self.folder = Path(folder)
        self.every_n_iterations, self.num_rows = every_n_iterations, num_rows

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log what a resumed run will not log again."""
        if not trainer.is_global_zero or not run_loggers(trainer.loggers):
            return
        steps = {step for step, rank, _ in rollout_files(self.folder) if rank == 0 and step < trainer.current_epoch}
        for step in sorted(step for step in steps if step % self.every_n_iterations == 0):
            try:
                _show(trainer, recorded_rows(self.folder, step, self.num_rows), step)
            except UserError as error:  # a display; whoever reads the folder is told
                log.warning("no samples of step %d: %s", step, error)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Mapping[str, Iteration], *args: Any
    ) -> None:
        step = trainer.current_epoch
        if not trainer.is_global_zero or step % self.every_n_iterations:
            return
        corrected = outputs["iteration"].corrected
        if corrected is not None:  # else nothing is sampled
            _show(trainer, describe_rows(corrected, self.num_rows, pl_module.policy.decode), step)


def _show(trainer: pl.Trainer, rows: list[dict[str, Any]], step: int) -> None:
    for logger in run_loggers(trainer.loggers) if rows else ():
        logger.log_samples([{"step": step, **row} for row in rows], step)


def describe_rows(corrected: Corrected, num_rows: int, decode: Callable[[Tensor], str]) -> list[dict[str, Any]]:
    """The first rows of a corrected rollout; see `describe_row`."""
    return [describe_row(corrected, row, decode) for row in range(min(num_rows, corrected.scored.rollout.num_rows))]


def describe_row(corrected: Corrected, row: int, decode: Callable[[Tensor], str]) -> dict[str, Any]:
    """A row of a corrected rollout as a flat record; `decode` turns token ids into text."""
    scored, texts = corrected.scored, TokenTexts(decode)
    problem, response = scored.rollout.problem_of(row), scored.rollout.responses[row]
    characters = texts.characters(response, scored.texts[row])
    return {
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
        "pieces": texts.pieces(response, scored.texts[row], characters),
    }


def recorded_rows(run: Path, step: int, num_rows: int) -> list[dict[str, Any]]:
    """The same records of an iteration that the first rank has written; none where its texts were dropped."""
    table = read_iteration(run, step)
    rows = [row for row in table.drop_columns(TOKENS.names).to_pylist() if row["rank"] == 0]
    return [_recorded(row) for row in rows[:num_rows] if row["response"] is not None]


def _recorded(row: Mapping[str, Any]) -> dict[str, Any]:
    after = "" if row["problem_after"] is None else "_after"
    pieces = [("sampled", row["response"])] if row["response"] else []
    if row["pieces_after"] is not None:
        pieces = [(piece["by"], piece["text"]) for piece in row["pieces_after"]]
    parts = {key: value for key, value in row.items() if str(key).startswith("reward_after/")}
    return {
        "id": row[f"problem{after}"],
        "question": row[f"question{after}"],
        "response": "".join(text for _, text in pieces),
        "gold": " | ".join(row[f"answers{after}"]),
        "correct": row["correct_after"],
        "reward": row["reward_after"],
        **{f"reward_{name.removeprefix('reward_after/')}": value for name, value in parts.items()},
        "branch": row["branch"],
        "sampled_tokens": row["sampled_tokens_after"],
        "tokens": row["tokens_after"],
        "finish_reason": row["finish_reason_after"],
        "pieces": pieces,
    }
