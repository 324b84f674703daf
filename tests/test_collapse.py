"""How far groups collapse and who revives them, by hand."""

from types import SimpleNamespace

import pytest
import torch

from edge_grpo.algorithms.collapse import (
    advantage_logprob_covariance,
    distinct_answers,
    effective_rows,
    first_shares,
    live_shares,
    revival_metrics,
    revived_by_allocation,
)
from edge_grpo.types.history import History, Visit


def problems(names):
    return tuple(SimpleNamespace(id=name) for name in names)


def test_live_groups_that_history_expects_and_that_there_are():
    history = History()
    # a: 3 of 8 right over two visits. b has none. c: never right, so it is expected dead.
    history.record([("a", Visit(0, 4, 1, 0.25, 0.4)), ("c", Visit(0, 4, 0, 0.0, 0.0))])
    history.record([("a", Visit(1, 4, 2, 0.5, 0.5)), ("a", Visit(1, 0, 0, 0.0, 0.0))])
    pool = SimpleNamespace(
        problems=problems("abc"),
        rows=[[0, 1, 2], [3, 4], [5, 6]],
        correct=torch.tensor([True, True, True, False, True, False, True]),
    )
    found = live_shares(pool, history)
    # a: 1 - (3/8)^3 - (5/8)^3 = 1 - 27/512 - 125/512 = 360/512; c: 0. Observed: a all right, c mixed.
    assert found["collapse/expected_live"] == pytest.approx((360 / 512 + 0) / 2, rel=1e-12)
    assert found["collapse/observed_live"] == 1 / 2
    assert live_shares(pool, History()) == {}


def test_the_first_shares_are_kept_and_no_more():
    before = [0.5] * 99
    assert first_shares(before, 1.0) == [*before, 1.0]
    assert first_shares([*before, 1.0], 0.0) == [*before, 1.0]
    assert len(before) == 99  # a checkpoint may hold it


def update(rewards, advantages, weights=None, computed=None, reads_advantages=True):
    """Groups of two rows of two tokens."""
    advantages = torch.tensor(advantages)
    mask = torch.ones_like(advantages, dtype=torch.bool)
    weights = torch.ones_like(advantages) if weights is None else torch.tensor(weights)
    return SimpleNamespace(
        num_generations=2,
        loss=SimpleNamespace(reads_advantages=reads_advantages),
        rewards=torch.tensor(rewards),
        advantages=advantages,
        old_logprobs=torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0], [-7.0, -8.0]])[: len(advantages)],
        computed=torch.arange(len(advantages)) if computed is None else torch.tensor(computed),
        batch=SimpleNamespace(trained=mask & (weights > 0)),
    )


def scored(names, rewards, texts=()):
    rollout = SimpleNamespace(problems=problems(names), num_generations=2)
    return SimpleNamespace(rollout=rollout, scores=SimpleNamespace(rewards=torch.tensor(rewards)), texts=texts)


def test_dead_groups_by_who_revives_them():
    # Four groups. As sampled a, b and c are dead; a replay puts e in the place of c, a correction mends b.
    sampled = scored("abcd", [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    after = scored("abed", [0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    # The group filter keeps a and d. a is dead and its advantages are not 0.
    kept = update([0.0, 0.0, 0.0, 1.0], [[-1.0, 0.0], [0.0, 0.0], [-1.0, -1.0], [1.0, 1.0]])
    assert revival_metrics(sampled, after, kept) == {
        "collapse/revived_by_advantage": 1 / 4,
        "collapse/revived_by_replay": 1 / 4,
        "collapse/no_advantage": 2 / 4,  # b and e, which the filter has dropped
    }
    assert effective_rows(kept) == 3
    # Advantages of tokens that are not trained on revive nothing.
    silent = update([0.0, 0.0], [[-1.0, 0.0], [0.0, 0.0]], weights=[[0.0, 1.0], [1.0, 1.0]])
    found = revival_metrics(sampled, after, silent)
    assert (found["collapse/revived_by_advantage"], found["collapse/no_advantage"]) == (0, 1)
    # A loss that reads none learns from what is trained on.
    weights = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    other = update([0.0, 0.0, 0.0, 1.0], [[0.0, 0.0]] * 4, weights=weights, reads_advantages=False)
    assert revival_metrics(sampled, after, other)["collapse/no_advantage"] == 3 / 4
    assert effective_rows(silent) == 0


def test_groups_that_uniform_sampling_would_not_have_had():
    # P = 2, G = 2. a: dead at first, its third response is right. b: live at once. c and d are behind the first two, c
    # is live and d dead. e is live and is not chosen.
    rows = [[0, 1, 8], [2, 3], [4, 5], [6, 7], [9, 10]]
    candidate = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0, 4, 4])
    pool = SimpleNamespace(rows=rows, candidate=candidate, rewards=torch.tensor([0.0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1]))
    assert revived_by_allocation(pool, [[1, 8], [2, 3]], 2) == 1 / 2
    assert revived_by_allocation(pool, [[0, 1], [2, 3], [4, 5], [6, 7]], 2) == 1 / 4
    assert revived_by_allocation(pool, [[2, 3], [4, 5]], 3) == 0


def test_different_answers_of_a_group():
    texts = (r"\boxed{1}", r"so \boxed{2}", "none", "none", r"\boxed{1}", r"\boxed{ 1}")
    assert distinct_answers(scored("abc", [0.0] * 6, texts)) == (2 + 0 + 1) / 6


def test_the_covariance_is_over_trained_tokens_of_computed_rows():
    # Of rows 0 and 1 the tokens (A, log pi) = (1, -1), (1, -2), (-2, -4): the token of weight 0 is left out, and rows
    # 2 and 3, whose log-probs nobody took. Means 0 and -7/3: ((-1) + (-2) + 8) / 3.
    given = update(
        [1.0, 0.0, 1.0, 1.0],
        [[1.0, 1.0], [9.0, -2.0], [0.0, 0.0], [0.0, 0.0]],
        weights=[[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]],
        computed=[0, 1],
    )
    assert advantage_logprob_covariance(given)["train/cov_advantage_logprob"] == pytest.approx(5 / 3, rel=1e-12)
    nothing = update([1.0, 0.0], [[1.0, 1.0], [1.0, 1.0]], weights=[[0.0, 0.0], [0.0, 0.0]])
    assert advantage_logprob_covariance(nothing) == {}
