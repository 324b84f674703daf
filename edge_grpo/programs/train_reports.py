"""What a training run tells besides its metrics: rows that it cannot use, and at the end what it came to."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from edge_grpo.command_line.again import again
from edge_grpo.data.bad_rows import report_bad_rows
from edge_grpo.data.checks import why_failed
from edge_grpo.errors import UserError
from edge_grpo.loggers.csv import recorded
from edge_grpo.policy.base import Policy
from edge_grpo.runs.checkpoints import checkpoints
from edge_grpo.runs.ownership import SUMMARY
from edge_grpo.runs.status import write_whole
from edge_grpo.runs.summary_table import show_summary
from edge_grpo.runs.training_figure import draw_training_figure
from edge_grpo.types.problems import Problem

log = logging.getLogger(__name__)


def report_data(data: Any, folder: Path) -> None:
    """Write bad_rows.txt and failed_references.jsonl where there are such, and warn of them."""
    log.info("%d training problems, %d held out", len(data.train_problems), len(data.held_out_problems))
    if data.repeats_in_iteration:
        log.warning(
            "data.problems_per_iteration=%d is above the %d training problems: an iteration has the same problem more "
            "than once",
            data.problems_per_iteration,
            len(data.train_problems),
        )
    report_bad_rows(data.bad_rows, folder)
    if data.failed_references:
        path = folder / "failed_references.jsonl"
        path.write_text("".join(json.dumps(_failure(p)) + "\n" for p in data.failed_references))
        count, total = len(data.failed_references), len(data.train_problems)
        log.warning(
            "%d of %d reference solutions are wrong by this run's own reward and are never trained on; why: %s",
            *(count, total, path),
        )
        if 2 * count > total:
            log.warning(
                "MOST REFERENCES ARE WRONG BY YOUR REWARD. It does not read answers as the data writes them, so a "
                "response that answers as a reference does is wrong too, and a correction finds little to put in. "
                "Compare the reward with the first lines of %s",
                path.name,
            )


def _failure(problem: Problem) -> dict[str, Any]:
    """A line of failed_references.jsonl."""
    return {"id": problem.id, "origin": problem.origin, "answers": problem.answers, "reason": why_failed(problem)}


def write_results(
    folder: Path, policy: Policy, about: Mapping[str, Any], ways_to_look: Mapping[str, str], *, here: bool
) -> dict[str, Any]:
    """Export the model, draw the figure, write and print the summary.

    Args:
        folder: of the run.
        policy: as trained.
        about: what the summary holds besides seconds and places: name, seed, accuracy, iterations and more.
        ways_to_look: see `RunLogger`.
        here: whether this rank writes.

    Returns:
        The summary.

    Raises:
        UserError: the model cannot be written.
    """
    places = {"model": folder / "model", "figure": folder / "training.png", "metrics": folder / "metrics.csv"}
    summary = {"seconds": round(_seconds(folder), 1), **{name: str(path) for name, path in places.items()}, **about}
    if here:
        _export(policy, places["model"])
        draw_training_figure(places["metrics"], places["figure"], title=f"{about['name']}, seed {about['seed']}")
        write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        show_summary(summary, folder, ways_to_look)
    return summary


def _export(policy: Policy, folder: Path) -> None:
    """Write the model whole or not at all: nobody finds a folder without weights."""
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        policy.save(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        saved = checkpoints(folder.parent / "checkpoints")
        way_on = again([f"resume={folder.parent}"] if saved else None)
        what = "go on from the last checkpoint" if saved else "train again, for no checkpoint could be written"
        raise UserError(
            f"{folder}: the model cannot be written ({str(error).splitlines()[0]}): make room and {what}: {way_on}"
        ) from error


def _seconds(folder: Path) -> float:
    """Training and evaluation, of all sessions of a run that was resumed."""
    rows = recorded(folder).values()
    return sum(row.get(name, 0.0) for row in rows for name in ("timing_s/total", "timing_s/evaluation"))
