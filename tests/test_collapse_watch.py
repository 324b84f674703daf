"""A run whose groups have collapsed is told of, or ends."""

import json
from types import SimpleNamespace

import pytest
from small_runs import metrics_rows, run_small

from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.callbacks.collapse_watch import CollapseWatch
from edge_grpo.errors import UserError


def shown(watch, *rates):
    """Whether the run was asked to end after each of these collapse rates."""
    trainer = SimpleNamespace(should_stop=False, is_global_zero=True)
    asked = []
    for rate in rates:
        watch.on_train_batch_end(trainer, None, {"iteration": Iteration({"collapse/acr": rate})})
        asked.append(trainer.should_stop)
    return asked


def test_it_warns_once_until_the_mean_has_fallen(caplog):
    # Means of two: -, 0.9, 1.0, 0.5, 0.5, 1.0
    assert not any(shown(CollapseWatch(2, 0.9, "warn"), 0.8, 1.0, 1.0, 0.0, 1.0, 1.0))
    assert [m.split(":")[1][:5] for m in caplog.messages] == [" 90 %", " 100 "]


def test_it_ends_the_run_at_the_threshold_and_keeps_its_window():
    watch = CollapseWatch(3, 0.5, "stop")
    assert shown(watch, 1.0, 0.0) == [False, False]
    resumed = CollapseWatch(3, 0.5, "stop")
    resumed.load_state_dict(watch.state_dict())
    assert shown(resumed, 0.4, 1.0, 0.1) == [False, False, True]  # means 1.4/3, 1.4/3, 1.5/3


@pytest.mark.parametrize("bad", [(0, 0.5, "warn"), (1, 0.0, "warn"), (1, 1.1, "warn"), (1, 0.5, "end")])
def test_bad_values_are_refused(bad):
    with pytest.raises(UserError, match=r"callbacks\.collapse_watch\."):
        CollapseWatch(*bad)


def test_an_algorithm_without_groups_is_refused():
    with pytest.raises(UserError, match="SimpleNamespace samples no groups: set it to null"):
        CollapseWatch(1, 0.5, "warn").check_module(SimpleNamespace())


def test_a_stopped_run_is_finished_and_stays_so(tmp_path, caplog):
    # The random model is never right, so every group is dead.
    settings = ("experiment=vanilla", "callbacks=collapse_watch", "callbacks.collapse_watch.window=2")
    settings = (*settings, "callbacks.collapse_watch.action=stop", "trainer.max_iterations=5")
    run_small(tmp_path, *settings)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert summary["ended_by"]["callbacks.collapse_watch"]["action"] == "stop"
    assert metrics_rows(tmp_path)[-1]["eval/held_out/avg@1"] != ""
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    with caplog.at_level("INFO"):
        run_small(tmp_path, *settings)
    assert "is finished: nothing is left of callbacks.collapse_watch" in caplog.text
