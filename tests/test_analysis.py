"""edge-grpo-analyze as a whole: what it reads, refuses and writes."""

import json
import re
import sys
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
from analysis_rows import BOOTSTRAP, completion, rollout, write_completions, write_rollouts
from matplotlib.figure import Figure

from edge_grpo.analysis.build import QUESTIONS, _save
from edge_grpo.analysis.figures import draw_figures
from edge_grpo.analysis.source import load_source
from edge_grpo.errors import UserError
from edge_grpo.programs.analyze import main


def call(monkeypatch, tmp_path, *overrides):
    """The command in this process; the folder of what it wrote."""
    out = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["edge-grpo-analyze", *overrides, "bootstrap.resamples=20", f"hydra.run.dir={out}"]
    )
    main()
    return out


def run_rows():
    """Two iterations of two groups of two: everything happens once."""
    for step in range(2):
        for problem in ("a", "b"):
            for row in range(2):
                right = row == 1 and problem == "a"
                yield rollout(
                    step=step,
                    problem=problem,
                    row=row,
                    correct=right,
                    reward=float(right),
                    branch="" if right else ("reflect", "answer")[row],
                    correct_after=right or row == 1,
                    reward_after=float(right or row == 1),
                    entropy=0.3 + 0.1 * row + 0.05 * step,
                    advantage=float(2 * row - 1),
                    multiplier=1.0 + row,
                    clamped=float(row == 1),
                    tokens_after=12,
                    sampled_tokens_after=10,
                )


def evaluation_rows():
    for problem in ("a", "b"):
        for sample in range(2):
            yield completion(
                problem=problem,
                sample=sample,
                correct=bool(sample),
                forced_correct=problem == "a",
                entropy=0.2 + 0.1 * sample,
            )


