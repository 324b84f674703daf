"""`edge-grpo-report`: the runs of sweeps or of a W&B project as tables, figures and one page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from edge_grpo.command_line.run import run
from edge_grpo.errors import UserError
from edge_grpo.reporting.folder import WRITTEN, is_report
from edge_grpo.runs.directory import check_tool_directory, check_writable
from edge_grpo.runs.ownership import found


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
    out = Path(config["out"])
    if out.resolve() != folder.resolve():
        _refuse_foreign(out)
    check_writable(out)


def _refuse_foreign(out: Path) -> None:
    """Hydra leaves no record of who wrote there, but a page of ours says so itself.

    Raises:
        UserError: files of others would be overwritten.
    """
    if not is_report(out) and (foreign := found(out, WRITTEN)):
        raise UserError(
            f"out={out}: edge-grpo-report has not written there before, but it holds {', '.join(foreign)}, which it "
            "would overwrite: choose another folder"
        )


def main() -> None:
    run(report, "report", check_directory=check_runs)


if __name__ == "__main__":
    main()
