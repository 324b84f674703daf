"""The report as a whole: what it reads, what it refuses, what it writes."""

import base64
import json
import logging
import re
from types import SimpleNamespace

import pandas as pd
import pytest
import wandb
from report_runs import write_evaluation, write_run
from small_runs import composed

from edge_grpo.command_line.check import check_config, instantiate
from edge_grpo.errors import UserError
from edge_grpo.programs.report import check_runs
from edge_grpo.reporting import build, difference_figure, figures, page
from edge_grpo.reporting.build import read_runs
from edge_grpo.reporting.runs import read_folder
from edge_grpo.statistics.palette import looks_of

KEPT = (
    *("train/num_rollouts", "eval/held_out/avg@1", "train/reward", "collapse/no_advantage"),
    *(f"collapse/before/{kind}" for kind in ("all_wrong", "mixed", "all_right")),
)
PANELS = {
    *(f"{name}-{axis}" for name in ("reward", "score_held_out") for axis in ("iterations", "responses", "minutes")),
    *("collapse-vanilla", "collapse-edge_grpo", "differences"),
}
CHARTS = {"differences", "score_held_out", "reward", "collapse"}


def report(out, *overrides):
    """As the command line does, without its own log."""
    cfg, _ = composed("report", f"out={out}", "bootstrap.resamples=200", *overrides)
    check_config(cfg)
    return instantiate(cfg)


def log_only(folder, *names):
    """Leave the run's metrics no other columns."""
    metrics = pd.read_csv(folder / "metrics.csv")
    metrics[["step", "timing_s/total", *names]].to_csv(folder / "metrics.csv", index=False)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of the time."""
    monkeypatch.setattr(build, "draw_all", lambda *_: [])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A sweep with a run of every kind, and its report."""
    root = tmp_path_factory.mktemp("report")
    for arm, after in (("vanilla", 0.25), ("edge_grpo", 0.5)):
        for seed in (0, 1):
            log_only(write_run(root / "sweep" / f"{arm}-{seed}", arm, seed, held_out=(0.0, after)), *KEPT)
    write_run(root / "sweep" / "failed", "edge_grpo", 2, state="failed", error="<script>alert('no memory')</script>")
    write_run(root / "sweep" / "killed", "edge_grpo", 3, state="running", iterations=1)
    broken = write_run(root / "sweep" / "broken", "vanilla", 4)
    (broken / "metrics.csv").write_text("step,a\n0,1\n1,2,3,4\n")
    best = report(root / "out", f"runs={root / 'sweep'}", "baseline=vanilla", "title='A & B'")
    return root, best


def test_it_writes_tables_and_figures(written):
    root, best = written
    assert best == 0.5  # edge_grpo's held-out accuracy after training, of both seeds
    out = root / "out"
    for name in ("table", "learning", "differences"):
        assert all((out / f"{name}.{ending}").stat().st_size for ending in ("md", "tex", "csv"))
    tidy = pd.read_csv(out / "table.csv")
    assert tidy.columns.tolist() == ["arm", "benchmark", "metric", "mean", "std", "low", "high", "n", "resampled"]
    assert tidy[tidy["metric"] == "after"].set_index("arm")["mean"].to_dict() == {"vanilla": 0.25, "edge_grpo": 0.5}
    for ending, head in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        panels = list((out / "figures").glob(f"*.{ending}"))
        assert {path.stem for path in panels} == PANELS
        assert all(path.read_bytes()[:4] == head for path in panels)
    widths = {re.findall(rb"/MediaBox \[ 0 0 (\S+) ", path.read_bytes())[0] for path in panels}
    assert widths == {b"234"}  # a column of 3.25 inches, at 72 points each
    assert b"/Type3" not in panels[0].read_bytes()


