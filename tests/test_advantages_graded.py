"""Advantages that read verdicts, entropies, log-probs or the whole update, against numbers worked by hand."""

import math
from dataclasses import replace
from itertools import combinations

import hypothesis.extra.numpy as npst
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from edge_grpo.advantages.base import AdvantageInputs, Grading, UpdateGroups
from edge_grpo.advantages.batch_std import BatchStd
from edge_grpo.advantages.dgpo import DGPO
from edge_grpo.advantages.dr_grpo import DrGRPO
from edge_grpo.advantages.entropy_bonus import EntropyBonus
from edge_grpo.advantages.entropy_driven import EntropyDriven
from edge_grpo.advantages.gdpo import GDPO
from edge_grpo.advantages.maxrl import MaxRL
from edge_grpo.advantages.ngrpo import NGRPO
from edge_grpo.advantages.pass_at_k import PassAtK
from edge_grpo.advantages.pool_mean import PoolMean
from edge_grpo.advantages.rl_zvp import ZeroVariancePrompts
from edge_grpo.advantages.signed import Signed
from edge_grpo.advantages.unlikeliness import Unlikeliness
from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.errors import UserError

G = 4
GRPO = Vanilla(eps=1e-6)
VERDICTS = npst.arrays("float64", 2 * G, elements=st.sampled_from([0.0, 1.0]))


def inputs(rewards, correct=None, *, entropy=None, logprobs=None, mask=None, parts=None, weights=None, g=G, most=1.0):
    """Rows of an update that is no more than these; a reward of 1 is right unless `correct` says otherwise."""
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    correct = rewards == 1 if correct is None else torch.as_tensor(correct, dtype=torch.bool)
    mask = torch.ones(len(rewards), 1, dtype=torch.bool) if mask is None else mask
    parts = {"accuracy": rewards} if parts is None else {k: tensor(v, dtype=torch.float64) for k, v in parts.items()}
    tokens = mask.view(-1, g, mask.shape[1]).sum((1, 2))
    whole = {name: part.view(-1, g) for name, part in parts.items()}
    update = UpdateGroups(rewards.view(-1, g), correct.view(-1, g), tokens, whole)
    grading = Grading(correct, parts, weights or dict.fromkeys(parts, 1.0), most, update)
    return AdvantageInputs(rewards, g, mask, mask, entropy, grading, logprobs)


def group_of(whole, number):
    """One group of an update as a micro-batch of it."""
    rows = torch.arange(number * G, (number + 1) * G)
    taken = {name: getattr(whole, name)[rows] for name in ("rewards", "completion_mask", "sampled_mask")}
    return replace(whole, grading=whole.grading.select(rows), **taken)


def eda(base):
    return EntropyDriven(base, clamp=None, detach=True, scope="group", mask="response", refresh="rollout")


def close(taken, expected, atol=1e-12):
    torch.testing.assert_close(taken, tensor(expected, dtype=torch.float64), atol=atol, rtol=0)


# --- the whole update ----------------------------------------------------------------------------------------------


def test_batch_std_by_hand():
    # Rewards (1, 0, 0, 0) and (1, 1, 0, 0): of 3 ones and 5 zeros the squares about the mean are 8 * 3/8 * 5/8 = 15/8,
    # over 7 is 15/56. Means 1/4 and 1/2. The second group as a micro-batch has the same numbers.
    scale = math.sqrt(15 / 56) + 1e-4
    whole = inputs([1, 0, 0, 0, 1, 1, 0, 0])
    second = [0.5 / scale, 0.5 / scale, -0.5 / scale, -0.5 / scale]
    close(BatchStd(eps=1e-4)(whole)[0], [0.75 / scale, *[-0.25 / scale] * 3, *second])
    close(BatchStd(eps=1e-4)(group_of(whole, 1))[0], second)


POOL = PoolMean(std=False, eps=1e-6)


def of_pools(rewards, *pools):
    """Rewards of groups of G, and of each group all that were drawn for it."""
    whole = inputs(rewards)
    drawn = [tensor(pool, dtype=torch.float32) for pool in pools for _ in range(G)]
    return replace(whole, grading=replace(whole.grading, drawn=drawn))


