"""The sections as a W&B workspace and a W&B report. Nothing here asks a server."""

import re
from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from edge_grpo.dashboards.panels import AXES, ITERATION, Bars, Panel, Section
from edge_grpo.dashboards.sections import SECTIONS

COLUMNS, GRID_WIDTH, PANEL_HEIGHT = 3, 24, 8

INTRODUCTION = (
    "Each line is an arm, the mean of its runs (seeds) with a band from the lowest to the highest. An arm is a W&B "
    "group: the run's `name`, and in a sweep the swept settings besides the seed. With few seeds the band is no "
    "interval: `edge-grpo-report` has intervals. Definitions of all metrics: docs/metrics.md."
)


def build_workspace(entity: str, project: str, name: str, smoothing: float) -> ws.Workspace:
    """The sections as a saved view of the project, runs grouped by arm."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(
                name=section.name,
                panels=[make_panel(panel, smoothing) for panel in section.panels],
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(section.panels) // COLUMNS)),
                panel_settings=ws.SectionPanelSettings(x_axis=ITERATION),
            )
            for section in SECTIONS
        ],
        settings=ws.WorkspaceSettings(x_axis=ITERATION, max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[expr.Metric("Group")]),
    )


def build_report(entity: str, project: str, name: str, smoothing: float) -> wr.Report:
    """The same panels with what each says, over the project's runs grouped by arm."""
    blocks: list[Any] = [wr.MarkdownBlock(text=INTRODUCTION), wr.TableOfContents()]
    for section in SECTIONS:
        blocks += [wr.H1(text=section.name), wr.MarkdownBlock(text=_explained(section)), _grid(section, smoothing)]
    return wr.Report(
        entity=entity,
        project=project,
        title=name,
        description="Advantage collapse in GRPO: learning, collapse, correction, entropy, cost.",
        blocks=blocks,
        width="fluid",
    )


def make_panel(panel: Panel, smoothing: float, layout: wr.Layout | None = None) -> Any:
    """A line plot or a bar plot, aggregated over the runs of an arm."""
    shared: dict[str, Any] = {"title": panel.title, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    if layout is not None:
        shared["layout"] = layout
    if isinstance(panel, Bars):
        # The last value of a metric with other summaries lies beside them.
        return wr.BarPlot(metrics=[f"{panel.metric}.{panel.summary}"], **shared)
    smooth = panel.smooth and smoothing > 0
    return wr.LinePlot(
        x=panel.x,
        smoothing_type="exponentialTimeWeighted" if smooth else "none",
        smoothing_factor=smoothing if smooth else None,
        smoothing_show_original=True if smooth else None,
        title_x=AXES[panel.x],
        **_selected(panel.metrics),
        **shared,
    )


def as_regex(pattern: str) -> str:
    """A name whose variable parts are `*` as the regular expression by which W&B finds it.

    >>> as_regex("eval/*/avg@*")
    '^eval/.+/avg@.+$'
    """
    return f"^{'.+'.join(re.escape(part) for part in pattern.split('*'))}$"


def _selected(metrics: Sequence[str]) -> dict[str, Any]:
    if "*" in metrics[0]:
        (pattern,) = metrics
        return {"metric_regex": as_regex(pattern)}
    return {"y": list(metrics)}


def _explained(section: Section) -> str:
    return "\n".join([section.about, "", *(f"- **{panel.title}**: {panel.says}" for panel in section.panels)])


def _grid(section: Section, smoothing: float) -> wr.PanelGrid:
    width = GRID_WIDTH // COLUMNS
    layouts = [
        wr.Layout(x=width * (i % COLUMNS), y=PANEL_HEIGHT * (i // COLUMNS), w=width, h=PANEL_HEIGHT)
        for i in range(len(section.panels))
    ]
    # A run set without entity and project is of the report's own.
    return wr.PanelGrid(
        runsets=[wr.Runset(name="Arms", groupby=["group"])],
        panels=[make_panel(p, smoothing, layout) for p, layout in zip(section.panels, layouts, strict=True)],
    )
