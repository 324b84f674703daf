"""Rounds of new problems until the batch holds live groups only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from edge_grpo.allocations.base import Ask, Draw, Pool, check_at_least
from edge_grpo.types.problems import Problem


@dataclass(frozen=True)
class Dynamic:
    """Samples new problems until P groups are live, and trains on the first P of these (DAPO, 2503.14476).

    A round is G responses to each of `problems_per_round` new problems. Live groups beyond the P-th are thrown away, as
    in verl. Where verl raises after its last round, this trains on the live groups that there are. Assumes that live
    problems are not rare: a group of p right responses on average is live with probability 1 - p^G - (1-p)^G, and one
    live group costs the inverse of that in groups.

    Degenerate case: where the bound is reached without a live group, a dead one stands in. It has no gradient, so the
    optimiser's momentum alone moves the policy, as in GRPO where all groups are dead; with
    `group_filter=drop_zero_variance` there is no step.

    Args:
        max_rounds: at least 1; no more than `max_rounds * problems_per_round * G` responses are drawn.
        problems_per_round: of each rank; null takes P. Larger rounds waste more and wait less.
        by: what a live group is: `reward`, one whose rewards differ (DAPO's code); `outcome`, one with right and wrong
            responses, so that a format bonus in an all-wrong group does not count.
        fill: what takes the places that live groups leave free: `none`, or `dead` groups, as slime does instead of
            sampling on, so that the loss's denominators stay those of P groups.

    Raises:
        UserError: a number below 1.
    """

    max_rounds: int
    problems_per_round: int | None
    by: Literal["reward", "outcome"]
    fill: Literal["none", "dead"]

    def __post_init__(self) -> None:
        check_at_least(1, max_rounds=self.max_rounds)
        if self.problems_per_round is not None:
            check_at_least(1, problems_per_round=self.problems_per_round)

    def fresh(self, draw: Draw, count: int) -> list[Problem]:
        """The problems of a round: at least 1, at most `count`."""
        return draw.take(count)

    def live(self, pool: Pool) -> Tensor:
        """[C] bool"""
        return pool.unequal if self.by == "reward" else pool.mixed

    def first(self, draw: Draw) -> Sequence[Ask]:
        """A round."""
        problems = self.fresh(draw, self.problems_per_round or draw.groups)
        return [Ask(problem, draw.num_generations) for problem in problems]

    def more(self, pool: Pool, draw: Draw) -> Sequence[Ask]:
        """Another round, unless P groups are live."""
        return self.first(draw) if int(self.live(pool).sum()) < draw.groups else []

    def select(self, pool: Pool, draw: Draw) -> Sequence[Sequence[int]]:
        """The first P live groups; where there are fewer, dead ones as `fill` says."""
        live, rows = self.live(pool).tolist(), pool.rows
        order = sorted(range(len(rows)), key=lambda candidate: not live[candidate])
        wanted = draw.groups if self.fill == "dead" else max(1, min(sum(live), draw.groups))
        return [rows[candidate] for candidate in order[:wanted]]
