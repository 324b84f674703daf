"""When a run ends: `trainer.max_iterations`, or a rule that ends it at the boundary of an earlier iteration."""

import logging
import math
from typing import Any

import pytorch_lightning as pl

from edge_grpo.errors import UserError
from edge_grpo.runs.settings import MAX_GENERATED_TOKENS, MAX_ITERATIONS

log = logging.getLogger(__name__)


class StoppingRule(pl.Callback):
    """Ends a run as `trainer.max_iterations` would: with its last evaluation, checkpoint and summary.

    A subclass calls `end` in `on_train_batch_end`, on all ranks alike. That it did is in the checkpoint, so that a run
    which was killed between its last checkpoint and its summary does not go on.

    Args:
        key: the setting behind the rule, dotted, for people.
        setting: its value, plain; a run that another value ended goes on.
    """

    def __init__(self, key: str, setting: Any) -> None:
        self.key, self.setting = key, setting
        self.ended_by: Any = None

    def state_dict(self) -> dict[str, Any]:
        """The setting that ended the run, None while it goes on."""
        return {"ended_by": self.ended_by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ended_by = state_dict["ended_by"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End a resumed run that this rule has ended already."""
        if self.ended_by is not None and self.ended_by == self.setting:
            trainer.should_stop = True
        else:
            self.ended_by = None

    def end(self, trainer: pl.Trainer) -> None:
        """The iteration that is done is the last."""
        self.ended_by, trainer.should_stop = self.setting, True


class TokenBudget(StoppingRule):
    """Ends a run after the iteration in which the policy has generated so many tokens (`train/num_generated_tokens`).

    All ranks' tokens count: those of rows that were not trained on, of corrections, and of sampling that an allocation
    rejected.

    Args:
        tokens: None for no bound.

    Raises:
        UserError: below 1.
    """

    def __init__(self, tokens: int | None) -> None:
        if tokens is not None and tokens < 1:
            raise UserError(f"{MAX_GENERATED_TOKENS}={tokens} must be at least 1")
        super().__init__(MAX_GENERATED_TOKENS, tokens)
        self.tokens = tokens

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """See `StoppingRule`.

        Raises:
            UserError: the checkpoint is of an iteration that a run with this budget does not reach.
        """
        super().on_train_start(trainer, pl_module)
        generated = generated_tokens(pl_module)
        if self.tokens is not None and self.ended_by is None and generated >= self.tokens:
            raise UserError(
                f"{MAX_GENERATED_TOKENS}={self.tokens}, but the checkpoint has generated {generated}: raise it, or "
                "resume=never"
            )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if self.tokens is not None and (generated := generated_tokens(pl_module)) >= self.tokens:
            log.info("%s=%d: %d are generated", MAX_GENERATED_TOKENS, self.tokens, generated)
            self.end(trainer)


def check_budget(tokens: int | None, module: Any) -> None:
    """Refuse a budget of generated tokens for an algorithm that generates none.

    Raises:
        UserError: SFT, say.
    """
    if tokens is not None and not hasattr(module, "num_generated_tokens"):
        raise UserError(
            f"{MAX_GENERATED_TOKENS}={tokens}, but {type(module).__name__} generates nothing: set it to null and bound "
            f"{MAX_ITERATIONS}"
        )


def generated_tokens(module: Any) -> int:
    """Tokens that all ranks have generated so far; 0 where the algorithm generates none."""
    return int(getattr(module, "num_generated_tokens", 0))


def is_last(trainer: pl.Trainer) -> bool:
    """Whether the iteration at whose boundary the run stands is its last; from `on_train_epoch_end` on."""
    return bool(trainer.should_stop) or trainer.current_epoch + 1 == trainer.max_epochs


def ended_by(trainer: pl.Trainer) -> dict[str, Any]:
    """The setting that ended a run: dotted key -> value."""
    rules = [c for c in getattr(trainer, "callbacks", ()) if isinstance(c, StoppingRule) and c.ended_by is not None]
    return {rules[0].key: rules[0].ended_by} if rules else {MAX_ITERATIONS: trainer.max_epochs}


def expected_iterations(trainer: pl.Trainer, module: Any) -> int:
    """Iterations in all, at the mean tokens an iteration so far where a budget of tokens ends the run."""
    assert trainer.max_epochs is not None, "build_trainer sets it"
    done = trainer.current_epoch + 1
    if is_last(trainer):
        return done
    budgets = [c.tokens for c in getattr(trainer, "callbacks", ()) if isinstance(c, TokenBudget)]
    generated = generated_tokens(module)
    if not budgets or budgets[0] is None or not generated:
        return trainer.max_epochs
    return min(trainer.max_epochs, max(done + 1, math.ceil(done * budgets[0] / generated)))
