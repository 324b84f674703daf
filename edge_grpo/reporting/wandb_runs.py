"""A W&B project -> runs, with the same settings and metrics that their folders hold."""

from typing import Any

import pandas as pd
import wandb

from edge_grpo.errors import UserError
from edge_grpo.reporting.runs import INFO, Run, flatten

PREFIX = "wandb:"


def read_project(source: str) -> list[Run]:
    """The training runs of `wandb:entity/project` (or `wandb:project`, of one's own), oldest first.

    W&B keeps no evaluations of edge-grpo-evaluate, so these runs have none.

    Raises:
        UserError: no project is named, W&B refuses or cannot be reached, or nothing in the project is a training run.
    """
    path = source.removeprefix(PREFIX)
    if not path:
        raise UserError(f"runs={source}: name the project, runs={PREFIX}entity/project")
    try:
        runs = [_read(number, run) for number, run in enumerate(wandb.Api().runs(path, order="+created_at"))]
    # ValueError: W&B knows no such project; OSError: requests' and sockets' errors are of it.
    except (wandb.errors.Error, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"runs={source}: W&B does not give its runs ({reason}); `wandb login` stores a key; the folders of the "
            "runs hold all that the report needs: runs=multirun/..."
        ) from error
    found = [run for run in runs if "trainer.max_iterations" in run.settings]
    if not found:
        raise UserError(f"runs={source}: none of its {len(runs)} runs is a training run of edge_grpo")
    return found


def _read(number: int, run: Any) -> Run:
    """One run; its `written` is its place in the order of creation."""
    config = dict(run.config)
    info = {key: config.pop(key) for key in INFO if key in config}
    overrides = [str(text) for text in config.pop("overrides", [])]
    metrics = _history(run)
    return Run(
        place=run.url,
        settings=flatten(config),
        overrides=overrides,
        state=run.state,
        error="it has logged nothing" if metrics.empty else None,
        metrics=metrics,
        info=info,
        written=float(number),
    )


def _history(run: Any) -> pd.DataFrame:
    """As metrics.csv: numbers by iteration, without W&B's own columns, tables and media."""
    history = pd.DataFrame(list(run.scan_history()))
    if "iteration" not in history:
        return pd.DataFrame()
    history = history.rename(columns={"iteration": "step"}).set_index("step")
    history = history[[name for name in history if not str(name).startswith("_")]]
    numbers = history.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")
    # A step that was sent in two parts is one row.
    return numbers.groupby(level="step").last()
