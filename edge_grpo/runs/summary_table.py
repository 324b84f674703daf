"""What a run came to and where it lies: a table on a terminal, lines in logs and elsewhere."""

import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from edge_grpo.loggers.terminal import files_only, terminal

log = logging.getLogger(__name__)

COLLAPSED, UNTAUGHT = "collapse/{}/zero_variance", "collapse/no_advantage"


def show_summary(summary: Mapping[str, Any], folder: Path, ways_to_look: Mapping[str, str]) -> None:
    """Log the summary of a finished run; on a terminal the log's lines give way to a table.

    Args:
        summary: as in summary.json.
        folder: of the run.
        ways_to_look: label -> command, of its trackers.
    """
    rows = {**summary_rows(summary, folder), **ways_to_look}
    console = terminal()
    if console is None:
        _log_lines(rows)
        return
    with files_only(log):
        _log_lines(rows)
    table = Table(title=Text(f"{summary['name']}, seed {summary['seed']}", style="bold"), show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for label, value in rows.items():
        table.add_row(label, Text(value))
    console.print(table)


def summary_rows(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Label -> text. Accuracies are percentages; shares of groups are means over the iterations."""
    accuracy = summary["accuracy"]
    rows = {
        "held-out accuracy": f"{accuracy['before']:.1%} -> {accuracy['after']:.1%}".replace("%", " %"),
        "iterations": f"{summary['iterations']} in {timedelta(seconds=round(summary['seconds']))}",
    }
    metrics = pd.read_csv(summary["metrics"])
    if UNTAUGHT in metrics:
        before, after = (metrics[COLLAPSED.format(when)].mean() for when in ("before", "after"))
        rows["collapsed"] = (
            f"{before:.0%} of groups as sampled, {after:.0%} after correction; "
            f"{metrics[UNTAUGHT].mean():.0%} have no advantage"
        ).replace("%", " %")
    rows |= {label: str(summary[label]) for label in ("metrics", "figure", "model")}
    rows["run"] = str(folder)
    return rows


def _log_lines(rows: Mapping[str, str]) -> None:
    for label, value in rows.items():
        log.info("%-12s %s", label, value)
