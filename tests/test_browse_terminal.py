"""The terminal program of edge-grpo-browse, through textual's pilot."""

import asyncio
from types import SimpleNamespace

import pytest
from analysis_rows import write_rollouts
from browse_rows import group, read, write_run
from small_runs import REPO

from edge_grpo.browsing.keys import KEYS

pytest.importorskip("textual")

from textual.widgets import DataTable, Static

from edge_grpo.browsing.terminal import Browser


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def displayed(widget):
    return all(part.display for part in widget.ancestors_with_self)


def written(widget):
    """What a widget shows, whether it is drawn yet or not."""
    if isinstance(widget, DataTable):
        rows = [[str(cell) for cell in widget.get_row(key)] for key in widget.rows]
        return "\n".join("  ".join(row) for row in [[str(column.label) for column in widget.ordered_columns], *rows])
    return str(widget.content) if isinstance(widget, Static) else ""


def piloted(recordings, *presses, size=(120, 40)):
    """What the terminal program shows after each of several series of keys, one behind the other."""
    app = Browser(recordings)

    async def press():
        found = []
        async with app.run_test(size=size) as pilot:
            reading = app.screen
            for keys_of_one in presses:
                await pilot.press(*keys_of_one)
                await pilot.pause()
                text = "\n".join(map(written, filter(displayed, app.screen.walk_children())))
                told = [notification.message for notification in app._notifications]
                state = {name: getattr(reading, name) for name in ("group", "response", "passing", "view")}
                name, query = reading.recording.name, str(reading.query_of_groups)
                found.append(SimpleNamespace(**state, name=name, query=query, text=text, told=told))
        return found

    return asyncio.run(press())


def test_the_terminal_program_steps(run):
    keys = [["right", "down"], ["right_square_bracket"], ["left_square_bracket", "j", "k", "p", "a"], ["n"] * 5]
    seen = piloted(read(run), *keys)
    # Groups 0 to 3 are of the first iteration, 4 alone is of the second.
    assert [(at.group, at.response) for at in seen] == [(1, 1), (4, 1), (0, 0), (4, 0)]
    assert "group 2 of 5" in seen[0].text
    assert ["response 1 as sampled" in at.text for at in seen] == [True, True, True, True]  # the last two show all
    assert ["response 0 as sampled" in at.text for at in seen] == [False, False, True, True]


def test_the_terminal_program_filters_and_searches(run):
    clamped, searched, problem, none, nowhere, cleared = piloted(
        read(run),
        ["6"],
        ["0", "slash", *"wa", "enter", "e"],
        ["0", "i", *"ri", "enter"],
        ["1"],
        ["right", "t"],
        ["0"],
    )
    assert (clamped.passing, clamped.group) == ([3], 3)
    assert "9.00 max" in clamped.text
    assert "</script><b>Zürich</b>" in clamped.text
    assert (searched.passing, searched.group, searched.query) == ([0], 0, "text 'wa'")
    assert "no Wait!" in searched.text
    assert (problem.passing, problem.group, problem.query) == ([2], 2, "problem 'ri'")
    assert "no group passes these filters" in none.text
    assert nowhere.text.count("no group passes") == 1
    assert cleared.passing == [0, 1, 2, 3, 4]


def test_the_terminal_program_follows_a_problem_and_compares_runs(run, tmp_path):
    other = write_rollouts(tmp_path / "other", group([2, 2], problem="revived"))
    broken = write_rollouts(tmp_path / "broken", group([2]))
    (broken / "rollouts" / "iteration-000000-rank0.parquet").write_text("no")
    training, opened, beside, absent, right, left = piloted(
        read(run, other, broken), ["t"], ["down", "enter"], ["left_square_bracket", "c"], ["right"], ["r"], ["r"]
    )
    assert "right as sampled" in training.text
    assert (opened.group, opened.view) == (4, "group")
    assert "run, iteration 0" in beside.text
    assert "other, iteration 0" in beside.text
    assert "not drawn in this run" in absent.text
    assert "cannot be read" in right.told[-1]  # the run on the right was to be the broken one
    assert (right.view, left.name) == ("group", "other")
    (alone,) = piloted(read(run), ["c"])
    assert alone.view == "group"
    assert "give two runs" in alone.told[0]


def test_every_key_is_in_the_help_and_in_the_docs(run):
    (shown,) = piloted(read(run), ["question_mark"], size=(120, 50))
    page = (REPO / "docs" / "browse.md").read_text()
    for key in KEYS:
        assert key.meaning in shown.text
        assert f"| {' '.join(f'`{one}`' for one in key.shown.split())} | {key.meaning} |" in page


def test_a_file_that_is_gone_is_told_of_and_can_be_read_again(run):
    recordings = read(run)
    assert len(recordings[0]) == 5
    (run / "rollouts" / "iteration-000001-rank0.parquet").unlink()  # as a resume drops what it writes again
    gone, again = piloted(recordings, ["right_square_bracket"], ["u"])
    assert "holds no rows" in gone.text
    assert "u reads again" in gone.text
    assert (again.passing, again.group) == ([0, 1, 2, 3], 0)