def test_pool_mean_by_hand():
    # 3 right of 16: mean 3/16, squares about it 3 (13/16)^2 + 13 (3/16)^2 = 624/256, over 15 is 0.1625. 1 right of 4.
    whole = of_pools([1, 1, 0, 0, 0, 0, 1, 0], [1] * 3 + [0] * 13, [0, 0, 1, 0])
    close(POOL(whole)[0], [13 / 16, 13 / 16, -3 / 16, -3 / 16, -1 / 4, -1 / 4, 3 / 4, -1 / 4])
    by = math.sqrt(0.1625) + 1e-6
    first = replace(POOL, std=True)(group_of(whole, 0))[0]
    close(first, [13 / 16 / by, 13 / 16 / by, -3 / 16 / by, -3 / 16 / by])
    second = replace(POOL, std=True)(group_of(whole, 1))[0]
    close(second, Vanilla(eps=1e-6)(group_of(whole, 1))[0].tolist())


def test_pool_mean_of_equal_rewards_out_of_a_mixed_pool_is_alive_and_out_of_an_equal_one_dead():
    close(POOL(of_pools([0] * G, [0] * 7 + [1]))[0], [-1 / 8] * G)
    third = 1 / 3  # whose sum over 12 need not be 4
    for built in (POOL, replace(POOL, std=True)):
        dead = replace(inputs([third] * G), rewards=torch.full((G,), third))
        dead = replace(dead, grading=replace(dead.grading, drawn=[torch.full((12,), third)] * G))
        assert (built(dead)[0] == 0).all()
        assert built.zero_advantage_groups(dead).tolist() == [True]


@given(VERDICTS)
def test_pool_mean_of_no_more_than_the_group_is_dr_grpo(rewards):
    whole = of_pools(rewards, rewards[:G], rewards[G:])
    close(POOL(whole)[0], DrGRPO()(whole)[0].tolist())


def test_eda_over_batch_std_divides_by_the_deviation_of_the_update():
    # The second group alone, P = (0.2, 0.4, 0.6, 0.8), mean 0.5: multipliers 5/2, 5/4, 5/6, 5/8.
    part = replace(group_of(inputs([1, 0, 0, 0, 1, 1, 0, 0]), 1), entropy=tensor([[0.2], [0.4], [0.6], [0.8]]).double())
    a = 0.5 / (math.sqrt(15 / 56) + 1e-4)
    close(eda(BatchStd(eps=1e-4))(part)[0], [a * 5 / 2, a * 5 / 4, -a * 5 / 6, -a * 5 / 8], atol=1e-7)


def test_dgpo_by_hand():
    # Deviations of (1, 0, 0, 0): 3/4 and 1/4 three times, sum 3/2; so A0 = 4 (3/4) / (3/2) = 2, -2/3. (1, 1, 1, 0)
    # mirrors it; rewards of 2 change nothing. Accuracies 1/4 and 3/4, two live groups: weights 2 e^(-1/8), 2 e^(-3/8)
    # over their sum. 4, 8 and 12 tokens, of which the dead group has 12: 24 / 12 = 2.
    mask = torch.arange(3)[None] < tensor([1] * G + [2] * G + [3] * G)[:, None]
    rewards = tensor([2, 0, 0, 0, 2, 2, 2, 0, 0, 0, 0, 0])
    whole = inputs(rewards, correct=rewards == 2, mask=mask)
    hard, easy = math.exp(-1 / 8), math.exp(-3 / 8)
    w = [2 * 2 * hard / (hard + easy), 2 * 2 * easy / (hard + easy)]
    expected = [2 * w[0], *[-2 / 3 * w[0]] * 3, *[2 / 3 * w[1]] * 3, -2 * w[1], 0, 0, 0, 0]
    close(DGPO(temperature=2.0, eps=1e-12)(whole)[0], expected, atol=1e-10)
    close(DGPO(temperature=2.0, eps=1e-12)(group_of(whole, 1))[0], expected[G : 2 * G], atol=1e-10)


def test_dgpo_without_a_live_group_is_exactly_zero():
    assert DGPO(temperature=2.0, eps=1e-4)(inputs([1] * G + [0] * G))[0].tolist() == [0.0] * 2 * G


