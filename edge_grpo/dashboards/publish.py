"""Write the dashboard's JSON and, unless it is a dry run, hand it to W&B."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from edge_grpo.errors import UserError
from edge_grpo.loggers.identity import has_key

log = logging.getLogger(__name__)


def publish(
    folder: Path,
    *,
    entity: str | None,
    project: str,
    name: str,
    smoothing: float,
    settings: Sequence[str],
    report: str | None,
    dry_run: bool,
) -> dict[str, str]:
    """Build workspace and report, write `workspace.json` and `report.json`, save them in W&B and log their addresses.

    W&B gets a new workspace and a new report at every call; old ones are deleted there.

    Args:
        folder: of the JSON files.
        entity: user or team; null for the key's own.
        project: W&B project whose runs are shown; made if absent.
        name: of both.
        smoothing: weight in [0, 1) of the exponential mean over neighbouring iterations; 0 for none.
        settings: dotted; columns of the run table and axes of the parallel coordinates.
        report: a folder that edge-grpo-report wrote, to be uploaded as an artifact of type "report"; null for none.
        dry_run: write the files and nothing else: no network, no key.

    Returns:
        Address of each thing that was saved.

    Raises:
        UserError: wandb-workspaces is not installed, a value is out of range, there is no key, or W&B refuses or
            cannot be reached.
    """
    if not 0 <= smoothing < 1:
        raise UserError(f"smoothing={smoothing} must be at least 0 and below 1")
    if report is not None and not (Path(report) / "index.html").is_file():
        raise UserError(f"report={report}: no index.html there; name a folder that edge-grpo-report wrote")
    try:
        from edge_grpo.dashboards.build import build_report, build_workspace
    except ModuleNotFoundError as error:
        raise UserError("edge-grpo-dashboard needs wandb-workspaces: pip install 'edge-grpo[dashboard]'") from error
    if not dry_run:
        entity = _entity(entity)
    workspace = build_workspace(entity or "", project, name, smoothing, settings)
    page = build_report(entity or "", project, name, smoothing, settings)
    for built, file in ((workspace, "workspace.json"), (page, "report.json")):
        model = built._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
        (folder / file).write_text(json.dumps(model, indent=2) + "\n")
        log.info("%-9s %s", "written", folder / file)
    if dry_run:
        return {}
    try:
        page.save()  # first: it makes the project, which a workspace needs
        workspace.save()
        urls = {"report": page.url, "workspace": workspace.url}
        if report is not None:
            urls["artifact"] = _upload(Path(report), str(entity), project, folder)
    except Exception as error:  # W&B's clients raise many kinds, bare exceptions among them
        raise _refused(error) from error
    for kind, url in urls.items():
        log.info("%-9s %s", kind, url)
    return urls


def _entity(entity: str | None) -> str:
    """The given entity or the key's own."""
    if not has_key():
        raise UserError("no W&B key: run `wandb login` or set WANDB_API_KEY; dry_run=true writes the JSON without one")
    if entity is not None:
        return entity
    try:
        found = wandb.Api().default_entity
    except Exception as error:
        raise _refused(error) from error
    if not found:
        raise UserError("the W&B key has no default entity: set entity=...")
    return str(found)


def _refused(error: Exception) -> UserError:
    first = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return UserError(f"W&B did not take the dashboard: {first}; dry_run=true writes the JSON without W&B")


def _upload(report: Path, entity: str, project: str, folder: Path) -> str:
    """The report's folder as an artifact of a W&B run of its own."""
    artifact: Any = wandb.Artifact("report", type="report", metadata={"folder": str(report)})
    artifact.add_dir(str(report))
    settings = wandb.Settings(silent=True, console="off")
    with wandb.init(
        entity=entity, project=project, job_type="report", name=report.name, dir=str(folder), settings=settings
    ) as run:
        run.log_artifact(artifact)
        return str(run.url)
