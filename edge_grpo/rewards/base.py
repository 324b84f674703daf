"""The reward stage: texts in, scores out.

"Right" is what the accuracy reward says and nothing else: a format bonus can never make a response right.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.rewards._load import raised
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores

log = logging.getLogger(__name__)

GRADING_COUNTS = ("total", "fast", "cached", "unparsed", "timeout", "error", "crash")
"""what a reward that grades answers has in its `counts`"""


class Reward(Protocol):
    """One reward: n problems and n response texts in, [n] numbers out (`FunctionReward` makes one of a function).

    It may have `counts` (answers so far, `GRADING_COUNTS`), `state_dict` and `load_state_dict` (plain types, for
    checkpoints), `highest` (of its values, 1 where it is absent), `ungradable` (what is wrong with each problem, or
    None) and, under the name `accuracy`, `unparsed` (which texts hold no answer that can be read). If it declares a
    keyword-only argument `responses`, it gets the n `Response`s behind the texts, with tokens and finish reason; None
    for texts that nobody generated (references, gold answers, pieces of a response).
    """

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tensor: ...


class WeightedRewards:
    """Weighted sum of named rewards; the one named `accuracy` decides what is right.

    A value that is NaN or infinite counts as 0, is never right, and is reported once and counted.

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
        self._takes_responses = {name for name, reward in self.rewards.items() if _takes_responses(reward)}
        self._counts = {"values": 0, "not_finite": 0}

    @property
    def max_reward(self) -> float:
        """The reward of a response that every part calls perfect (each part is at most its `highest`, or 1)."""
        return sum(weight * getattr(self.rewards[name], "highest", 1.0) for name, weight in self.weights.items())

    @property
    def counts(self) -> dict[str, int]:
        """So far: `GRADING_COUNTS` over the rewards that count, `values` of all rewards, `not_finite` ones of these."""
        found = [getattr(reward, "counts", {}) for reward in self.rewards.values()]
        return {name: sum(counts.get(name, 0) for counts in found) for name in GRADING_COUNTS} | self._counts

    def __call__(
        self, problems: Sequence[Problem], texts: Sequence[str], responses: Sequence[Response] | None = None
    ) -> Scores:
        """Grade n responses, each exactly once.

        Args:
            problems, texts: n each.
            responses: [n], for the rewards that read more of a response than its text (see `Reward`).
        """
        parts = {}
        for name, reward in self.rewards.items():
            more: dict[str, Any] = {"responses": responses} if name in self._takes_responses else {}
            values = _numbers(name, reward, _called(name, reward, problems, texts, more), len(texts))
            parts[name] = self._finite(name, values, problems)
        total = torch.zeros(len(texts), dtype=torch.float32)
        for name, part in parts.items():
            total += self.weights[name] * part
        return Scores(rewards=total, parts=parts, correct=parts["accuracy"] >= 1.0)

    def ungradable(self, problems: Sequence[Problem]) -> list[str | None]:
        """What the first reward that complains cannot grade, and why; None where none complains."""
        complaints: list[str | None] = [None] * len(problems)
        for reward in self.rewards.values():
            if hasattr(reward, "ungradable"):
                new = reward.ungradable(problems)
                complaints = [old or its for old, its in zip(complaints, new, strict=True)]
        return complaints

    def unparsed(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
        """Which texts hold no answer that can be read, as far as the accuracy reward can tell.

        The texts were graded before; nothing is graded anew.
        """
        accuracy = self.rewards["accuracy"]
        return accuracy.unparsed(problems, texts) if hasattr(accuracy, "unparsed") else [False] * len(texts)

    def state_dict(self) -> dict[str, Any]:
        """name -> state of the rewards that have any, in plain types."""
        states = {name: r.state_dict() for name, r in self.rewards.items() if hasattr(r, "state_dict")}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand each reward its state. One that the checkpoint or this run does not have starts empty."""
        for name, reward in self.rewards.items():
            if name in state and hasattr(reward, "load_state_dict"):
                reward.load_state_dict(state[name])

    def _finite(self, name: str, part: Tensor, problems: Sequence[Problem]) -> Tensor:
        """[n] -> [n] with 0 for what is not finite."""
        finite = part.isfinite()
        if not finite.all() and not self._counts["not_finite"]:
            row = int(finite.logical_not().nonzero()[0])
            problem = problems[row]
            log.warning(
                "reward %s gave %s for a response to %s; values that are not finite count as 0 and wrong",
                name,
                float(part[row]),
                problem.origin or problem.id,
            )
        self._counts["values"] += len(part)
        self._counts["not_finite"] += int(finite.logical_not().sum())
        return torch.where(finite, part, 0.0)


def _called(
    name: str, reward: Reward, problems: Sequence[Problem], texts: Sequence[str], more: Mapping[str, Any]
) -> Any:
    """What a reward returns.

    Raises:
        UserError: one that is not the project's own raised.
    """
    try:
        return reward(problems, texts, **more)
    except UserError:
        raise
    except Exception as error:
        if type(reward).__module__.partition(".")[0] == __package__.partition(".")[0]:
            raise
        file = getattr(sys.modules.get(type(reward).__module__), "__file__", None)
        raise UserError(f"reward {name} ({type(reward).__name__}) {raised(error, file)}") from error


def _numbers(name: str, reward: Reward, values: Any, n: int) -> Tensor:
    """What a reward returned, as [n] float32.

    Raises:
        UserError: it is something else.
    """
    try:
        part = torch.as_tensor(values).to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        found = repr(values)
        raise UserError(
            f"reward {name} ({type(reward).__name__}) returned {found[:80]}, expected {n} numbers"
        ) from error
    if tuple(part.shape) != (n,):
        raise UserError(
            f"reward {name} ({type(reward).__name__}) returned shape {tuple(part.shape)} for {n} responses, "
            f"expected ({n},)"
        )
    return part


def _takes_responses(reward: Reward) -> bool:
    """Whether it declares a keyword-only argument `responses`; a positional one of that name is its texts."""
    try:
        parameter = inspect.signature(reward).parameters.get("responses")
    except (TypeError, ValueError):  # a builtin has no signature
        return False
    return parameter is not None and parameter.kind is parameter.KEYWORD_ONLY


def score_rollout(rollout: Rollout, rewards: WeightedRewards, decode: Callable[[Tensor], str]) -> ScoredRollout:
    """Decode and grade every row once."""
    texts = tuple(decode(response.token_ids) for response in rollout.responses)
    problems = [rollout.problem_of(row) for row in range(rollout.num_rows)]
    return ScoredRollout(rollout=rollout, texts=texts, scores=rewards(problems, texts, rollout.responses))
