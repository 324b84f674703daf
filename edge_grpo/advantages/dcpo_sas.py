"""GRPO's advantage smoothed with what was sampled of the same problem before."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, check_positive, collapsed
from edge_grpo.types.history import Visit

# A history holds means and deviations, so that equality cannot say whether all rewards were equal.
SMALL = 1e-6


@dataclass(frozen=True)
class SmoothAdvantage(RewardAdvantage):
    """Smooth advantage standardisation of DCPO (2509.02333): of

        B / t + (1 - 1/t) C   and   C / t + (1 - 1/t) B

    the one of smaller size, where t counts the visits to the problem, this one too, and

        C = (r_i - mean) / (std + eps)          of the group's rewards
        B = (r_i - mean_t) / (std_t + eps)      of all t visits
        mean_t = ((t - 1) mean_{t-1} + mean) / t
        var_t  = ((t - 1) var_{t-1} + var + (t - 1) / t (mean - mean_{t-1})^2) / t

    std has G - 1 in its denominator. A visit is what was sampled of the problem, on any rank, whatever a correction
    made of it. Assumes that the policy of earlier visits says something of today's, and that the group is sampled too
    (correction=none). Equal to `vanilla` at the first visit. Degenerate case: revives all-right and all-wrong groups
    from the second visit on, if the problem had other rewards before; one that was always wrong, or always right,
    stays at 0.

    Args:
        eps: added to the standard deviations.

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> mask, r = torch.ones(4, 1, dtype=torch.bool), torch.zeros(4)
    >>> update, visits = UpdateGroups(r[None], r[None] == 1, torch.tensor([4]), {}), [[Visit(0, 4, 2, 0.5, 0.5)]] * 4
    >>> inputs = AdvantageInputs(r, 4, mask, mask, grading=Grading(r == 1, {}, {}, 1.0, update, visits=visits))
    >>> SmoothAdvantage(eps=1e-6)(inputs)[0]  # var (1/3 + 0 + 1/8) / 2 = 11/48: B = -1/4 / .4787 = -.522, half of it
    tensor([-0.2611, -0.2611, -0.2611, -0.2611])
    """

    revives = True  # groups of equal rewards, which a group filter may have dropped

    eps: float

    def __post_init__(self) -> None:
        check_positive(eps=self.eps)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards -> [N] advantages."""
        r, g = inputs.grouped_rewards, inputs.num_generations
        mean, std = r.mean(1, keepdim=True), r.std(1, keepdim=True)
        dead = collapsed(r)[:, None]
        now = torch.where(dead, 0.0, (r - mean) / (std + self.eps))
        visits = inputs.graded.visits[::g] if inputs.graded.visits else [()] * len(r)
        of_groups = zip(visits, mean.flatten().tolist(), std.square().flatten().tolist(), strict=True)
        pool_mean, pool_std = r.new_tensor([pooled(seen, m, v) for seen, m, v in of_groups]).T[:, :, None]
        pool = torch.where(pool_std > SMALL, (r - pool_mean) / (pool_std + self.eps), 0.0)
        share = 1 / r.new_tensor([len(seen) + 1 for seen in visits])[:, None]
        one, other = share * pool + (1 - share) * now, share * now + (1 - share) * pool
        smooth = torch.where(one.abs() < other.abs(), one, other)
        return torch.where(share == 1, now, smooth).flatten(), {}


def pooled(visits: Sequence[Visit], mean: float, variance: float) -> tuple[float, float]:
    """Mean and standard deviation of all visits to a problem, with that of today, of which they are given.

    >>> visits = [Visit(0, 4, 2, 0.5, 0.5), Visit(1, 4, 2, 0.5, 0.5)]
    >>> [round(x, 4) for x in pooled(visits, 0.0, 0.0)]  # var (2 * 1/3 + 0 + 2/3 * 1/4) / 3 = 5/18
    [0.3333, 0.527]
    """
    # A visit's deviation has the number of its rows in its denominator.
    moments = [(v.mean, v.std**2 * v.rows / (v.rows - 1) if v.rows > 1 else 0.0) for v in visits]
    (total, spread), *later = [*moments, (mean, variance)]
    for t, (new_mean, new_variance) in enumerate(later, start=2):
        spread = ((t - 1) * spread + new_variance + (t - 1) / t * (new_mean - total) ** 2) / t
        total = ((t - 1) * total + new_mean) / t
    return total, sqrt(spread)
