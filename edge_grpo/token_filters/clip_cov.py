"""A few of the tokens that lower the policy's entropy most do not learn."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.token_filters.base import TokenFilterInputs
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics


@dataclass(frozen=True)
class ClipCov:
    """Clip-Cov (2505.22617): factor 0 for a random few of the tokens with lowest < cov_t < highest, else 1, with

        cov_t = (A_t - mean(A)) (log pi_t - mean(log pi))

    A likely token with a high advantage lowers the entropy, and few tokens do most of it. Of n tokens on all ranks,
    max(1, floor(share n)) of those between the bounds are drawn. The means are over the sampled and trained tokens of
    the update, on all ranks (verl: of a micro-batch), and pi is the policy that sampled them. A token with factor 0
    stays in the loss's denominators, as in verl. Assumes advantages of a size of about 1 (`vanilla`), since the bounds
    are absolute. Tokens that a correction wrote have no log-prob: they are in no mean and keep factor 1.

    verl chooses among the tokens that PPO's clip leaves alone; here the choice is made before the update, where the
    clip is idle. The paper's run has the clip off (`loss.epsilon_low=1 loss.epsilon_high=1`). Degenerate case: where
    all advantages or all log-probs are equal no covariance is between the bounds, and every token counts.

    Args:
        share: of all tokens, above 0 and at most 1; 0.0002 in the paper.
        lowest, highest: bounds of the covariance, 0 <= lowest < highest; 1 and 5 in the paper.

    Raises:
        UserError: a value out of range.
    """

    share: float
    lowest: float
    highest: float

    reads_advantages = True
    metrics: ClassVar[StrategyMetrics] = {
        "train/clip_cov/covariance": StrategyMetric(
            "nats", "mean over trained tokens of cov_t: what the step takes from the entropy, to first order"
        ),
        "train/clip_cov/share": StrategyMetric("share", "trained tokens that are kept from learning"),
    }

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"token_filter.share={self.share} must be above 0 and at most 1")
        if not self.lowest >= 0:
            raise UserError(f"token_filter.lowest={self.lowest} must not be negative")
        if not self.highest > self.lowest:
            raise UserError(f"token_filter.highest={self.highest} must be above token_filter.lowest={self.lowest}")

    def __call__(self, inputs: TokenFilterInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, T] factors, 0 or 1; reports of tokens."""
        assert inputs.advantages is not None
        device, known = inputs.sampling_logprobs.device, (inputs.trained & inputs.sampled).cpu()
        advantages, logprobs = inputs.advantages.cpu().double(), inputs.sampling_logprobs.cpu().double()
        sums = torch.stack([known.sum().double(), advantages[known].sum(), logprobs[known].sum()])
        count, *totals = inputs.over_ranks(sums).view(-1, 3).sum(0)
        mean_advantage, mean_logprob = (total / count.clamp(min=1) for total in totals)
        cov = torch.where(known, (advantages - mean_advantage) * (logprobs - mean_logprob), 0.0)
        chosen = self._chosen(known & (cov > self.lowest) & (cov < self.highest), int(count), inputs).to(device)
        reports = {
            "train/clip_cov/covariance": cov.to(device),
            "train/clip_cov/share": chosen.to(inputs.sampling_logprobs.dtype),
        }
        return (~chosen).to(inputs.sampling_logprobs.dtype), reports

    def _chosen(self, candidates: Tensor, count: int, inputs: TokenFilterInputs) -> Tensor:
        """[N, T] bool, the tokens that are drawn: every rank draws keys, the smallest keys of all ranks win."""
        keys = torch.rand(candidates.shape, generator=inputs.generator(), dtype=torch.float64)
        of_all = inputs.over_ranks(keys[candidates])
        drawn = min(max(1, int(self.share * count)), len(of_all))
        return candidates & (keys <= of_all.sort().values[drawn - 1]) if drawn else candidates