def test_run_writes_findings_figures_and_a_page(tmp_path, monkeypatch):
    out = call(monkeypatch, tmp_path, f"source='{write_rollouts(tmp_path / '<b>run', run_rows())}'")
    found = json.loads((out / "analysis.json").read_text())
    assert list(found["findings"]) == ["reflection", "entropy", "collapse", "branches", "multipliers"]
    assert (found["responses"], found["questions"], found["groups"], found["iterations"]) == (8, 2, 4, [0, 1])
    # 4 of the 6 wrong responses reflect, none is repaired; the 2 others are given the answer.
    assert found["findings"]["branches"]["tables"]["branches"][0]["success"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    markdown = (out / "analysis.md").read_text()
    assert "| reflect | 4 | 66.7 %" in markdown
    assert "Success: reflect 0.0 %; answer" in markdown  # no interval is shown of what no draw can change
    for name in ("entropy", "collapse", "branches", "multipliers"):
        assert f"]({name}.png)" in markdown
        check_figure(out / name)
    page = re.sub(r"<script>.*?</script>", "", (out / "index.html").read_text(), flags=re.DOTALL)
    assert page.count('<img src="data:image/svg+xml;base64,') == 4
    assert not re.findall(r"""(?:src|href)="(?!data:|#)|url\(|<link""", page)  # one file, which fetches nothing
    assert "&lt;b&gt;run" in page
    assert "<b>" not in page
    table = page.partition('id="branches"')[2].partition("</table>")[0]
    assert '<td data-sort="reflect">reflect</td><td data-sort="4">4</td>' in table
    assert set(re.findall(r'download="([^"]+)"', page)) == {"analysis.md", "analysis.json"}


def check_figure(path):
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_evaluation_writes_findings_and_figures(tmp_path, monkeypatch):
    folder = write_completions(tmp_path / "evaluation", evaluation_rows())
    out = call(monkeypatch, tmp_path, f"source={folder / 'completions.parquet'}")
    found = json.loads((out / "analysis.json").read_text())
    forced = found["findings"]["reflection"]["tables"]["repairs"][0]
    assert (forced["repaired"]["value"], forced["broken"]["value"]) == (0.5, 0.5)
    for name in ("reflection", "entropy", "collapse"):
        check_figure(out / name)
    assert not (out / "branches.png").exists()


def test_the_same_figure_gives_the_same_file(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        figure = Figure(figsize=(2, 2))
        figure.add_subplot().plot([0, 1], label="line")
        _save(figure, folder / "figure")
    for name in ("figure.png", "figure.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_degenerate_runs_are_analyzed_too(tmp_path):
    """Entropies of 0, multipliers of 1, nothing right: no figure fails on a distribution of one value."""
    rows = [rollout(problem=p, row=r, entropy=0.0, multiplier=1.0, clamped=0.0) for p in "ab" for r in (0, 1)]
    source = load_source(str(write_rollouts(tmp_path, rows)), None)
    findings = {question.__name__: question(source, BOOTSTRAP) for question in QUESTIONS}
    assert findings["entropy"].tables == {}
    assert findings["collapse"].tables["groups"].rows[0]["before"].value == 1
    assert set(draw_figures(source, list(findings.values()))) == {"collapse", "multipliers"}


@pytest.mark.parametrize(
    ("wrong", "right", "stated"),
    [
        (("perturbed", "reference"), "", "Success: perturbed 0.0 %; reference 0.0 %."),  # lope, hpt
        (("hint_1", "hint_2"), "replayed", "Success: hint_1 0.0 %; hint_2 0.0 %."),
        (("no_room", "unsolved"), "", ""),  # nothing was changed
        (("", ""), "replayed", ""),  # what was right alone
    ],
)
def test_branches_of_any_correction_are_told_and_drawn(tmp_path, wrong, right, stated):
    rows = [rollout(row=row, problem=p, branch=branch) for p in "ab" for row, branch in enumerate(wrong)]
    rows += [rollout(row=2, problem=p, correct=True, branch=right) for p in "ab"]
    source = load_source(str(write_rollouts(tmp_path, rows)), None)
    findings = [question(source, BOOTSTRAP) for question in QUESTIONS]
    (found,) = (finding for finding in findings if finding.name == "branches")
    assert [text for text in found.statements if text.startswith("Success")] == ([stated] if stated else [])
    figure = draw_figures(source, findings)["branches"]
    shown = {text for axis in figure.axes for text in axis.get_legend_handles_labels()[1]}
    assert shown == {name for name in (*wrong, right) if name not in ("", "no_room", "unsolved")}


def test_iterations_select_a_part_of_the_run(tmp_path):
    folder = write_rollouts(tmp_path, run_rows())
    assert set(load_source(str(folder), [1, 5]).frame["step"]) == {1}
    with pytest.raises(UserError, match=r"iterations=\[7, 9\]: .*rollouts has 0 to 1"):
        load_source(str(folder), [7, 9])
    with pytest.raises(UserError, match=r"iterations=\[1, 0\]: expected \[first, last\]"):
        load_source(str(folder), [1, 0])
    write_completions(tmp_path / "evaluation", evaluation_rows())
    with pytest.raises(UserError, match="iterations is for runs"):
        load_source(str(tmp_path / "evaluation"), [0, 1])


def test_the_files_of_other_ranks_are_read_too(tmp_path):
    folder = write_rollouts(tmp_path, run_rows())
    write_rollouts(tmp_path, run_rows(), rank=1)
    frame = load_source(str(folder), None).frame
    # 2 iterations, 2 questions, 2 ranks that both happen to have drawn them.
    assert (len(frame), frame["group"].nunique(), frame["question"].nunique()) == (16, 8, 2)


def test_the_same_problem_twice_in_an_iteration_is_two_groups(tmp_path):
    folder = write_rollouts(tmp_path, [rollout(row=row, correct=bool(i)) for i in range(2) for row in range(3)])
    frame = load_source(str(folder), None).frame
    assert frame.groupby("group")["correct"].nunique().tolist() == [1, 1]
    assert frame["question"].nunique() == 1


def test_other_files_are_refused_in_one_sentence(tmp_path):
    file = write_rollouts(tmp_path / "run", run_rows()) / "rollouts" / "iteration-000001-rank0.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["branch"]), file)
    pq.write_table(pq.read_table(file), file.with_name("iteration-000000-rank0.parquet"))
    with pytest.raises(UserError, match=r"iteration-000000-rank0.parquet lacks branch: it is not what edge-grpo"):
        load_source(str(tmp_path / "run"), None)
    file.write_text("no")
    with pytest.raises(UserError, match=r"iteration-000001-rank0.parquet cannot be read: "):
        load_source(str(tmp_path / "run" / "rollouts"), None)
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(UserError, match=r"x.parquet: not the completions.parquet of edge-grpo-evaluate"):
        load_source(str(tmp_path / "x.parquet"), None)
    (tmp_path / "metrics.csv").write_text("step\n")
    with pytest.raises(UserError, match=r"is neither a run's folder nor"):
        load_source(str(tmp_path / "metrics.csv"), None)


def test_folders_without_anything_to_read_say_what_to_give(tmp_path):
    with pytest.raises(UserError, match="source=nowhere: does not exist"):
        load_source("nowhere", None)
    with pytest.raises(UserError, match="holds neither"):
        load_source(str(tmp_path), None)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"the run has no rollouts/"):
        load_source(str(tmp_path), None)
    write_rollouts(tmp_path / "0", run_rows())
    with pytest.raises(UserError, match=f"give one of them\n  {tmp_path / '0'}"):
        load_source(str(tmp_path), None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "source not given: set source=..."),
        (["source=nowhere"], "source=nowhere: does not exist"),
        (["source=.", "bootstrap.confidence=high"], "bootstrap.confidence=high: expected a number"),
        ([f"source={__file__}"], f"source={__file__}: is neither a run's"),
        (["source=.", "resample=5"], "there is no setting 'resample'"),
    ],
)
def test_refusals_come_before_anything_is_written(tmp_path, monkeypatch, capsys, overrides, message):
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, tmp_path, *overrides)
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_iterations_that_are_none_are_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    folder = write_rollouts(tmp_path / "run", run_rows())
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, tmp_path, f"source={folder}", "iterations=5")
    assert "error: iterations=5: expected [first, last]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
