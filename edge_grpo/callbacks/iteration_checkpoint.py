"""Checkpoints on iteration boundaries: every n iterations, when a signal asks for one, and at the end."""

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.command_line.again import again
from edge_grpo.errors import Stopped, UserError
from edge_grpo.runs.checkpoints import checkpoint_name, checkpoints, remove, state_path, write_checkpoint
from edge_grpo.runs.stopping import is_last

log = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT)
SAVING = signal.SIGUSR1


@contextmanager
def saving_signal_ignored() -> Iterator[None]:
    """While a run starts or ends there is nothing to save: SIGUSR1 must not kill it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(SAVING, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(SAVING, before)


class IterationCheckpoint(Checkpoint):
    """Saves `<folder>/iteration-<n>` (see `runs/checkpoints.py`), and answers signals.

    SIGUSR1 saves and goes on; SIGTERM and SIGINT save and end the run (a second one ends it at once). On one rank a
    signal is answered at once, except during the update. The state of the last boundary is kept by reference; until the
    first optimiser step of an iteration it is the policy's state, so only a rollout is lost, which a resumed run draws
    again. For the same reason an error costs at most the iteration that it ends. During the update, and on several
    ranks, the answer waits for the boundary, where the ranks agree on it.

    On one rank a checkpoint that cannot be written is reported and skipped; the one before it stays. While updates are
    skipped because a gradient is not finite, the state from before the first skipped update is the one that is saved.

    Args:
        folder: of the checkpoints.
        every_n_iterations: at least 1; signals and the end of the run save too.
        keep: newest checkpoints that stay, at least 1.

    Raises:
        UserError: a value below 1.
    """

    def __init__(self, folder: str, every_n_iterations: int, keep: int) -> None:
        if every_n_iterations < 1 or keep < 1:
            raise UserError(f"checkpoint.every_n_iterations={every_n_iterations} and keep={keep} must be at least 1")
        self.folder, self.every_n_iterations, self.keep = Path(folder), every_n_iterations, keep
        self.about: Mapping[str, Any] = {}
        """goes into each manifest; set before the run begins"""
        self._boundary: tuple[int, dict[str, Any]] | None = None  # updates done, state by reference
        self._busy = False  # the weights are no longer those of the boundary, or a checkpoint is being written
        self._one_rank = True
        self._asked: list[int] = []
        self._previous: dict[int, Any] = {}
        self._iteration = Iteration({})

    @contextmanager
    def answering_signals(self) -> Iterator[None]:
        """Answer signals inside the block, which holds `trainer.fit`; off the main thread nothing can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._previous = {number: signal.getsignal(number) for number in (*STOPPING, SAVING)}
        self._take_signals()
        try:
            yield
        finally:
            self._leave_signals()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._one_rank = trainer.world_size == 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # Lightning has put a handler of its own before ours by now.
        self._take_signals()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self._busy = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Mapping[str, Iteration], *args: Any
    ) -> None:
        self._iteration = outputs["iteration"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # After the evaluation of the same iteration: Lightning runs checkpoint callbacks last.
        done = trainer.current_epoch + 1
        if self._one_rank and (self._busy or not self._iteration.bad_steps):
            self._boundary = done, _state(trainer)
        asked = self._agreed(trainer)
        self._busy = True
        due = bool(asked) or done % self.every_n_iterations == 0 or is_last(trainer)
        if self._one_rank and due:
            self._save_boundary()
        elif not self._one_rank and (_bad_steps_begin(self._iteration) or (due and not self._iteration.bad_steps)):
            self._save_on_ranks(done, trainer)
        self._busy = False
        self._stop_if(asked)
        if self._one_rank:
            self._answer()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._one_rank and not self._busy:
            self._save_boundary()

    def _on_signal(self, number: int, frame: Any) -> None:
        if number in STOPPING:
            self._leave_signals()
        self._asked.append(number)
        if self._one_rank and not self._busy:
            self._answer()
        else:
            log.info("%s: waiting for the end of this iteration", signal.Signals(number).name)

    def _answer(self) -> None:
        """Save for the signals that have come, and end the run if one of them says so."""
        while self._asked:
            asked, self._asked = self._asked, []
            self._busy = True
            self._save_boundary()
            self._busy = False
            self._stop_if(asked)

    def _stop_if(self, asked: list[int]) -> None:
        stopping = [number for number in asked if number in STOPPING]
        if stopping:
            saved = checkpoints(self.folder)
            way_on = again([f"resume={self.folder.parent}"] if saved else None)
            way_on = f"to go on: {way_on}" if saved else f"no iteration was done yet; to begin again: {way_on}"
            log.warning("stopped by %s; %s", signal.Signals(stopping[0]).name, way_on)
            raise Stopped(stopping[0])

    def _agreed(self, trainer: pl.Trainer) -> list[int]:
        """Signals that any rank has had, the same list on all."""
        mine, self._asked = self._asked, []
        if self._one_rank:
            return mine
        ranks: list[list[int]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(ranks, mine)
        return sorted({number for rank in ranks for number in rank})

    def _save_boundary(self) -> None:
        """Write the state as of the last boundary, unless its checkpoint is there already."""
        if self._boundary is None:
            return
        done, state = self._boundary
        there = [path.name for path in checkpoints(self.folder)]
        if there and there[-1] == checkpoint_name(done):
            return
        try:
            write_checkpoint(self.folder, done, lambda path: torch.save(state, path), self.about)
            remove(checkpoints(self.folder)[: -self.keep])
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            log.error(
                "the checkpoint of iteration %d could not be written (%s); %s stays, the run goes on: make room in %s",
                done,
                str(error).splitlines()[0],
                there[-1] if there else "none",
                self.folder,
            )

    def _save_on_ranks(self, done: int, trainer: pl.Trainer) -> None:
        """Every rank takes part; rank 0 does the rest. A fault ends the run, for the other ranks would wait."""
        if trainer.is_global_zero:
            write_checkpoint(self.folder, done, trainer.save_checkpoint, self.about)
            remove(checkpoints(self.folder)[: -self.keep])
        else:
            trainer.save_checkpoint(state_path(self.folder, done))

    def _take_signals(self) -> None:
        for number in self._previous:
            signal.signal(number, self._on_signal)

    def _leave_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _bad_steps_begin(iteration: Iteration) -> bool:
    """Whether the first of the steps that are skipped in a row is in this iteration: no later weights will be saved."""
    return 0 < iteration.bad_steps <= iteration.metrics["train/skipped_steps"]


def _state(trainer: pl.Trainer) -> dict[str, Any]:
    """Lightning's checkpoint of this moment, the policy's tensors and the optimiser's by reference.

    They change in optimiser steps only. What else is registered (counts, the state of a strategy that is an
    nn.Module) may change earlier in an iteration and is copied.
    """
    state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    state["state_dict"] = {
        name: value if name.startswith("model.") else value.clone() for name, value in state["state_dict"].items()
    }
    return state
