"""What the losses of tokens share: four averages over tokens, the KL term, and the order of both."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.losses.base import LossInputs, UpdateSize
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics

KL_METRICS: dict[str, StrategyMetric] = {
    "train/kl": StrategyMetric(
        "nats", "mean over trained tokens of the chosen KL estimator; only where beta > 0", of="kl"
    )
}


@dataclass(frozen=True, kw_only=True)
class TokenLoss(ABC):
    """The average over tokens of a surrogate, which a subclass defines, + beta KL.

    Off-policy rows that ask for it have `shaped` in the surrogate's place, and nothing of them is in what the surrogate
    reports.

    Averages (N rows, L_i trained tokens of row i, over the whole optimiser step):
        grpo     mean over rows of each row's token mean (2402.03300)
        bnpo     token mean of the micro-batch, then mean over micro-batches: the one that *does* depend on how the
                 update is cut, by definition (TRL)
        dapo     token sum / all tokens of the global batch (2503.14476)
        dr_grpo  token sum / (N * max_response_tokens) (2503.20783)

    Args:
        aggregation: one of the four.
        beta: weight of the KL term; at 0 no reference model is loaded.
        kl: estimator, with d = ref_logprobs - logprobs: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1.
        max_response_tokens: dr_grpo's constant length.

    Raises:
        UserError: a value out of range.
    """

    aggregation: Literal["grpo", "bnpo", "dapo", "dr_grpo"]
    beta: float
    kl: Literal["k1", "k2", "k3"]
    max_response_tokens: int

    metrics: ClassVar[StrategyMetrics] = KL_METRICS
    idle_at_ratio_one: ClassVar[str]
    """see `Loss`"""

    def __post_init__(self) -> None:
        self._refuse_negative("beta")
        if self.max_response_tokens < 1:
            raise UserError(f"loss.max_response_tokens={self.max_response_tokens} must be at least 1")

    def _refuse_negative(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) >= 0:  # NaN is refused too
                raise UserError(f"loss.{name}={getattr(self, name)} must not be negative")

    @abstractmethod
    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each token, [B, T], before weights and averages, and reports; other tokens are ignored."""

    @property
    def reads_every_row(self) -> bool:
        """The KL term reaches every row, and bnpo counts the tokens of every row of a micro-batch."""
        return self.beta > 0 or self.aggregation == "bnpo"

    def __call__(self, inputs: LossInputs, size: UpdateSize) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Loss`. Reports what `surrogate` does, and `kl` where beta > 0."""
        per_token, reports = self.surrogate(inputs)
        if inputs.shaping is not None:
            rows = inputs.shaping > 0
            per_token = torch.where(rows[:, None], shaped(inputs), per_token)
            reports = {
                name: torch.where(rows if value.ndim == 1 else rows[:, None], torch.nan, value)
                for name, value in reports.items()
            }
        if inputs.ref_logprobs is not None:
            kl = kl_estimate(inputs.logprobs, inputs.ref_logprobs, self.kl)
            per_token = per_token + self.beta * kl
            reports["kl"] = kl.detach()
        trained = inputs.trained
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


def shaped(inputs: LossInputs) -> Tensor:
    """- A rho / (rho + gamma), [B, T], without a clip: LUFFY's policy shaping of off-policy tokens (2504.14945).

    The gradient goes through the whole fraction, so a token weighs gamma rho / (rho + gamma)^2, most at rho = gamma. As
    gamma / rho -> 0 it weighs nothing: what the policy would write anyway is not learned again.
    """
    assert inputs.shaping is not None
    gamma = inputs.shaping[:, None].to(inputs.logprobs.dtype).clamp(min=torch.finfo(torch.float32).tiny)
    return -inputs.advantages * torch.sigmoid(inputs.logprobs - inputs.old_logprobs - gamma.log())


def trained_mean(values: Tensor, trained: Tensor) -> Tensor:
    """[B, T] -> [B, 1], the mean over a row's trained tokens; 0 for a row without any.

    >>> trained_mean(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    return torch.where(trained, values, 0.0).sum(1, keepdim=True) / trained.sum(1, keepdim=True).clamp(min=1)


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
