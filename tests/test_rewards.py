from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from edge_grpo.errors import UserError
from edge_grpo.rewards.accuracy import Accuracy
from edge_grpo.rewards.always_one import AlwaysOne
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rewards.boxed_format import BoxedFormat
from edge_grpo.rewards.verifier import Pair
from edge_grpo.types import Problem

CONF = sorted((Path(__file__).parents[1] / "conf" / "reward").glob("*.yaml"))


class SameText:
    """A verifier that wants the gold text itself and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Sequence[Pair]] = []

    def __call__(self, pairs: Sequence[Pair]) -> list[bool]:
        self.calls.append(pairs)
        return [answer in golds for answer, golds in pairs]


def problem(*answers: str) -> Problem:
    return Problem(id="p", question="?", answers=answers, origin="data.json:3")


PROBLEMS = [problem("5"), problem("5"), problem("5"), problem("6", "5")]
TEXTS = [r"\boxed{4} no, \boxed{5}", r"\boxed{6}", "5", r"\boxed{5}"]


def test_accuracy_grades_the_last_box_of_each_text_in_one_call() -> None:
    verifier = SameText()
    scores = Accuracy(verifier)(PROBLEMS, TEXTS)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert verifier.calls == [[("5", ("5",)), ("6", ("5",)), (None, ("5",)), ("5", ("6", "5"))]]


def test_accuracy_refuses_a_problem_without_gold() -> None:
    with pytest.raises(UserError, match=r"data\.json:3"):
        Accuracy(SameText())([problem()], [r"\boxed{5}"])


def test_accuracy_refuses_texts_that_do_not_pair_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        Accuracy(SameText())(PROBLEMS, TEXTS[:2])


def test_format_asks_for_a_box_and_the_official_one_for_nothing() -> None:
    assert BoxedFormat()(PROBLEMS, TEXTS).tolist() == [1.0, 1.0, 0.0, 1.0]
    assert AlwaysOne()(PROBLEMS, TEXTS).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert AlwaysOne()([], []).dtype == torch.float32


def test_weighted_sum_and_right_by_accuracy_alone() -> None:
    rewards = WeightedRewards(
        {"accuracy": Accuracy(SameText()), "format": BoxedFormat()}, {"accuracy": 2.0, "format": 0.5}
    )
    scores = rewards(PROBLEMS, TEXTS)
    assert scores.rewards.tolist() == [2.5, 0.5, 0.0, 2.5]  # 2 * accuracy + 0.5 * format
    assert scores.correct.tolist() == [True, False, False, True]  # the second has a box and is still wrong
    assert rewards.max_reward == 2.5


def test_no_rows_are_no_scores() -> None:
    scores = WeightedRewards({"accuracy": Accuracy(SameText())}, {"accuracy": 1.0})([], [])
    assert scores.rewards.shape == (0,)


def test_names_must_match_and_hold_accuracy() -> None:
    with pytest.raises(UserError, match="accuracy"):
        WeightedRewards({"format": BoxedFormat()}, {"format": 1.0})
    with pytest.raises(UserError, match="weights"):
        WeightedRewards({"accuracy": Accuracy(SameText())}, {"accuracy": 1.0, "format": 1.0})


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_every_config_builds_a_weighted_reward(path: Path) -> None:
    if path.stem == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    rewards = instantiate(OmegaConf.load(path))
    assert isinstance(rewards, WeightedRewards)
    assert type(rewards.rewards) is dict
    assert all(weight == 1.0 for weight in rewards.weights.values())


def test_official_config_rewards_the_format_of_anything() -> None:
    path = next(path for path in CONF if path.stem == "official")
    scores = instantiate(OmegaConf.load(path))([problem("5")] * 2, [r"\boxed{5}", "no box"])
    assert scores.rewards.tolist() == [2.0, 1.0]
    assert scores.correct.tolist() == [True, False]
