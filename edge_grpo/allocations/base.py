"""The allocation stage: which problems are sampled, how many responses each, and which groups are trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.types.history import History
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import ScoredRollout


class Ask(NamedTuple):
    """Responses that an allocation wants."""

    problem: Problem
    rows: int
    """at least 1"""
    of: int | None = None
    """the candidate of the pool that they are more of; None makes a new candidate"""


@dataclass(frozen=True)
class Draw:
    """What the training loop lends to an allocation for one iteration, on one rank.

    Args:
        groups: P, how many groups are trained on, at most.
        num_generations: G, the responses of such a group.
        take: n -> the next n problems of the rank's endless stream of permutations. What is taken is gone: it comes
            again when the stream has been through all problems. One that is taken and not asked for is recorded as
            skipped.
        history: what was sampled before this iteration, by every rank.
        iteration: updates the policy has had.
        generator: CPU generator of this stage, iteration and rank.
    """

    groups: int
    num_generations: int
    take: Callable[[int], list[Problem]]
    history: History
    iteration: int
    generator: torch.Generator


@dataclass(frozen=True)
class Pool:
    """The graded responses of this iteration so far, on this rank. A candidate is a problem that was asked for.

    Args:
        problems: [C], of the candidates, in the order of the asks.
        candidate: [R] int64, the candidate of each row.
        scored: the rows, as R groups of 1.
    """

    problems: tuple[Problem, ...]
    candidate: Tensor
    scored: ScoredRollout

    @property
    def rewards(self) -> Tensor:
        """[R]"""
        return self.scored.scores.rewards

    @property
    def correct(self) -> Tensor:
        """[R] bool"""
        return self.scored.scores.correct

    @property
    def rows(self) -> list[list[int]]:
        """[C], the rows of each candidate, in the order in which they were drawn."""
        rows: list[list[int]] = [[] for _ in self.problems]
        for row, candidate in enumerate(self.candidate.tolist()):
            rows[candidate].append(row)
        return rows

    @property
    def counts(self) -> Tensor:
        """[C] int64, rows of each candidate."""
        return self.candidate.bincount(minlength=len(self.problems))

    @property
    def right(self) -> Tensor:
        """[C] int64, right rows of each candidate."""
        return self.candidate[self.correct].bincount(minlength=len(self.problems))

    @property
    def mixed(self) -> Tensor:
        """[C] bool: some rows are right and some wrong."""
        return (self.right > 0) & (self.right < self.counts)

    @property
    def unequal(self) -> Tensor:
        """[C] bool: some rewards differ, by equality."""
        rewards = self.rewards
        return torch.tensor([bool((rewards[rows] != rewards[rows[0]]).any()) for rows in self.rows])


class Allocation(Protocol):
    """Allocation strategy: called once at the start of an iteration, after every round, and at the end.

    Every rank runs its own; a round ends when all ranks' responses are there, and rounds end when no rank asks for
    more. What it keeps besides the history goes through `state_dict`, a snapshot in plain types, and `load_state_dict`.

    It may have the method `refuses(num_generations)`: why it cannot draw groups of so many rows, empty if it can.
    """

    @property
    def max_rounds(self) -> int:
        """Rounds of one iteration, at most."""
        ...

    def first(self, draw: Draw) -> Sequence[Ask]:
        """The first round; at least one ask."""
        ...

    def more(self, pool: Pool, draw: Draw) -> Sequence[Ask]:
        """Another round; nothing ends them. It is not called once `max_rounds` are over."""
        ...

    def select(self, pool: Pool, draw: Draw) -> Sequence[Sequence[int]]:
        """The groups to train on: between 1 and `draw.groups`, each G different rows of one candidate."""
        ...


def check_at_least(least: float, **values: float) -> None:
    """Raise a UserError naming the first value that is below `least`."""
    for name, value in values.items():
        if not value >= least:
            raise UserError(f"allocation.{name}={value} must be at least {least}")


def check_share(**values: float) -> None:
    """Raise a UserError naming the first value that is not in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"allocation.{name}={value} must be between 0 and 1")
