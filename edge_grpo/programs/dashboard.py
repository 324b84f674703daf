"""`edge-grpo-dashboard`: the project's W&B workspace and a W&B report."""

from pathlib import Path

from omegaconf import DictConfig

from edge_grpo.command_line.run import run
from edge_grpo.runs.directory import check_tool_directory

WRITTEN = ("workspace.json", "report.json")


def dashboard(cfg: DictConfig) -> None:
    """Build, write, save."""
    # Imported here: the command line is checked before wandb is loaded.
    from edge_grpo.dashboards.publish import publish

    publish(
        Path(cfg.paths.run_dir),
        entity=cfg.entity,
        project=cfg.project,
        name=cfg.name,
        smoothing=cfg.smoothing,
        settings=list(cfg.settings),
        report=cfg.report,
        dry_run=cfg.dry_run,
    )


def main() -> None:
    run(
        dashboard,
        "dashboard",
        check_directory=lambda folder, config: check_tool_directory(folder, "dashboard", WRITTEN),
    )


if __name__ == "__main__":
    main()
