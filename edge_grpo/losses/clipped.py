"""The clipped policy-gradient loss with four ways to average it over tokens."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.losses.base import LossInputs, UpdateSize
from edge_grpo.metric import StrategyMetric, StrategyMetrics


@dataclass(frozen=True)
class ClippedLoss:
    """- min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A) + beta KL, averaged over tokens (PPO's clip).

    rho = exp(logprobs - old_logprobs) a token. At the first update epoch rho is exactly 1, so with
    `update_epochs: 1` the clip does nothing.

    Averages (N rows, L_i trained tokens of row i, over the whole update):
        grpo     mean over rows of each row's token mean (2402.03300)
        bnpo     token mean of the micro-batch, then mean over micro-batches: the one that *does* depend on how the
                 update is cut, by definition (TRL)
        dapo     token sum / all tokens of the global batch (2503.14476)
        dr_grpo  token sum / (N * max_response_tokens) (2503.20783)

    Args:
        aggregation: one of the four.
        epsilon_low, epsilon_high: clip range; equal in GRPO, 0.2 / 0.28 in DAPO's clip-higher.
        beta: weight of the KL term; at 0 no reference model is loaded.
        kl: estimator, with d = ref_logprobs - logprobs: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1.
        max_response_tokens: dr_grpo's constant length.

    Raises:
        UserError: a value out of range.
    """

    aggregation: Literal["grpo", "bnpo", "dapo", "dr_grpo"]
    epsilon_low: float
    epsilon_high: float
    beta: float
    kl: Literal["k1", "k2", "k3"]
    max_response_tokens: int

    metrics: ClassVar[StrategyMetrics] = {
        "train/clip_ratio/low_mean": StrategyMetric(
            "share", "trained tokens clipped at 1 - epsilon_low", of="clip_low"
        ),
        "train/clip_ratio/low_min": StrategyMetric(
            "share", "the same of the response with the fewest", ranks="min", of="clip_low", reduction="min"
        ),
        "train/clip_ratio/high_mean": StrategyMetric(
            "share", "trained tokens clipped at 1 + epsilon_high", of="clip_high"
        ),
        "train/clip_ratio/high_max": StrategyMetric(
            "share", "the same of the response with the most", ranks="max", of="clip_high", reduction="max"
        ),
        "train/clip_ratio/region_mean": StrategyMetric(
            "share", "trained tokens clipped at either end", of="clip_region"
        ),
        "train/kl": StrategyMetric(
            "nats", "mean over trained tokens of the chosen KL estimator; only where beta > 0", of="kl"
        ),
    }

    def __post_init__(self) -> None:
        for name in ("epsilon_low", "epsilon_high", "beta"):
            if getattr(self, name) < 0:
                raise UserError(f"loss.{name}={getattr(self, name)} must not be negative")
        if self.max_response_tokens < 1:
            raise UserError(f"loss.max_response_tokens={self.max_response_tokens} must be at least 1")

    @property
    def reads_every_row(self) -> bool:
        """The KL term reaches every row, and bnpo counts the tokens of every row of a micro-batch."""
        return self.beta > 0 or self.aggregation == "bnpo"

    def __call__(self, inputs: LossInputs, size: UpdateSize) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Loss`. Reports of tokens: `clip_low`, `clip_high`, `clip_region`, and `kl` where beta > 0."""
        ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
        clipped = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        per_token = -torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
        trained = inputs.trained
        low = (ratio < 1 - self.epsilon_low) & (inputs.advantages < 0)
        high = (ratio > 1 + self.epsilon_high) & (inputs.advantages > 0)
        reports = {"clip_low": low, "clip_high": high, "clip_region": low | high}
        if inputs.ref_logprobs is not None:
            kl = kl_estimate(inputs.logprobs, inputs.ref_logprobs, self.kl)
            per_token = per_token + self.beta * kl
            reports["kl"] = kl.detach()
        weighted = torch.where(trained, per_token * inputs.token_weights, 0.0)
        return self._aggregate(weighted, trained, size), reports

    def _aggregate(self, weighted: Tensor, trained: Tensor, size: UpdateSize) -> Tensor:
        """[B, T] -> the micro-batch's loss, a summand of the update's."""
        if self.aggregation == "grpo":
            per_row = weighted.sum(1) / trained.sum(1).clamp(min=1)
            return per_row.sum() / max(size.rows, 1)
        if self.aggregation == "bnpo":
            return weighted.sum() / trained.sum().clamp(min=1) / max(size.microbatches, 1)
        if self.aggregation == "dapo":
            return weighted.sum() / max(size.tokens, 1)
        return weighted.sum() / max(size.rows * self.max_response_tokens, 1)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Schulman's single-sample estimators of KL(policy || reference), elementwise.

    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-2.0]), "k3")  # d = -1: exp(-1) + 1 - 1
    tensor([0.3679])
    """
    d = ref_logprobs - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    return torch.exp(d) - d - 1
