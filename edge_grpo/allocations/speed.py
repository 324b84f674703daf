"""A few responses say which problems are worth a whole group."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_grpo.allocations.base import Ask, Draw, Pool, check_at_least


@dataclass(frozen=True)
class Speed:
    """`screen_rows` responses to a problem; those with right and wrong ones get the rest of G (SPEED-RL, 2506.09016).

    The first P problems that are mixed at screening are trained on, with all G responses. Every round but the last
    screens `problems_per_round` new ones, until there are P; meanwhile those that were found get their rest. The
    authors' buffer of problems that wait for a later batch is left out: what is mixed beyond the P-th is thrown away.

    A problem that was mixed at screening has a mixed group, since its first rows are in it. Assumes that others are not
    worth G responses: one of success rate p passes with probability 1 - p^n - (1-p)^n, n = `screen_rows`, so rare
    successes are missed more often than by `Dynamic`. Degenerate case: where the last screening has found none, the
    first problem gets its rest and stands in.

    Args:
        screen_rows: at least 2, below G.
        problems_per_round: of each rank; null takes P.
        max_rounds: at least 2. No more than (max_rounds - 1) * problems_per_round * screen_rows +
            P * (G - screen_rows) responses are drawn.

    Raises:
        UserError: a number that is too small.
    """

    screen_rows: int
    problems_per_round: int | None
    max_rounds: int

    def __post_init__(self) -> None:
        check_at_least(2, screen_rows=self.screen_rows, max_rounds=self.max_rounds)
        if self.problems_per_round is not None:
            check_at_least(1, problems_per_round=self.problems_per_round)

    def refuses(self, num_generations: int) -> str:
        """Nothing is left to draw after screening."""
        if self.screen_rows < num_generations:
            return ""
        return f"allocation.screen_rows={self.screen_rows} must be below it"

    def first(self, draw: Draw) -> Sequence[Ask]:
        """Screening."""
        return [Ask(problem, self.screen_rows) for problem in draw.take(self.problems_per_round or draw.groups)]

    def more(self, pool: Pool, draw: Draw) -> Sequence[Ask]:
        """The rest of those that were found, and another screening if they are too few."""
        rows = pool.rows
        found = self._found(pool)[: draw.groups]
        rounds = len(rows) // (self.problems_per_round or draw.groups)  # so far, while it screens
        last = rounds + 1 >= self.max_rounds
        screened = self.first(draw) if len(found) < draw.groups and not last else []
        if last and not found:
            found = [0]
        rest = draw.num_generations - self.screen_rows
        asked = [Ask(pool.problems[c], rest, of=c) for c in found if len(rows[c]) < draw.num_generations]
        return [*asked, *screened]

    def select(self, pool: Pool, draw: Draw) -> Sequence[Sequence[int]]:
        """The groups that got their rest."""
        return [rows for rows in pool.rows if len(rows) == draw.num_generations]

    def _found(self, pool: Pool) -> list[int]:
        """Candidates that were mixed at screening."""
        right = [int(pool.correct[rows[: self.screen_rows]].sum()) for rows in pool.rows]
        return [c for c, number in enumerate(right) if 0 < number < self.screen_rows]