def test_gdpo_by_hand():
    # Accuracy: (1, 0, 0, 0) has mean 1/4 and std 1/2; (1, 1, 0, 0) mean 1/2 and std sqrt(1/3). Format with weight 1/2:
    # all equal in the first group, so 0; (0, 0, 0, 1) in the second. A total of 1 stands both for right without the
    # format and, with weight 1, for the format alone; here they differ.
    parts = {"accuracy": [1, 0, 0, 0, 1, 1, 0, 0], "format": [0.1] * G + [0, 0, 0, 1]}
    whole = inputs([0] * 8, parts=parts, weights={"accuracy": 1.0, "format": 0.5})
    a = 0.5 / math.sqrt(1 / 3)
    s = [1.5, -0.5, -0.5, -0.5, a - 0.25, a - 0.25, -a - 0.25, -a + 0.75]
    std = math.sqrt(sum(x * x for x in s) / 7)  # each group sums to 0
    close(GDPO(eps=1e-12)(whole)[0], [x / std for x in s], atol=1e-10)
    close(GDPO(eps=1e-12)(group_of(whole, 1))[0], [x / std for x in s[G:]], atol=1e-10)


def test_gdpo_is_exactly_zero_where_a_reward_is_equal_over_the_group():
    # The mean of three times 0.1 is not 0.1 in floating point.
    taken, _ = GDPO(eps=1e-4)(inputs([0.1, 0.1, 0.1, 0, 0, 1], g=3))
    assert taken[:3].tolist() == [0.0] * 3
    assert (taken[3:] != 0).all()


# --- verdicts ------------------------------------------------------------------------------------------------------


def test_ngrpo_by_hand():
    # (1, 0, 0, 0) and the virtual 1: mean 2/5, squares 2 (9/25) + 3 (4/25) = 30/25, over 4 is 3/10.
    # (0, 0, 0, 0) and 1: mean 1/5, squares 4/25 + 16/25, over 4 is 1/5: -(1/5) / sqrt(1/5) = -1 / sqrt(5).
    s = math.sqrt(3 / 10)
    taken, _ = NGRPO(eps=1e-12)(inputs([1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]))
    close(taken, [0.6 / s, *[-0.4 / s] * 3, *[-1 / math.sqrt(5)] * 4, 0, 0, 0, 0], atol=1e-10)


def test_ngrpo_punishes_equal_rewards_below_the_highest():
    # Twice (1, 1) under a highest of 2: mean 4/3, squares 2 (1/9) + 4/9 = 2/3, over 2 is 1/3: -(1/3) / sqrt(1/3).
    taken, _ = NGRPO(eps=1e-12)(inputs([1, 1], g=2, most=2.0))
    close(taken, [-math.sqrt(1 / 3)] * 2, atol=1e-10)


def test_ngrpo_knows_a_perfect_group_in_float32():
    # Rewards are summed in float32, where 0.3 + 0.6 is 0.90000004, the highest one in float64, where it is 0.9.
    whole = inputs([0.0] * G, most=0.3 + 0.6)
    rewards = torch.full((G,), 0.3) + torch.full((G,), 0.6)
    assert rewards[0] != torch.tensor(0.3 + 0.6)
    assert NGRPO(eps=1e-6)(replace(whole, rewards=rewards))[0].tolist() == [0.0] * G


@given(rewards=VERDICTS)
def test_ngrpo_never_pushes_a_group_up(rewards):
    assert (NGRPO(eps=1e-6)(inputs(rewards))[0].view(-1, G).sum(1) <= 1e-9).all()


def test_eda_over_ngrpo_orders_an_all_wrong_group():
    # -1 / sqrt(5) = -0.4472 in every row; P = (0.2, 0.4, 0.6, 0.8), mean 0.5: times 5/2, 5/4, 5/6, 5/8.
    entropy = tensor([[0.2], [0.4], [0.6], [0.8]], dtype=torch.float64)
    taken, _ = eda(NGRPO(eps=1e-12))(inputs([0] * G, entropy=entropy))
    a = -1 / math.sqrt(5)
    close(taken, [a * 5 / 2, a * 5 / 4, a * 5 / 6, a * 5 / 8], atol=1e-10)
    close(taken, [-1.1180, -0.5590, -0.3727, -0.2795], atol=1e-4)


