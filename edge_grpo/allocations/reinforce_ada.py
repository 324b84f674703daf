"""More responses to a problem until right and wrong ones are balanced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edge_grpo.allocations.base import Ask, Draw, Pool, check_at_least


@dataclass(frozen=True)
class ReinforceAda:
    """The next P problems, `rows_per_round` responses a round to each that has not ended (Reinforce-Ada, 2510.04996).

    `balanced`: a problem ends when floor(G/2) of its responses are right and as many wrong; `positive`: when one is
    right; in both cases when it has at least G. G of them are trained on, half right and half wrong as far as there are
    so many, the earliest first. Its advantage is `pool_mean`, the mean over all responses that were drawn: of those
    that are kept it would say one half, whatever the policy's rate is.

    Assumes that a problem's verdicts, not its rewards, tell right from wrong (the authors: reward above 0.7).
    Degenerate case: a problem that is all right or all wrong after the last round keeps its place in the batch and
    teaches nothing.

    Args:
        until: what a problem ends with: "balanced", half of G right and half wrong; "positive", one right response.
        rows_per_round: responses to a problem in a round, at least 1.
        max_rounds: rounds at most, at least 1; max_rounds * rows_per_round must be at least G, and is the most that a
            problem gets.

    Raises:
        UserError: a number below 1.
    """

    wants_drawn_rewards = True  # an advantage over all that was drawn

    until: Literal["balanced", "positive"]
    rows_per_round: int
    max_rounds: int

    def __post_init__(self) -> None:
        check_at_least(1, rows_per_round=self.rows_per_round, max_rounds=self.max_rounds)

    def refuses(self, num_generations: int) -> str:
        """Too few responses for a group."""
        most = self.max_rounds * self.rows_per_round
        if most >= num_generations:
            return ""
        return f"allocation.max_rounds={self.max_rounds} times rows_per_round={self.rows_per_round} is less"

    def first(self, draw: Draw) -> Sequence[Ask]:
        """P asks."""
        return [Ask(problem, self.rows_per_round) for problem in draw.take(draw.groups)]

    def more(self, pool: Pool, draw: Draw) -> Sequence[Ask]:
        """More of the problems that have not ended."""
        right, count = pool.right, pool.counts
        half = draw.num_generations // 2
        done = (right >= half) & (count - right >= half) if self.until == "balanced" else right >= 1
        goes_on = ~done | (count < draw.num_generations)
        return [Ask(pool.problems[c], self.rows_per_round, of=c) for c in goes_on.nonzero().flatten().tolist()]

    def select(self, pool: Pool, draw: Draw) -> Sequence[Sequence[int]]:
        """One group of every problem."""
        size, chosen = draw.num_generations, []
        for rows in pool.rows:
            right = [row for row in rows if pool.correct[row]]
            wrong = [row for row in rows if not pool.correct[row]]
            number = min(len(right), max(size // 2, size - len(wrong)))
            chosen.append(sorted(right[:number] + wrong[: size - number]))
        return chosen
