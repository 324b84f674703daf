"""What is told of optimiser steps that were skipped, and when it is enough."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.callbacks.step_rows import append_rows, cut_back
from edge_grpo.errors import UserError

log = logging.getLogger(__name__)


class BadSteps(pl.Callback):
    """Writes the rows behind a loss or gradient that is not finite, and ends the run when that does not stop.

    The step itself is skipped by `PolicyModule.optimise`, so the weights stay finite.

    Args:
        folder: rows are appended to `<folder>/bad_steps.jsonl`.
        max_consecutive_bad_steps: steps skipped in a row that end the run, at least 1.

    Raises:
        UserError: a value below 1.
    """

    def __init__(self, folder: str, max_consecutive_bad_steps: int) -> None:
        if max_consecutive_bad_steps < 1:
            raise UserError(
                f"callbacks.bad_steps.max_consecutive_bad_steps={max_consecutive_bad_steps} must be at least 1"
            )
        self.path, self.max_consecutive_bad_steps = Path(folder) / "bad_steps.jsonl", max_consecutive_bad_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drop what a resumed run will write again."""
        cut_back(self._path(trainer), trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Mapping[str, Iteration], *args: Any
    ) -> None:
        """Tell of this iteration.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        iteration = outputs["iteration"]
        if not iteration.metrics["train/skipped_steps"]:
            return
        path = self._path(trainer)
        append_rows(path, trainer.current_epoch, iteration.bad_rows)
        count = iteration.bad_steps
        log.warning("loss or gradient not finite: step skipped, %d in a row; rows in %s", count, path)
        if count >= self.max_consecutive_bad_steps:
            raise UserError(
                f"iteration {trainer.current_epoch}: loss or gradient not finite in {count} optimiser steps in a row "
                f"(callbacks.bad_steps.max_consecutive_bad_steps); their rows are in {path}, and the newest "
                "checkpoint, if there is one, has the weights from before. Look for a "
                "learning rate that is too high (optimizer.lr) or a broken model"
            )

    def _path(self, trainer: pl.Trainer) -> Path:
        """Every rank has a file of its own."""
        rank = trainer.global_rank
        return self.path.with_stem(f"{self.path.stem}_rank{rank}") if rank else self.path
