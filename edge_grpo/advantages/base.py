"""The advantage stage: rewards (and entropies) of whole groups in, advantages out. Pure maths."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from edge_grpo.errors import UserError


@dataclass(frozen=True)
class AdvantageInputs:
    """Whole groups: row p * G + g is response g of group p.

    Args:
        rewards: [N] float.
        num_generations: G.
        entropy: [N, T] token entropies in nats, or None where no strategy reads them.
        completion_mask: [N, T] bool, response tokens.
        sampled_mask: [N, T] bool, response tokens that the policy sampled itself.
    """

    rewards: Tensor
    num_generations: int
    completion_mask: Tensor
    sampled_mask: Tensor
    entropy: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.rewards.shape[0]
        if self.rewards.ndim != 1 or n % self.num_generations:
            raise ValueError(f"rewards of shape {tuple(self.rewards.shape)} are no groups of {self.num_generations}")
        for name in ("entropy", "completion_mask", "sampled_mask"):
            value = getattr(self, name)
            if value is not None and (value.ndim != 2 or value.shape[0] != n):
                raise ValueError(f"{name} of shape {tuple(value.shape)} for {n} rewards")

    @property
    def grouped_rewards(self) -> Tensor:
        """[P, G]"""
        return self.rewards.view(-1, self.num_generations)


class Advantage(Protocol):
    """Advantage strategy: returns advantages [N] or [N, T] and what it reports.

    What it reports is name -> [N] of rows or [N, T] of tokens; an attribute `metrics` says how each is logged (see
    `StrategyMetric`), and may be absent where there is nothing. rollouts.jsonl has the values of every row.
    """

    @property
    def reads_entropy(self) -> bool:
        """Whether `AdvantageInputs.entropy` must be filled."""
        ...

    @property
    def differentiates_entropy(self) -> bool:
        """Whether the entropies must carry a graph."""
        ...

    @property
    def reads_padding(self) -> bool:
        """Whether the entropies must be filled past the ends of responses too."""
        ...

    @property
    def inside_update(self) -> bool:
        """Whether it is taken anew in every micro-batch of every update, on the forward pass's own entropies."""
        ...

    def zero_advantage_groups(self, inputs: AdvantageInputs) -> Tensor:
        """[P] bool: groups whose advantages are all 0 whatever the entropies are, so that no pass is spent on them."""
        ...

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]: ...


class RewardAdvantage:
    """Base of the strategies that read rewards alone."""

    reads_entropy = False
    differentiates_entropy = False
    reads_padding = False
    inside_update = False

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Advantage`."""
        raise NotImplementedError

    def zero_advantage_groups(self, inputs: AdvantageInputs) -> Tensor:
        """The groups whose advantages are all 0, taken from the rewards alone."""
        advantages, _ = self(inputs)
        return (advantages == 0).view(len(inputs.grouped_rewards), -1).all(1)


def collapsed(grouped_rewards: Tensor) -> Tensor:
    """[P, G] rewards -> [P] bool, true where all rewards of a group are equal.

    By equality: a float standard deviation of equal rewards need not be 0.
    """
    return (grouped_rewards == grouped_rewards[:, :1]).all(dim=1)


def check_positive(**values: float) -> None:
    """Raise a UserError naming the first value that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"advantage.{name}={value} must be above 0")
