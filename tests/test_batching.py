"""Micro-batches hold every row once within their bound, and tensors hold the tokens of their rollout."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_grpo.policy.batching import group_microbatches, microbatches, packed_microbatches, to_update_batch
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import Rollout

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def padded(cut, lengths):
    return len(cut) * int(lengths[cut].max())


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 200))
def test_every_row_once_and_within_the_bound(lengths, max_tokens):
    lengths = torch.tensor(lengths)
    cuts = microbatches(lengths, max_tokens)
    assert sorted(torch.cat(cuts).tolist()) == list(range(len(lengths)))
    for cut in cuts:
        assert padded(cut, lengths) <= max_tokens or len(cut) == 1  # one that is too long is alone


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 200))
def test_lengths_fall_from_cut_to_cut_and_none_could_have_taken_the_next_row(lengths, max_tokens):
    lengths = torch.tensor(lengths)
    cuts = microbatches(lengths, max_tokens)
    assert lengths[torch.cat(cuts)].tolist() == sorted(lengths.tolist(), reverse=True)
    for cut, following in pairwise(cuts):
        rows, longest = len(cut) + 1, int(lengths[cut].max())
        padding = rows * longest - int(lengths[cut].sum()) - int(lengths[following[0]])
        assert rows * longest > max_tokens or padding > 0.1 * rows * longest


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 400))
def test_padding_stays_under_a_tenth(lengths, max_tokens):
    lengths = torch.tensor(lengths)
    for cut in microbatches(lengths, max_tokens):
        assert padded(cut, lengths) - int(lengths[cut].sum()) <= 0.1 * padded(cut, lengths)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 400), st.data())
def test_packed_cuts_hold_every_row_once_and_whole_groups_where_they_fit(problems, g, max_tokens, data):
    n = problems * g
    # A row has its problem's prompt, or one of its own (a hint).
    own = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    keys = [n + row if own[row] else row // g for row in range(n)]
    length = {key: data.draw(st.integers(1, 9)) for key in sorted(set(keys))}
    prompts = [length[key] for key in keys]
    responses = data.draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    ids = [row // g for row in range(n)]
    cuts = packed_microbatches(prompts, responses, keys, ids, max_tokens)
    assert sorted(torch.cat(cuts).tolist()) == list(range(n))

    def size_of(rows):
        return sum(responses[row] for row in rows) + sum(length[key] for key in {keys[row] for row in rows})

    group_size = [size_of(range(p * g, p * g + g)) for p in range(problems)]
    for cut in cuts:
        rows = cut.tolist()
        assert rows == sorted(rows)
        assert size_of(rows) <= max_tokens or len(rows) == 1
        for problem in {ids[row] for row in rows}:
            whole = sum(ids[row] == problem for row in rows) == g
            assert whole or group_size[problem] > max_tokens


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 400), st.data())
def test_groups_are_never_cut_and_keep_their_order(problems, g, max_tokens, data):
    n = problems * g
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 40), min_size=n, max_size=n)))
    cuts = group_microbatches(lengths, g, max_tokens)
    assert sorted(torch.cat(cuts).tolist()) == list(range(n))
    for cut in cuts:
        groups = cut.view(-1, g)
        first = groups[:, :1]
        assert (first % g == 0).all()
        assert torch.equal(groups, first + torch.arange(g))
        assert first.flatten().tolist() == sorted(first.flatten().tolist())
        assert padded(cut, lengths) <= max_tokens or len(cut) == g


def test_the_bound_is_of_padded_tokens():
    # 3 x 10 = 30 fits; a fourth row would make 40 padded tokens, however short it is.
    cuts = microbatches(torch.tensor([10, 1, 10, 9]), max_tokens=30)
    assert [cut.tolist() for cut in cuts] == [[0, 2, 3], [1]]
    # 10 + 10 + 7 are 3 of 30 padding, a tenth; with 6 it would be more.
    assert len(microbatches(torch.tensor([10, 10, 7]), max_tokens=99)) == 1
    assert len(microbatches(torch.tensor([10, 10, 6]), max_tokens=99)) == 2
    # Groups of two: the longest row of each decides, 2 x 9 and 2 x 3; together 4 x 9 = 36.
    lengths = torch.tensor([2, 9, 3, 1])
    assert [cut.tolist() for cut in group_microbatches(lengths, 2, 36)] == [[0, 1, 2, 3]]
    assert [cut.tolist() for cut in group_microbatches(lengths, 2, 35)] == [[0, 1], [2, 3]]


PAD = 99


def rollout():
    """Two problems with prompts of two and one token, two responses each."""

    def response(ids, kinds):
        kinds = torch.tensor(kinds, dtype=torch.int8)
        return Response(torch.tensor(ids), torch.zeros(len(ids)), torch.zeros(len(ids)), kinds, "stop")

    problems = (Problem("a", "?", ("1",), prompt_ids=(1, 2)), Problem("b", "?", ("1",), prompt_ids=(3,)))
    s, i, r = Provenance
    responses = (
        response([10, 11, 12], [s, i, s]),
        response([13], [s]),
        response([14, 15], [r, r]),
        response([16, 17, 18, 19], [s, s, i, i]),
    )
    return Rollout(problems, responses, 2)


WEIGHT = {Provenance.SAMPLED: 1.0, Provenance.INJECTED: 0.5, Provenance.REFERENCE: 0.0}


def batch(rows):
    return to_update_batch(rollout(), rows, token_weight=WEIGHT, pad_id=PAD, device=torch.device("cpu"))


def test_a_batch_by_hand():
    made = batch(range(4))
    assert made.tokens.tolist() == [
        [1, 2, 10, 11, 12],
        [1, 2, 13, PAD, PAD],
        [3, 14, 15, PAD, PAD],
        [3, 16, 17, 18, 19],
    ]
    assert made.prompt_lengths.tolist() == [2, 2, 1, 1]
    assert made.response_lengths.tolist() == [3, 1, 2, 4]
    assert made.token_weights.tolist() == [[1, 0.5, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0.5, 0.5]]
    assert made.sampled_mask.int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert made.row_ids.tolist() == [0, 1, 2, 3]
    assert made.response_tokens.tolist() == [
        [10, 11, 12, PAD],
        [13, PAD, PAD, PAD],
        [14, 15, PAD, PAD],
        [16, 17, 18, 19],
    ]
    # The hidden state at position p predicts token p + 1.
    assert made.predicting_positions[0].tolist() == [1, 2, 3, 4]
    assert made.attention_mask.sum(1).tolist() == [5, 3, 3, 5]


def test_a_selection_is_the_batch_of_those_rows():
    part, alone = batch(range(4)).select(torch.tensor([2, 1])), batch([2, 1])
    for name in ("tokens", "prompt_lengths", "response_lengths", "token_weights", "sampled_mask", "row_ids"):
        assert torch.equal(getattr(part, name), getattr(alone, name)), name
    assert part.tokens.shape == (2, 3)  # padding of the longer rows is gone


def test_rows_keep_their_numbers_in_the_rollout():
    assert batch([3, 1]).row_ids.tolist() == [3, 1]
    with pytest.raises(IndexError):
        batch([4])
