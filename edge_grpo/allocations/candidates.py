"""The best of several candidates, by what the history says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_grpo.allocations.base import Ask, Draw, check_at_least
from edge_grpo.allocations.uniform import Uniform
from edge_grpo.types.problems import Problem


@dataclass(frozen=True)
class BestCandidates(Uniform):
    """Base of the allocations that sample P of the next problems, in one round, and train on all of them.

    A problem that comes twice among the candidates counts once.

    Args:
        candidates_per_group: problems that are taken from the stream for each that is sampled; at least 1. An epoch is
            so many times shorter, and nothing else costs more.

    Raises:
        UserError: a number below 1.
    """

    candidates_per_group: int

    def __post_init__(self) -> None:
        check_at_least(1, candidates_per_group=self.candidates_per_group)

    def ranked(self, candidates: list[Problem], draw: Draw) -> list[Problem]:
        """Different problems, the best first; at least one of them."""
        raise NotImplementedError

    def first(self, draw: Draw) -> Sequence[Ask]:
        """The P best, or as many as there are."""
        taken = draw.take(self.candidates_per_group * draw.groups)
        candidates = list({problem.id: problem for problem in taken}.values())
        return [Ask(problem, draw.num_generations) for problem in self.ranked(candidates, draw)[: draw.groups]]
