"""One plain line an iteration, so that a run can be watched, piped and grepped."""

import logging
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)

COLUMNS = {
    "loss": ("sft/loss", ".3f"),
    "reward": ("train/reward", ".3f"),
    "right": ("train/accuracy", ".1%"),
    "corrected": ("train/accuracy_corrected", ".1%"),
    "all wrong": ("collapse/before/all_wrong", ".0%"),
    "no advantage": ("collapse/after/zero_variance", ".0%"),
    "entropy": ("train/entropy", ".3f"),
    "s": ("timing_s/total", ".2f"),
}


class ConsoleLines(pl.Callback):
    """Logs a line every n iterations, and at the last one.

    Args:
        every_n_iterations: at least 1.
    """

    def __init__(self, every_n_iterations: int) -> None:
        self.every_n_iterations = max(every_n_iterations, 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        done = trainer.current_epoch + 1
        if not trainer.is_global_zero or (done % self.every_n_iterations and done != trainer.max_epochs):
            return
        found = {
            label: format(pl_module.metrics[name], f)
            for label, (name, f) in COLUMNS.items()
            if name in pl_module.metrics
        }
        log.info(
            "%*d/%d  %s",
            len(str(trainer.max_epochs)),
            done,
            trainer.max_epochs,
            "  ".join(f"{k} {v}" for k, v in found.items()),
        )
