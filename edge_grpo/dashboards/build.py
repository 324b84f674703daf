"""The sections as a W&B workspace and a W&B report. Nothing here asks a server."""

import re
from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from edge_grpo.dashboards.panels import AXES, ITERATION, Bars, Importance, Lines, OfEnds, Pages, Panel, Section, Swept
from edge_grpo.dashboards.sections import SECTIONS
from edge_grpo.loggers.metrics import describe

COLUMNS, GRID_WIDTH, PANEL_HEIGHT = 3, 24, 8

INTRODUCTION = (
    "Each line is an arm, the mean of its runs (seeds) with a band from the lowest to the highest. An arm is a W&B "
    "group: the run's `name`, and in a sweep the swept settings besides the seed. With few seeds the band is no "
    "interval: `edge-grpo-report` has intervals. Definitions of all metrics: docs/metrics.md."
)


COLUMNS_OF_RUNS = (
    *("run:state", "run:duration", "summary:eval/held_out/avg@1.last", "summary:eval/held_out/avg@1.max"),
    *("summary:collapse/no_advantage.mean", "summary:train/num_generated_tokens"),
)
"""of the run table, before the settings"""


def build_workspace(entity: str, project: str, name: str, smoothing: float, settings: Sequence[str]) -> ws.Workspace:
    """The sections as a saved view of the project, runs grouped by arm, with columns of results and settings."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(
                name=section.name,
                panels=[make_panel(panel, smoothing, settings) for panel in section.panels],
                is_open=True,
                layout_settings=_section_layout(len(section.panels)),
                panel_settings=ws.SectionPanelSettings(x_axis=ITERATION),
            )
            for section in SECTIONS
        ],
        settings=ws.WorkspaceSettings(x_axis=ITERATION, max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[expr.Metric("Group")], pinned_columns=run_columns(settings)),
    )


def build_report(entity: str, project: str, name: str, smoothing: float, settings: Sequence[str]) -> wr.Report:
    """The same panels with what each says, over the project's runs grouped by arm."""
    blocks: list[Any] = [wr.MarkdownBlock(text=INTRODUCTION), wr.TableOfContents()]
    for section in SECTIONS:
        blocks += [wr.H1(text=section.name), wr.MarkdownBlock(text=_explained(section))]
        blocks.append(_grid(section, smoothing, settings))
    return wr.Report(
        entity=entity,
        project=project,
        title=name,
        description="Advantage collapse in GRPO: learning, collapse, correction, entropy, cost.",
        blocks=blocks,
        width="fluid",
    )


def make_panel(panel: Panel, smoothing: float, settings: Sequence[str], layout: wr.Layout | None = None) -> Any:
    """A panel of W&B: lines and bars are aggregated over the runs of an arm."""
    placed: dict[str, Any] = {} if layout is None else {"layout": layout}
    if isinstance(panel, Pages):
        return wr.MediaBrowser(title=panel.title, media_keys=[panel.media], num_columns=1, **placed)
    if isinstance(panel, Swept):
        axes: list[Any] = [*map(wr.Config, settings), wr.SummaryMetric(_summary(panel))]
        columns = [wr.ParallelCoordinatesPlotColumn(axis, display_name=axis.name) for axis in axes]
        return wr.ParallelCoordinatesPlot(title=panel.title, columns=columns, **placed)
    if isinstance(panel, Importance):
        return wr.ParameterImportancePlot(with_respect_to=_summary(panel), **placed)
    return _aggregated(panel, smoothing, placed)


def _aggregated(panel: Lines | Bars, smoothing: float, placed: dict[str, Any]) -> Any:
    """Lines or bars with their unit; shares reach from 0 to 1."""
    shared: dict[str, Any] = {"title": panel.title, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax", **placed}
    unit = unit_of(panel)
    bounds, label = (0, 1) if unit == "share" else (None, None), None if unit == "1" else unit
    if isinstance(panel, Bars):
        return wr.BarPlot(metrics=[_summary(panel)], title_x=label, range_x=bounds, **shared)
    smooth = panel.smooth and smoothing > 0
    return wr.LinePlot(
        x=panel.x,
        smoothing_type="exponentialTimeWeighted" if smooth else "none",
        smoothing_factor=smoothing if smooth else None,
        smoothing_show_original=True if smooth else None,
        title_x=AXES[panel.x],
        title_y=label,
        range_y=bounds,
        **_selected(panel.metrics),
        **shared,
    )


def run_columns(settings: Sequence[str]) -> list[str]:
    """The columns of the run table in W&B's writing; a setting lies inside its group's value.

    >>> run_columns(["seed", "advantage.clamp"])[-2:]
    ['config:seed.value', 'config:advantage.value.clamp']
    """
    parts = [name.partition(".") for name in settings]
    return [*COLUMNS_OF_RUNS, *(f"config:{top}.value{dot}{rest}" for top, dot, rest in parts)]


def unit_of(panel: Lines | Bars) -> str | None:
    """Of all metrics of a panel; None where they differ. What has changed since step 0 is a difference."""
    if isinstance(panel, Lines) and panel.unit is not None:
        return panel.unit
    names = [panel.metric] if isinstance(panel, Bars) else panel.metrics
    units = {f"{found.unit}{' gained' * ('delta_' in name)}" for name in names if (found := describe(name)) is not None}
    return units.pop() if len(units) == 1 else None


def _summary(panel: OfEnds) -> str:
    """Its name in W&B: the last value of a metric with other summaries lies beside them."""
    return f"{panel.metric}.{panel.summary}"


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


def _section_layout(panels: int) -> ws.SectionLayoutSettings:
    columns = min(COLUMNS, panels)
    return ws.SectionLayoutSettings(columns=columns, rows=-(-panels // columns))


def _grid(section: Section, smoothing: float, settings: Sequence[str]) -> wr.PanelGrid:
    columns = min(COLUMNS, len(section.panels))
    width = GRID_WIDTH // columns
    layouts = [
        wr.Layout(x=width * (i % columns), y=PANEL_HEIGHT * (i // columns), w=width, h=PANEL_HEIGHT)
        for i in range(len(section.panels))
    ]
    # A run set without entity and project is of the report's own.
    return wr.PanelGrid(
        runsets=[wr.Runset(name="Arms", groupby=["group"], pinned_columns=run_columns(settings))],
        panels=[make_panel(p, smoothing, settings, layout) for p, layout in zip(section.panels, layouts, strict=True)],
    )
