"""The reward stage: texts in, scores out.

"Right" is what the accuracy reward says and nothing else: a format bonus can never make a response right.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.types import Problem, Scores


class Reward(Protocol):
    """One reward: n problems and n response texts in, [n] float32 out."""

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tensor: ...


class WeightedRewards:
    """Weighted sum of named rewards; the one named `accuracy` decides what is right.

    Args:
        rewards: name -> reward; must hold `accuracy`.
        weights: name -> weight; the same names.

    Raises:
        UserError: no reward named `accuracy`, or names that differ between the two arguments.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        if "accuracy" not in rewards:
            raise UserError(f"reward.rewards needs an entry `accuracy`, got {sorted(rewards)}")
        if set(rewards) != set(weights):
            raise UserError(f"reward.rewards names {sorted(rewards)} but reward.weights {sorted(weights)}")
        self.rewards = dict(rewards)
        self.weights = {name: float(weights[name]) for name in rewards}

    @property
    def max_reward(self) -> float:
        """The reward of a response that every part calls perfect (each part is at most 1)."""
        return sum(self.weights.values())

    @property
    def counts(self) -> dict[str, int]:
        """Answers lost so far to a `timeout` or an `error` of a worker, over the rewards that count them."""
        found = [getattr(reward, "counts", {}) for reward in self.rewards.values()]
        return {name: sum(counts.get(name, 0) for counts in found) for name in ("timeout", "error")}

    def ungradable(self, problems: Sequence[Problem]) -> list[str | None]:
        """What is wrong with the gold answers of each problem; None where the accuracy reward can grade them."""
        judge = getattr(self.rewards["accuracy"], "ungradable", None)
        return [None] * len(problems) if judge is None else judge(problems)

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Scores:
        """Grade n responses, each exactly once."""
        parts = {name: reward(problems, texts) for name, reward in self.rewards.items()}
        total = torch.zeros(len(texts), dtype=torch.float32)
        for name, part in parts.items():
            total += self.weights[name] * part
        return Scores(rewards=total, parts=parts, correct=parts["accuracy"] >= 1.0)
