"""The accuracy reward of reasoning_gym's procedural problems: each generator's own scorer."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.rewards.pool import KillablePool
from edge_grpo.types.problems import Problem

_WRAPPED = re.compile(
    r"\\(?:text(?:rm|bf|it|tt|sf|normal)?|math(?:rm|bf|it|tt|sf)|mbox|operatorname)\s*\{(?P<macro>.*)\}"
    r"|\$(?P<dollars>[^$]*)\$|\$\$(?P<display>[^$]*)\$\$|\\\((?P<parentheses>.*)\\\)",
    re.DOTALL,
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


class ReasoningGymAccuracy:
    r"""Score of the last `\boxed{...}` by the scorer of the generator that made the problem.

    Scorers compare plain text, so what LaTeX wraps around the whole content is taken off: `\boxed{\text{Yes}}` and
    `\boxed{$5$}` answer Yes and 5.

    Scores lie in [0, 1] and may be partial; only 1 counts as right (`WeightedRewards`). No box, a time-out, a crash
    or an exception score 0. Several of the scorers evaluate the answer as Python, so each answer gets a process of its
    own that may not write, start processes or open sockets, and a score outside [0, 1] is taken for an error. An answer
    that evaluates to code can still give itself any score.

    A problem carries `extra = {"generator": name, "entry": entry}`, the entry as reasoning_gym generated it.

    Args:
        workers: number of worker processes; they start with the first boxed answer.
        timeout_s: seconds an answer may take.
        max_answer_chars: longer answers score 0 unseen.
        memory_limit_gb: address space of a worker in GiB (Linux).

    Raises:
        UserError: reasoning_gym is not installed, or an argument is not positive.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_s: float = 5.0,
        max_answer_chars: int = 10_000,
        memory_limit_gb: float = 2.0,
    ) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError("this reward needs reasoning_gym: pip install 'edge-grpo[reasoning_gym]'")
        if max_answer_chars <= 0:
            raise UserError(f"max_answer_chars must be positive, got {max_answer_chars}")
        from edge_grpo.rewards import _reasoning_gym_score as worker_side  # an optional extra

        self.max_answer_chars = max_answer_chars
        self._score = worker_side.score
        self._is_generator = worker_side.is_generator
        self._counts = {"total": 0, "fast": 0, "cached": 0, "unparsed": 0}
        self._pool = KillablePool(workers, timeout_s, memory_limit_gb, preload=(worker_side.__name__,))

    @property
    def counts(self) -> dict[str, int]:
        """Answers so far: `total`, without a worker (`fast`: no box or one that is too long, so `unparsed` as well),
        and lost in a worker (`timeout`, `error`, `crash`). Nothing is `cached`.
        """
        return {**self._counts, **self._pool.counts}

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tensor:
        """[n] float32 in [0, 1].

        Raises:
            UserError: a problem without `generator` and `entry`, an unknown generator, or workers that cannot start.
        """
        sources = [self._source(problem) for problem in problems]
        scores = torch.zeros(len(texts), dtype=torch.float32)
        rows, items = [], []
        for row, ((generator, entry), text) in enumerate(zip(sources, texts, strict=True)):
            answer = last_boxed(text)
            if answer is not None and len(answer) <= self.max_answer_chars:
                rows.append(row)
                items.append((generator, entry, without_wrapper(answer)))
        without_answer = len(texts) - len(items)
        for name, n in (("total", len(texts)), ("fast", without_answer), ("unparsed", without_answer)):
            self._counts[name] += n
        for row, value in zip(rows, self._pool.map(self._score, items, _is_score), strict=True):
            scores[row] = value or 0.0
        return scores

    def ungradable(self, problems: Sequence[Problem]) -> list[str | None]:
        """What is missing of each problem, and what was expected; None where it can be graded."""
        return [self._complaint(problem) for problem in problems]

    def close(self) -> None:
        """Kill the workers; the next boxed answer starts new ones."""
        self._pool.close()

    def _source(self, problem: Problem) -> tuple[str, Mapping[str, Any]]:
        complaint = self._complaint(problem)
        if complaint is not None:
            raise UserError(f"{problem.origin or problem.id}: {complaint}")
        return problem.extra["generator"], problem.extra["entry"]

    def _complaint(self, problem: Problem) -> str | None:
        missing = [key for key in ("generator", "entry") if key not in problem.extra]
        if missing:
            return f"reward=reasoning_gym needs problem.extra keys {missing}"
        generator = problem.extra["generator"]
        return None if self._is_generator(generator) else f"reasoning_gym has no generator named {generator!r}"


def without_wrapper(answer: str) -> str:
    r"""The answer without the text or font macros and dollar signs around the whole of it.

    >>> without_wrapper(r"\text{Yes}"), without_wrapper(r"$\mathrm{ 5 }$"), without_wrapper(r"\text{a} or \text{b}")
    ('Yes', '5', '\\text{a} or \\text{b}')
    """
    while (match := _WRAPPED.fullmatch(answer)) is not None:
        if match["macro"] is not None and not _is_balanced(match["macro"]):
            break
        answer = match[match.lastgroup or 0].strip()
    return answer


def _is_balanced(text: str) -> bool:
    """Whether no brace closes one that was opened before the text."""
    depth = 0
    for token in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth < 0:
            return False
    return depth == 0


def _is_score(value: object) -> bool:
    return isinstance(value, float) and 0 <= value <= 1
