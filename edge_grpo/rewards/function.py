"""A plain Python function as a reward."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.types import Problem


class FunctionReward:
    """`function(question, answer, response) -> float` of each response; of several gold answers the highest counts.

    It runs in the training process, without the time limit and the sandbox of the project's own graders: it must not
    execute what a model wrote. Under the name `accuracy`, 1 and above is right.

    Args:
        function: question, one gold answer and the response's text in, a number out. NaN and infinite count as 0.

    Raises:
        UserError: when called, if the function raises or returns something else; names it, the problem and the value.

    >>> reward = FunctionReward(lambda question, answer, response: float(answer in response))
    >>> reward([Problem("a", "1 + 1 = ?", ("2", "two"))] * 2, ["it is two", "it is 3"])
    tensor([1., 0.])
    """

    def __init__(self, function: Callable[[str, str, str], float]) -> None:
        self.function = function
        inner = getattr(function, "func", function)  # Hydra hands a functools.partial
        self.name = f"{inner.__module__}.{getattr(inner, '__qualname__', type(inner).__name__)}"

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tensor:
        """See `Reward`."""
        values = [self._value(problem, text) for problem, text in zip(problems, texts, strict=True)]
        return torch.tensor(values, dtype=torch.float32)

    def _value(self, problem: Problem, text: str) -> float:
        values = [self._of_answer(problem, answer, text) for answer in problem.answers or ("",)]
        return max((value for value in values if math.isfinite(value)), default=values[0])

    def _of_answer(self, problem: Problem, answer: str, text: str) -> float:
        where = f"reward function {self.name}, problem {problem.origin or problem.id}"
        try:
            value = self.function(problem.question, answer, text)
        except Exception as error:
            raise UserError(f"{where}: raised {type(error).__name__}: {error}") from error
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: returned {value!r}, expected a number") from error
        return number
