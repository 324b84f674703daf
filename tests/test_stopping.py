"""What ends a run besides its iterations: a budget of generated tokens, exact however the run is cut."""

import json
from types import SimpleNamespace

import pytest
from small_runs import SHORT, equal_weights, metrics_rows, run_small, weights

from edge_grpo.errors import UserError
from edge_grpo.programs import train_run
from edge_grpo.runs.checkpoints import checkpoints
from edge_grpo.runs.stopping import TokenBudget, expected_iterations, is_last

# Two problems of two responses of at most 8 tokens, and reflections: 32 tokens an iteration and more.
LONG = (
    "experiment=edge_grpo",
    "trainer.max_iterations=6",
    "evaluation.every_n_iterations=4",
    *SHORT,
    "optimizer.lr=0.01",
)
BUDGET = (*LONG, "trainer.max_generated_tokens=150")


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """The run without a budget."""
    return run_small(tmp_path_factory.mktemp("free") / "run", *LONG)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return run_small(tmp_path_factory.mktemp("ended") / "run", *BUDGET)


def test_the_iteration_that_reaches_the_budget_is_the_last(free, ended):
    tokens = [int(float(row["train/num_generated_tokens"])) for row in metrics_rows(free)[:-1]]
    last = next(i for i, total in enumerate(tokens) if total >= 150)
    assert 0 < last < 5  # else the budget would show nothing
    found = summary(ended)
    assert (found["iterations"], found["generated_tokens"]) == (last + 1, tokens[last])
    assert found["ended_by"] == {"trainer.max_generated_tokens": 150}
    assert summary(free)["ended_by"] == {"trainer.max_iterations": 6}
    # Its end is that of max_iterations: evaluated, saved, and until then the same numbers.
    rows, whole = metrics_rows(ended, timed=False), metrics_rows(free, timed=False)
    assert [row["eval/held_out/avg@1"] != "" for row in rows] == [True] + [False] * last + [True]
    for row, other in zip(rows[:-1], whole, strict=False):
        assert [(k, v, other[k]) for k, v in row.items() if not k.startswith("eval/") and v != other[k]] == []
    assert [path.name for path in checkpoints(ended / "checkpoints")][-1] == f"iteration-{last + 1:06d}"
    assert json.loads((ended / "status.json").read_text())["state"] == "finished"


def test_it_stays_finished_and_goes_on_under_a_larger_budget(free, tmp_path, caplog):
    folder = run_small(tmp_path, *BUDGET)
    before = (folder / "metrics.csv").read_bytes()
    with caplog.at_level("INFO"):
        run_small(folder, *BUDGET)
    assert "is finished: nothing is left of trainer.max_generated_tokens=150" in caplog.text
    run_small(folder, *BUDGET, "trainer.max_iterations=9")
    assert (folder / "metrics.csv").read_bytes() == before
    with pytest.raises(UserError, match=r"max_generated_tokens=40, but .* has generated \d+: raise it"):
        run_small(folder, *LONG, "trainer.max_generated_tokens=40")
    run_small(folder, *LONG)
    assert equal_weights(weights(folder), weights(free))
    assert summary(folder)["ended_by"] == {"trainer.max_iterations": 6}


def test_a_run_killed_before_its_summary_does_not_go_on(ended, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train_run, "write_results", killed)
        with pytest.raises(Killed):
            run_small(tmp_path, *BUDGET)
    with pytest.raises(UserError, match=r"max_generated_tokens=40, but the checkpoint has generated \d+: raise it"):
        run_small(tmp_path, *LONG, "trainer.max_generated_tokens=40")
    run_small(tmp_path, *BUDGET)
    assert equal_weights(weights(tmp_path), weights(ended))
    assert metrics_rows(tmp_path, timed=False) == metrics_rows(ended, timed=False)
    keys = ("iterations", "generated_tokens", "ended_by", "accuracy")
    assert [summary(tmp_path)[key] for key in keys] == [summary(ended)[key] for key in keys]


def test_a_run_that_is_stopped_in_between_ends_at_the_same_iteration(ended, tmp_path):
    run_small(tmp_path, *BUDGET, "trainer.max_iterations=1")
    run_small(tmp_path, *BUDGET)
    assert equal_weights(weights(tmp_path), weights(ended))
    assert summary(tmp_path)["iterations"] == summary(ended)["iterations"]


def test_bad_values_and_algorithms_that_generate_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.max_generated_tokens=0 must be at least 1"):
        TokenBudget(0)
    with pytest.raises(UserError, match=r"max_generated_tokens=9, but SFTModule generates nothing: set it to null"):
        run_small(tmp_path, "trainer.max_generated_tokens=9", config_name="sft")


@pytest.mark.parametrize(
    ("tokens", "generated", "stop", "expected"),
    # After 3 of at most 20 iterations. 300 tokens: 100 an iteration, so 850 are reached in the 9th.
    [(850, 300, False, 9), (5000, 300, False, 20), (None, 300, False, 20), (850, 0, False, 20), (850, 900, True, 3)],
)
def test_the_iterations_to_expect(tokens, generated, stop, expected):
    trainer = SimpleNamespace(max_epochs=20, current_epoch=2, should_stop=stop, callbacks=[TokenBudget(tokens)])
    module = SimpleNamespace(num_generated_tokens=generated)
    assert expected_iterations(trainer, module) == expected
    assert is_last(trainer) is stop
