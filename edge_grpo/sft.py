"""`edge-grpo-sft`: supervised fine-tuning, the paper's baseline and the recipe of the tiny base model."""

from edge_grpo.cli import run
from edge_grpo.resume import check_directory
from edge_grpo.train import INJECTED, train


def main() -> None:
    run(train, "sft", INJECTED, check_directory)


if __name__ == "__main__":
    main()
