"""edge-grpo-browse: what is read of runs and evaluations, which groups pass, and the page."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from analysis_rows import completion, rollout, write_completions, write_rollouts
from browse_rows import group, read, write_run

from edge_grpo.browsing.filters import FILTERS, Query
from edge_grpo.browsing.page import write_page
from edge_grpo.browsing.recordings import counterpart
from edge_grpo.errors import UserError
from edge_grpo.programs import browse


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def test_filters_name_the_groups_that_they_are_for(run):
    (recording,) = read(run)
    passing = {
        name: [recording.index["problem"].iat[i] for i in recording.select(Query(frozenset({name})))]
        for name in FILTERS
    }
    # Rewards of 0 and 1 are a mixture of rewards, and none of them is right.
    assert passing == {
        "all_wrong": ["revived", "wrong"],
        "mixed": ["uniform", "revived"],
        "all_right": ["right"],
        "revived": ["revived"],
        "made_uniform": ["uniform"],
        "clamped": ["wrong"],
        "cut": ["right"],
        "unparsed": ["revived"],
    }
    assert recording.select(Query(frozenset({"mixed", "unparsed"}))) == [4]  # both must hold
    assert recording.select(Query(problem="i")) == [0, 1, 2, 4]  # revived, uniform, right
    assert recording.select(Query(text="ZÜRICH")) == [3]
    assert recording.select(Query(text="no wait")) == [0]  # from one piece into the next
    assert recording.select(Query(text="uniform?")) == [1]  # the question


def test_a_problem_is_followed_through_training_and_into_another_run(run, tmp_path):
    drawn = {0: "wrong", 3: "revived", 7: "wrong", 9: "revived"}
    rows = [row for step, problem in drawn.items() for row in group([0], step=step, problem=problem)]
    one, other = read(run, write_rollouts(tmp_path / "other", rows))
    assert one.of_problem("revived") == [0, 4]
    assert counterpart(one, 3, other) == 0  # the same iteration
    assert counterpart(one, 4, other) == 1  # the nearest: 3 for 1
    assert counterpart(one, 1, other) is None
    assert counterpart(other, 2, one) == 3
    assert counterpart(other, 3, one) == 4  # of 0 and 1, 1 is nearer to 9
    assert (one.name, other.name) == ("run", "other")


def test_texts_that_were_dropped_and_files_that_come_later(run):
    write_rollouts(run, [rollout(step=5, unparsed=False, row=row) for row in (0, 1)])
    recordings = read(run)
    assert recordings[0].group(5).responses[0].before.pieces is None
    assert recordings[0].sections == [0, 1, 5]
    write_rollouts(run, [*group([0], step=6)])
    assert recordings[0].sections == [0, 1, 5]
    recordings.reload(0)
    assert recordings[0].sections == [0, 1, 5, 6]


def test_an_evaluation_has_a_group_a_problem_and_what_forced_reflection_made(tmp_path):
    rows = [completion(problem=p, sample=s, correct=p == "a") for p in "ab" for s in (0, 1)]
    rows[3] |= {"forced_response": "it is 2", "forced_tokens": 5, "forced_correct": True}
    (recording,) = read(write_completions(tmp_path / "evaluation", rows))
    assert (recording.name, recording.sections, len(recording)) == ("evaluation", ["AIME24"], 2)
    passing = [recording.select(Query(frozenset({name}))) for name in ("all_wrong", "all_right", "revived")]
    assert passing == [[1], [0], [1]]
    one, two = recording.group(1).responses
    assert one.after is None
    assert two.after.correct
    assert [by for by, _ in two.after.pieces] == ["sampled", "injected", "sampled"]
    assert two.after.tokens == 15
    assert recording.select(Query(text="IT IS 2")) == [1]


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def test_the_page_holds_what_was_read_and_no_markup_of_a_model(run, tmp_path):
    page = tmp_path / "page.html"
    assert write_page(page, read(run), max_mb=1) == ["run: all 2 iterations, 5 of 5 groups"]
    wrong = data_of(page)["recordings"][0]["groups"][3]
    assert wrong["responses"][0]["before"]["pieces"] == [["sampled", "</script><b>Zürich</b>"]]
    assert wrong["responses"][0]["clamped"] is True
    text = page.read_text()
    assert "<b>Z" not in text
    assert text.count("</script>") == 2  # the data's and the program's
    assert not re.findall(r"""(?:src|href)=["'](?!data:,)""", text)
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", text)


