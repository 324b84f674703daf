"""Advantages against numbers worked by hand, and the invariants of each strategy."""

import math

import hypothesis.extra.numpy as npst
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_grpo.advantages.base import BASE_ADVANTAGE, AdvantageInputs
from edge_grpo.advantages.dr_grpo import DrGRPO
from edge_grpo.advantages.entropy_bonus import EntropyBonus
from edge_grpo.advantages.entropy_driven import EntropyDriven
from edge_grpo.advantages.opo import OPO
from edge_grpo.advantages.qae import QuantileBaseline
from edge_grpo.advantages.rloo import RLOO
from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.errors import UserError

G = 4
BASES = [Vanilla(eps=1e-4), DrGRPO(), RLOO()]


def inputs(rewards, entropy=None, mask=None, sampled=None, g=G):
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    mask = torch.ones(len(rewards), 1, dtype=torch.bool) if mask is None else mask
    return AdvantageInputs(rewards, g, mask, mask if sampled is None else sampled, entropy)


def eda(**changes):
    settings = {"clamp": None, "detach": True, "scope": "group", "mask": "response", "refresh": "rollout"}
    return EntropyDriven(base=Vanilla(eps=1e-4), **(settings | changes))


def test_vanilla_float64_by_hand():
    # r = (2, 1, 0, 1): mean 1, squared deviations 1, 0, 1, 0 -> variance 2 / 3.
    scale = math.sqrt(2 / 3) + 1e-4
    expected = torch.tensor([1 / scale, 0, -1 / scale, 0], dtype=torch.float64)
    torch.testing.assert_close(Vanilla(eps=1e-4)(inputs([2, 1, 0, 1]))[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("advantage", BASES, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(("reward", "g"), [(0.0, G), (1.0, G), (0.1 + 0.2, G), (0.1, 3)])
def test_collapsed_group_is_exactly_zero(advantage, reward, g):
    # The mean of three times 0.1 is not 0.1 in floating point.
    assert advantage(inputs([reward] * g, g=g))[0].tolist() == [0.0] * g


@pytest.mark.parametrize("advantage", BASES, ids=lambda a: type(a).__name__)
@given(rewards=npst.arrays("float64", 2 * G, elements=st.floats(-10, 10)), order=st.permutations(range(G)))
def test_sums_to_zero_and_permutes_with_its_group(advantage, rewards, order):
    taken = advantage(inputs(rewards))[0].view(2, G)
    scale = taken.abs().sum(1).clamp(min=1)
    assert ((taken.sum(1).abs() / scale) < 1e-9).all()
    permuted = advantage(inputs(rewards.reshape(2, G)[:, order].flatten()))[0].view(2, G)
    torch.testing.assert_close(permuted, taken[:, order], rtol=1e-7, atol=1e-7)


@given(rewards=npst.arrays("float64", G, elements=st.floats(-10, 10)))
def test_rloo_is_dr_grpo_scaled(rewards):
    # G / (G - 1) = 4 / 3
    torch.testing.assert_close(RLOO()(inputs(rewards))[0], DrGRPO()(inputs(rewards))[0] * 4 / 3)


def test_opo_by_hand():
    # Lengths 10, 20, 30, 40 and rewards (1, 0, 0, 0): baseline 10 / 100.
    mask = torch.arange(40)[None] < torch.tensor([10, 20, 30, 40])[:, None]
    taken, _ = OPO()(inputs([1, 0, 0, 0], mask=mask))
    torch.testing.assert_close(taken, torch.tensor([0.9, -0.1, -0.1, -0.1], dtype=torch.float64), atol=1e-12, rtol=0)


@given(
    rewards=npst.arrays("float64", G, elements=st.floats(-10, 10)),
    lengths=npst.arrays("int64", G, elements=st.integers(0, 5)),
)
def test_opo_is_balanced_by_length_and_dr_grpo_where_all_are_equal(rewards, lengths):
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    taken, _ = OPO()(inputs(rewards, mask=mask))
    assert abs(float((taken * torch.tensor(lengths).clamp(min=1)).sum())) < 1e-9
    torch.testing.assert_close(OPO()(inputs(rewards))[0], DrGRPO()(inputs(rewards))[0], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_opo_and_qae_have_no_advantage_in_a_collapsed_group(reward):
    mask = torch.arange(3)[None] < torch.tensor([1, 2, 3])[:, None]
    for advantage in (OPO(), QuantileBaseline(quantile=0.4, eps=1e-6)):
        assert advantage(inputs([reward] * 3, mask=mask, g=3))[0].tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0], [2, 0, 0, 0]),  # the ceil(1.6) = second smallest is 0, std sqrt((9 + 3) / 16 / 3) = 1/2
        ([1, 1, 0, 0], [math.sqrt(3), math.sqrt(3), 0, 0]),  # 0, std sqrt(1 / 3); interpolated it would be 0.2
        ([1, 1, 1, 0], [0, 0, 0, -2]),  # 1: an easy group teaches its failure only
    ],
)
def test_qae_by_hand(rewards, expected):
    taken, _ = QuantileBaseline(quantile=0.4, eps=1e-12)(inputs(rewards))
    torch.testing.assert_close(taken, torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)


