"""The same number of responses to every problem, as in GRPO."""

from collections.abc import Sequence

from edge_grpo.allocations.base import Ask, Draw, Pool


class Uniform:
    """The next P problems, G responses each, and all of them are trained on.

    Degenerate case: a collapsed group keeps its place in the batch and teaches nothing.
    """

    max_rounds = 1

    def first(self, draw: Draw) -> Sequence[Ask]:
        """P asks."""
        return [Ask(problem, draw.num_generations) for problem in draw.take(draw.groups)]

    def more(self, pool: Pool, draw: Draw) -> Sequence[Ask]:
        """None."""
        return []

    def select(self, pool: Pool, draw: Draw) -> Sequence[Sequence[int]]:
        """Every candidate."""
        return pool.rows
