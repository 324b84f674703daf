"""`edge-grpo-evaluate`: score a run, a checkpoint or any model on benchmarks."""

from omegaconf import DictConfig

from edge_grpo.cli import run, typed


def evaluate(cfg: DictConfig) -> float:
    """Sample, grade, write; avg@n over the problems of all averaged benchmarks."""
    # Imported here: the command line is checked before torch is loaded.
    from edge_grpo.evaluation.program import run_evaluation

    return run_evaluation(cfg, own_template=typed("data/template", "data.template"))


def main() -> None:
    run(evaluate, "evaluate")


if __name__ == "__main__":
    main()
