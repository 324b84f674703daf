"""Checkpoints on iteration boundaries."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from edge_grpo.errors import UserError


class IterationCheckpoint(Checkpoint):
    """Saves Lightning checkpoints as `<folder>/iteration-<n>.ckpt`, n updates done.

    A file is written under a temporary name and renamed, so that a kill leaves the one before it whole.

    Args:
        folder: of the files.
        every_n_iterations: at least 1; the last iteration is always saved.
        keep: newest files that stay.

    Raises:
        UserError: a value below 1.
    """

    def __init__(self, folder: str, every_n_iterations: int, keep: int) -> None:
        if every_n_iterations < 1 or keep < 1:
            raise UserError(
                f"callbacks.checkpoint.every_n_iterations={every_n_iterations} and keep={keep} must be at least 1"
            )
        self.folder, self.every_n_iterations, self.keep = Path(folder), every_n_iterations, keep

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        done = trainer.current_epoch + 1
        if done % self.every_n_iterations and done != trainer.max_epochs:
            return
        path = self.folder / f"iteration-{done:06d}.ckpt"
        temporary = path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)  # every rank takes part; rank 0 writes
        if trainer.is_global_zero:
            temporary.replace(path)
            for old in checkpoints(self.folder)[: -self.keep]:
                old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints, oldest first."""
    return sorted(folder.glob("iteration-*.ckpt"))
