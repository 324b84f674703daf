"""`edge-grpo-analyze`: the questions of the paper's analysis section, asked of one run or one evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from edge_grpo.command_line.run import run
from edge_grpo.runs.directory import check_tool_directory

WRITTEN = (
    *("index.html", "analysis.json", "analysis.md"),
    *(f"{question}.*" for question in ("reflection", "entropy", "collapse", "branches", "multipliers")),
)


def analyze(cfg: DictConfig) -> None:
    """Read, count, draw, write."""
    # Imported here: the command line is checked before pandas and matplotlib are loaded.
    from edge_grpo.analysis import build
    from edge_grpo.command_line.check import instantiate

    folder, bootstrap = Path(cfg.paths.run_dir), instantiate(cfg.bootstrap)
    build.analyze(str(cfg.source), folder, iterations=cfg.iterations, bootstrap=bootstrap)


def check_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a source that is not there, and iterations that are no pair, before Hydra makes a folder."""
    from edge_grpo.analysis.source import check_iterations, find_source

    find_source(str(config["source"]))
    check_iterations(config["iterations"])
    check_tool_directory(folder, "analyze", WRITTEN)


def main() -> None:
    run(analyze, "analyze", check_directory=check_settings)


if __name__ == "__main__":
    main()
