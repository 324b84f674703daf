"""How a run stands, read from outside."""

import errno
import fcntl
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from small_runs import run_small

from edge_grpo.browsing.opening import Recordings
from edge_grpo.callbacks import rollouts
from edge_grpo.callbacks.step_rows import append_rows, cut_back
from edge_grpo.errors import Stopped, UserError
from edge_grpo.runs.directory import alone_in
from edge_grpo.runs.status import RunStatus, read_status, write_status


def test_a_run_that_says_it_runs_and_is_held_by_nobody_was_killed(tmp_path):
    assert read_status(tmp_path) == RunStatus("unknown")
    with alone_in(tmp_path):
        write_status(tmp_path, "running")
        assert read_status(tmp_path).state == "running"
    assert read_status(tmp_path).state == "killed"
    write_status(tmp_path, "failed", "no room")
    assert read_status(tmp_path) == RunStatus("failed", "no room")


def test_a_disk_without_locks_is_told_and_a_run_there_is_not_called_killed(tmp_path, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with alone_in(tmp_path):
        write_status(tmp_path, "running")
        assert read_status(tmp_path).state == "running"
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path}: its disk gives no locks (No locks available)")
    assert read_status(tmp_path).state == "running"  # nobody knows better


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("broken"), RunStatus("failed", "ValueError: broken")),
        (UserError("mend it"), RunStatus("failed", "mend it")),
        (Stopped(15), RunStatus("stopped")),
    ],
)
def test_a_run_says_how_it_ended(tmp_path, monkeypatch, raised, expected):
    def fail(*args, **options):
        raise raised

    monkeypatch.setattr(rollouts, "rollout_rows", fail)
    with pytest.raises(type(raised)):
        run_small(tmp_path, "experiment=vanilla")
    assert read_status(tmp_path) == expected


