"""Groups that change ranks before an update: which, and that nothing is lost. Of the gradient: test_invariance.py."""

import pickle
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.algorithms.balance import balanced, balanced_steps, exchanged, groups_of, imbalances, joined
from edge_grpo.algorithms.grpo import GRPOModule
from edge_grpo.algorithms.rows import group_tokens
from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, reference_response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores

G = 2


def loads(costs, places):
    return [sum(costs[rank][group] for rank, group in own) for own in places]


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=5))
def test_every_group_is_somewhere_once_and_no_exchange_of_two_helps_the_fullest_rank(costs):
    places = balanced(costs)
    assert [len(own) for own in places] == [len(own) for own in costs]
    assert Counter(place for own in places for place in own) == Counter(
        (rank, group) for rank, own in enumerate(costs) for group in range(len(own))
    )
    held = loads(costs, places)
    full = max(range(len(held)), key=held.__getitem__)
    assert held[full] <= max(map(sum, costs))
    for other, own in enumerate(places):
        for rank, group in places[full]:
            for there, their in own:
                shift = costs[rank][group] - costs[there][their]
                assert max(held[full] - shift, held[other] + shift) >= held[full] or other == full


def test_what_is_balanced_stays_where_it_is():
    assert balanced([[3, 3], [3, 3]]) == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    assert balanced([[0, 0], [0, 0]]) == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    assert balanced([[100], [1]]) == [[(0, 0)], [(1, 0)]]
    # Only what must move does: the others keep their numbers.
    assert balanced([[5, 1, 9, 1], [5, 1, 1, 1]]) == [
        [(1, 1), (0, 1), (0, 2), (0, 3)],
        [(1, 0), (0, 0), (1, 2), (1, 3)],
    ]


