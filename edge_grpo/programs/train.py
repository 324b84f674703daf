"""`edge-grpo-train`: one run or a sweep of them."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from edge_grpo.programs.sweep import around_sweep
from edge_grpo.ranks.programs import run_on_ranks
from edge_grpo.runs.directory import check_directory

# Constructor arguments that the program passes itself.
INJECTED = {
    "algorithm": frozenset(
        {
            "rollout",
            "rewards",
            "optimizer",
            "scheduler",
            "allocation",
            "correction",
            "group_filter",
            "advantage",
            "loss",
            "token_filter",
            "importance_correction",
        }
    ),
    "trainer": frozenset({"callbacks", "loggers", "plugins"}),
    "scheduler": frozenset({"optimizer"}),
    "optimizer": frozenset({"params"}),
}


def train(cfg: DictConfig) -> float:
    """Train as `cfg` says; the held-out accuracy afterwards."""
    # Imported here: the command line is checked before torch is loaded.
    from edge_grpo.programs.train_run import run_experiment

    return run_experiment(cfg)


def follow(job: Mapping[str, Any], ranks: Any) -> None:
    """Take part in a run as a rank besides the first."""
    from edge_grpo.programs.train_run import follow_experiment

    follow_experiment(job, ranks)


def main() -> None:
    run_on_ranks(train, follow, "train", INJECTED, check_directory, around_sweep)


if __name__ == "__main__":
    main()
