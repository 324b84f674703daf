"""`edge-grpo-train`: one run or a sweep of them."""

from omegaconf import DictConfig

from edge_grpo.command_line.run import run
from edge_grpo.programs.sweep import around_sweep
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
    "trainer": frozenset({"callbacks", "loggers"}),
    "scheduler": frozenset({"optimizer"}),
    "optimizer": frozenset({"params"}),
}


def train(cfg: DictConfig) -> float:
    """Train as `cfg` says; the held-out accuracy afterwards."""
    # Imported here: the command line is checked before torch is loaded.
    from edge_grpo.programs.train_run import run_experiment

    return run_experiment(cfg)


def main() -> None:
    run(train, "train", INJECTED, check_directory, around_sweep)


if __name__ == "__main__":
    main()