def test_the_page_holds_everything_and_fetches_nothing(written):
    root, _ = written
    text = (root / "out" / "index.html").read_text()
    page = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # vega and sortable, which name addresses
    charts = json.loads(page.partition('id="charts">')[2].partition("</script>")[0])
    assert set(charts) == set(re.findall(r'data-chart="([^"]+)"', page)) == CHARTS
    assert not re.findall(r"""src\s*=|(?:href)\s*=\s*["']?(?:https?:)?//|@import|url\(|<link""", page)
    assert "<title>A &amp; B</title>" in page
    assert "abc123" in page
    links = re.findall(r'href="([^"#][^"]*)"', page)
    files = dict(re.findall(r'download="([^"]+)" href="data:[^"]*?base64,([^"]+)"', page))
    assert set(files) == {f"{panel}.pdf" for panel in PANELS} | {
        f"{table}.{ending}"
        for table in ("ranking", "table", "differences", "learning")
        for ending in ("md", "tex", "csv")
    }
    assert base64.b64decode(files["table.tex"]) == (root / "out" / "table.tex").read_bytes()
    of_runs = [link for link in links if not link.startswith("data:")]
    assert "../sweep/vanilla-0" in of_runs
    assert all((root / "out" / link).exists() for link in of_runs)


def test_a_chart_has_every_seeds_place_and_an_arms_look(written):
    root, _ = written
    page = (root / "out" / "index.html").read_text()
    charts = json.loads(page.partition('id="charts">')[2].partition("</script>")[0])
    chart = charts["score_held_out"]
    ends = {row["arm"]: row for row in chart["data"]["values"] if row["axis"] == "iterations" and row["x"] == 2}
    assert ends["edge_grpo"] == {
        "line": "", "axis": "iterations", "arm": "edge_grpo", "x": 2, "seeds": 2, "mean": 0.5, "low": 0.5, "high": 0.5
    }  # fmt: skip
    assert set(ends) == {"vanilla", "edge_grpo"}
    scale = next(layer["encoding"]["color"]["scale"] for layer in chart["layer"])
    looks = looks_of(["vanilla", "edge_grpo"])
    assert dict(zip(scale["domain"], scale["range"], strict=True)) == {arm: looks[arm].colour for arm in looks}


