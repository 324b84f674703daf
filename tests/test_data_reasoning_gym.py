"""Problems of reasoning_gym."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from edge_grpo.command_line.check import instantiate
from edge_grpo.corrections.keep import Keep
from edge_grpo.data.reasoning_gym import ReasoningGymDataModule
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rewards.reasoning_gym import ReasoningGymAccuracy

CONF = Path(__file__).parents[1] / "conf"
pytest.importorskip("reasoning_gym")


def configured(*overrides: str) -> ReasoningGymDataModule:
    small = ["+seed=0", "data.train_count=20", "data.held_out_count=5"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("data/reasoning_gym", overrides=[*small, *overrides]).data)


def test_problems_carry_what_the_scorer_needs() -> None:
    import reasoning_gym

    train, held_out = configured().load()
    assert (len(train), len(held_out)) == (20, 5)
    score = reasoning_gym.get_score_answer_fn("chain_sum")
    for problem in train + held_out:
        assert problem.extra["generator"] == "chain_sum"
        assert problem.question == problem.extra["entry"]["question"]
        assert score(problem.answers[0], problem.extra["entry"]) == 1.0


def test_sets_are_disjoint_seeded_and_independent_of_each_other() -> None:
    train, held_out = configured().load()
    questions = [p.question for p in train + held_out]
    assert len(set(questions)) == 25
    assert configured("seed=1").load() == (train, held_out)
    assert configured("data.problem_seed=7").load() != (train, held_out)
    assert configured("data.train_count=30").load()[1] == held_out
    assert configured("data.held_out_count=9").load()[0][:5] == train[:5]


def test_the_generator_is_configured() -> None:
    train, _ = configured("+data.generator_config={min_terms: 2, max_terms: 2, min_digits: 3, max_digits: 3}").load()
    assert all(p.extra["entry"]["metadata"]["num_terms"] == 2 for p in train)


def test_a_generator_without_gold_answers_is_taken_by_a_scorer_that_needs_none() -> None:
    data = configured("data.generator=graph_color", "data.max_prompt_tokens=2000")
    rewards = WeightedRewards({"accuracy": ReasoningGymAccuracy()}, {"accuracy": 1.0})
    data.load_prepared(
        byte_tokenizer(),
        required_fields=Keep.required_fields,
        grade=lambda problems, texts: rewards(problems, texts).correct,
        ungradable=rewards.ungradable,
    )
    assert [p.answers for p in data.train_problems] == [()] * 20


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.generator=chain_smu"], r"data\.generator=chain_smu: no such generator; did you mean chain_sum\?"),
        (["+data.generator_config={min_term: 2}"], r"data\.generator_config\.min_term: .*did you mean min_terms\?"),
        (["+data.generator_config={size: 2}"], r"data\.generator_config\.size: chain_sum has none"),
        (["+data.generator_config={min_terms: 9, max_terms: 2}"], r"data\.generator_config=.*chain_sum says"),
        # One-digit sums of two terms: fewer than 10 * 10 * 2 questions exist, 500 are asked for.
        (
            [
                "+data.generator_config={min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}",
                "data.train_count=500",
            ],
            r"only \d+ distinct questions for data\.train_count=500",
        ),
    ],
)
def test_what_cannot_be_made_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured(*overrides).load()


def test_a_count_out_of_range_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"data\.held_out_count=0"):
        configured("data.held_out_count=0")
    hidden: Any = None
    monkeypatch.setitem(sys.modules, "reasoning_gym", hidden)
    with pytest.raises(UserError, match=r"pip install 'edge-grpo\[reasoning_gym\]'"):
        configured().load()
