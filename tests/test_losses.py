"""The loss against hand-worked numbers and a float64 reference, and its invariance to the cut."""

import math

import pytest
import torch

from edge_grpo.errors import UserError
from edge_grpo.losses.base import LossInputs, UpdateSize
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.losses.token_loss import kl_estimate

AGGREGATIONS = ["grpo", "bnpo", "dapo", "dr_grpo"]


def make(aggregation="grpo", **changes):
    settings = {"epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0, "kl": "k3", "max_response_tokens": 10}
    return ClippedLoss(aggregation=aggregation, **(settings | changes))


def batch(rows=6, width=5, seed=0, ref=True):
    generator = torch.Generator().manual_seed(seed)
    rand = lambda: torch.rand(rows, width, generator=generator, dtype=torch.float64)  # noqa: E731
    lengths = torch.tensor([5, 2, 3, 1, 4, 5])[:rows]
    mask = torch.arange(width)[None] < lengths[:, None]
    return LossInputs(
        logprobs=-rand(),
        old_logprobs=-rand(),
        advantages=(rand() - 0.5),
        completion_mask=mask,
        token_weights=mask.double(),
        entropy=rand(),
        ref_logprobs=-rand() if ref else None,
    )


def rows_of(inputs, rows):
    take = lambda x: None if x is None else x[rows]  # noqa: E731
    return LossInputs(**{name: take(getattr(inputs, name)) for name in LossInputs.__dataclass_fields__})


def reference(inputs, aggregation, low, high, beta, max_len):
    """The same in plain Python loops."""
    rows = []
    for i in range(inputs.logprobs.shape[0]):
        row = []
        for t in range(int(inputs.completion_mask[i].sum())):
            lp, old, ref = (float(x[i, t]) for x in (inputs.logprobs, inputs.old_logprobs, inputs.ref_logprobs))
            a, ratio = float(inputs.advantages[i, t]), math.exp(lp - old)
            surrogate = min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
            row.append(-surrogate + beta * (math.exp(ref - lp) - (ref - lp) - 1))
        rows.append(row)
    tokens = [x for row in rows for x in row]
    return {
        "grpo": sum(sum(row) / len(row) for row in rows) / len(rows),
        "bnpo": sum(tokens) / len(tokens),
        "dapo": sum(tokens) / len(tokens),
        "dr_grpo": sum(tokens) / (len(rows) * max_len),
    }[aggregation]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_equals_the_reference(aggregation):
    inputs = batch()
    loss, _ = make(aggregation, beta=0.1, epsilon_high=0.28)(inputs, UpdateSize(6, 20, 1))
    assert float(loss) == pytest.approx(reference(inputs, aggregation, 0.2, 0.28, 0.1, 10), abs=1e-12)


@pytest.mark.parametrize("cut", [[[0], [1], [2], [3], [4], [5]], [[0], [1, 2, 3, 4, 5]]], ids=["six", "two"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_does_not_depend_on_the_cut(aggregation, cut):
    inputs = batch()
    whole, _ = make(aggregation)(inputs, UpdateSize(6, 20, 1))
    parts = sum(make(aggregation)(rows_of(inputs, rows), UpdateSize(6, 20, len(cut)))[0] for rows in cut)
    if aggregation == "bnpo":  # by definition: the mean of the micro-batches' token means
        assert float(parts) != pytest.approx(float(whole), abs=1e-6)
    else:
        assert float(parts) == pytest.approx(float(whole), abs=1e-12)


def test_clip_by_hand():
    # ratio 2 with A > 0 is clipped at 1.2; with A < 0 the unclipped 2 stands. Ratio 1/2 with A < 0 clips at 0.8.
    ratios = torch.tensor([[2.0], [2.0], [0.5]], dtype=torch.float64)
    mask = torch.ones(3, 1, dtype=torch.bool)
    inputs = LossInputs(
        logprobs=ratios.log(),
        old_logprobs=torch.zeros_like(ratios),
        advantages=torch.tensor([[1.0], [-1.0], [-1.0]], dtype=torch.float64),
        completion_mask=mask,
        token_weights=mask.double(),
        entropy=torch.zeros_like(ratios),
    )
    loss, metrics = make()(inputs, UpdateSize(3, 3, 1))
    assert float(loss) == pytest.approx((-1.2 + 2.0 + 0.8) / 3, abs=1e-12)
    clipped = {name: metrics[name].flatten().tolist() for name in ("clip_high", "clip_low", "clip_region")}
    assert clipped == {
        "clip_high": [True, False, False],
        "clip_low": [False, False, True],
        "clip_region": [True, False, True],
    }


def test_a_token_of_weight_zero_leaves_the_denominator():
    # Row of three tokens, the last one injected with weight 0: the mean is over two.
    logprobs = torch.zeros(1, 3, dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    weights = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64)
    inputs = LossInputs(logprobs, logprobs, torch.full((1, 3), -1.0, dtype=torch.float64), mask, weights, logprobs)
    loss, _ = make()(inputs, UpdateSize(1, 2, 1))
    assert float(loss) == pytest.approx((1 + 0.5) / 2, abs=1e-12)


def test_kl_estimators_by_hand():
    # d = ref - policy = -1 - (-3) = 2
    policy, ref = torch.tensor([-3.0]), torch.tensor([-1.0])
    assert kl_estimate(policy, ref, "k1").item() == -2
    assert kl_estimate(policy, ref, "k2").item() == 2
    assert kl_estimate(policy, ref, "k3").item() == pytest.approx(math.exp(2) - 2 - 1, rel=1e-6)


@pytest.mark.parametrize("bad", [{"epsilon_low": -0.1}, {"epsilon_high": -1.0}, {"beta": -0.5}])
def test_negative_values_are_refused(bad):
    with pytest.raises(UserError, match=rf"loss\.{next(iter(bad))}=-"):
        make(**bad)