@pytest.mark.parametrize(("right", "wrong"), [(0.0, 1.0), (1.0, 0.0), (0.1, 1.0)], ids=["nsr", "psr", "w_reinforce"])
def test_signed_reads_the_verdict_of_its_own_row_alone(right, wrong):
    # Format rewards must not count: the right row has the smallest reward.
    taken, _ = Signed(right=right, wrong=wrong)(inputs([0.1, 0.5, 1, 1], correct=[True, False, False, False]))
    assert taken.tolist() == [right, -wrong, -wrong, -wrong]
    all_right, all_wrong = Signed(right, wrong).zero_advantage_groups(inputs([1] * G + [0] * G)).tolist()
    assert (all_right, all_wrong) == (right == 0, wrong == 0)


def test_maxrl_by_hand():
    # One of four right: (3/4) / (1/4) = 3; three of four: (1/4) / (3/4) = 1/3. The rewards do not count.
    correct = [1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    taken, _ = MaxRL()(inputs([0.3, 0.6, 0.9, 0.2] * 4, correct=correct))
    close(taken, [3, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1, *[0] * 8])
    assert taken[8:].tolist() == [0.0] * 8


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_pass_at_k_is_the_mean_over_all_sets_of_k_responses(n):
    for k in range(1, n):
        for c in range(n + 1):
            correct = [True] * c + [False] * (n - c)
            sets = [(some, float(any(correct[i] for i in some))) for some in combinations(range(n), k)]
            rho = sum(reward for _, reward in sets) / len(sets)
            s = math.sqrt(rho * (1 - rho))
            expected = [0.0] * n
            if s > 0:
                own = [[reward for some, reward in sets if i in some] for i in range(n)]
                expected = [sum((reward - rho) / s for reward in mine) / len(mine) for mine in own]
            taken, _ = PassAtK(k)(inputs([0.0] * n, correct=correct, g=n))
            close(taken, expected, atol=1e-9)
            assert (taken == 0).all() == (c == 0 or n - c < k)


@given(rewards=VERDICTS)
def test_pass_at_1_is_grpo_with_the_populations_deviation(rewards):
    r = tensor(rewards).view(-1, G)
    expected = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True, correction=0) + 1e-12)
    torch.testing.assert_close(PassAtK(1)(inputs(rewards))[0], expected.flatten(), atol=1e-6, rtol=0)


# --- entropies and log-probs ---------------------------------------------------------------------------------------


