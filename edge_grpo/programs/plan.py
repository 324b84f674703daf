"""`edge-grpo-plan`: what memory a run of `edge-grpo-train` would need, and what to lower where it does not fit."""

from omegaconf import DictConfig

from edge_grpo.command_line.run import run
from edge_grpo.programs.train import INJECTED


def plan(cfg: DictConfig) -> float:
    """Print the plan; the peak in GB."""
    # Imported here: the command line is checked before torch is loaded.
    from edge_grpo.programs.plan_run import print_plan

    return print_plan(cfg)


def main() -> None:
    run(plan, "plan", INJECTED)


if __name__ == "__main__":
    main()
