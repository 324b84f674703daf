"""The losses beside GRPO's own: each against hand-worked numbers, and each against a simpler one at its limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from small_runs import SMALL_GRPO, composed

from edge_grpo.errors import UserError
from edge_grpo.losses.base import LossInputs, UpdateSize
from edge_grpo.losses.cispo import CISPOLoss
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.losses.dppo import DPPOLoss
from edge_grpo.losses.dual_clip import DualClipLoss
from edge_grpo.losses.gmpo import GMPOLoss
from edge_grpo.losses.gspo import GSPOLoss
from edge_grpo.losses.sapo import SAPOLoss
from edge_grpo.programs.train_run import build_module

SHARED = {"aggregation": "grpo", "beta": 0.0, "kl": "k3", "max_response_tokens": 10}
CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.2}
OPEN = {"epsilon_low": math.inf, "epsilon_high": math.inf}


def make(kind, **changes):
    own = {
        ClippedLoss: CLIP,
        DualClipLoss: CLIP | {"ceiling": 3.0},
        GSPOLoss: {"epsilon_low": 0.0003, "epsilon_high": 0.0004, "level": "sequence"},
        GMPOLoss: {"log_epsilon_low": 0.4, "log_epsilon_high": 0.4},
        CISPOLoss: {"epsilon_low": 1.0, "epsilon_high": 4.0},
        SAPOLoss: {"tau_positive": 1.0, "tau_negative": 1.05},
        DPPOLoss: {"delta_low": 0.2, "delta_high": 0.2, "ratio_penalty": 0.001},
    }
    return kind(**(SHARED | own[kind] | changes))


def run(loss, log_ratios, advantages, *, old=-1.0, weights=None, entropy=None):
    """Loss, gradient by the log-probs, and reports of rows [B, T] of log rho; `old` log-probs."""
    log_ratios, advantages = (torch.as_tensor(x, dtype=torch.float64) for x in (log_ratios, advantages))
    old = torch.as_tensor(old, dtype=torch.float64).expand_as(log_ratios)
    logprobs = (old + log_ratios).requires_grad_()
    mask = torch.ones(log_ratios.shape, dtype=torch.bool)
    weights = mask.double() if weights is None else torch.tensor(weights, dtype=torch.float64)
    entropy = torch.zeros_like(old) if entropy is None else torch.as_tensor(entropy, dtype=torch.float64)
    inputs = LossInputs(logprobs, old, advantages.expand_as(log_ratios), mask, weights, entropy)
    trained = inputs.trained
    size = UpdateSize(int(trained.any(1).sum()), int(trained.sum()), 1)
    value, reports = loss(inputs, size)
    return float(value.detach()), torch.autograd.grad(value, logprobs)[0], reports


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_dual_clip_by_hand():
    # A = -1, c = 3: ratio 5 costs 3 and learns nothing, ratio 2 is below the ceiling. A = 1 is PPO's clip: -1.2.
    ratios = torch.tensor([[5.0], [2.0], [5.0]], dtype=torch.float64)
    value, gradient, reports = run(make(DualClipLoss), ratios.log(), [[-1.0], [-1.0], [1.0]])
    assert value == pytest.approx((3 + 2 - 1.2) / 3, abs=1e-12)
    close(gradient, [[0.0], [2 / 3], [0.0]])  # d(-rho A) = rho for A = -1
    assert reports["clip_ceiling"].flatten().tolist() == [True, False, False]
    # PPO's clip below acts as before: ratio 1/2 costs 0.8.
    assert run(make(DualClipLoss), [[math.log(0.5)]], [[-1.0]])[0] == pytest.approx(0.8, abs=1e-12)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_gspo_by_hand(level):
    # Mean of (.1, -.1, .2) is .2/3: s = exp(.0667) = 1.0689, above 1.0004.
    s = math.exp(0.2 / 3)
    assert s == pytest.approx(1.0689, abs=5e-5)
    value, gradient, _ = run(make(GSPOLoss, level=level, **OPEN), [[0.1, -0.1, 0.2]], [[1.0]])
    assert value == pytest.approx(-s, abs=1e-12)
    close(gradient, [[-s / 3] * 3])  # every token the same, whatever its own ratio
    value, gradient, reports = run(make(GSPOLoss, level=level), [[0.1, -0.1, 0.2]], [[1.0]])
    assert value == pytest.approx(-1.0004, abs=1e-12)
    close(gradient, [[0.0] * 3])
    assert reports["clip_high"].tolist() == [[True] * 3]
    # With A < 0 the unclipped s stands.
    assert run(make(GSPOLoss, level=level), [[0.1, -0.1, 0.2]], [[-1.0]])[0] == pytest.approx(s, abs=1e-12)


def test_gspo_token_keeps_the_advantages_of_tokens_apart():
    # A = (3, 0, 0): the sequence form spreads their mean 1 over the tokens, the token form does not.
    s = math.exp(0.2 / 3)
    spread, apart = (
        run(make(GSPOLoss, level=level, **OPEN), [[0.1, -0.1, 0.2]], [[3.0, 0.0, 0.0]])
        for level in ("sequence", "token")
    )
    close(spread[1], [[-s / 3] * 3])
    close(apart[1], [[-s, 0.0, 0.0]])
    assert spread[0] == pytest.approx(apart[0], abs=1e-12)


@pytest.mark.parametrize("kind", [GSPOLoss, GMPOLoss])
def test_a_response_is_its_trained_tokens(kind):
    # The second token has weight 0: mean log rho is (.1 + .2) / 2, not over three; half a weight counts once.
    loss = make(kind, **(OPEN if kind is GSPOLoss else {}))
    value, gradient, _ = run(loss, [[0.1, 5.0, 0.2]], [[1.0]], weights=[[1.0, 0.0, 0.5]])
    s = math.exp(0.15)
    assert value == pytest.approx(-s * (1 + 0.5) / 2, abs=1e-12)
    close(gradient, [[-s * 0.75 / 2, 0.0, -s * 0.75 / 2]])


def test_gmpo_by_hand():
    # A > 0: log rho (.6, -.1) is bounded to (.4, -.1), mean .15. The bounded token has no gradient.
    g = math.exp(0.15)
    assert g == pytest.approx(1.1618, abs=5e-5)
    value, gradient, reports = run(make(GMPOLoss), [[0.6, -0.1]], [[2.0]])
    assert value == pytest.approx(-2 * g, abs=1e-12)
    close(gradient, [[0.0, -g]])  # -A g / 2
    assert reports["clip_high"].tolist() == [[True, False]]
    # One-sided: A < 0 leaves .6 and bounds -.9 at -.4; A > 0 leaves -.9.
    assert run(make(GMPOLoss), [[0.6, -0.9]], [[-1.0]])[0] == pytest.approx(math.exp((0.6 - 0.4) / 2), abs=1e-12)
    assert run(make(GMPOLoss), [[0.6, -0.9]], [[1.0]])[0] == pytest.approx(-math.exp((0.4 - 0.9) / 2), abs=1e-12)


def test_cispo_by_hand():
    # Ratio 8 weighs 5, ratio 1/2 weighs 1/2, and both keep a gradient of their weight. log pi is -1 + log rho.
    ratios = torch.tensor([[8.0, 0.5]], dtype=torch.float64)
    for a in (1.0, -1.0):
        value, gradient, reports = run(make(CISPOLoss), ratios.log(), [[a]])
        assert value == pytest.approx(-a * (5 * (math.log(8) - 1) + 0.5 * (math.log(0.5) - 1)) / 2, abs=1e-12)
        close(gradient, [[-5 * a / 2, -0.5 * a / 2]])
        assert reports["clip_high"].tolist() == [[True, False]]
        assert not reports["clip_low"].any()
    close(run(make(CISPOLoss, epsilon_low=0.2), ratios.log(), [[1.0]])[1], [[-2.5, -0.4]])
    assert not run(make(CISPOLoss), ratios.log(), [[0.0]])[2]["clip_region"].any()


@pytest.mark.parametrize(("a", "tau"), [(2.0, 1.0), (-2.0, 1.05)])
def test_sapo_by_hand(a, tau):
    # 4 sigma(x) (1 - sigma(x)) = 1 / cosh(x / 2)^2, at x = tau (rho - 1). By log pi the derivative is rho times that.
    value, gradient, reports = run(make(SAPOLoss), [[math.log(1.5)]], [[a]])
    gate = 1 / math.cosh(tau * 0.5 / 2) ** 2
    assert gate == pytest.approx({1.0: 0.9400, 1.05: 0.9341}[tau], abs=5e-5)
    close(gradient, [[-a * gate * 1.5]])
    assert float(reports["gate"]) == pytest.approx(gate, abs=1e-12)
    assert value == pytest.approx(-a * 4 / tau / (1 + math.exp(-tau * 0.5)), abs=1e-12)
    # At rho = 1 the loss is -2 A / tau and its derivative exactly -A.
    value, gradient, _ = run(make(SAPOLoss), [[0.0]], [[a]])
    assert value == pytest.approx(-2 * a / tau, abs=1e-12)
    close(gradient, [[-a]])


def test_dppo_by_hand():
    # q -> pi: .1 -> .35 rises by .25 and .1 -> .25 by .15; .9 -> .6 falls by .3 and .9 -> .75 by .15.
    q, pi = [0.1, 0.1, 0.9, 0.9], [0.35, 0.25, 0.6, 0.75]
    old, new = (torch.tensor([x], dtype=torch.float64).log() for x in (q, pi))
    rho = [new_p / old_p for new_p, old_p in zip(pi, q, strict=True)]
    for a, keep in ((1.0, [0, 1, 1, 1]), (-1.0, [1, 1, 0, 1])):
        value, gradient, reports = run(make(DPPOLoss), new - old, [[a]], old=old)
        penalties = [0.001 * math.log(r) ** 2 for r in rho]
        terms = [p - k * r * a for p, k, r in zip(penalties, keep, rho, strict=True)]
        assert value == pytest.approx(sum(terms) / 4, abs=1e-12)
        slopes = [(0.002 * math.log(r) - k * r * a) / 4 for k, r in zip(keep, rho, strict=True)]
        close(gradient, [slopes])
        masked = reports["clip_high" if a > 0 else "clip_low"]
        assert masked.tolist() == [[not k for k in keep]]
        assert torch.equal(reports["clip_region"], masked)


def test_dppo_reads_every_row_for_its_penalty_alone():
    assert make(DPPOLoss).reads_every_row
    assert not make(DPPOLoss, ratio_penalty=0.0).reads_every_row
    assert make(DPPOLoss, ratio_penalty=0.0, beta=0.1).reads_every_row


# --- limits --------------------------------------------------------------------------------------------------------

LOG_RATIOS = npst.arrays("float64", (4, 3), elements=st.floats(-2, 2))
ADVANTAGES = npst.arrays("float64", (4, 3), elements=st.floats(-2, 2).filter(lambda a: abs(a) > 1e-3))
ENTROPIES = npst.arrays("float64", (4, 3), elements=st.floats(0, 6))


def equal(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-9, abs=1e-12)
    torch.testing.assert_close(one[1], other[1], rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(log_ratios=LOG_RATIOS, advantages=ADVANTAGES, entropy=ENTROPIES)
def test_each_loss_is_a_simpler_one_at_its_limits(log_ratios, advantages, entropy):
    of = lambda loss: run(loss, log_ratios, advantages, old=-3.0, entropy=entropy)  # noqa: E731
    clipped, unclipped = of(make(ClippedLoss)), of(make(ClippedLoss, **OPEN))
    equal(of(make(DualClipLoss, ceiling=math.inf)), clipped)
    equal(of(make(DPPOLoss, delta_low=1.0, delta_high=1.0, ratio_penalty=0.0)), unclipped)
    torch.testing.assert_close(of(make(CISPOLoss, **OPEN))[1], unclipped[1], rtol=1e-9, atol=1e-12)
    wide = {"log_epsilon_low": math.inf, "log_epsilon_high": math.inf}
    equal(of(make(GMPOLoss, **wide)), of(make(GSPOLoss, **OPEN)))


@settings(max_examples=40, deadline=None)
@given(log_ratios=LOG_RATIOS, advantages=ADVANTAGES)
def test_a_response_of_one_token_has_one_ratio(log_ratios, advantages):
    log_ratios, advantages = log_ratios[:, :1], advantages[:, :1]
    for level in ("sequence", "token"):
        equal(
            run(make(GSPOLoss, level=level, **CLIP), log_ratios, advantages),
            run(make(ClippedLoss), log_ratios, advantages),
        )


@settings(max_examples=40, deadline=None)
@given(log_ratios=LOG_RATIOS, advantages=ADVANTAGES)
def test_no_loss_goes_against_an_advantage(log_ratios, advantages):
    same_sign = advantages * 0 + advantages[:, :1]  # of a row, since GSPO's and GMPO's rows are one decision
    for kind in (ClippedLoss, DualClipLoss, GSPOLoss, GMPOLoss, CISPOLoss, SAPOLoss):
        gradient = run(make(kind), log_ratios, same_sign)[1]
        assert (gradient * torch.as_tensor(same_sign) <= 0).all(), kind
    gate = run(make(SAPOLoss), log_ratios, advantages)[2]["gate"]
    assert ((gate > 0) & (gate <= 1)).all()


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "bad", "why"),
    [
        (DualClipLoss, {"ceiling": 1.0}, "must be above 1"),
        (GSPOLoss, {"epsilon_low": -0.1}, "must not be negative"),
        (GMPOLoss, {"log_epsilon_high": -0.1}, "must not be negative"),
        (CISPOLoss, {"epsilon_high": math.nan}, "must not be negative"),
        (SAPOLoss, {"tau_negative": 0.0}, "must be above 0"),
        (DPPOLoss, {"delta_low": -0.1}, "must not be negative"),
        (DPPOLoss, {"ratio_penalty": -1.0}, "must not be negative"),
        (SAPOLoss, {"beta": -0.5}, "must not be negative"),
        (SAPOLoss, {"max_response_tokens": 0}, "must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(kind, bad, why):
    (name, value), *_ = bad.items()
    with pytest.raises(UserError, match=rf"^loss\.{name}={value} {why}"):
        make(kind, **bad)


def remarks(*overrides):
    return build_module(composed("train", *SMALL_GRPO, *overrides)[0]).remarks()


def test_the_remark_at_the_start_names_what_of_this_loss_is_idle():
    (remark,) = remarks("loss=dapo")
    assert remark.startswith(
        "update_epochs=1: the importance ratio is exactly 1, so loss.epsilon_low and loss.epsilon_high do nothing; "
    )
    assert "algorithm.minibatch_rows" in remark
    assert "so loss.delta_low, loss.delta_high and loss.ratio_penalty do nothing" in remarks("loss=dppo")[0]
    assert "so loss.tau_positive and loss.tau_negative do nothing" in remarks("loss=sapo")[0]
    assert remarks("loss=dppo", "algorithm.update_epochs=2") == []
    assert remarks("loss=dppo", "algorithm.minibatch_rows=2") == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("loss.epsilon_low=1.5 algorithm.update_epochs=2", ["loss.epsilon_low=1.5: no ratio is below 1 - epsilon_low"]),
        ("loss.epsilon_low=0.9 algorithm.update_epochs=2", []),
        ("allocation=reinforce_ada advantage=vanilla", ["sees no others: set advantage=pool_mean"]),
        ("allocation=reinforce_ada advantage=pool_mean", []),
        ("advantage=avspo group_filter=drop_zero_variance", ["advantage (AVSPO) has none left to revive"]),
        ("advantage=ngrpo group_filter=drop_same_outcome", ["advantage (NGRPO) has none left to revive"]),
        ("advantage=ngrpo", []),
        ("advantage=vanilla group_filter=drop_zero_variance", []),
    ],
)
def test_strategies_that_leave_each_other_nothing_to_do_are_told_of(overrides, told):
    found = [text for text in remarks(*overrides.split()) if "so loss.epsilon_low and loss.epsilon_high do" not in text]
    assert len(found) == len(told)
    assert all(expected in text for expected, text in zip(told, found, strict=True))
