"""`edge-grpo-report`: the runs of sweeps or of a W&B project as tables, figures and one page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from edge_grpo.command_line.run import run
from edge_grpo.runs.directory import check_tool_directory, check_writable

WRITTEN = (
    *("index.html", "figures"),
    *(f"{table}.*" for table in ("ranking", "table", "learning", "differences", "metrics", "revival", "matrix")),
)


def report(cfg: DictConfig) -> float | None:
    """Read, aggregate, draw, write; the highest mean score."""
    # Imported here: --help shall not wait for pandas.
    from edge_grpo.command_line.check import instantiate

    best: float | None = instantiate(cfg)
    return best


def check_runs(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder that holds no runs, before Hydra makes one for the report."""
    from edge_grpo.reporting.build import folders_among
    from edge_grpo.reporting.runs import run_folders

    for root in folders_among(config["runs"]):
        run_folders(root)
    check_tool_directory(folder, "report", WRITTEN)
    check_writable(Path(config["out"]))


def main() -> None:
    run(report, "report", check_directory=check_runs)


if __name__ == "__main__":
    main()