def test_entropy_bonus_by_hand():
    # A = (3/4, -1/4, ...), kappa 2: at most 3/8 and 1/8. 0.4 nats times 0.5, 2.0: 0.2, and 0.8 is cut to 3/8.
    entropy = tensor([[0.5, 2.0], [0.25, 0.0], [9.0, 9.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(G, 2, dtype=torch.bool)
    taken, _ = EntropyBonus(DrGRPO(), alpha=0.4, kappa=2.0)(inputs([1, 0, 0, 0], entropy=entropy, mask=mask))
    close(taken, [[0.95, 1.125], [-0.15, -0.25], [-0.125, -0.125], [-0.25, -0.25]])
    assert not taken.requires_grad


@given(
    rewards=VERDICTS,
    entropy=npst.arrays("float64", (2 * G, 3), elements=st.floats(0, 9)),
    alpha=st.sampled_from([0.0, 0.4, 3.0]),
    kappa=st.sampled_from([1.01, 2.0, 5.0]),
)
def test_entropy_bonus_is_bounded_and_turns_no_sign(rewards, entropy, alpha, kappa):
    whole = inputs(rewards, entropy=tensor(entropy), mask=torch.ones(2 * G, 3, dtype=torch.bool))
    base, taken = GRPO(whole)[0][:, None], EntropyBonus(GRPO, alpha, kappa)(whole)[0]
    assert (taken >= base).all()
    assert (taken - base <= base.abs() / kappa + 1e-12).all()
    assert torch.equal(taken.sign(), base.expand(-1, 3).sign())
    if alpha == 0:
        assert torch.equal(taken, base.expand(-1, 3))


def test_rl_zvp_by_hand():
    # alpha 0.1. All wrong: 0.1 (H - 5), 5 the largest of the response's own two tokens; the 9 behind it is padding.
    # All right: 0.1 H. The mixed group is Dr. GRPO, 1/2 and -1/2.
    entropy = tensor([[2.0, 5, 9], [1, 1, 1], [2, 5, 9], [0, 0, 0], [2, 5, 9], [3, 3, 3]], dtype=torch.float64)
    mask = tensor([[True, True, False]] * 6)
    whole = inputs([0, 0, 1, 1, 1, 0], entropy=entropy, mask=mask, g=2)
    strategy = ZeroVariancePrompts(DrGRPO(), alpha=0.1)
    taken, _ = strategy(whole)
    close(taken, [[-0.3, 0, 0], [0, 0, 0], [0.2, 0.5, 0], [0, 0, 0], [0.5, 0.5, 0], [-0.5, -0.5, 0]])
    assert strategy.zero_advantage_groups(whole).tolist() == [False, False, False]


def test_rl_zvp_leaves_equal_rewards_of_different_verdicts_to_its_base():
    # Right without the format and wrong with it: both 1.
    entropy, mask = torch.ones(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool)
    whole = inputs([1, 1], correct=[True, False], entropy=entropy, mask=mask, g=2)
    strategy = ZeroVariancePrompts(DrGRPO(), alpha=0.1)
    assert strategy(whole)[0].tolist() == [[0.0], [0.0]]
    assert strategy.zero_advantage_groups(whole).tolist() == [True]


def test_unlikeliness_by_hand():
    # Mean log-probs -0.2, -0.4, -0.6, -0.8 (the -9 is padding): ranks 3, 2, 1, 0, r' = 1 - (3, 2, 1, 0) / 16. About
    # their mean: (-3, -1, 1, 3) / 32, squares 20 / 1024, over 3 is 20 / 3072.
    logprobs = tensor([[-0.1, -0.3], [-0.4, -9], [-0.6, -0.6], [-0.7, -0.9]], dtype=torch.float64)
    mask = tensor([[True, True], [True, False], [True, True], [True, True]])
    taken, _ = Unlikeliness(beta=0.25, eps=1e-12)(inputs([1] * G, logprobs=logprobs, mask=mask))
    s = math.sqrt(20 / 3072)
    close(taken, [-3 / 32 / s, -1 / 32 / s, 1 / 32 / s, 3 / 32 / s], atol=1e-9)
    close(taken, [-1.162, -0.387, 0.387, 1.162], atol=1e-3)


def test_unlikeliness_lowers_right_rows_alone_and_shares_the_ranks_of_equals():
    # Ranks of (-1, -1, -2, -3): 2.5, 2.5, 1, 0. Row 2 is wrong and keeps its format's 0.5: r' = (1 - 2.5/8 twice, 0.5,
    # 1), beta 0.5. Mean (0.6875 * 2 + 1.5) / 4.
    logprobs = tensor([[-1.0], [-1], [-2], [-3]], dtype=torch.float64)
    taken, _ = Unlikeliness(beta=0.5, eps=1e-12)(inputs([1, 1, 0.5, 1], logprobs=logprobs))
    lowered = tensor([0.6875, 0.6875, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(taken, (lowered - 0.71875) / lowered.std(), atol=1e-9, rtol=0)


@given(rewards=VERDICTS, logprobs=npst.arrays("float64", (2 * G, 2), elements=st.floats(-9, 0)))
def test_unlikeliness_leaves_wrong_groups_and_beta_0_is_grpo(rewards, logprobs):
    whole = inputs(rewards, logprobs=tensor(logprobs), mask=torch.ones(2 * G, 2, dtype=torch.bool))
    torch.testing.assert_close(Unlikeliness(beta=0.0, eps=1e-6)(whole)[0], GRPO(whole)[0])
    wrong = (whole.rewards == 0).view(-1, G).all(1)
    strategy = Unlikeliness(beta=0.25, eps=1e-6)
    assert (strategy(whole)[0].view(-1, G)[wrong] == 0).all()
    assert strategy.zero_advantage_groups(whole).tolist() == wrong.tolist()


# --- what all have in common ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "advantage",
    [BatchStd(1e-4), DGPO(2.0, 1e-4), GDPO(1e-4), MaxRL(), PassAtK(2)],
    ids=lambda advantage: type(advantage).__name__,
)
@given(rewards=VERDICTS)
def test_a_group_sums_to_zero_and_a_collapsed_one_is_zero(advantage, rewards):
    taken = advantage(inputs(rewards))[0].view(-1, G)
    assert (taken.sum(1).abs() < 1e-9).all()
    number = tensor(rewards).view(-1, G).sum(1)
    assert (taken[(number == 0) | (number == G)] == 0).all()


def test_the_needs_of_a_base_are_those_of_the_whole():
    official = EntropyDriven(GRPO, clamp=None, detach=False, scope="microbatch", mask="padded", refresh="update")
    for base, expected in ((GRPO, False), (official, True)):
        whole = EntropyBonus(base, alpha=0.4, kappa=2.0)
        assert (whole.inside_update, whole.differentiates_entropy, whole.reads_padding) == (expected,) * 3
        assert (set(whole.metrics) == set(official.metrics)) == expected
    for whole in (PassAtK(5), eda(PassAtK(5)), ZeroVariancePrompts(eda(PassAtK(5)), alpha=0.1)):
        assert whole.min_generations == 6


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (lambda: BatchStd(eps=0.0), r"advantage\.eps=0\.0 must be above 0"),
        (lambda: PoolMean(std=False, eps=0.0), r"advantage\.eps=0\.0 must be above 0"),
        (lambda: NGRPO(eps=-1.0), r"advantage\.eps=-1\.0 must be above 0"),
        (lambda: GDPO(eps=math.nan), r"advantage\.eps=nan must be above 0"),
        (lambda: DGPO(temperature=0.0, eps=1e-4), r"advantage\.temperature=0\.0 must be above 0"),
        (lambda: Signed(right=-0.1, wrong=1.0), r"advantage\.right=-0\.1 must not be negative"),
        (lambda: Signed(right=1.0, wrong=-1.0), r"advantage\.wrong=-1\.0 must not be negative"),
        (lambda: Signed(right=0.0, wrong=0.0), r"advantage\.right=0 and advantage\.wrong=0 teach nothing"),
        (lambda: PassAtK(k=0), r"advantage\.k=0 must be at least 1"),
        (lambda: EntropyBonus(GRPO, alpha=-1.0, kappa=2.0), r"advantage\.alpha=-1\.0 must not be negative"),
        (lambda: EntropyBonus(GRPO, alpha=0.4, kappa=1.0), r"advantage\.kappa=1\.0 must be above 1"),
        (lambda: ZeroVariancePrompts(GRPO, alpha=0.0), r"advantage\.alpha=0\.0 must be above 0"),
        (lambda: Unlikeliness(beta=1.0, eps=1e-6), r"advantage\.beta=1\.0 must be at least 0 and below 1"),
        (lambda: Unlikeliness(beta=0.5, eps=0.0), r"advantage\.eps=0\.0 must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(built, message):
    with pytest.raises(UserError, match=message):
        built()


def test_what_an_advantage_lacks_is_said():
    bare = AdvantageInputs(torch.zeros(G), G, *[torch.ones(G, 1, dtype=torch.bool)] * 2)
    with pytest.raises(ValueError, match=r"AdvantageInputs\.grading, which is None"):
        MaxRL()(bare)
    with pytest.raises(ValueError, match=r"reads Grading\.drawn, which is empty"):
        POOL(inputs([1] * G))
    with pytest.raises(ValueError, match="EntropyBonus needs token entropies"):
        EntropyBonus(GRPO, alpha=0.4, kappa=2.0)(bare)
    with pytest.raises(ValueError, match="unlikeliness needs log-probs"):
        Unlikeliness(beta=0.25, eps=1e-6)(inputs([1] * G))
    with pytest.raises(ValueError, match="grading of 8 rows for 4 rewards"):
        replace(bare, grading=inputs([0] * 8).grading)
