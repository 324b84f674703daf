"""Entropy-Driven Advantage (EDA) of EDGE-GRPO."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edge_grpo.advantages.base import (
    BASE_ADVANTAGE,
    Advantage,
    AdvantageInputs,
    check_positive,
    checked_advantages,
    min_generations,
    records_over,
)
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics

# Below this an entropy counts as this (nats): keeps 1 / P^ finite for a deterministic response.
MIN_ENTROPY = 1e-8
METRICS: StrategyMetrics = {
    "eda/multiplier_mean": StrategyMetric("1", "mean over rows of 1 / P^ after the clamp", of="eda/multiplier"),
    "eda/multiplier_p05": StrategyMetric("1", "5 % quantile over rows", of="eda/multiplier", reduction="p05"),
    "eda/multiplier_p50": StrategyMetric("1", "median over rows", of="eda/multiplier", reduction="p50"),
    "eda/multiplier_p95": StrategyMetric("1", "95 % quantile over rows", of="eda/multiplier", reduction="p95"),
    "eda/multiplier_max": StrategyMetric("1", "maximum over rows", "max", "max", of="eda/multiplier", reduction="max"),
    "eda/clamped": StrategyMetric("share", "rows whose multiplier is at the clamp", "mean"),
}


@dataclass(frozen=True)
class EntropyDriven:
    """A^_i = A_i / P^_i with P^_i = P_i / mean_group(P) and P_i the mean token entropy (2507.21848, Eq. 3, 6, 7).

    A confident response moves the policy more, an exploring one less, right or wrong. Assumes that entropies of
    one group are comparable. Degenerate cases: the sign never changes and a collapsed group stays at exactly 0;
    a group whose entropies are all 0 gets multiplier 1.

    The defaults in conf/ are the paper's text; each option also takes what the released code does instead
    (departures 1 to 5 of docs/departures.md).

    Args:
        base: advantage that is divided.
        clamp: upper bound on the multiplier 1 / P^; null for none (official).
        detach: False lets the gradient flow through 1 / P^ (official).
        scope: mean of P over the question's "group", or over the "microbatch" (official; the result then depends
            on how the update is cut).
        mask: P averages over all tokens of the "response", over those the policy "sampled" itself, or over the
            "padded" width with what the model says past EOS (official).
        refresh: entropies are taken once per "rollout", or again at every "update" (official; the same when
            update_epochs = 1).

    >>> from edge_grpo.advantages.dr_grpo import DrGRPO
    >>> eda = EntropyDriven(DrGRPO(), clamp=None, detach=True, scope="group", mask="response", refresh="rollout")
    >>> inputs = AdvantageInputs(
    ...     torch.tensor([1.0, 0.0]), 2, entropy=torch.tensor([[0.2], [0.6]]),
    ...     completion_mask=torch.tensor([[True], [True]]), sampled_mask=torch.tensor([[True], [True]]))
    >>> eda(inputs)[0]  # mean P 0.4: 0.5 * 0.4 / 0.2 and -0.5 * 0.4 / 0.6
    tensor([ 1.0000, -0.3333])
    """

    base: Advantage
    clamp: float | None
    detach: bool
    scope: Literal["group", "microbatch"]
    mask: Literal["response", "sampled", "padded"]
    refresh: Literal["rollout", "update"]

    reads_entropy = True

    @property
    def metrics(self) -> StrategyMetrics:
        """Of `METRICS`, and the base's."""
        return {**getattr(self.base, "metrics", {}), **METRICS}

    @property
    def records(self) -> tuple[str, ...]:
        return records_over(self.base)

    def __post_init__(self) -> None:
        if self.clamp is not None:
            check_positive(clamp=self.clamp)

    @property
    def min_generations(self) -> int:
        return min_generations(self.base)

    @property
    def inside_update(self) -> bool:
        return not self.detach or self.scope == "microbatch" or self.refresh == "update"

    @property
    def differentiates_entropy(self) -> bool:
        return not self.detach

    @property
    def reads_padding(self) -> bool:
        return self.mask == "padded"

    def zero_advantage_groups(self, inputs: AdvantageInputs) -> Tensor:
        """The base's, unless the entropies of every row go into the mean that others are divided by."""
        idle = self.base.zero_advantage_groups(inputs)
        return idle if self.scope == "group" else torch.zeros_like(idle)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards and [N, T] entropies -> [N] advantages; reports `eda/multiplier` and `eda/clamped`, [N]."""
        advantages, reports = checked_advantages(self.base, inputs)
        reports = {BASE_ADVANTAGE: advantages.detach(), **reports}
        multiplier = self._multiplier(self._mean_entropy(inputs), inputs.num_generations)
        if advantages.ndim == 2:
            multiplier = multiplier[:, None]
        taken = multiplier.detach().flatten()
        clamped = taken >= (float("inf") if self.clamp is None else self.clamp)
        return advantages * multiplier, {**reports, "eda/multiplier": taken, "eda/clamped": clamped.float()}

    def _mean_entropy(self, inputs: AdvantageInputs) -> Tensor:
        """P, [N]: mean entropy over the tokens that `mask` names; 0 for a row without any."""
        if inputs.entropy is None:
            raise ValueError("entropy_driven needs token entropies")
        if self.mask == "padded":
            return inputs.entropy.mean(1)
        mask = inputs.completion_mask if self.mask == "response" else inputs.sampled_mask
        entropy = torch.where(mask, inputs.entropy, 0.0)
        return entropy.sum(1) / mask.sum(1).clamp(min=1)

    def _multiplier(self, p: Tensor, num_generations: int) -> Tensor:
        """1 / P^ [N]."""
        if self.detach:
            p = p.detach()
        groups = p.view(-1, num_generations) if self.scope == "group" else p[None]
        # The released code gathers P over ranks, which detaches it: only 1 / P_i ever carries a graph.
        mean = groups.mean(1, keepdim=True).detach()
        multiplier = torch.where(mean > MIN_ENTROPY, mean / groups.clamp(min=MIN_ENTROPY), 1.0)
        if self.clamp is not None:
            multiplier = multiplier.clamp(max=self.clamp)
        return multiplier.flatten()
