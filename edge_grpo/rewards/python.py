"""Reward functions of somebody's own, by their names: `reward=python`."""

import logging
from collections.abc import Sequence

from edge_grpo.errors import UserError
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rewards.function import FunctionReward

log = logging.getLogger(__name__)


class PythonRewards(WeightedRewards):
    """The weighted sum of one or several functions. The first decides what is right: a value of 1 and above.

    It is the part `accuracy`; the others are called as the function is, with a number where a name is taken.

    Args:
        function: one `module:function` or `path/to/file.py:function`, or a list of them.
        weights: one a function; null for 1 each.
        conversational, sandbox, workers, timeout_s, memory_limit_gb: see `FunctionReward`.

    Raises:
        UserError: no function, one that stands there twice, another number of weights, or see `FunctionReward`.
    """

    def __init__(
        self,
        function: str | list[str],
        weights: list[float] | None,
        conversational: bool | None,
        sandbox: bool,
        workers: int,
        timeout_s: float,
        memory_limit_gb: float,
    ) -> None:
        names = [function] if isinstance(function, str) else list(function)
        if not names:
            raise UserError("reward.function=[]: expected at least one module:function")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"reward.function names {twice[0]} twice: set its weight in reward.weights instead")
        given = [1.0] * len(names) if weights is None else list(weights)
        if len(given) != len(names):
            raise UserError(f"reward.weights={given}: expected {len(names)} of them, one for each of reward.function")
        parts = _part_names(names)
        rewards = {
            part: FunctionReward(name, conversational, sandbox, workers, timeout_s, memory_limit_gb)
            for part, name in zip(parts, names, strict=True)
        }
        super().__init__(rewards, dict(zip(parts, given, strict=True)))
        told = [f"{weight:g} x {name} (`{part}`)" for part, name, weight in zip(parts, names, given, strict=True)]
        log.info("reward: %s; %s decides what is right: 1 and above", " + ".join(told), names[0])


def _part_names(functions: Sequence[str]) -> list[str]:
    """
    >>> _part_names(["mine:score", "mine:short_2", "other.py:short", "third:short", "third:accuracy"])
    ['accuracy', 'short_2', 'short', 'short_3', 'accuracy_2']
    """
    parts = ["accuracy"]
    for name in functions[1:]:
        bare = name.rpartition(":")[2]
        candidates = (bare, *(f"{bare}_{number}" for number in range(2, len(functions) + 2)))
        parts.append(next(part for part in candidates if part not in parts))
    return parts
