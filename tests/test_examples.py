"""Strategies of somebody else: one of each kind, outside the package, through the real command line."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import SMALL_GRPO, command, offline_history, run_small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edge_grpo.errors import UserError
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rewards.function import FunctionReward
from edge_grpo.types.problems import Problem

REPO = Path(__file__).resolve().parent.parent
EXAMPLES = REPO / "tests" / "examples"
STAGES = ("advantage", "allocation", "correction", "group_filter", "loss", "reward")
OURS = {"mine/rank", "mine/entropy", "mine/tries"}


def test_a_strategy_of_each_kind_works_from_outside_and_its_metrics_reach_every_logger(tmp_path):
    chosen = [f"{stage}=mine" for stage in STAGES]
    mine = shutil.copytree(EXAMPLES, tmp_path / "mine")  # far from the project
    tmp_path = tmp_path / "run"
    argv = ["--config-dir", str(mine / "conf"), *SMALL_GRPO, *chosen, "allowed_targets=[my_strategies]"]
    argv += ["data.problems_per_iteration=4", "logger=[csv,tensorboard,wandb]", f"hydra.run.dir={tmp_path}"]
    process = command(*argv, path=mine)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    with (tmp_path / "metrics.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first.keys() >= OURS
    # Ranks of pairs are 0 and 1; a loss without a clip has no clip_ratio.
    assert float(first["mine/rank"]) == 0.5
    assert 0 < float(first["mine/entropy"]) < 5.57  # nats; ln 261 is the most that 261 tokens have
    assert not [name for name in first if "clip_ratio/" in name]
    # 2 rollouts a problem, 4 problems a round, and what the correction generated again.
    tried = float(first["correction/again/count"]) * float(first["mine/tries"])
    assert tried > 0
    assert float(first["train/num_rollouts"]) == pytest.approx(float(first["allocation/rows_drawn"]) + tried)
    assert float(first["allocation/rows_drawn"]) == 8 * float(first["allocation/rounds"])
    assert first["allocation/groups"] == "4.0"
    assert {name for row in offline_history(tmp_path) for name in row} >= OURS
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= OURS


@pytest.mark.parametrize("page", ["CONTRIBUTING.md"])
def test_the_page_shows_these_files(page):
    text = (REPO / page).read_text()
    assert (EXAMPLES / "my_strategies.py").read_text().strip() in text
    for stage in STAGES:
        assert (EXAMPLES / "conf" / stage / "mine.yaml").read_text().strip() in text, stage


def test_a_correction_that_generates_twice_gets_different_tokens(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import my_strategies

    seen = []

    original = my_strategies.TryAgain.__call__

    def twice(self, scored, tools):
        prefix = [list(scored.rollout.problem_of(0).prompt_ids)]
        seen.append([tools.generate(prefix, [8])[0].token_ids.tolist() for _ in range(2)])
        return original(self, scored, tools)

    monkeypatch.setattr(my_strategies.TryAgain, "__call__", twice)
    settings = ("correction=none", "correction._target_=my_strategies.TryAgain", "allowed_targets=[my_strategies]")
    run_small(tmp_path / "one", *settings, "trainer.max_iterations=1")
    run_small(tmp_path / "two", *settings, "trainer.max_iterations=1")
    (first, second), again = seen
    assert first != second
    assert again == [first, second]


PROBLEM = Problem("p", "1 + 1 = ?", ("2",), origin="f.json:3")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned None, expected a number"),
        ("high", "returned 'high', expected a number"),
        (ZeroDivisionError("no"), "raised ZeroDivisionError: no"),
    ],
)
def test_what_a_function_returns_wrongly_is_told_with_the_problem(returned, message):
    def mine(question, answer, response):
        if isinstance(returned, Exception):
            raise returned
        return returned

    with pytest.raises(UserError, match=r"reward function .*mine, problem f\.json:3: ") as caught:
        FunctionReward(mine)([PROBLEM], ["2"])
    assert message in str(caught.value)


def test_the_best_of_several_gold_answers_counts_and_nan_does_not():
    reward = FunctionReward(lambda question, answer, response: {"a": 0.25, "b": 0.75}.get(answer, float("nan")))
    assert reward([Problem("p", "?", ("a", "c", "b"))], [""]).tolist() == [0.75]
    assert reward([Problem("p", "?", ("c",))], [""]).isnan().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, None], "returned [None, None], expected 2 numbers"),
        (torch.zeros(1), "returned shape (1,) for 2 responses, expected (2,)"),
        (torch.zeros(2, 1), "returned shape (2, 1) for 2 responses, expected (2,)"),
    ],
)
def test_what_a_reward_returns_wrongly_is_told_by_its_name(values, message):
    rewards = WeightedRewards({"accuracy": lambda problems, texts: values}, {"accuracy": 1.0})
    with pytest.raises(UserError) as caught:
        rewards([PROBLEM] * 2, ["", ""])
    assert str(caught.value).startswith("reward accuracy (function) ")
    assert message in str(caught.value)


@pytest.mark.parametrize("values", [[1, 0], [1.0, 0.0], torch.tensor([1, 0]), torch.tensor([1.0, 0.0]).double()])
def test_numbers_of_any_kind_are_taken(values):
    scores = WeightedRewards({"accuracy": lambda problems, texts: values}, {"accuracy": 0.5})([PROBLEM] * 2, ["", ""])
    assert (scores.rewards.dtype, scores.rewards.tolist()) == (torch.float32, [0.5, 0.0])
