"""What a reader sees in figures: axes, ticks, legends. Each was looked at as a picture once."""

import pandas as pd
import pytest
from analysis_rows import BOOTSTRAP, completion, rollout, write_completions, write_rollouts
from matplotlib.figure import Figure
from report_runs import write_run
from test_report import log_only, report

from edge_grpo.analysis.build import QUESTIONS, _save
from edge_grpo.analysis.figures import draw_figures
from edge_grpo.analysis.source import load_source
from edge_grpo.reporting import build, difference_figure, figures
from edge_grpo.runs.training_figure import _accuracy, draw_training_figure


def labels(axis):
    return axis.get_legend_handles_labels()[1]


def ticks(axis, of="x"):
    """What is written at the ticks within the axis."""
    low, high = sorted(axis.get_xlim() if of == "x" else axis.get_ylim())
    own = axis.xaxis if of == "x" else axis.yaxis
    return [own.get_major_formatter()(value) for value in own.get_majorticklocs() if low <= value <= high]


@pytest.mark.parametrize(("corrected", "lines"), [([0.0, 0.25], 1), ([0.5, 0.25], 2)])
def test_the_accuracy_after_a_correction_of_nothing_hides_no_line(corrected, lines):
    axis = Figure().subplots()
    _accuracy(axis, pd.DataFrame({"train/accuracy": [0.0, 0.25], "train/accuracy_corrected": corrected}))
    assert len(axis.lines) == lines
    assert labels(axis)[0] == "training rollouts"


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A run of three iterations, with another name for the number of groups."""
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    table = pd.DataFrame(
        {
            "step": range(4),
            "train/accuracy": [0.0, 0.25, 0.5, None],
            "eval/held_out/avg@1": [0.0, None, None, 0.5],
            "train/entropy": [0.505, 0.5, 0.47, None],
            "train/advantage_var": [2.0, 3.0, 2.0, None],
            "collapse/before/all_wrong": [1.0, 0.5, 0.5, None],
            "collapse/before/mixed": [0.0, 0.5, 0.5, None],
            "collapse/before/all_right": [0.0, 0.0, 0.0, None],
            "collapse/no_advantage": [0.0, 0.0, 0.0, None],
        }
    )
    table.to_csv(tmp_path / "metrics.csv", index=False)
    draw_training_figure(tmp_path / "metrics.csv", tmp_path / "training.png", title="a, seed 3")
    return kept[0]


def test_no_line_of_the_training_figure_lies_on_the_frame(training):
    accuracy, groups, entropy, variance = training.axes
    # 1.06 times the highest value: 0.5353 and 3.18.
    assert entropy.get_ylim() == pytest.approx((0, 0.5353))
    assert variance.get_ylim() == pytest.approx((0, 3.18))
    assert all(axis.get_ylim() == (-0.03, 1.03) for axis in (accuracy, groups))
    assert ticks(accuracy, "y") == ticks(groups, "y") == ["0%", "20%", "40%", "60%", "80%", "100%"]


def test_the_panels_of_the_training_figure_share_their_iterations(training):
    assert len({axis.get_xlim() for axis in training.axes}) == 1
    assert {axis.get_xlabel() for axis in training.axes} == {"iteration, from 0"}
    assert all(axis.xaxis.get_tick_params()["labelbottom"] for axis in training.axes)
    assert "held-out, after so many iterations" in labels(training.axes[0])


def test_the_training_figure_names_no_kind_that_is_not_there(training):
    assert labels(training.axes[1]) == ["all wrong (as sampled)", "mixed (as sampled)", "no advantage"]


def drawn(folder, rows):
    source = load_source(str(write_rollouts(folder, rows)), None)
    return draw_figures(source, [question(source, BOOTSTRAP) for question in QUESTIONS])


def test_iterations_of_an_analysis_are_whole_and_shares_in_percent(tmp_path):
    rows = [
        rollout(step=step, problem=p, row=row, reward_after=float(row), correct_after=bool(row), multiplier=1.0 + row)
        for step in range(3)
        for p in "ab"
        for row in (0, 1)
    ]
    found = drawn(tmp_path, rows)
    for axis in (*found["collapse"].axes, found["multipliers"].axes[-1]):
        assert all(float(place).is_integer() for place in axis.get_xticks())
        assert all(text.endswith("%") for text in ticks(axis, "y"))
        assert axis.get_xlabel() == "iteration, from 0"
    before, after, did = found["collapse"].axes
    assert (labels(before), labels(after)) == (["all wrong"], ["mixed"])
    # Lines that lie on one another: each is narrower than the one below it, or has gaps.
    widths = [line.get_linewidth() for line in did.get_lines()]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[1] > widths[2]
    title = found["multipliers"].axes[0].title
    assert (title.get_text(), title.get_parse_math()) == ("Multiplier $1 / \\hat{P}$", True)


def test_a_benchmark_with_dollars_is_no_mathematics(tmp_path):
    rows = [completion(benchmark="a$_b$", problem=p, sample=s, correct=bool(s)) for p in "ab" for s in (0, 1)]
    write_completions(tmp_path / "evaluation", rows)
    source = load_source(str(tmp_path / "evaluation"), None)
    figure = draw_figures(source, [question(source, BOOTSTRAP) for question in QUESTIONS])["collapse"]
    _save(figure, tmp_path / "collapse")
    assert ">a$_b$<" in (tmp_path / "collapse.svg").read_text()


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """name -> figure, of a report on two arms in which nothing was ever right."""
    for arm in ("a", "b"):
        run = write_run(tmp_path / "runs" / arm, arm, 0, held_out=(0.0, 0.0), iterations=3)
        metrics = pd.read_csv(run / "metrics.csv")
        shares = {"all_wrong": 0.75, "mixed": 0.25, "all_right": 0.0}
        for kind, share in shares.items():
            metrics[f"collapse/before/{kind}"] = metrics[f"collapse/before/{kind}"] * 0 + share
        metrics["train/entropy_correct"] = [None, 0.2, None, None]
        metrics["collapse/no_advantage"] = None
        metrics.to_csv(run / "metrics.csv", index=False)
        log_only(run, *(c for c in metrics if c not in ("step", "timing_s/total", "collapse/no_advantage")))
    found = {}
    for module in (difference_figure, figures):
        monkeypatch.setattr(module, "save", lambda figure, path: found.update({path.name: figure}))
    monkeypatch.setattr(build, "write_page", lambda *_, **__: None)
    report(tmp_path / "out", f"runs={tmp_path / 'runs'}")
    return found


def test_a_share_has_no_axis_below_0(reported):
    (axis,) = reported["score_held_out-iterations"].axes
    low, high = axis.get_ylim()
    assert -0.05 * high < low < 0 < high
    assert ticks(axis, "y")[0] == "0%"
    (axis,) = reported["differences"].axes
    low, high = axis.get_xlim()  # percentage points
    assert max(low, -high) <= -1


def test_a_legend_names_what_is_drawn(reported):
    assert [text.get_text() for text in reported["collapse-a"].legends[0].get_texts()] == ["all wrong", "mixed"]
    (axis,) = reported["entropy_by_correctness-a"].axes
    right = next(line for line in axis.get_lines() if line.get_label() == "right")
    assert (len(right.get_xdata()), right.get_marker()) == (1, "o")  # of one point a line shows nothing


@pytest.mark.parametrize("absent", ["correct", "wrong"])
def test_seeds_without_a_right_or_without_a_wrong_response_are_drawn(absent, tmp_path):
    """Two seeds, so that the line has a band."""
    for seed in (0, 1):
        run = write_run(tmp_path / "runs" / str(seed), "a", seed)
        metrics = pd.read_csv(run / "metrics.csv")
        metrics[["train/entropy_correct", "train/entropy_wrong"]] *= seed + 1
        metrics[f"train/entropy_{absent}"] = None
        metrics.to_csv(run / "metrics.csv", index=False)
    report(tmp_path / "out", f"runs={tmp_path / 'runs'}")
    assert (tmp_path / "out/figures/entropy_by_correctness-a.pdf").exists()