def test_a_page_is_bounded_and_says_what_is_left_out(tmp_path):
    rows = [row for step in range(20) for p in "ab" for row in group([0, 2], step=step, problem=p, before="x" * 2500)]
    recordings = read(write_rollouts(tmp_path / "run", rows))
    page = tmp_path / "page.html"
    # A group has 6 kB. After five iterations one more group would fit, but half an iteration is none.
    (note,) = write_page(page, recordings, max_mb=0.065)
    assert note.startswith("run: 10 of 40 groups, of 5 of 20 iterations: 0, 5, 10, 14, 19.")
    assert page.stat().st_size < 0.065e6 + 50_000
    write_page(page, recordings, max_mb=1, sections=[3, 4, 99])
    assert data_of(page)["recordings"][0]["embedded"] == [3, 4]
    with pytest.raises(UserError, match=r"--iterations: none of the runs has one of \[99\]; they have 0 to 19"):
        write_page(page, recordings, max_mb=1, sections=[99])
    short = read(write_rollouts(tmp_path / "short", group([0, 2], step=0, problem="a")))
    with pytest.raises(UserError, match=r"--iterations: short has none of \[3\]: leave it out"):
        write_page(page, [*recordings, *short], max_mb=1, sections=[3])


def driven(page, presses):
    """The document after some keys, as Chromium has it."""
    script = f"""<script>for (const key of {json.dumps(presses)})
        (document.activeElement ?? document.body).dispatchEvent(new KeyboardEvent("keydown", {{key, bubbles: true}}));
    </script>"""
    page.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'chromium'}"]
    command = ["chromium", *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_page_and_takes_keys(run, tmp_path):
    page = tmp_path / "page.html"
    write_page(page, read(run, write_rollouts(tmp_path / "other", group([0, 1], problem="wrong"))), max_mb=1)
    shown = driven(page, ["6", "ArrowDown", "c"])  # the clamped group, its second response, beside the other run's
    assert "group <strong>1 of 1</strong>" in shown
    assert "&lt;/script&gt;&lt;b&gt;Zürich&lt;/b&gt;" in shown
    assert "response 1 as sampled" in shown
    assert shown.count('aria-selected="true"') == 2
    assert "<h2>other" in shown
    assert "9.00 ⊤ clamped" in shown


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: does not exist; give the folder of a run, a sweep or an evaluation"),
        ("empty", "empty: holds no rollouts/ of a run and no completions.parquet of an evaluation"),
        ("young", "young: the run has no rollouts/ yet. edge-grpo-train writes to it at the end of every iteration"),
        ("old", "old/completions.parquet: no column unparsed: not the completions.parquet of edge-grpo-evaluate"),
        ("mine.txt", "mine.txt: is no completions.parquet"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, capsys, path, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "young"):
        (tmp_path / name).mkdir()
    (tmp_path / "young" / "config.yaml").write_text("")
    (tmp_path / "mine.txt").write_text("")
    write_completions(tmp_path / "old", [{k: v for k, v in completion().items() if k != "unparsed"}])
    with pytest.raises(SystemExit, match="2"):
        browse.main([path, "--html", "page.html"])
    assert capsys.readouterr().err.startswith(f"edge-grpo-browse: error: {message}")
    assert not (tmp_path / "page.html").exists()


def test_a_sweep_is_all_of_its_runs(run, tmp_path, capsys):
    write_rollouts(tmp_path / "second", group([2]))
    browse.main([str(tmp_path), "--html", str(tmp_path / "pages" / "all.html")])
    assert [of["name"] for of in data_of(tmp_path / "pages" / "all.html")["recordings"]] == ["run", "second"]
    assert capsys.readouterr().out.splitlines()[1] == "second: all 1 iterations, 1 of 1 groups"


def test_the_terminal_program_says_what_it_lacks(run, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        browse.main([str(run), "--iterations", "0-2"])
    assert "--iterations is for the page: give --html FILE too" in capsys.readouterr().err
    for iterations in ("5-3", "0-9999999999", "0-x"):
        with pytest.raises(SystemExit):
            browse.main([str(run), "--html", str(run / "page.html"), "--iterations", iterations])
        assert "argument --iterations: " in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "textual.app", None)
    monkeypatch.delitem(sys.modules, "edge_grpo.browsing.terminal", raising=False)
    with pytest.raises(SystemExit, match="2"):
        browse.main([str(run)])
    assert "needs the extra `browse` (pip install 'edge-grpo[browse]')" in capsys.readouterr().err