def test_groups_stay_in_their_optimiser_step():
    costs = [[9, 8, 0, 0], [1, 2, 0]]
    assert balanced_steps(costs, None, G) == balanced(costs)
    places = balanced_steps(costs, 2 * 2 * G, G)  # two groups of each of two ranks
    for own in places:
        assert [group // 2 for _, group in own] == [group // 2 for group in range(len(own))]
    assert loads(costs, places) == [10, 10]
    assert imbalances(costs, places) == {
        "perf/token_imbalance/drawn": pytest.approx(0.7),
        "perf/token_imbalance/update": 0.0,
    }
    assert set(imbalances([[0], [0]], [[(0, 0)], [(1, 0)]]).values()) == {0.0}


def drawn(rank, groups=2, reports=None):
    """What a rank drew and corrected: responses of 1, 2, ... tokens; the last row of each group is edited."""
    problems = tuple(
        Problem(f"{rank}-{i}", "?", ("1",), prompt_ids=(1, 2, 3), columns=MappingProxyType({"level": i}))
        for i in range(groups)
    )
    n = groups * G
    responses = tuple(reference_response(range(row + 1)) for row in range(n))
    rewards = 10.0 * rank + torch.arange(n)
    scores = Scores(rewards, {"accuracy": rewards / 2}, rewards % 2 == 0)
    sampled = ScoredRollout(
        Rollout(problems, responses, G),
        tuple(f"{rank}.{row}" for row in range(n)),
        scores,
        tuple(torch.tensor([float(rank), i]) for i in range(groups)),
    )
    edited = [reference_response([7] * 9) if row % G == G - 1 else r for row, r in enumerate(responses)]
    after = replace(sampled, rollout=replace(sampled.rollout, responses=tuple(edited)))
    branches = tuple("edited" if row % G == G - 1 else None for row in range(n))
    return sampled, Corrected(after, branches, reports or {})


def told(scored):
    """All that is known of a rollout, group by group."""
    return [
        (
            problem.id,
            dict(problem.columns),
            [
                (r.token_ids.tolist(), r.provenance.tolist(), scored.texts[row], *values)
                for row, r in enumerate(scored.rollout.responses)
                if scored.rollout.problem_of(row) is problem
                for values in [
                    (
                        float(scored.scores.rewards[row]),
                        float(scored.scores.parts["accuracy"][row]),
                        bool(scored.scores.correct[row]),
                    )
                ]
            ],
            scored.drawn[i].tolist(),
        )
        for i, problem in enumerate(scored.rollout.problems)
    ]


def test_groups_cut_and_joined_are_the_rollout():
    sampled, corrected = drawn(1, groups=3, reports={"chosen": torch.arange(6.0)})
    again, after = joined(groups_of(sampled, corrected))
    assert told(again) == told(sampled)
    assert told(after.scored) == told(corrected.scored)
    assert after.branches == corrected.branches
    assert torch.equal(after.reports["chosen"], corrected.reports["chosen"])


def test_exchanged_groups_arrive_whole_through_a_pickle():
    ranks = [drawn(0), drawn(1, reports={"chosen": torch.arange(4.0)})]
    places = [[(1, 1), (0, 1)], [(1, 0), (0, 0)]]
    sent = {}

    def first(rank):
        def delivered(parcels):
            sent[rank] = [pickle.dumps(parcel) for parcel in parcels]
            raise StopIteration

        return delivered

    for rank, own in enumerate(ranks):
        with pytest.raises(StopIteration):
            exchanged(*own, places, rank, first(rank))
    # What stays is not sent, and what leaves to one rank only.
    assert [[sorted(pickle.loads(parcel)) for parcel in sent[rank]] for rank in (0, 1)] == [[[], [0]], [[1], []]]

    def arrive(at):
        return lambda _: [pickle.loads(sent[rank][at]) for rank in (0, 1)]

    (here, after), (there, after_there) = (
        exchanged(*own, places, rank, arrive(rank)) for rank, own in enumerate(ranks)
    )
    originals = [told(sampled) for sampled, _ in ranks]
    assert told(here) == [originals[1][1], originals[0][1]]
    assert told(there) == [originals[1][0], originals[0][0]]
    assert after.branches == after_there.branches == (None, "edited") * 2
    assert after.reports["chosen"][:2].tolist() == [2.0, 3.0]
    assert after.reports["chosen"][2:].isnan().all()
    # Callbacks know an untouched response by its identity.
    same = [a is b for a, b in zip(here.rollout.responses, after.scored.rollout.responses, strict=True)]
    assert same == [True, False] * 2


def test_where_no_group_moves_nothing_is_sent():
    sampled, corrected = drawn(0)
    here, after = exchanged(sampled, corrected, [[(0, 0), (0, 1)], [(1, 0)]], 0, pytest.fail)
    assert here is sampled
    assert after is corrected


def test_tokens_that_the_update_computes_of_a_group():
    sampled, _ = drawn(0, groups=3)
    hinted = replace(sampled.rollout.responses[5], prompt_ids=(1,) * 7)
    rollout = replace(sampled.rollout, responses=(*sampled.rollout.responses[:5], hinted))
    batch = to_update_batch(rollout, [2, 3, 4, 5], token_weight=UNIFORM_WEIGHT, pad_id=0, device="cpu")
    none = torch.zeros(2, dtype=torch.bool)
    # Group 0 was filtered out. Group 1 has 3 + 4 tokens behind a prompt of 3, group 2 has 5 behind it and 6 behind 7.
    assert group_tokens(batch, none, 3, packing=True) == [0, 10, 21]
    assert group_tokens(batch, none, 3, packing=False) == [0, 13, 21]
    assert group_tokens(batch, torch.tensor([True, False]), 3, packing=True) == [0, 0, 21]
    assert group_tokens(batch, ~none, 3, packing=True) == [0, 0, 0]
    # Rows that weigh 0, such as those of mask_truncated, are computed like others.
    weightless = to_update_batch(rollout, [2, 3], token_weight=dict.fromkeys(Provenance, 0.0), pad_id=0, device="cpu")
    assert group_tokens(weightless, none[:1], 3, packing=True) == [0, 10, 0]


@pytest.mark.parametrize("stands_in", [True, False])
def test_a_group_that_stands_in_counts_nothing(stands_in):
    sampled, corrected = drawn(0)
    batch = to_update_batch(sampled.rollout, [0, 1], token_weight=UNIFORM_WEIGHT, pad_id=0, device="cpu")
    told_to_others = []

    def gathered(value):
        told_to_others.append(value)
        return [value, [0, 0]]

    module = SimpleNamespace(
        balance_batch=True,
        trainer=SimpleNamespace(world_size=2),
        timed=lambda stage: nullcontext(),
        kept=lambda corrected: (batch, torch.tensor([1.0, 0.0]), None, stands_in),
        gathered=gathered,
        delivered=lambda parcels: [{}, {}],
        num_generations=G,
        advantage=Vanilla(eps=1e-4),
        loss=SimpleNamespace(reads_every_row=False),
        packs=True,
        minibatch_rows=None,
        global_rank=0,
    )
    GRPOModule.balance(module, sampled, corrected)
    assert told_to_others == [[0, 0] if stands_in else [6, 0]]
