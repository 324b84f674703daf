"""The dashboard: its metrics exist, its JSON is built without a network, and what W&B refuses is one error."""

import fnmatch
import json
import re
import socket

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from edge_grpo.dashboards.build import as_regex, build_report, build_workspace
from edge_grpo.dashboards.panels import ITERATION, Bars, Importance, Lines, Swept
from edge_grpo.dashboards.publish import publish
from edge_grpo.dashboards.sections import SECTIONS
from edge_grpo.errors import UserError
from edge_grpo.loggers.metrics import METRICS, describe
from edge_grpo.loggers.wandb import PAGE
from edge_grpo.programs.metrics_page import of_strategies

SETTINGS = {
    "entity": None,
    "project": "p",
    "name": "N",
    "smoothing": 0.6,
    "settings": ["seed", "advantage.clamp"],
    "report": None,
    "dry_run": True,
}
PANELS = [panel for section in SECTIONS for panel in section.panels]


@pytest.fixture
def unplugged(monkeypatch):
    """Whoever asks for a connection fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("a dry run asks nobody")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(wandb, "Api", refuse)


def metrics_of(panel):
    return panel.metrics if isinstance(panel, Lines) else [panel.metric] if hasattr(panel, "metric") else []


def test_every_metric_of_a_panel_is_defined():
    names = [name for panel in PANELS for name in metrics_of(panel)]
    names += [panel.x for panel in PANELS if isinstance(panel, Lines) and panel.x != ITERATION]
    reported = {name for metrics in of_strategies().values() for name in metrics}
    defined = {*METRICS, *reported}
    assert {name for name in names if not (fnmatch.filter(defined, name) or describe(name))} == set()


def test_what_says_who_revived_whom_is_shown():
    shown = {name for panel in PANELS for name in metrics_of(panel)}
    groups = ("collapse/acr*", "collapse/*_live", "collapse/revived_by_*", "allocation/*", "gradient/*/share")
    wanted = {name for pattern in groups for name in fnmatch.filter(METRICS, pattern)} - {"allocation/rows_drawn"}
    assert wanted - shown == set()
    # A pattern of hints finds them of every correction that has any, and nothing else.
    hints = [panel for panel in PANELS if any(name.startswith("*/") for name in getattr(panel, "metrics", ()))]
    found = [re.compile(as_regex(panel.metrics[0])) for panel in hints]
    names = {name for metrics in of_strategies().values() for name in metrics} | set(METRICS)
    matched = {name for name in names for regex in found if regex.search(name)}
    assert {name.partition("/")[0] for name in matched} == {"hint_cascade", "sage", "scaf_grpo"}
    assert len(matched) == 4 * 3


def test_a_bar_shows_a_summary_that_wandb_keeps():
    bars = [panel for panel in PANELS if hasattr(panel, "summary")]
    assert {Bars, Swept, Importance} == set(map(type, bars))
    for panel in bars:
        # The plain last value of another metric has no such ending: see the docs of the summary column.
        assert describe(panel.metric).summary == panel.summary, panel.title


def test_sections_and_titles():
    assert [section.name for section in SECTIONS] == [
        "Learning", "Collapse", "Revival", "Samples", "Allocation", "Correction", "Hints", "Entropy", "Mismatch",
        "Cost", "Sweep",
    ]  # fmt: skip
    titles = [panel.title for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_a_pattern_finds_its_names_and_no_others():
    pattern = as_regex("eval/*/avg@*")
    assert re.search(pattern, "eval/AIME24/avg@16")
    assert not re.search(pattern, "eval/AIME24/pass@16")
    assert not re.search(as_regex("a.b/*"), "axb/1")


def panels_of(view):
    """The panels of a workspace by section."""
    return {s["name"]: s["panels"] for s in view["spec"]["section"]["panelBankConfig"]["sections"]}


def test_a_dry_run_writes_both_without_network_or_key(tmp_path, unplugged):
    assert publish(tmp_path, **SETTINGS) == {}
    view = json.loads((tmp_path / "workspace.json").read_text())
    assert (view["project"], view["displayName"]) == ("p", "N")
    assert view["spec"]["section"]["runSets"][0]["grouping"] == [{"section": "run", "name": "group"}]
    found = panels_of(view)
    assert list(found) == [section.name for section in SECTIONS]
    assert [len(panels) for panels in found.values()] == [len(section.panels) for section in SECTIONS]
    entropy = found["Entropy"][0]
    assert entropy["viewType"] == "Run History Line Plot"
    expected = {
        "metrics": ["train/entropy"],
        "xAxis": "iteration",
        "groupAgg": "mean",
        "groupArea": "minmax",
        "smoothingWeight": 0.6,
    }
    assert expected.items() <= entropy["config"].items()
    assert found["Learning"][0]["config"]["metricRegex"] == "^eval/.+/avg@.+$"
    assert found["Learning"][1]["config"]["metrics"] == ["eval/held_out/avg@1.max"]


def test_shares_reach_from_0_to_1_and_what_is_measured_in_something_says_so(tmp_path, unplugged):
    publish(tmp_path, **SETTINGS)
    found = panels_of(json.loads((tmp_path / "workspace.json").read_text()))
    by_title = {panel["config"].get("chartTitle"): panel["config"] for panels in found.values() for panel in panels}
    share = {"yAxisMin": 0.0, "yAxisMax": 1.0, "yAxisTitle": "share"}
    assert share.items() <= by_title["Collapse rate"].items()
    assert share.items() <= by_title["Groups with a hint"].items()  # a strategy's metric
    bars = {"xAxisMin": 0.0, "xAxisMax": 1.0, "xAxisTitle": "share"}
    assert bars.items() <= by_title["Held-out avg@1, highest"].items()
    assert by_title["Policy entropy"]["yAxisTitle"] == "nats"
    for title in ("Policy entropy", "pass@k minus that before training"):  # which can be below 0
        assert "yAxisMin" not in by_title[title]
    # A unit that a panel states is that of every metric that its pattern finds.
    reported = {name: metric.unit for metrics in of_strategies().values() for name, metric in metrics.items()}
    for panel in PANELS:
        if isinstance(panel, Lines) and panel.unit is not None:
            units = {reported[name] for pattern in panel.metrics for name in fnmatch.filter(reported, pattern)}
            assert units <= {panel.unit}, panel.title


def test_samples_sweeps_and_the_run_table_are_shown(tmp_path, unplugged):
    publish(tmp_path, **SETTINGS)
    view = json.loads((tmp_path / "workspace.json").read_text())
    found = panels_of(view)
    assert found["Samples"][0]["config"]["mediaKeys"] == [PAGE]  # what the logger writes
    swept, importance = found["Sweep"]
    accessors = [column["accessor"] for column in swept["config"]["columns"]]
    assert accessors == ["config:seed.value", "config:advantage.value.clamp", "summary:eval/held_out/avg@1.max"]
    assert importance["config"]["targetKey"] == "eval/held_out/avg@1.max"
    columns = view["spec"]["section"]["runSets"][0]["runFeed"]["columnOrder"]
    assert columns[0] == "run:displayName"
    assert columns[-2:] == ["config:seed.value", "config:advantage.value.clamp"]
    # Of a metric that keeps several summaries, W&B knows the last as one of them.
    names = [name.removeprefix("summary:") for name in columns if name.startswith("summary:")]
    for name in names:
        bare, kept = re.sub(r"\.(last|max|mean)$", "", name), describe(re.sub(r"\.(last|max|mean)$", "", name))
        assert (name == bare) == (kept.summary == "last"), name
        assert name == bare or name.rpartition(".")[2] in (kept.summary, "last")


def test_the_report_explains_every_panel_and_shows_it(tmp_path, unplugged):
    publish(tmp_path, **SETTINGS)
    blocks = json.loads((tmp_path / "report.json").read_text())["spec"]["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert headings == [section.name for section in SECTIONS]
    text = "\n".join(block["content"] for block in blocks if block["type"] == "markdown-block")
    assert [panel.title for panel in PANELS if f"- **{panel.title}**: {panel.says}" not in text] == []
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert all(grid["runSets"][0]["grouping"] == [{"section": "run", "name": "group"}] for grid in grids)
    places = [[tuple(p["layout"].values()) for p in grid["panelBankSectionConfig"]["panels"]] for grid in grids]
    assert [len(found) for found in places] == [len(section.panels) for section in SECTIONS]
    assert places[0][:4] == [(0, 0, 8, 8), (8, 0, 8, 8), (16, 0, 8, 8), (0, 8, 8, 8)]  # three of 24 columns a row


def test_without_smoothing_no_panel_is_smoothed(unplugged):
    panels = [p for section in build_workspace("", "p", "N", 0.0, []).sections for p in section.panels]
    assert {p.smoothing_type for p in panels if isinstance(p, wr.LinePlot)} == {"none"}
    assert build_report("", "p", "N", 0.0, []).width == "fluid"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"smoothing": 1.0}, r"smoothing=1\.0 must be at least 0 and below 1"),
        ({"report": "nowhere"}, r"report=nowhere: no index\.html there"),
    ],
)
def test_what_is_out_of_range_is_refused(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        publish(tmp_path, **SETTINGS | changed)
    assert list(tmp_path.iterdir()) == []


def test_without_a_key_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"no W&B key: run `wandb login` .* dry_run=true"):
        publish(tmp_path, **SETTINGS | {"dry_run": False})


def test_what_wandb_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)

    def refuse(self):
        raise wandb.errors.CommError("permission denied.\nTraceback of the server")

    monkeypatch.setattr(wr.Report, "save", refuse)
    expected = "W&B did not take the dashboard: permission denied; dry_run=true writes the JSON without W&B"
    with pytest.raises(UserError) as caught:
        publish(tmp_path, **SETTINGS | {"dry_run": False, "entity": "e"})
    assert str(caught.value) == expected


def test_what_is_saved_is_told_with_its_address(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    saved = []
    for kind, name in ((wr.Report, "report"), (ws.Workspace, "workspace")):
        monkeypatch.setattr(kind, "save", lambda self, name=name: saved.append((name, self.entity)))
        monkeypatch.setattr(kind, "url", property(lambda self, name=name: f"https://w/{name}"))
    caplog.set_level("INFO")
    urls = publish(tmp_path, **SETTINGS | {"dry_run": False, "entity": "e"})
    assert saved == [("report", "e"), ("workspace", "e")]  # the report makes the project
    assert urls == {"report": "https://w/report", "workspace": "https://w/workspace"}
    assert "https://w/workspace" in caplog.text
