"""GRPO's advantage with virtual responses in collapsed groups, where many groups are collapsed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor

from edge_grpo.advantages.base import (
    AdvantageInputs,
    RewardAdvantage,
    UpdateGroups,
    check_positive,
    collapsed,
)
from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics


@dataclass
class AVSPO(RewardAdvantage):
    """`vanilla`, but where ACR > tau a group of equal rewards r is joined by K virtual rewards v_k (AVSPO, 2605.21125):

        A_i = (r - mean') / (std' + eps)       mean' and std' over the G real and the K virtual rewards
        v_k = r - |r| k / (K + 1)              if all its responses are right
        v_k = r + margin (K - k + 1) / K       if all are wrong
        K   = ceil(G ACR^exponent), at least 1 and at most G

    ACR, the advantage collapse rate, is the share of the update's groups whose rewards are equal, on all ranks; std'
    has G + K in its denominator. At the start of every iteration but the first

        tau <- tau + step sign(change of the update's mean reward) (ACR - tau)

    within [min_threshold, max_threshold]: while rewards rise tau goes to where ACR is, while they fall away from it.
    tau and the last mean reward are in the checkpoint. |A_i| is at most sqrt(K / G). Assumes that the policy sampled
    the groups (correction=none). The formulas of v_k are for rewards 1 and 0; that they start from r, for a reward with
    a format part, is ours. The paper's code was not out; the rule for tau follows a reimplementation.

    Degenerate case: revives all-right and all-wrong groups, every row alike, while ACR > tau. A group of equal rewards
    with right and wrong responses stays at 0. With `group_filter=drop_zero_variance` ACR is 0: `vanilla`.

    Args:
        threshold: tau at the start, within the bounds.
        step: of tau, not negative; 0 keeps it.
        min_threshold, max_threshold: bounds of tau, in [0, 1].
        exponent: of ACR in K = ceil(G ACR^exponent), above 0.
        margin: of the best virtual reward of an all-wrong group, above 0.
        eps: added to the standard deviations.

    Raises:
        UserError: a value out of range.

    >>> from edge_grpo.advantages.base import Grading
    >>> mask, wrong = torch.ones(4, 1, dtype=torch.bool), torch.zeros(4)
    >>> groups = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    >>> update = UpdateGroups(groups, groups == 1, torch.tensor([4, 4, 4]), {})
    >>> inputs = AdvantageInputs(wrong, 4, mask, mask, grading=Grading(wrong == 1, {}, {}, 1.0, update))
    >>> avspo = AVSPO(0.5, step=0.01, min_threshold=0.1, max_threshold=0.9, exponent=0.5, margin=0.1, eps=1e-4)
    >>> avspo(inputs)[0]  # ACR 2/3, K = ceil(3.27) = 4, v = .1, .075, .05, .025: mean 1/32, std .037: -.03125 / .0371
    tensor([-0.8429, -0.8429, -0.8429, -0.8429])
    """

    revives = True  # groups of equal rewards, which a group filter may have dropped

    threshold: float
    step: float
    min_threshold: float
    max_threshold: float
    exponent: float
    margin: float
    eps: float
    mean_reward: float | None = field(init=False, default=None)

    metrics: ClassVar[StrategyMetrics] = {
        "avspo/threshold": StrategyMetric("share", "tau, the collapse rate above which dead groups are revived"),
        "avspo/virtual_rewards": StrategyMetric("rewards", "mean over rows of K, 0 where none join its group"),
    }

    def __post_init__(self) -> None:
        if not 0 <= self.min_threshold <= self.max_threshold <= 1:
            raise UserError(
                f"advantage.min_threshold={self.min_threshold} and advantage.max_threshold={self.max_threshold} must "
                "be in [0, 1], in this order"
            )
        if not self.min_threshold <= self.threshold <= self.max_threshold:
            raise UserError(
                f"advantage.threshold={self.threshold} must be between advantage.min_threshold={self.min_threshold} "
                f"and advantage.max_threshold={self.max_threshold}"
            )
        if not self.step >= 0:
            raise UserError(f"advantage.step={self.step} must not be negative")
        check_positive(exponent=self.exponent, margin=self.margin, eps=self.eps)

    def observe(self, groups: UpdateGroups) -> None:
        """Move tau."""
        mean = float(groups.rewards.double().mean())
        if self.mean_reward is not None:
            sign = (mean > self.mean_reward) - (mean < self.mean_reward)
            moved = self.threshold + self.step * sign * (collapse_rate(groups) - self.threshold)
            self.threshold = min(max(moved, self.min_threshold), self.max_threshold)
        self.mean_reward = mean

    def state_dict(self) -> dict[str, Any]:
        """tau and the last mean reward."""
        return {"threshold": self.threshold, "mean_reward": self.mean_reward}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.threshold, self.mean_reward = state["threshold"], state["mean_reward"]

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards and verdicts -> [N] advantages; reports of rows."""
        advantages, _ = Vanilla(eps=self.eps)(inputs)
        r, correct, rate = inputs.grouped_rewards, inputs.grouped_correct, collapse_rate(inputs.graded.update)
        count = min(max(ceil(inputs.num_generations * rate**self.exponent), 1), inputs.num_generations)
        dead = collapsed(r) & (rate > self.threshold)
        right, wrong = dead & correct.all(1), dead & ~correct.any(1)
        k = torch.arange(1, count + 1, dtype=r.dtype, device=r.device)
        below = r[:, :1] - r[:, :1].abs() * k / (count + 1)
        above = r[:, :1] + self.margin * (count - k + 1) / count
        joined = torch.cat([r, torch.where(right[:, None], below, above)], dim=1)
        scaled = (r - joined.mean(1, keepdim=True)) / (joined.std(1, keepdim=True, correction=0) + self.eps)
        revived = (right | wrong)[:, None].expand_as(r)
        taken = torch.where(revived, scaled, advantages.view_as(r)).flatten()
        reports = {
            "avspo/threshold": torch.full_like(taken, self.threshold),
            "avspo/virtual_rewards": (count * revived).flatten().to(taken.dtype),
        }
        return taken, reports


def collapse_rate(groups: UpdateGroups) -> float:
    """ACR, the share of groups whose rewards are equal."""
    return float(collapsed(groups.rewards).double().mean())
