"""The advantage stage: rewards (and entropies) of whole groups in, advantages out. Pure maths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.types.history import Visit
from edge_grpo.types.metric import StrategyMetrics
from edge_grpo.types.returned import check_tensor, pair, who


@dataclass(frozen=True)
class UpdateGroups:
    """All M groups of one update, of every rank, on the CPU: what a statistic of the batch is taken over.

    The rows of an `AdvantageInputs` may be one micro-batch of one rank; a statistic of them would change with the cut.

    Args:
        rewards: [M, G] float.
        correct: [M, G] bool.
        tokens: [M] int64, response tokens of the group.
        parts: name of a reward -> [M, G] float, before weighting.
        entropies: [M, 2] float64, of the group's sampled tokens: their number, and the sum of their entropies in nats
            (see `Response.entropies`); None where the engine recorded none.
    """

    rewards: Tensor
    correct: Tensor
    tokens: Tensor
    parts: Mapping[str, Tensor]
    entropies: Tensor | None = None

    @property
    def mean_entropy(self) -> float:
        """Over all sampled tokens, nats.

        Raises:
            ValueError: `entropies` is None.
        """
        if self.entropies is None:
            raise ValueError("UpdateGroups.entropies is None")
        count, total = self.entropies.sum(0).tolist()
        return total / max(count, 1.0)

    @staticmethod
    def joined(some: Sequence["UpdateGroups"]) -> "UpdateGroups":
        """The groups of several, one behind the other; with entropies where all of them have."""
        entropies = [groups.entropies for groups in some if groups.entropies is not None]
        return UpdateGroups(
            rewards=torch.cat([groups.rewards for groups in some]),
            correct=torch.cat([groups.correct for groups in some]),
            tokens=torch.cat([groups.tokens for groups in some]),
            parts={name: torch.cat([groups.parts[name] for groups in some]) for name in some[0].parts},
            entropies=torch.cat(entropies) if len(entropies) == len(some) else None,
        )


@dataclass(frozen=True)
class Grading:
    """What grading says of N rows besides their rewards.

    Args:
        correct: [N] bool, by the accuracy reward alone, after correction.
        parts: name of a reward -> [N] float, before weighting.
        weights: name of a reward -> its weight.
        max_reward: the reward of a perfect response.
        update: all groups of the update.
        drawn: of each row [n], the rewards of all responses that were drawn for its group, kept or not, as sampled.
        visits: of each row, what was sampled of its problem before this iteration. Training always gives both.
    """

    correct: Tensor
    parts: Mapping[str, Tensor]
    weights: Mapping[str, float]
    max_reward: float
    update: UpdateGroups
    drawn: Sequence[Tensor] = ()
    visits: Sequence[Sequence[Visit]] = ()

    def select(self, rows: Tensor) -> "Grading":
        """The given rows [M] (indices, or [N] bool); `update` stays whole."""
        chosen = rows.nonzero().flatten().tolist() if rows.dtype == torch.bool else rows.tolist()
        return replace(
            self,
            correct=self.correct[rows],
            parts={name: part[rows] for name, part in self.parts.items()},
            drawn=[self.drawn[row] for row in chosen] if self.drawn else (),
            visits=[self.visits[row] for row in chosen] if self.visits else (),
        )


@dataclass(frozen=True)
class AdvantageInputs:
    """Whole groups: row p * G + g is response g of group p.

    Args:
        rewards: [N] float.
        num_generations: G.
        completion_mask: [N, T] bool, response tokens.
        sampled_mask: [N, T] bool, response tokens that the policy sampled itself.
        entropy: [N, T] token entropies in nats, or None where no strategy reads them.
        grading: what else grading says of the rows; training always gives it.
        logprobs: [N, T] log-probs of the policy before the update, in nats, without graph; filled with `entropy`.
    """

    rewards: Tensor
    num_generations: int
    completion_mask: Tensor
    sampled_mask: Tensor
    entropy: Tensor | None = None
    grading: Grading | None = None
    logprobs: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.rewards.shape[0]
        if self.rewards.ndim != 1 or n % self.num_generations:
            raise ValueError(f"rewards of shape {tuple(self.rewards.shape)} are no groups of {self.num_generations}")
        for name in ("entropy", "logprobs", "completion_mask", "sampled_mask"):
            value = getattr(self, name)
            if value is not None and (value.ndim != 2 or value.shape[0] != n):
                raise ValueError(f"{name} of shape {tuple(value.shape)} for {n} rewards")
        if self.grading is not None and len(self.grading.correct) != n:
            raise ValueError(f"grading of {len(self.grading.correct)} rows for {n} rewards")

    @property
    def grouped_rewards(self) -> Tensor:
        """[P, G]"""
        return self.rewards.view(-1, self.num_generations)

    @property
    def graded(self) -> Grading:
        """`grading`, for strategies that need it.

        Raises:
            ValueError: there is none.
        """
        if self.grading is None:
            raise ValueError("this advantage reads AdvantageInputs.grading, which is None")
        return self.grading

    @property
    def grouped_correct(self) -> Tensor:
        """[P, G] bool; see `graded`."""
        return self.graded.correct.view(-1, self.num_generations)


BASE_ADVANTAGE = "advantage/base"
"""name under which a strategy over another one records the advantages [N] or [N, T] before entropies changed them"""


class Advantage(Protocol):
    """Advantage strategy: returns advantages [N] or [N, T] and what it reports.

    What it reports is name -> [N] of rows or [N, T] of tokens; an attribute `metrics` says how each is logged (see
    `StrategyMetric`), and may be absent where there is nothing. An attribute `records` names what is not logged. The
    run's `rollouts/` has all of them, row by row.

    An attribute `reads_pass_rate` that is true says that it takes the share of right rows for the policy's own success
    rate, or the share of groups of equal rewards for the policy's own collapse, so that corrected rows mislead it.
    An attribute `min_generations` is the least G that it can work with; 2 where it is absent.

    One that keeps something has `state_dict`, a snapshot in plain types, and `load_state_dict`. Its method `observe`
    gets the `UpdateGroups` once an iteration, before the update, the same on every rank.
    """

    @property
    def reads_entropy(self) -> bool:
        """Whether `AdvantageInputs.entropy` and `logprobs` must be filled: both are of one forward pass."""
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


def checked_advantages(strategy: Advantage, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Advantages [N], [N, 1] or [N, T] of a strategy, and what it reports.

    Raises:
        UserError: it returned something else.
    """
    name, (n, t) = who("advantage", strategy), inputs.completion_mask.shape
    advantages, reports = pair(name, strategy(inputs), "advantages [N] or [N, T]")
    shapes = {"[N]": (n,), "[N, T]": (n, t), "[N, 1]": (n, 1)}
    check_tensor(name, "advantages", advantages, shapes, "float", inputs.rewards)
    return advantages, dict(reports)


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
        advantages, _ = checked_advantages(self, inputs)
        return (advantages == 0).view(len(inputs.grouped_rewards), -1).all(1)