def test_qae_takes_the_place_that_the_quantile_names_exactly():
    # 0.07 * 100 is 7.000000000000001 in floating point: the 7th smallest of 0, ..., 99 is 6, not 7.
    rewards = list(range(100))
    taken, _ = QuantileBaseline(quantile=0.07, eps=1e-6)(inputs(rewards, g=100))
    assert taken.argmin() == 0
    assert (taken == 0).nonzero().tolist() == [[6]]


def test_eda_float64_by_hand():
    # Rewards (1, 0, 0, 0): mean 1/4, std 1/2. Mean entropies P = (0.1, 0.2, 0.3, 0.4), group mean 0.25,
    # so 1 / P^ = (2.5, 1.25, 5/6, 5/8). The 9.0 of row 0 lies outside its response and must not count.
    entropy = torch.tensor([[0.1, 9.0], [0.1, 0.3], [0.3, 0.3], [0.5, 0.3]], dtype=torch.float64)
    mask = torch.tensor([[True, False], [True, True], [True, True], [True, True]])
    scale = 0.5 + 1e-4
    expected = [0.75 / scale * 2.5, -0.25 / scale * 1.25, -0.25 / scale * 5 / 6, -0.25 / scale * 5 / 8]
    taken, metrics = eda()(inputs([1, 0, 0, 0], entropy, mask))
    torch.testing.assert_close(taken, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        metrics["eda/multiplier"], torch.tensor([2.5, 1.25, 5 / 6, 5 / 8], dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_official_eda_by_hand():
    # The released code: A_i / (P_i / mean(P)), P over the whole padded width, mean over the micro-batch (two groups
    # here), and a graph through P_i. P = (0.5, 0.2, 0.3, 0.2), mean 0.3.
    entropy = torch.tensor([[0.1, 0.9], [0.1, 0.3], [0.3, 0.3], [0.1, 0.3]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False], [True, True], [True, True], [True, False]])
    official = eda(detach=False, scope="microbatch", mask="padded", refresh="update")
    assert official.inside_update
    assert official.reads_padding
    taken, _ = official(inputs([1, 0, 0, 1], entropy, mask, g=2))
    a = 0.5 / (math.sqrt(0.5) + 1e-4)  # each group (1, 0): deviations 1/2, std sqrt(1/2)
    expected = torch.tensor([a * 0.3 / 0.5, -a * 0.3 / 0.2, -a * 0.3 / 0.3, a * 0.3 / 0.2], dtype=torch.float64)
    torch.testing.assert_close(taken, expected, atol=1e-12, rtol=0)
    # The mean is a constant: d taken_0 / d P_0 = -a mean / P_0^2 = -a 0.3 / 0.25, and each token carries half of it.
    (gradient,) = torch.autograd.grad(taken[0], entropy)
    assert gradient[0, 1].item() == pytest.approx(-a * 0.3 / 0.25 / 2, abs=1e-12)


def test_detached_eda_has_no_graph():
    entropy = torch.rand(G, 3, requires_grad=True)
    assert not eda()(inputs([1, 0, 0, 0], entropy, torch.ones(G, 3, dtype=torch.bool)))[0].requires_grad


@given(
    rewards=npst.arrays("float64", G, elements=st.sampled_from([0.0, 1.0, 2.0])),
    entropy=npst.arrays("float64", (G, 3), elements=st.floats(1e-6, 5)),
    factor=st.floats(0.1, 10),
    clamp=st.sampled_from([None, 2.0]),
)
def test_eda_keeps_signs_and_zeros_and_ignores_scale(rewards, entropy, factor, clamp):
    mask = torch.ones(G, 3, dtype=torch.bool)
    base = Vanilla(eps=1e-4)(inputs(rewards))[0]
    taken = eda(clamp=clamp)(inputs(rewards, torch.tensor(entropy), mask))[0]
    assert torch.equal(taken.sign(), base.sign())
    scaled = eda(clamp=clamp)(inputs(rewards, torch.tensor(entropy * factor), mask))[0]
    torch.testing.assert_close(scaled, taken, rtol=1e-9, atol=1e-9)


def test_eda_with_equal_entropies_is_its_base():
    taken = eda()(inputs([1, 0, 0, 1], torch.full((G, 2), 0.3), torch.ones(G, 2, dtype=torch.bool)))[0]
    torch.testing.assert_close(taken.double(), Vanilla(eps=1e-4)(inputs([1, 0, 0, 1]))[0])


@pytest.mark.parametrize("entropies", [[0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.5]])
def test_eda_is_finite_without_entropy(entropies):
    entropy = torch.tensor(entropies)[:, None]
    taken = eda()(inputs([1, 0, 0, 0], entropy))[0]
    assert torch.isfinite(taken).all()
    clamped = eda(clamp=4.0)(inputs([1, 0, 0, 0], entropy))
    assert clamped[1]["eda/multiplier"].max() <= 4.0
    if not any(entropies):
        torch.testing.assert_close(taken.double(), Vanilla(eps=1e-4)(inputs([1, 0, 0, 0]))[0])


def test_eda_over_sampled_tokens_only():
    # Row 0 sampled its first token only (0.2); row 1 both (0.4): multipliers 0.3 / 0.2 and 0.3 / 0.4.
    entropy = torch.tensor([[0.2, 3.0], [0.4, 0.4]], dtype=torch.float64)
    sampled = torch.tensor([[True, False], [True, True]])
    both = torch.ones(2, 2, dtype=torch.bool)
    metrics = eda(mask="sampled")(inputs([1, 0], entropy, both, sampled, g=2))[1]
    torch.testing.assert_close(metrics["eda/multiplier"], torch.tensor([1.5, 0.75], dtype=torch.float64))


def test_what_the_base_was_is_recorded_and_of_several_the_innermost():
    # Dr. GRPO of (1, 0) is (1/2, -1/2); a bonus and EDA over it change it, in either order.
    rows = inputs([1.0, 0.0], torch.tensor([[0.5], [0.1]]), g=2)
    of_eda = {"clamp": None, "detach": True, "scope": "group", "mask": "response", "refresh": "rollout"}
    one = EntropyDriven(base=EntropyBonus(DrGRPO(), 0.4, 2.0), **of_eda)
    other = EntropyBonus(EntropyDriven(base=DrGRPO(), **of_eda), 0.4, 2.0)
    for strategy in (one, other):
        taken, reports = strategy(rows)
        assert reports[BASE_ADVANTAGE].flatten().tolist() == [0.5, -0.5]
        assert not torch.isclose(taken.flatten(), reports[BASE_ADVANTAGE].flatten()).any()
        assert strategy.records == (BASE_ADVANTAGE,)


def test_values_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"advantage\.clamp=-1"):
        eda(clamp=-1.0)
    with pytest.raises(UserError, match=r"advantage\.eps=0"):
        Vanilla(eps=0.0)
    for quantile in (0.0, 1.0, math.nan):
        with pytest.raises(UserError, match=rf"advantage\.quantile={quantile} must be above 0 and below 1"):
            QuantileBaseline(quantile=quantile, eps=1e-6)
    with pytest.raises(UserError, match=r"advantage\.eps=0"):
        QuantileBaseline(quantile=0.4, eps=0.0)
    with pytest.raises(ValueError, match="no groups of 3"):
        inputs([1, 0, 0, 1], g=3)
