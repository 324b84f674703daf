"""Responses whose engine tells no entropies: what becomes of them where they are read."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_metrics import response, scored
from test_token_filters import filter_inputs

from edge_grpo.advantages.base import UpdateGroups
from edge_grpo.algorithms.metrics import completion_metrics, own_entropy
from edge_grpo.algorithms.rows import _recorded_entropies, _sampled_entropies
from edge_grpo.callbacks.rollouts import _mean_entropy
from edge_grpo.corrections.groups import kept
from edge_grpo.token_filters.keep_all import KeepAllTokens
from edge_grpo.token_filters.top_entropy import TopEntropy
from edge_grpo.types.responses import append, join, without_eos


def silent(kinds="sss"):
    return replace(response(kinds), entropies=None)


def test_pieces_without_entropies_make_responses_without():
    assert append(silent(), [1, 2]).entropies is None
    assert join(response("ss"), silent()).entropies is None
    assert without_eos(silent(), [0]).entropies is None
    assert kept(silent()).entropies is None
    assert join(response("ss", entropy=0.5), response("s", entropy=0.25)).entropies.tolist() == [0.5, 0.5, 0.25]
    assert _mean_entropy(silent()) is None


def test_other_shapes_are_still_refused():
    with pytest.raises(ValueError, match="must share one shape"):
        replace(silent(), sampling_logprobs=torch.zeros(2))


def test_no_mean_is_taken_of_some_rows_alone():
    metrics = completion_metrics(scored([1, 0, 1, 0], [0] * 4, [response("s"), silent(), response("s"), silent()]))
    assert metrics["train/entropy_correct"] == 0.5  # both right rows have theirs
    assert "train/entropy" not in metrics
    assert "train/entropy_wrong" not in metrics
    assert _sampled_entropies([response("ss"), silent()], 2) is None
    # Two tokens at 0.5 and one at 0.25; the fourth is injected: 3 tokens, 1.25 nats.
    sums = _sampled_entropies([response("ss", entropy=0.5), response("si", entropy=0.25)], 2)
    assert sums.tolist() == [[3.0, 1.25]]


def test_a_rank_without_entropies_leaves_the_update_without():
    groups = UpdateGroups(torch.zeros(1, 2), torch.zeros(1, 2).bool(), torch.ones(1).long(), {}, torch.ones(1, 2))
    assert UpdateGroups.joined([groups, groups]).entropies.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert UpdateGroups.joined([groups, replace(groups, entropies=None)]).entropies is None


def test_a_batch_has_the_recorded_entropies_of_all_rows_or_none():
    batch = SimpleNamespace(sampling_logprobs=torch.zeros(2, 3), row_ids=torch.tensor([1, 0]))
    rollout = SimpleNamespace(responses=[response("sss", entropy=0.5), response("s", entropy=0.25)])
    assert _recorded_entropies(batch, rollout).tolist() == [[0.25, 0.0, 0.0], [0.5, 0.5, 0.5]]
    rollout.responses[0] = silent()
    assert _recorded_entropies(batch, rollout) is None


def test_filters_that_read_none_do_without_and_the_other_says_so():
    inputs = replace(filter_inputs(), entropy=None)
    assert KeepAllTokens()(inputs)[0].tolist() == torch.ones(6, 5).tolist()
    with pytest.raises(ValueError, match="TopEntropy needs the entropies of the rollout"):
        TopEntropy(top_share=0.2, over="update")(inputs)


def test_the_updates_own_entropy_is_of_sampled_and_trained_tokens_of_computed_rows():
    # Row 1 is not computed; in row 0 the second token is a correction's; row 2 has one token: (0.2 + 0.4) / 2.
    recorded = SimpleNamespace(
        entropy=None,
        trained=torch.tensor([[True, True], [True, True], [True, False]]),
        sampled=torch.tensor([[True, False], [True, True], [True, True]]),
    )
    update = SimpleNamespace(
        recorded=recorded,
        computed=torch.tensor([0, 2]),
        entropy=torch.tensor([[0.2, 9.0], [9.0, 9.0], [0.4, 9.0]]),
    )
    assert own_entropy(update) == {"train/update_entropy": pytest.approx(0.3)}
    recorded.entropy = torch.zeros(3, 2)
    assert own_entropy(update) == {}