def test_runs_that_did_not_finish_are_listed_with_the_reason_and_not_counted(written):
    root, _ = written
    page = (root / "out" / "index.html").read_text()
    listed = page.partition('id="left-out"')[2].partition("</table>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row)[:5] for row in re.findall(r"<tr>(<td>.*?)</tr>", listed)]
    assert ["edge_grpo", "2", "failed", "2", "&lt;script&gt;alert(&#39;no memory&#39;)&lt;/script&gt;"] in rows
    assert [
        "edge_grpo",
        "3",
        "killed",
        "1",
        "its process ended without a word: the same command goes on with it",
    ] in rows
    (broken,) = (row for row in rows if row[0] == "vanilla")
    assert broken[1:4] == ["4", "finished", "0"]
    assert broken[4].startswith("metrics.csv cannot be read")
    assert len(rows) == 3
    assert "3 of 7 runs are not in the tables" in page


def test_an_arm_of_which_there_is_no_run_is_missing(tmp_path, no_figures, caplog):
    write_run(tmp_path / "sweep" / "a", "a", 0)
    write_run(tmp_path / "sweep" / "b", "b", 0, state="failed", error="no memory")
    with caplog.at_level(logging.INFO):
        report(tmp_path / "out", f"runs={tmp_path / 'sweep'}", "arms=[a,b,c,d]")
    told = "No run of 2 of 4 arms is there: c, d."
    assert told in caplog.text
    page = (tmp_path / "out" / "index.html").read_text()
    listed = page.partition('id="left-out"')[2].partition("</table>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row)[:3] for row in re.findall(r"<tr>(<td>.*?)</tr>", listed)]
    assert rows == [["b", "0", "failed"], ["c", "", "missing"], ["d", "", "missing"]]
    assert told in page
    report(tmp_path / "again", f"runs={tmp_path / 'sweep'}", "arms=[b,a]")
    assert "missing" not in (tmp_path / "again" / "index.html").read_text()


def test_many_arms_are_told_apart_without_their_colours(tmp_path, monkeypatch):
    for i in range(12):
        for seed in (0, 1):
            run = write_run(tmp_path / f"{i}-{seed}", f"arm{i}", seed, held_out=(0.0, 0.5 - i * 0.01 + seed * 0.02))
            log_only(run, "eval/held_out/avg@1")
    drawn = {}
    for module in (difference_figure, figures):
        monkeypatch.setattr(module, "save", lambda figure, path: drawn.update({path.name: figure}))
    monkeypatch.setattr(page, "write_page", lambda *_, **__: None)
    monkeypatch.setattr(build, "write_page", lambda *_, **__: None)
    report(tmp_path / "out", f"runs={tmp_path}")
    (axis,) = drawn["differences-held-out_after"].axes
    assert [text.get_text() for text in axis.get_yticklabels()] == [f"arm{i}" for i in range(1, 12)]  # best first
    (legend,) = drawn["score_held_out-iterations"].legends
    shown = {(line.get_color(), line.get_linestyle(), str(line._dash_pattern)) for line in legend.get_lines()}
    assert len(shown) == 12


def test_an_arm_looks_the_same_in_every_report_whatever_it_is_called(tmp_path, monkeypatch):
    for arm in ("vanilla", "edge_grpo", "mine"):
        log_only(write_run(tmp_path / "sweep" / arm, arm, 0), "train/reward")
    found = []
    monkeypatch.setattr(build, "draw_all", lambda canvas, *_: found.append(canvas.looks) or [])
    report(tmp_path / "out", f"runs={tmp_path / 'sweep'}", "arms=[edge_grpo,mine,vanilla]")
    report(tmp_path / "out", f"runs={tmp_path / 'sweep' / 'mine'}", "layout.labels={mine: ours}")
    assert list(found[0]) == ["edge_grpo", "mine", "vanilla"]
    assert found[1] == {"ours": found[0]["mine"]}
    assert found[0] == looks_of(["mine", "vanilla", "edge_grpo"])


def test_names_and_order_hold_for_tables_and_page(tmp_path, no_figures):
    for arm, after in (("vanilla", 0.25), ("edge_grpo", 0.5)):
        log_only(write_run(tmp_path / "sweep" / arm, arm, 0, held_out=(0.0, after)), *KEPT)
    names = "layout.labels={edge_grpo: EDGE-GRPO, held-out after: accuracy}"
    chosen = "layout.columns={table: [held-out after], learning: [held-out after, seconds]}"
    out = tmp_path / "out"
    report(out, f"runs={tmp_path / 'sweep'}", "arms=[vanilla,edge_grpo]", "baseline=vanilla", names, chosen)
    assert "| arm | seeds | held-out before | accuracy |" in (out / "table.md").read_text()
    assert pd.read_csv(out / "table.csv")["arm"].unique().tolist() == ["vanilla", "EDGE-GRPO"]
    assert "arm & accuracy \\\\" in (out / "table.tex").read_text()
    assert (
        "{Held-out accuracy after training in \\%; seconds of training, evaluation excluded. One seed. Bold:"
        in (out / "learning.tex").read_text()
    )
    assert '<th scope="col">accuracy</th>' in (out / "index.html").read_text()
    with pytest.raises(UserError, match=r"layout.labels names edge, which is no arm and no column"):
        report(tmp_path / "none", f"runs={tmp_path / 'sweep'}", "layout.labels={edge: x}")
    assert not (tmp_path / "none").exists()


def test_what_no_run_logged_has_no_figure(tmp_path):
    for arm in ("a", "b"):
        log_only(write_run(tmp_path / "sweep" / arm, arm, 0), "train/reward")
    report(tmp_path / "out", f"runs={tmp_path / 'sweep'}")
    assert {path.stem for path in (tmp_path / "out" / "figures").glob("*.pdf")} == {
        "reward-iterations",
        "reward-minutes",
    }


def test_a_sweep_of_which_nothing_has_finished_is_still_reported(tmp_path, caplog):
    write_run(tmp_path / "sweep" / "a", "a", 0, state="stopped")
    with caplog.at_level(logging.WARNING):
        assert report(tmp_path / "out", f"runs={tmp_path / 'sweep'}") is None
    assert "not in the tables: a, stopped after 2 iterations" in caplog.text
    assert "No run has finished" in (tmp_path / "out" / "index.html").read_text()
    assert not list((tmp_path / "out").glob("*.md"))


def test_labels_that_mean_something_to_latex_html_or_matplotlib(tmp_path):
    for name, value in (("x", "$x_{"), ("y", "<b>&$")):
        typed, settings = (f"data.path={value}",), {"data": {"path": value}}
        log_only(write_run(tmp_path / "sweep" / name, "a", 0, typed=typed, settings=settings), "train/reward")
    report(tmp_path / "out", f"runs={tmp_path / 'sweep'}")
    assert r"data.path=\$x\_\{ &" in (tmp_path / "out" / "learning.tex").read_text()
    assert "data.path=&lt;b&gt;&amp;$" in (tmp_path / "out" / "index.html").read_text()


def test_evaluations_that_differ_are_noted(tmp_path, no_figures):
    for arm, n in (("a", 2), ("b", 4)):
        write_evaluation(write_run(tmp_path / "sweep" / arm, arm, len(arm)), {"A": 0.5}, num_samples=n)
    write_run(tmp_path / "sweep" / "c", "c", 0)
    report(tmp_path / "out", f"runs={tmp_path / 'sweep'}", "bootstrap.confidence=0.9")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "have the confidence of their evaluation (95 %), not 90 %" in page
    assert "differ in their number of samples" in page
    assert "1 of 3 finished runs have no evaluation" in page
    assert "avg@n" in (tmp_path / "out" / "benchmarks.csv").read_text()


def test_jobs_keep_the_order_of_their_sweep_and_are_read_once(tmp_path):
    for number in (10, 2):
        folder = write_run(tmp_path / str(number), "a", number)
        (folder / ".hydra" / "hydra.yaml").write_text(f"hydra: {{job: {{num: {number}}}}}\n")
    assert [run.seed for run in read_folder(tmp_path)] == [2, 10]
    assert [run.seed for run in read_runs([str(tmp_path), str(tmp_path / "10")])] == [2, 10]


def test_a_job_that_failed_before_it_wrote_its_config_is_a_run(tmp_path):
    folder = write_run(tmp_path / "a", "a", 7, state="failed", error="no such model")
    (folder / "config.yaml").unlink()
    (run,) = read_folder(tmp_path)
    assert (run.seed, run.state, run.error, run.usable) == (7, "failed", "no such model", False)


def test_what_cannot_be_reported_is_refused_in_one_line(tmp_path, no_figures):
    write_run(tmp_path / "sweep" / "a", "a", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("run: null\n")
    runs = f"runs={tmp_path / 'sweep'}"
    refused = {
        (f"runs={tmp_path / 'nowhere'}",): "nowhere: no such folder",
        (f"runs={tmp_path / 'empty'}",): "no run in it or below it",
        (f"runs={tmp_path / 'other'}",): "of other programs",
        ("runs=[]",): "names nothing",
        (runs, "baseline=b"): "baseline=b: no arm of finished runs has that label; there are: a",
        (runs, "evaluation_name=paper"): "evaluation_name=paper: no finished run has one of that name; there are: none",
        (runs, "bootstrap.confidence=95"): "bootstrap.confidence=95",
        (runs, "bootstrap.resamples=x"): "bootstrap.resamples=x: expected a whole number",
        ("runs='wandb:'",): "name the project",
    }
    for overrides, message in refused.items():
        with pytest.raises(UserError, match=re.escape(message)):
            report(tmp_path / "out", *overrides)
    with pytest.raises(UserError, match="no run in it"):
        check_runs(tmp_path / "out", {"runs": [str(tmp_path / "empty")]})


def test_a_folder_of_others_is_not_written_over_and_a_report_is(tmp_path, no_figures):
    write_run(tmp_path / "sweep" / "a", "a", 0)
    out, site = tmp_path / "out", tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("my own page")
    (site / "table.md").write_text("my own table")
    config = {"runs": str(tmp_path / "sweep")}
    with pytest.raises(UserError, match=r"site: edge-grpo-report has not .* holds index.html, table.md, which"):
        check_runs(tmp_path / "hydra", {**config, "out": str(site)})
    for _ in range(2):
        check_runs(tmp_path / "hydra", {**config, "out": str(out)})
        report(out, f"runs={tmp_path / 'sweep'}")


def test_nothing_of_an_earlier_report_stays_and_what_is_not_of_one_does(tmp_path, no_figures):
    for arm in ("a", "b"):
        write_run(tmp_path / "sweep" / arm, arm, 0)
    out = tmp_path / "out"
    report(out, f"runs={tmp_path / 'sweep'}")
    assert (out / "differences.tex").exists()
    (out / "figures").mkdir()
    for name in ("figures/collapse-b.pdf", "figures/mine.pdf", "figures/mine.svg", "table.docx"):
        (out / name).touch()
    page = out / "index.html"
    page.write_text(page.read_text() + '<a download="collapse-b.pdf" href="">b</a>')  # no figure was drawn
    report(out, f"runs={tmp_path / 'sweep' / 'a'}")  # of one arm there is no difference
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    tables = {f"{table}.{kind}" for table in ("table", "learning") for kind in ("md", "tex", "csv")}
    assert left == {"index.html", *tables, "figures/mine.pdf", "figures/mine.svg", "table.docx"}


def test_results_that_are_none_make_the_run_a_listed_one(tmp_path):
    folder = write_run(tmp_path / "a", "a", 0)
    (folder / "evaluation" / "paper").mkdir(parents=True)
    (folder / "evaluation" / "paper" / "results.json").write_text('{"benchmarks": 3}')
    (run,) = read_folder(tmp_path)
    assert not run.usable
    assert "results.json holds no results" in run.error


def wandb_run(name, seed, after, state="finished"):
    """What wandb.Api gives of a run of ours, as far as the report reads it."""
    rows = [
        {"iteration": 0, "_step": 0, "timing_s/total": 60, "train/entropy": 0.5, "eval/held_out/avg@1": 0.0},
        {"iteration": 1, "_step": 1, "timing_s/total": 60, "train/entropy": "NaN", "samples": {"_type": "table"}},
        {"iteration": 2, "_step": 2, "eval/held_out/avg@1": after},
    ]
    config = {
        "name": name,
        "seed": seed,
        "trainer": {"max_iterations": 2},
        "overrides": [f"experiment={name}", f"seed={seed}"],
        "git_commit": "abc123",
    }
    url = f"https://wandb.ai/me/edge-grpo/runs/{name}{seed}"
    return SimpleNamespace(config=config, state=state, url=url, scan_history=lambda: iter(rows))


def test_a_wandb_project_gives_the_same_report(tmp_path, monkeypatch, no_figures):
    runs = [wandb_run("vanilla", 0, 0.25), wandb_run("edge_grpo", 0, 0.5), wandb_run("edge_grpo", 1, 0.0, "crashed")]
    runs.append(SimpleNamespace(config={"lr": 1}, state="finished", url="https://x", scan_history=lambda: iter([])))
    asked = []
    api = SimpleNamespace(runs=lambda path, order: asked.append(path) or runs)
    monkeypatch.setattr(wandb, "Api", lambda: api)
    assert report(tmp_path / "out", "runs='wandb:me/edge-grpo'") == 0.5
    assert asked == ["me/edge-grpo"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| edge_grpo | 1 | 0.0 | **50.0** |" in table
    page = (tmp_path / "out" / "index.html").read_text()
    assert "crashed" in page
    assert 'href="https://wandb.ai/me/edge-grpo/runs/vanilla0"' in page  # a link, which fetches nothing
    (run, *_) = read_runs("wandb:me/edge-grpo")
    assert run.column("train/entropy").to_dict() == {0: 0.5}
    assert "samples" not in run.logged
    assert run.info == {"git_commit": "abc123"}


@pytest.mark.parametrize(
    "error",
    [wandb.errors.UsageError("No API key configured."), ValueError("Could not find project"), OSError("refused")],
)
def test_a_wandb_that_gives_nothing_is_one_error(monkeypatch, error):
    def api():
        raise error

    monkeypatch.setattr(wandb, "Api", api)
    with pytest.raises(UserError, match=rf"runs=wandb:me/x: W&B does not give its runs \({error}\)"):
        read_runs("wandb:me/x")
