"""`edge-grpo-sft`: supervised fine-tuning, the paper's baseline and the recipe of the tiny base model."""

from edge_grpo.programs.sweep import around_sweep
from edge_grpo.programs.train import INJECTED, follow, train
from edge_grpo.ranks.programs import run_on_ranks
from edge_grpo.runs.directory import check_directory


def main() -> None:
    run_on_ranks(train, follow, "sft", INJECTED, check_directory, around_sweep)


if __name__ == "__main__":
    main()
