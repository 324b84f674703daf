"""The clipped loss with an entropy bonus that comes and goes with the policy's entropy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.losses.base import LossInputs
from edge_grpo.losses.clipped import CLIP_METRICS, ClippedLoss
from edge_grpo.losses.token_loss import KL_METRICS
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics


class Groups(Protocol):
    """What the loss reads of an update's groups."""

    @property
    def mean_entropy(self) -> float:
        """Over the update's sampled tokens, nats."""
        ...


@dataclass(frozen=True, kw_only=True)
class AdaptiveEntropyLoss(ClippedLoss):
    """`ClippedLoss` - alpha H_t a token, H_t the policy's entropy with gradient (Skywork-OR1, 2505.22312).

    alpha is c where the mean entropy H of the update's sampled tokens is below `target_entropy`, else 0; afterwards c
    rises by `step` if H was below, else falls by it, within [0, `max_coefficient`]. c starts at 0 and is in the
    checkpoint. H is that of the rollout, over all ranks, so alpha is the same in every micro-batch. Assumes a target
    below the entropy of a healthy policy. The bonus is averaged as the loss is (`aggregation`), and reaches every row
    while alpha is above 0. A row that is shaped (`LossInputs.shaping`) has none.

    Degenerate case: where H stays at the target or above, and in the first iteration, this is `ClippedLoss`.

    Args:
        target_entropy: nats, above 0; 0.2 in the paper.
        step: of c an iteration, above 0.
        max_coefficient: highest c, above 0.
        epsilon_low, epsilon_high, aggregation, beta, kl, max_response_tokens: see `ClippedLoss`.

    Raises:
        UserError: a value out of range.
    """

    target_entropy: float
    step: float
    max_coefficient: float
    # alpha of this iteration and c for the next: what changes of a strategy that is otherwise fixed.
    _now: dict[str, float] = field(
        init=False, repr=False, compare=False, default_factory=lambda: {"alpha": 0.0, "c": 0.0}
    )

    reads_recorded_entropy: ClassVar[bool] = True
    metrics: ClassVar[StrategyMetrics] = (
        CLIP_METRICS
        | {"train/adaptive_entropy/coefficient": StrategyMetric("1", "alpha, the weight of the entropy bonus")}
        | KL_METRICS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_entropy", "step", "max_coefficient"):
            if not getattr(self, name) > 0:
                raise UserError(f"loss.{name}={getattr(self, name)} must be above 0")

    @property
    def coefficient(self) -> float:
        """alpha."""
        return self._now["alpha"]

    @property
    def reads_every_row(self) -> bool:
        """As `TokenLoss`, and the bonus reaches every row."""
        return super().reads_every_row or self.coefficient > 0

    @property
    def differentiates_entropy(self) -> bool:
        """Only while there is a bonus: the gradient of the entropies costs."""
        return self.coefficient > 0

    def observe(self, groups: Groups) -> None:
        """Take alpha of this iteration, and move c."""
        low, c = groups.mean_entropy < self.target_entropy, self._now["c"]
        moved = c + self.step if low else c - self.step
        self._now.update(alpha=c if low else 0.0, c=min(max(moved, 0.0), self.max_coefficient))

    def state_dict(self) -> dict[str, Any]:
        """c, and alpha: until it is taken anew, ranks that exchange groups ask by it which rows the bonus reaches."""
        return dict(self._now)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._now.update(alpha=float(state["alpha"]), c=float(state["c"]))

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TokenLoss`. Reports those of `ClippedLoss`, and alpha of each row."""
        per_token, reports = super().surrogate(inputs)
        alpha = inputs.logprobs.new_full(inputs.logprobs.shape[:1], self.coefficient)
        reports["train/adaptive_entropy/coefficient"] = alpha
        return per_token - self.coefficient * inputs.entropy if self.coefficient else per_token, reports
