"""`edge-grpo-evaluate`: score a run, a checkpoint or any model on benchmarks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from edge_grpo.command_line.resolvers import typed
from edge_grpo.command_line.run import run
from edge_grpo.errors import UserError
from edge_grpo.runs.checkpoints import MANIFEST, checkpoints
from edge_grpo.runs.directory import check_tool_directory

WRITTEN = (
    *("config.yaml", "policy.json", "completions.parquet", ".parts", "results.json", "results.md"),
    "failed_golds.jsonl",
)
OF_TRAINING = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens")
"""settings of a rollout that the evaluation's own replace"""


def evaluate(cfg: DictConfig) -> float:
    """Sample, grade, write; avg@n over the problems of all averaged benchmarks."""
    if cfg.run is not None:  # of a sweep nobody has looked yet
        check_run(Path(cfg.run))
    for name in OF_TRAINING:
        if typed(f"rollout.{name}"):
            raise UserError(f"rollout.{name} is of training: set evaluation.temperature, top_p or max_new_tokens")
    # Imported here: the command line is checked before torch is loaded.
    from edge_grpo.programs.evaluate_run import run_evaluation

    return run_evaluation(cfg, typed)


def check_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a `run` that is none, before anything is written into it.

    Raises:
        UserError: says what it is instead, where that can be seen.
    """
    if config["run"] is not None:
        check_run(Path(config["run"]))
    check_tool_directory(folder, "evaluate", WRITTEN)


def check_run(place: Path) -> None:
    """Refuse a place that is neither a training run nor one of its checkpoints; see `check_settings`."""
    if (place / MANIFEST).is_file() or (place / "config.yaml").is_file():
        return
    said = "no such folder"
    if found := checkpoints(place):
        said = f"a folder of checkpoints: name one of them, such as {found[-1]}"
    elif (place / "config.json").is_file():
        said = f"a model: model=hf model.path={place}"
    elif runs := sorted(path.parent for path in place.glob("*/config.yaml")):
        said = f"a folder of {len(runs)} runs: name one of them, such as {runs[0]}"
    elif place.is_dir():
        said = f"no run there ({place / 'config.yaml'} does not exist)"
    raise UserError(f"run={place}: {said}")


def main() -> None:
    run(evaluate, "evaluate", check_directory=check_settings)


if __name__ == "__main__":
    main()
