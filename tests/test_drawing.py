"""What an allocation's rounds draw, and what is kept of it."""

import pytest
import torch

from edge_grpo.algorithms.drawing import Stream, drawn, one_each, pooled
from edge_grpo.algorithms.returned import check_groups
from edge_grpo.algorithms.states import load_strategy_states, observe, strategy_states
from edge_grpo.allocations.base import Ask, Draw
from edge_grpo.allocations.uniform import Uniform
from edge_grpo.errors import UserError
from edge_grpo.types.history import History, Visit
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, written_response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores

A, B, C = (Problem(name, "?", ("1",), prompt_ids=(65,)) for name in "abc")


def scored(asks, rewards):
    """Responses of one token, the n-th of length n + 1."""
    problems = one_each(asks)
    tokens = [torch.full((n + 1,), 65) for n in range(len(problems))]
    responses = tuple(written_response(ids, Provenance.SAMPLED, "stop") for ids in tokens)
    values = torch.tensor(rewards)
    scores = Scores(values, {"accuracy": values}, values == 1)
    return ScoredRollout(Rollout(tuple(problems), responses, 1), tuple(map(str, rewards)), scores)


def draw(groups=2, num_generations=2):
    stream = Stream(lambda position: (A, B, C)[position % 3], 4)
    lent = Draw(groups, num_generations, stream.take, History(), 7, torch.Generator())
    return stream, lent


def two_rounds():
    """Two rows of b and of c; then two more of c, and one of a."""
    first = [Ask(B, 2), Ask(C, 2)]
    pool = pooled(None, first, scored(first, [0.0, 1.0, 0.0, 0.0]))
    more = [Ask(C, 2, of=1), Ask(A, 1)]
    return pooled(pool, more, scored(more, [1.0, 0.5, 0.0]))


def test_rounds_join_the_candidates_that_they_are_of():
    pool = two_rounds()
    assert [problem.id for problem in pool.problems] == ["b", "c", "a"]
    assert pool.rows == [[0, 1], [2, 3, 4, 5], [6]]
    assert pool.counts.tolist() == [2, 4, 1]
    assert pool.right.tolist() == [1, 1, 0]
    assert pool.mixed.tolist() == [True, True, False]


def test_what_is_chosen_is_trained_on_and_all_that_was_drawn_is_remembered():
    stream, lent = draw()
    assert [problem.id for problem in stream.take(4)] == ["b", "c", "a", "b"]
    result = drawn(two_rounds(), [[4, 2], [0, 1]], stream, lent)
    assert result.position == 8
    assert [problem.id for problem in result.scored.rollout.problems] == ["c", "b"]
    assert [len(response) for response in result.scored.rollout.responses] == [1, 3, 1, 2]
    assert result.scored.texts == ("1.0", "0.0", "0.0", "1.0")
    assert result.scored.scores.parts["accuracy"].tolist() == [1, 0, 0, 1]
    assert [rewards.tolist() for rewards in result.scored.drawn] == [[0, 0, 1, 0.5], [0, 1]]
    # c: 0, 0, 1, 0.5: mean 0.375; squares about it 2 * 0.140625 + 0.390625 + 0.015625 = 0.6875, over 4 = 0.171875.
    assert dict(result.visits) == {
        "b": Visit(7, 2, 1, 0.5, 0.5),
        "c": Visit(7, 4, 1, 0.375, pytest.approx(0.171875**0.5)),
        "a": Visit(7, 1, 0, 0.0, 0.0),
    }
    # Lengths 1 to 4, then 1 to 3: 16 tokens, of which 7 are trained on. Of three candidates a is uniform.
    expected = {"candidates": 3, "skipped": 0, "collapsed": 1 / 3, "groups": 2, "rows_drawn": 7, "tokens_drawn": 16}
    expected["tokens_not_trained"] = 9
    expected = {f"allocation/{name}": value for name, value in expected.items()}
    # c's first two responses are rewarded equally, and the two that were chosen are not.
    assert result.metrics == pytest.approx({**expected, "collapse/revived_by_allocation": 1 / 2})


def test_a_problem_that_was_taken_and_not_asked_for_is_skipped():
    stream, lent = draw()
    stream.take(2)
    asks = [Ask(B, 2)]
    result = drawn(pooled(None, asks, scored(asks, [0.0, 1.0])), [[0, 1]], stream, lent)
    assert result.metrics["allocation/skipped"] == 1
    history = History()
    history.record(result.visits)
    assert (dict(history.skipped), list(history.visits)) == ({"c": 1}, ["b"])


@pytest.mark.parametrize("chosen", [[], [[0]], [[0, 0]], [[0, 2]], [[0, 1, 1]], [[0, 1], [2, 3], [4, 5]]])
def test_what_is_no_whole_group_is_refused(chosen):
    with pytest.raises(UserError, match=r"^mine: select .* expected 1 to 2 groups of 2 different rows of one problem"):
        check_groups("mine", chosen, two_rounds(), draw()[1])


def test_uniform_trains_on_the_next_problems_and_keeps_one_that_comes_twice_apart():
    lent = draw(groups=4)[1]
    asks = Uniform().first(lent)
    assert [(ask.problem.id, ask.rows, ask.of) for ask in asks] == [(name, 2, None) for name in "bcab"]
    pool = pooled(None, asks, scored(asks, [0.0] * 8))
    assert Uniform().more(pool, lent) == []
    assert Uniform().select(pool, lent) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_history_is_the_same_after_a_checkpoint_and_a_snapshot_does_not_change():
    history = History()
    history.record([("a", Visit(0, 8, 2, 0.25, 0.4)), ("b", Visit(0, 0, 0, 0.0, 0.0)), ("a", Visit(1, 8, 0, 0.0, 0.0))])
    snapshot = history.state_dict()
    again = History.of_state(snapshot)
    assert again.visits == history.visits
    assert again.skipped == history.skipped
    assert [visit.iteration for visit in again.of("a")] == [0, 1]
    assert again.of("c") == ()
    history.record([("c", Visit(2, 8, 8, 1.0, 0.0))])
    assert "c" not in History.of_state(snapshot).visits


class Counts:
    """Keeps how often it was shown an update."""

    def __init__(self, base=None):
        self.seen = 0
        if base is not None:
            self.base = base

    def observe(self, groups):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_strategies_inside_others_are_shown_the_update_and_keep_their_state():
    strategies = {"advantage": Counts(base=Counts()), "loss": object()}
    observe(strategies, None)
    strategies["advantage"].base.seen = 5
    states = strategy_states(strategies)
    assert states == {"advantage": {"seen": 1}, "advantage.base": {"seen": 5}}
    fresh = {"advantage": Counts(base=Counts()), "loss": object()}
    load_strategy_states(fresh, states)
    assert (fresh["advantage"].seen, fresh["advantage"].base.seen) == (1, 5)
    with pytest.raises(UserError, match="the checkpoint has no state of correction"):
        load_strategy_states({"correction": Counts()}, states)