@dataclass(frozen=True)
class OverBase:
    """Base of the strategies that change another advantage token by token, as its field `base`, by the entropies.

    Where `base` asks for something of the entropies, so does the whole.
    """

    base: Advantage

    reads_entropy = True

    @property
    def metrics(self) -> StrategyMetrics:
        return getattr(self.base, "metrics", {})

    @property
    def records(self) -> tuple[str, ...]:
        return records_over(self.base)

    @property
    def min_generations(self) -> int:
        return min_generations(self.base)

    @property
    def differentiates_entropy(self) -> bool:
        return self.base.differentiates_entropy

    @property
    def reads_padding(self) -> bool:
        return self.base.reads_padding

    @property
    def inside_update(self) -> bool:
        return self.base.inside_update

    def of_base(self, inputs: AdvantageInputs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The base's advantages [N, 1] or [N, T], the entropies [N, T] without graph, and what the base reports."""
        if inputs.entropy is None:
            raise ValueError(f"{type(self).__name__} needs token entropies")
        advantages, reports = checked_advantages(self.base, inputs)
        reports = {BASE_ADVANTAGE: advantages.detach(), **reports}
        return advantages if advantages.ndim == 2 else advantages[:, None], inputs.entropy.detach(), reports


def records_over(base: Any) -> tuple[str, ...]:
    """The `records` of a strategy over `base`: of several over one another the innermost says what the base was."""
    return tuple(dict.fromkeys((BASE_ADVANTAGE, *getattr(base, "records", ()))))


def min_generations(advantage: Any) -> int:
    """The least G that an advantage can work with (see `Advantage`)."""
    return getattr(advantage, "min_generations", 2)


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
