"""`edge-grpo-difficulty`: measure how often a policy answers each problem right, as DeepScaleR-Hard-1K was made."""

from omegaconf import DictConfig

from edge_grpo.command_line.run import run
from edge_grpo.runs.directory import check_tool_directory

WRITTEN = ("problems.jsonl", "correctness_rates.json", "bad_rows.txt")


def difficulty(cfg: DictConfig) -> float:
    """Sample, grade, write; the share of problems without a right response."""
    # Imported here: the command line is checked before torch is loaded.
    from edge_grpo.programs.difficulty_run import measure_difficulty

    return measure_difficulty(cfg)


def main() -> None:
    run(
        difficulty,
        "difficulty",
        check_directory=lambda folder, config: check_tool_directory(folder, "difficulty", WRITTEN),
    )


if __name__ == "__main__":
    main()
