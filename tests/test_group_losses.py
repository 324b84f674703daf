"""Losses of whole groups and the loss that keeps a state, against numbers worked by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from small_runs import SMALL_GRPO, composed

from edge_grpo.errors import UserError
from edge_grpo.losses.adaptive_entropy import AdaptiveEntropyLoss
from edge_grpo.losses.base import LossInputs, UpdateSize
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.losses.gvpo import GVPOLoss
from edge_grpo.losses.real import REALLoss
from edge_grpo.programs.train_run import build_module

G = 4


def group(log_ratios, *, advantages=0.0, correct=False, weights=1.0, groups=None, shaping=None):
    """Rows [B, T] of log rho; advantages, verdicts and groups of rows."""
    log_ratios = torch.as_tensor(log_ratios, dtype=torch.float64)
    b = len(log_ratios)
    old = torch.full_like(log_ratios, -1.0)
    rows = lambda x: torch.as_tensor(x, dtype=torch.float64).reshape(-1, 1).expand_as(old)  # noqa: E731
    return LossInputs(
        logprobs=(old + log_ratios).requires_grad_(),
        old_logprobs=old,
        advantages=rows(advantages),
        completion_mask=torch.ones(old.shape, dtype=torch.bool),
        token_weights=torch.as_tensor(weights, dtype=torch.float64).expand_as(old),
        entropy=torch.zeros_like(old),
        shaping=None if shaping is None else torch.as_tensor(shaping, dtype=torch.float64),
        group_ids=torch.arange(b) // G if groups is None else torch.as_tensor(groups),
        correct=torch.as_tensor(correct).expand(b),
    )


def run(loss, inputs):
    """The loss of one optimiser step, and its gradient by the log-probs."""
    trained = inputs.trained
    value, _ = loss(inputs, UpdateSize(int(trained.any(1).sum()), int(trained.sum()), 1))
    return value.item(), torch.autograd.grad(value, inputs.logprobs)[0]


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


# --- gvpo ----------------------------------------------------------------------------------------------------------

GVPO = GVPOLoss(kl_weight=0.1)


def test_gvpo_by_hand():
    # Rewards (1, 0, 0, 0) less their mean: (3/4, -1/4, -1/4, -1/4), squares 12/16. At ratio 1: 1/2 * 3/4 / 3 = 1/8,
    # and -0.1 A / 3 on every token: -.025 and .0083, whatever the number of tokens.
    a = [0.75, -0.25, -0.25, -0.25]
    for tokens in (1, 3):
        value, gradient = run(GVPO, group([[0.0] * tokens] * 4, advantages=a))
        assert value == pytest.approx(0.125, abs=1e-12)
        close(gradient, [[-0.025] * tokens] + [[0.1 * 0.25 / 3] * tokens] * 3)
    # Sums of log rho (4, 0, 0, 0), mean 1: residuals .1 * 3 - .75 = -.45, .1 * -1 + .25 = .15 three times; squares
    # .2025 + 3 * .0225 = .27, half over 3 is .045. By a token: .1 residual / 3.
    value, gradient = run(GVPO, group([[1.0, 3.0], [0.0, 0.0], [2.0, -2.0], [0.0, 0.0]], advantages=a))
    assert value == pytest.approx(0.045, abs=1e-12)
    close(gradient, [[-0.015] * 2] + [[0.005] * 2] * 3)
    # Advantages that differ within a response: their mean.
    inputs = group([[0.0, 0.0]] * 4, advantages=a)
    apart = replace(inputs, advantages=inputs.advantages * torch.tensor([2.0, 0.0]))
    assert run(GVPO, apart)[0] == pytest.approx(0.125, abs=1e-12)


def test_gvpo_has_its_minimum_where_the_log_ratios_are_the_rewards():
    # Sums of log rho = A / kl_weight + a constant.
    a = torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64)
    value, gradient = run(GVPO, group((a / 0.1 + 7)[:, None], advantages=a))
    assert value == pytest.approx(0.0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


@settings(max_examples=40, deadline=None)
@given(log_ratios=npst.arrays("float64", (2 * G, 3), elements=st.floats(-1, 1)), shift=st.floats(-1, 1))
def test_gvpo_reads_differences_within_a_group_alone(log_ratios, shift):
    a = [1.0, -1.0, 0.5, -0.5, 0.0, 0.0, 0.0, 0.0]
    one = run(GVPO, group(log_ratios, advantages=a))
    other = run(GVPO, group(log_ratios + shift, advantages=a))
    assert other[0] == pytest.approx(one[0], abs=1e-9)
    torch.testing.assert_close(other[1], one[1], rtol=0, atol=1e-9)
    assert one[1][:G, 0].sum().abs() < 1e-9


# --- real ----------------------------------------------------------------------------------------------------------

REAL = REALLoss(tau=0.5)


def test_real_by_hand():
    # All wrong at ratio 1: log(1 + 4) + log 1, and by the mean log rho 2 / (4 + 1) = .4, half of it on each token.
    value, gradient = run(REAL, group([[0.0, 0.0]] * 4))
    assert value == pytest.approx(math.log(5), abs=1e-12)
    close(gradient, [[0.2, 0.2]] * 4)
    # All right: the same with the other sign.
    value, gradient = run(REAL, group([[0.0, 0.0]] * 4, correct=True))
    assert value == pytest.approx(math.log(5), abs=1e-12)
    close(gradient, [[-0.2, -0.2]] * 4)
    # One right: log 2 + log 4; -2 / 2 and 2 / 4.
    value, gradient = run(REAL, group([[0.0]] * 4, correct=[True, False, False, False]))
    assert value == pytest.approx(math.log(8), abs=1e-12)
    close(gradient, [[-1.0], [0.5], [0.5], [0.5]])
    # s = .5 log 3 of the right one, so exp(-s / tau) = 1/3: log 4/3, and -2 (1/3) / (4/3) = -1/2. A wrong one of
    # the same s has exp(s / tau) = 3 beside two of 1: log 6, and 2 * 3/6, 2 * 1/6.
    s = 0.5 * math.log(3)
    value, gradient = run(REAL, group([[s], [s], [0.0], [0.0]], correct=[True, False, False, False]))
    assert value == pytest.approx(math.log(4 / 3) + math.log(6), abs=1e-12)
    close(gradient, [[-0.5], [1.0], [1 / 3], [1 / 3]])


@settings(max_examples=40, deadline=None)
@given(
    log_ratios=npst.arrays("float64", (G, 2), elements=st.floats(-3, 3)),
    correct=npst.arrays("bool", G),
    tau=st.sampled_from([0.1, 0.5, 2.0]),
)
def test_real_pushes_by_the_verdict_and_by_no_more_than_its_temperature(log_ratios, correct, tau):
    _, gradient = run(REALLoss(tau=tau), group(log_ratios, correct=correct))
    by_row = gradient.sum(1)
    assert torch.equal(by_row < 0, torch.as_tensor(correct))
    assert by_row[torch.as_tensor(correct)].sum() > -1 / tau
    assert by_row[~torch.as_tensor(correct)].sum() < 1 / tau
    assert torch.equal(run(REALLoss(tau=tau), group(log_ratios, correct=correct, advantages=3.0))[1], gradient)


def test_it_is_said_that_real_reads_no_advantages():
    remarks = lambda *overrides: build_module(composed("train", *SMALL_GRPO, *overrides)[0]).remarks()  # noqa: E731
    assert remarks("loss=real") == ["loss (REALLoss) reads no advantages: advantage and token_filter do nothing"]
    assert remarks("loss=gvpo") == []


# --- both ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [GVPO, REAL], ids=["gvpo", "real"])
def test_groups_are_apart_and_weigh_their_trained_rows(loss):
    # The second group has one row that trains nothing: it counts 3 of 7 rows, and is a group of three.
    log_ratios = 0.1 * torch.arange(16, dtype=torch.float64).view(8, 2) ** 1.5 % 1
    a, correct = [1.0, -1.0, 0.5, -0.5, 1.0, 0.0, 7.0, -1.0], [True, False, False, True, True, False, True, False]
    weights = torch.ones(8, 2, dtype=torch.float64)
    weights[6] = 0.0
    value, gradient = run(loss, group(log_ratios, advantages=a, correct=correct, weights=weights))
    one = run(loss, group(log_ratios[:4], advantages=a[:4], correct=correct[:4]))
    kept = [4, 5, 7]
    other = run(loss, group(log_ratios[kept], advantages=[a[i] for i in kept], correct=[correct[i] for i in kept]))
    assert value == pytest.approx((4 * one[0] + 3 * other[0]) / 7, abs=1e-12)
    torch.testing.assert_close(gradient[:4], one[1] * 4 / 7, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient[kept], other[1] * 3 / 7, rtol=0, atol=1e-12)
    assert (gradient[6] == 0).all()


@pytest.mark.parametrize("loss", [GVPO, REAL], ids=["gvpo", "real"])
def test_a_tokens_weight_scales_its_gradient_and_not_the_log_ratio(loss):
    given = {"advantages": [1.0, -1.0, 0.5, -0.5], "correct": [True, False, False, True]}
    log_ratios = [[0.1, 0.7], [-0.2, 0.0], [0.3, 0.3], [0.0, -0.4]]
    whole = run(loss, group(log_ratios, **given))
    halved = run(loss, group(log_ratios, weights=[[1.0, 0.5]], **given))
    assert halved[0] == pytest.approx(whole[0], abs=1e-12)
    torch.testing.assert_close(halved[1], whole[1] * torch.tensor([1.0, 0.5]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [GVPO, REAL], ids=["gvpo", "real"])
def test_a_shaped_row_is_in_no_group(loss):
    # -A rho / (rho + .1) at rho = 1: A = -1 costs 1 / 1.1, over 4 rows.
    given = {"advantages": [1.0, 0.5, -0.5, -1.0], "correct": [True, False, True, False]}
    value, _ = run(loss, group([[0.0]] * 4, shaping=[0, 0, 0, 0.1], **given))
    three = {name: values[:3] for name, values in given.items()}
    alone, _ = run(loss, group([[0.0]] * 3, **three))
    assert value == pytest.approx((3 * alone + 1 / 1.1) / 4, abs=1e-7)


@pytest.mark.parametrize("loss", [GVPO, REAL], ids=["gvpo", "real"])
def test_where_nothing_trains_there_is_a_graph_and_no_gradient(loss):
    value, gradient = run(loss, group([[0.5]] * 4, advantages=1.0, weights=0.0))
    assert value == 0
    assert (gradient == 0).all()
    with pytest.raises(ValueError, match=r"reads LossInputs\.group_ids and correct"):
        run(loss, replace(group([[0.5]] * 4), correct=None))


# --- adaptive entropy ----------------------------------------------------------------------------------------------

CLIP = {
    "aggregation": "grpo",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "beta": 0.0,
    "kl": "k3",
    "max_response_tokens": 9,
}
ADAPTIVE = {"target_entropy": 0.2, "step": 0.002, "max_coefficient": 0.005}


def adaptive(**changes):
    return AdaptiveEntropyLoss(**(CLIP | ADAPTIVE | changes))


def shown(loss, *entropies):
    """alpha of each iteration."""
    alphas = []
    for entropy in entropies:
        loss.observe(SimpleNamespace(mean_entropy=entropy))
        alphas.append(loss.coefficient)
    return alphas


def test_the_coefficient_follows_the_entropy_by_hand():
    # c before each: 0, .002, .004, .005 (bound), .003, .001, 0 (bound), 0, .002. Nothing applies at the target.
    entropies = [0.1, 0.1, 0.1, 0.2, 0.3, 0.3, 0.3, 0.1, 0.1]
    expected = [0.0, 0.002, 0.004, 0.0, 0.0, 0.0, 0.0, 0.0, 0.002]
    assert shown(adaptive(), *entropies) == pytest.approx(expected, abs=1e-15)


def test_the_coefficient_goes_on_after_a_checkpoint():
    whole, first, second = adaptive(), adaptive(), adaptive()
    alphas = shown(whole, 0.1, 0.1, 0.1)
    assert shown(first, 0.1, 0.1) == alphas[:2]
    state = first.state_dict()
    shown(first, 0.1)
    second.load_state_dict(state)
    # Which rows the bonus reaches is asked before the next entropy is seen, where groups change ranks.
    assert (second.reads_every_row, second.differentiates_entropy) == (True, True)
    assert shown(second, 0.1) == alphas[2:] == [0.004]


def test_the_bonus_is_averaged_as_the_loss_is():
    # Ratio 1. Rows of 2 and of 1 trained token: -(.002) (mean of (1, 3) + 5) / 2 = -.007, and -(.002) 9 / 3 of tokens.
    mask = torch.tensor([[True, True], [True, False]])
    zeros = torch.zeros(2, 2, dtype=torch.float64)
    entropy = torch.tensor([[1.0, 3.0], [5.0, 9.0]], dtype=torch.float64, requires_grad=True)
    inputs = LossInputs(zeros, zeros, zeros, mask, mask.double(), entropy)
    for aggregation, bonus, slopes in (
        ("grpo", 0.007, [[0.0005, 0.0005], [0.001, 0.0]]),
        ("dapo", 0.006, [[0.002 / 3, 0.002 / 3], [0.002 / 3, 0.0]]),
    ):
        loss = adaptive(aggregation=aggregation)
        shown(loss, 0.1, 0.1)
        value, reports = loss(inputs, UpdateSize(2, 3, 1))
        assert value.item() == pytest.approx(-bonus, abs=1e-15)
        close(-torch.autograd.grad(value, entropy)[0], slopes)
        assert reports["train/adaptive_entropy/coefficient"].tolist() == [0.002, 0.002]


def test_without_a_bonus_it_is_the_clipped_loss_and_asks_for_no_gradient_of_entropies():
    inputs = group([[0.5, -0.5]] * 4, advantages=[1.0, -1.0, 0.0, 2.0])
    loss = adaptive()
    assert run(loss, inputs)[0] == run(ClippedLoss(**CLIP), inputs)[0]
    assert (loss.reads_every_row, loss.differentiates_entropy) == (False, False)
    shown(loss, 0.1, 0.1)
    assert (loss.reads_every_row, loss.differentiates_entropy) == (True, True)
    shown(loss, 0.5)
    assert (loss.reads_every_row, loss.differentiates_entropy) == (False, False)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: GVPOLoss(kl_weight=0.0), "loss.kl_weight=0.0 must be above 0"),
        (lambda: REALLoss(tau=-1.0), "loss.tau=-1.0 must be above 0"),
        (lambda: adaptive(target_entropy=0.0), "loss.target_entropy=0.0 must be above 0"),
        (lambda: adaptive(step=math.nan), "loss.step=nan must be above 0"),
        (lambda: adaptive(max_coefficient=-1.0), "loss.max_coefficient=-1.0 must be above 0"),
        (lambda: adaptive(beta=-1.0), "loss.beta=-1.0 must not be negative"),
    ],
)
def test_values_out_of_range_are_refused(made, message):
    with pytest.raises(UserError, match=f"^{message}"):
        made()
