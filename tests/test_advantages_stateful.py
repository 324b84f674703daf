"""Advantages that remember: AVSPO's threshold and DCPO's history, against numbers worked by hand."""

import math
from dataclasses import replace

import hypothesis.extra.numpy as npst
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_advantages_graded import close, eda, group_of, inputs

from edge_grpo.advantages.avspo import AVSPO
from edge_grpo.advantages.base import UpdateGroups
from edge_grpo.advantages.dcpo_sas import SmoothAdvantage
from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.errors import UserError
from edge_grpo.types.history import Visit

G = 4
P_I = torch.tensor([[0.2], [0.4], [0.6], [0.8]], dtype=torch.float64)  # entropies of a group, mean 1/2
VERDICTS = npst.arrays("float64", 3 * G, elements=st.sampled_from([0.0, 1.0]))
RULE = {"step": 0.01, "min_threshold": 0.1, "max_threshold": 0.9, "exponent": 0.5, "margin": 0.1, "eps": 1e-4}


def avspo(threshold=0.5, **changes):
    return AVSPO(threshold, **(RULE | changes))


# --- avspo ---------------------------------------------------------------------------------------------------------

DEAD_DEAD_LIVE = [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0]


def test_avspo_by_hand():
    # ACR 2/3, K = ceil(4 * .8165) = 4. Wrong: v = .1, .075, .05, .025 sum to 1/4, mean of 8 1/32; their squares sum to
    # .01875, over 8 less 1/1024. Right: v = .8, .6, .4, .2, sum 2, mean 6/8; squares 1.2, (4 + 1.2) / 8 - 9/16.
    whole = inputs(DEAD_DEAD_LIVE)
    taken, reports = avspo()(whole)
    wrong = -(1 / 32) / (math.sqrt(0.01875 / 8 - 1 / 1024) + 1e-4)
    right = (1 / 4) / (math.sqrt(5.2 / 8 - 9 / 16) + 1e-4)
    assert (round(wrong, 4), round(right, 4)) == (-0.8429, 0.8449)
    close(taken[:8], [wrong] * 4 + [right] * 4)
    assert torch.equal(taken[8:], Vanilla(eps=1e-4)(whole)[0][8:])
    assert reports["avspo/virtual_rewards"].tolist() == [4] * 8 + [0] * 4
    assert reports["avspo/threshold"].unique().tolist() == [0.5]
    # A micro-batch has the rate of the update, here 1/3 and so K = 3, not its own, which is 1 and 0.
    whole = inputs([0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0])
    taken, reports = avspo(0.1)(whole)
    assert reports["avspo/virtual_rewards"].tolist() == [3] * 4 + [0] * 8
    for number in range(3):
        close(avspo(0.1)(group_of(whole, number))[0], taken[number * G : number * G + G].tolist())


def test_avspo_with_one_virtual_reward():
    # ACR 1/20, K = ceil(4 * sqrt(.05)) = ceil(.894) = 1: of (0, 0, 0, 0, .1) mean .02, std .04.
    taken, _ = avspo(0.0, min_threshold=0.0)(inputs([0] * 4 + [1, 0, 0, 0] * 19))
    close(taken[:4], [-0.02 / (0.04 + 1e-4)] * 4)
    assert round(-0.02 / (0.04 + 1e-4), 4) == -0.4988


def test_avspo_punishes_wrong_responses_whatever_their_equal_reward_is():
    # A format reward of 1/2 each, all wrong; and right responses that a length penalty made 0, or negative.
    taken, _ = avspo()(inputs([0.5] * 4 + [-0.5] * 4 + [0] * 4, correct=[False] * 4 + [True] * 4 + [True] * 4))
    assert (taken[:4] < 0).all()
    assert (taken[4:8] > 0).all()
    assert taken[8:].tolist() == [0.0] * 4
    # Right and wrong at one reward: nothing to go by.
    assert avspo()(inputs([1] * 4, correct=[True, False, False, False]))[0].tolist() == [0.0] * 4


