"""`edge-grpo-evaluate`: score a run, a checkpoint or any model on benchmarks."""

from omegaconf import DictConfig

from edge_grpo.cli import run, typed
from edge_grpo.errors import UserError

OF_TRAINING = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens")
"""settings of a rollout that the evaluation's own replace"""


def evaluate(cfg: DictConfig) -> float:
    """Sample, grade, write; avg@n over the problems of all averaged benchmarks."""
    for name in OF_TRAINING:
        if typed(f"rollout.{name}"):
            raise UserError(f"rollout.{name} is of training: set evaluation.temperature, top_p or max_new_tokens")
    # Imported here: the command line is checked before torch is loaded.
    from edge_grpo.evaluation.program import run_evaluation

    return run_evaluation(cfg, typed)


def main() -> None:
    run(evaluate, "evaluate")


if __name__ == "__main__":
    main()
