"""The parts of a report that compare cures: families, what was revived, advantage x correction."""

from dataclasses import replace

import pandas as pd
import pytest
import yaml
from report_runs import write_run

from edge_grpo.reporting.build import _arms
from edge_grpo.reporting.cure_tables import REVIVAL, matrix_table, revival_table
from edge_grpo.reporting.figures import Canvas, draw_families
from edge_grpo.reporting.layout import Layout
from edge_grpo.reporting.numbers import numbers_of
from edge_grpo.reporting.runs import read_folder
from edge_grpo.reporting.scores import Member
from edge_grpo.reporting.stages import families, options_of_arms
from edge_grpo.statistics.bootstrap import Bootstrap
from edge_grpo.statistics.palette import looks_of

PLAIN = {"algorithm": "grpo", "allocation": "uniform", "correction": "none", "advantage": "vanilla", "loss": "grpo"}
ARMS = {
    "vanilla": ({}, 0.2),
    "eda": ({"advantage": "entropy_driven", "advantage@advantage.base": "vanilla"}, 0.4),
    "gec": ({"correction": "guided"}, 0.3),
    "edge": ({"correction": "guided", "advantage": "entropy_driven", "advantage@advantage.base": "vanilla"}, 0.6),
    "dynamic": ({"allocation": "dynamic"}, 0.5),
    "sft": ({"algorithm": "sft", "allocation": None, "correction": None, "advantage": None, "loss": None}, 0.7),
}
BOOTSTRAP = Bootstrap(confidence=0.95, resamples=100, seed=0)


@pytest.fixture
def members(tmp_path):
    for number, (arm, (changed, accuracy)) in enumerate(ARMS.items()):
        folder = write_run(tmp_path / arm, arm, 0, settings={"own": number}, held_out=(0.0, accuracy), iterations=3)
        recorded = {"hydra": {"job": {"num": number}, "runtime": {"choices": {**PLAIN, **changed}}}}
        (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(recorded))
        metrics = pd.read_csv(folder / "metrics.csv")
        metrics["collapse/acr"] = [0.9, 0.6, 0.3, None]
        metrics["collapse/revived_by_correction"] = [0.0, 0.1, 0.5, None] if "guided" in changed.values() else None
        metrics["train/num_generated_tokens"] = [100, 200, 300, None]
        metrics.to_csv(folder / "metrics.csv", index=False)
    return [Member(run.settings["name"], run, None) for run in read_folder(tmp_path)]


def test_arms_are_put_in_families_by_the_stage_in_which_they_differ(members):
    options = options_of_arms(members)
    assert options["edge"]["advantage"] == "entropy_driven(vanilla)"
    assert options["sft"]["advantage"] == ""
    assert families(options, "vanilla") == {
        "advantage": ["eda"],
        "correction": ["gec"],
        "combinations": ["edge"],
        "allocation": ["dynamic"],
        "algorithm": ["sft"],
    }
    assert families(options, "absent") == {}


def test_what_was_revived_by_hand(members):
    table = revival_table(members, _arms(members, "vanilla"), BOOTSTRAP)
    rows = {
        row[0].text: dict(zip(table.columns[1:], (cell.line for cell in row[1:]), strict=True)) for row in table.rows
    }
    assert rows["vanilla"] == {"collapsed": "60.0", "by correction": "-"}
    assert rows["edge"] == {"collapsed": "60.0", "by correction": "20.0"}
    assert set(table.columns[1:]) <= set(REVIVAL.values())
    bare = [
        Member(m.arm, m.run.__class__("", {}, (), "finished", metrics=pd.DataFrame({"a": [1.0]})), None)
        for m in members
    ]
    assert revival_table(bare, _arms(members, "vanilla"), BOOTSTRAP) is None


def test_the_matrix_has_the_arms_that_differ_in_its_two_stages_alone(members):
    arms = _arms(members, "vanilla")
    numbers = numbers_of(members, arms, BOOTSTRAP)
    table = matrix_table(numbers, options_of_arms(members), arms, 0.95)
    assert table.columns == ["advantage", "none", "guided"]
    cells = {row[0].text: [cell.line for cell in row[1:]] for row in table.rows}
    assert cells == {"vanilla": ["20.0", "30.0"], "entropy_driven(vanilla)": ["40.0", "60.0"]}
    # Without the arms with a correction there is one column only.
    few = [member for member in members if member.arm in ("vanilla", "eda", "dynamic")]
    arms = _arms(few, "vanilla")
    assert matrix_table(numbers_of(few, arms, BOOTSTRAP), options_of_arms(few), arms, 0.95) is None


def test_families_are_drawn_where_there_are_several(members, tmp_path):
    found = families(options_of_arms(members), "vanilla")
    layout = Layout(None, None, "mean", "column", 3.25, 6.75)
    canvas = Canvas(members, looks_of(list(ARMS)), layout, tmp_path / "figures")
    drawn = draw_families(found, "vanilla", canvas)
    assert set(drawn.files) == {f"families-{family}" for family in found}
    assert {path.stem for path in (tmp_path / "figures").glob("*.pdf")} == set(drawn.files)
    assert {row["arm"] for row in drawn.chart["data"]["values"] if row["family"] == "correction"} == {"vanilla", "gec"}
    assert draw_families({"loss": ["eda"]}, "vanilla", replace(canvas, folder=tmp_path / "none")) is None
    assert not (tmp_path / "none").exists()