@given(rewards=VERDICTS, threshold=st.sampled_from([0.1, 0.5, 0.9]))
def test_avspo_is_bounded_and_is_vanilla_on_mixed_groups_and_up_to_the_threshold(rewards, threshold):
    whole = inputs(rewards)
    taken, _ = avspo(threshold)(whole)
    base = Vanilla(eps=1e-4)(whole)[0]
    groups = torch.as_tensor(rewards).view(3, G)
    dead = (groups == groups[:, :1]).all(1)
    rate = float(dead.double().mean())
    if rate <= threshold:
        assert torch.equal(taken, base)
    live = ~dead.repeat_interleave(G)
    assert torch.equal(taken[live], base[live])
    k = min(max(math.ceil(G * math.sqrt(rate)), 1), G)
    assert (taken[~live].abs() <= math.sqrt(k / G)).all()


def shown(strategy, *iterations):
    """tau after each iteration of groups."""
    seen = []
    for rewards in iterations:
        groups = torch.tensor(rewards, dtype=torch.float64)
        strategy.observe(UpdateGroups(groups, groups == 1, torch.tensor([G] * len(groups)), {}))
        seen.append(strategy.threshold)
    return seen


DEAD, LIVE, HALF = [[0, 0], [0, 0]], [[1, 0], [1, 0]], [[1, 0], [1, 1]]


def test_the_threshold_by_hand():
    # Means 0, 1/2, 3/4, 3/4, 0 and rates 1, 0, 1/2, 1/2, 1. The first is not compared with anything. Rising to rate 0:
    # .5 + .01 (0 - .5) = .495; rising at 1/2: .495 + .01 (.005) = .49505; equal: none; falling at rate 1:
    # .49505 - .01 (1 - .49505) = .4900005.
    expected = [0.5, 0.495, 0.49505, 0.49505, 0.4900005]
    assert shown(avspo(), DEAD, LIVE, HALF, HALF, DEAD) == pytest.approx(expected, abs=1e-12)
    # Within its bounds.
    assert shown(avspo(0.12, step=1.0), DEAD, LIVE) == [0.12, 0.1]
    assert shown(avspo(0.5, step=5.0), LIVE, DEAD)[-1] == 0.1


def test_the_threshold_goes_on_after_a_checkpoint():
    whole, first, second = avspo(), avspo(), avspo()
    seen = shown(whole, DEAD, LIVE, HALF)
    shown(first, DEAD, LIVE)
    state = first.state_dict()
    shown(first, DEAD)
    assert state == {"threshold": 0.495, "mean_reward": 0.5}
    second.load_state_dict(state)
    assert shown(second, HALF) == seen[2:]


def test_the_threshold_that_was_moved_decides():
    strategy = avspo(0.66, step=0.9)
    whole = inputs(DEAD_DEAD_LIVE)
    assert (strategy(whole)[0][:4] != 0).all()
    shown(strategy, HALF, DEAD_DEAD_RISEN)  # mean from 3/4 to 1, at rate 1: .66 + .9 (1 - .66) = .966, the bound .9
    assert strategy(whole)[0][:8].tolist() == [0.0] * 8


DEAD_DEAD_RISEN = [[1, 1], [1, 1]]


def test_eda_over_avspo_orders_a_dead_group():
    # -.8429 times 5/2, 5/4, 5/6, 5/8.
    part = replace(group_of(inputs(DEAD_DEAD_LIVE), 0), entropy=P_I)
    close(eda(avspo())(part)[0], [-2.1072, -1.0536, -0.7024, -0.5268], atol=5e-5)


# --- dcpo ----------------------------------------------------------------------------------------------------------

SAS = SmoothAdvantage(eps=1e-12)
TWO_OF_FOUR = Visit(0, 4, 2, 0.5, 0.5)


def seen(rewards, *visits):
    """Groups of one problem each, with the same visits before."""
    whole = inputs(rewards)
    return replace(whole, grading=replace(whole.grading, visits=[visits] * len(whole.rewards)))


