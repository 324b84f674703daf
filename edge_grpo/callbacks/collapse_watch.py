"""What is told of a run whose groups have collapsed, and when it ends for that."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl

from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.errors import UserError
from edge_grpo.runs.stopping import StoppingRule

log = logging.getLogger(__name__)


class CollapseWatch(StoppingRule):
    """Warns, or ends the run, when the mean of `collapse/acr` over the last iterations says that it is dead.

    Off unless `callbacks=collapse_watch`. A run that it ends is finished, with its last evaluation and checkpoint.

    Args:
        window: iterations of the mean, at least 1; before as many are done nothing happens.
        threshold: of the mean, in (0, 1].
        action: `warn` once, until the mean has been below the threshold again; or `stop`.

    Raises:
        UserError: a value out of range; an algorithm without groups.
    """

    def __init__(self, window: int, threshold: float, action: Literal["warn", "stop"]) -> None:
        if window < 1 or not 0 < threshold <= 1:
            raise UserError(
                f"callbacks.collapse_watch.window={window} must be at least 1, threshold={threshold} in (0, 1]"
            )
        if action not in ("warn", "stop"):
            raise UserError(f"callbacks.collapse_watch.action={action} is neither warn nor stop")
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        settings = {"_target_": target, "window": window, "threshold": threshold, "action": action}
        super().__init__("callbacks.collapse_watch", settings)
        self.window, self.threshold, self.action = window, threshold, action
        self._rates: list[float] = []
        self._told = False

    def state_dict(self) -> dict[str, Any]:
        """See `StoppingRule`; with the rates of the last iterations."""
        return {**super().state_dict(), "rates": list(self._rates), "told": self._told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._rates, self._told = list(state_dict["rates"]), state_dict["told"]

    def check_module(self, module: Any) -> None:
        """Refuse an algorithm without groups, before a run."""
        if not hasattr(module, "num_generations"):
            raise UserError(f"callbacks.collapse_watch: {type(module).__name__} samples no groups: set it to null")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Mapping[str, Iteration], *args: Any
    ) -> None:
        self._rates = [*self._rates, outputs["iteration"].metrics["collapse/acr"]][-self.window :]
        mean = sum(self._rates) / len(self._rates)
        if len(self._rates) < self.window or mean < self.threshold:
            self._told = False
            return
        if not self._told and trainer.is_global_zero:
            log.warning(
                "collapse: %.0f %% of sampled groups had equal rewards over the last %d iterations%s",
                100 * mean,
                self.window,
                ", so the run ends" if self.action == "stop" else "",
            )
        self._told = True
        if self.action == "stop":
            self.end(trainer)