def test_a_run_that_never_began_is_there_to_be_listed(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        run_small(tmp_path, "experiment=vanilla", "data.correctness_rates=nowhere.json")
    assert read_status(tmp_path).state == "failed"
    assert (tmp_path / "config.yaml").exists()


def test_a_refused_resume_leaves_a_finished_run_finished(tmp_path):
    run_small(tmp_path, "experiment=vanilla")
    assert read_status(tmp_path).state == "finished"
    with pytest.raises(UserError, match="other settings"):
        run_small(tmp_path, "experiment=vanilla", "optimizer.lr=0.5")
    assert read_status(tmp_path).state == "finished"


def test_every_response_of_a_run_has_its_line(tmp_path):
    run_small(tmp_path, "experiment=edge_grpo", "correction.reflection_tokens=8", "correction.max_response_tokens=128")
    rows = pq.read_table(tmp_path / "rollouts").to_pylist()
    # 2 iterations of 2 problems with 2 responses each; a random policy is never right.
    assert [(row["step"], row["row"]) for row in rows] == [(step, g) for step in (0, 1) for g in (0, 1, 0, 1)]
    for row in rows:
        assert (row["correct"], row["tokens"]) == (False, 8)
        assert 5.0 < row["entropy"] < 5.57  # near ln 261
        assert row["branch"] in ("reflect", "answer", "solution")
        assert row["correct_after"] == (row["branch"] != "reflect")
        assert row["sampled_tokens_after"] == {"solution": 0, "answer": 8}.get(
            row["branch"], row["sampled_tokens_after"]
        )
        assert row["advantage"] is not None
    revived = [row for row in rows if row["advantage"] != 0]
    assert all(row["eda/multiplier"] > 0 and row["eda/clamped"] in (0, 1) for row in revived)
    for row in revived:
        assert row["advantage"] == pytest.approx(row["advantage/base"] * row["eda/multiplier"], rel=1e-5)
    # A right and a wrong row of a group have advantages of opposite sign.
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        if first["correct_after"] != second["correct_after"]:
            assert first["advantage"] * second["advantage"] < 0
    # The same as a reader of groups has it.
    (recording,) = Recordings([str(tmp_path)])
    assert (len(recording), recording.sections) == (4, [0, 1])
    for i in range(4):
        for response in recording.group(i).responses:
            assert not response.before.correct
            assert response.before.tokens == len(response.before.characters) == len(response.before.entropies) == 8
            assert {by for by, _ in response.before.pieces} == {"sampled"}
            assert response.after.correct == (response.branch != "reflect")
            tokens = list(response.after.tokens_of_text())
            assert "".join(text for _, text, _ in tokens) == response.after.text
            assert sum(response.after.characters) == len(response.after.text)
            assert all((nats is not None) == (by == "sampled") for by, _, nats in tokens)
            if response.branch == "solution":
                assert {by for by, _ in response.after.pieces} == {"reference"}
            if response.advantage:
                assert response.advantage == pytest.approx(response.base_advantage * response.multiplier, rel=1e-5)


def test_rows_that_the_group_filter_took_out_have_no_advantage(tmp_path):
    run_small(tmp_path, "experiment=vanilla", "group_filter=drop_zero_variance")
    rows = pq.read_table(tmp_path / "rollouts").to_pylist()
    # Every group is all wrong; where all are dropped the first stands in with weight 0.
    assert [row["advantage"] for row in rows] == [0.0, 0.0, None, None] * 2
    assert not {"eda/multiplier", "advantage/base"} & rows[0].keys()  # vanilla reports nothing


def test_a_finished_run_whose_process_died_before_it_said_so_is_finished(tmp_path):
    run_small(tmp_path, "experiment=vanilla")
    write_status(tmp_path, "running")
    assert read_status(tmp_path).state == "killed"
    run_small(tmp_path, "experiment=vanilla")  # has nothing left to do
    assert read_status(tmp_path).state == "finished"


def test_starting_over_drops_the_evaluations_of_the_former_weights(tmp_path):
    run_small(tmp_path, "experiment=vanilla")
    results = tmp_path / "evaluation" / "arithmetic" / "results.json"
    results.parent.mkdir(parents=True)
    results.write_text("{}")
    run_small(tmp_path, "experiment=vanilla", "resume=never")
    assert not results.exists()


def test_the_seconds_of_a_resumed_run_are_those_of_all_sessions(tmp_path):
    run_small(tmp_path, "experiment=vanilla", "trainer.max_iterations=1")
    table = tmp_path / "metrics.csv"
    metrics = pd.read_csv(table)
    metrics.loc[0, "timing_s/total"] = 1000.0  # of the first session
    metrics.to_csv(table, index=False)
    run_small(tmp_path, "experiment=vanilla", "trainer.max_iterations=2")
    timed = pd.read_csv(table)[["timing_s/total", "timing_s/evaluation"]]
    assert timed["timing_s/total"].gt(0).sum() == 2  # an iteration of each session
    assert json.loads((tmp_path / "summary.json").read_text())["seconds"] == round(float(timed.sum().sum()), 1) >= 1000


def test_rows_that_a_full_disk_refuses_leave_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    append_rows(path, 0, [{"a": 1}])
    opened = Path.open

    def full(self, mode="r", **options):
        file = opened(self, mode, **options)
        if "a" in mode:
            file.write('{"step": 1, "a')
            file.flush()
            file.close()
            raise OSError(28, "No space left on device")
        return file

    monkeypatch.setattr(Path, "open", full)
    append_rows(path, 1, [{"a": 2}])
    monkeypatch.undo()
    append_rows(path, 2, [{"a": 3}])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 2]


def test_rows_of_the_resumed_step_and_later_are_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    for step in range(4):
        append_rows(path, step, [{"a": 1}, {"a": 2}])
    kept = cut_back(path, 2)
    assert [row["step"] for row in kept] == [0, 0, 1, 1]
    assert [json.loads(line) for line in path.read_text().splitlines()] == kept
    assert cut_back(tmp_path / "absent.jsonl", 2) == []
