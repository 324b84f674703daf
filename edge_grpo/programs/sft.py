"""`edge-grpo-sft`: supervised fine-tuning, the paper's baseline and the recipe of the tiny base model."""

from edge_grpo.command_line.run import run
from edge_grpo.programs.sweep import around_sweep
from edge_grpo.programs.train import INJECTED, train
from edge_grpo.runs.directory import check_directory


def main() -> None:
    run(train, "sft", INJECTED, check_directory, around_sweep)


if __name__ == "__main__":
    main()