def test_dcpo_by_hand():
    # One visit (1, 1, 0, 0), now all wrong: mean 1/4, variance (1/3 + 0 + 1/2 * 1/4) / 2 = 11/48: half of B = -.5222.
    b = -0.25 / math.sqrt(11 / 48)
    assert round(b, 4) == -0.5222
    close(SAS(seen([0] * 4, TWO_OF_FOUR))[0], [b / 2] * 4, atol=1e-9)
    # Two such visits: mean 1/3, variance (2/3 + 0 + 2/3 * 1/4) / 3 = 5/18. B / 3 is smaller than 2 B / 3.
    b = -(1 / 3) / math.sqrt(5 / 18)
    assert round(b, 4) == -0.6325
    close(SAS(seen([0] * 4, TWO_OF_FOUR, TWO_OF_FOUR))[0], [b / 3] * 4, atol=1e-9)
    # A mixed group of a problem that had one all-wrong visit: C = 1.5, -.5 three times. Mean 1/8, variance
    # (0 + 1/4 + 1/2 * 1/16) / 2 = 9/64: B = (7/8) / (3/8) = 7/3, -(1/8) / (3/8) = -1/3. At t = 2 both are the mean.
    close(
        SAS(seen([1, 0, 0, 0], Visit(0, 4, 0, 0.0, 0.0)))[0],
        [(1.5 + 7 / 3) / 2, *[-(1 / 2 + 1 / 3) / 2] * 3],
        atol=1e-9,
    )


def test_dcpo_takes_the_smaller():
    # Two all-wrong visits, now (1, 0, 0, 0): mean 1/12, variance (0 + 1/4 + 2/3 * 1/16) / 3 = 7/72, C = (1.5, -.5).
    # B of the right one is (11/12) / .3118 = 2.940: B/3 + 2C/3 is 1.980, C/3 + 2B/3 is 2.460. Of a wrong one B is
    # -.2673: -.4224, and -.3448.
    s = math.sqrt(7 / 72)
    right, wrong = (11 / 12) / s, -(1 / 12) / s
    expected = [right / 3 + 2 * 1.5 / 3, *[-0.5 / 3 + 2 * wrong / 3] * 3]
    assert [round(x, 3) for x in expected[:2]] == [1.98, -0.345]
    nothing = Visit(0, 4, 0, 0.0, 0.0)
    close(SAS(seen([1, 0, 0, 0], nothing, nothing))[0], expected, atol=1e-9)


def test_a_problem_that_was_always_the_same_stays_at_zero():
    # A mean that was taken in float32 is not 0.1: the deviation of the pool is of the size of 1e-9.
    same = Visit(0, 4, 0, float(torch.tensor(0.1, dtype=torch.float32)), 0.0)
    assert SmoothAdvantage(eps=1e-6)(seen([0.1] * 4, same, same, same))[0].tolist() == [0.0] * 4
    assert SAS(seen([0] * 4, Visit(0, 4, 0, 0.0, 0.0)))[0].tolist() == [0.0] * 4


@given(rewards=VERDICTS)
def test_dcpo_is_grpo_at_the_first_visit_and_shrinks_towards_it(rewards):
    taken = SmoothAdvantage(eps=1e-6)(seen(rewards))[0]
    assert torch.equal(taken, Vanilla(eps=1e-6)(inputs(rewards))[0])
    later = SmoothAdvantage(eps=1e-6)(seen(rewards, *[TWO_OF_FOUR] * 5))[0]
    assert (later.sign() * (2 * torch.as_tensor(rewards) - 1) >= 0).all()  # right rows are never below the pool's mean


def test_eda_over_dcpo_orders_a_dead_group():
    part = replace(seen([0] * 4, TWO_OF_FOUR), entropy=P_I)
    a = -0.125 / math.sqrt(11 / 48)
    close(eda(SAS)(part)[0], [a * 5 / 2, a * 5 / 4, a * 5 / 6, a * 5 / 8], atol=1e-7)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: avspo(0.05), r"advantage\.threshold=0\.05 must be between advantage\.min_threshold=0\.1"),
        (
            lambda: avspo(min_threshold=0.95),
            r"advantage\.min_threshold=0\.95 and advantage\.max_threshold=0\.9 must",
        ),
        (lambda: avspo(max_threshold=1.5), r"advantage\.min_threshold=0\.1 and advantage\.max_threshold=1\.5 must be"),
        (lambda: avspo(step=-0.1), r"advantage\.step=-0\.1 must not be negative"),
        (lambda: avspo(exponent=0.0), r"advantage\.exponent=0\.0 must be above 0"),
        (lambda: avspo(margin=0.0), r"advantage\.margin=0\.0 must be above 0"),
        (lambda: SmoothAdvantage(eps=0.0), r"advantage\.eps=0\.0 must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(made, message):
    with pytest.raises(UserError, match=f"^{message}"):
        made()
