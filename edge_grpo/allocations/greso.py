"""Problems that were dead again and again are passed over with a probability that grows with their streak."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from edge_grpo.allocations.base import Draw, check_share
from edge_grpo.allocations.skipping import Skipping
from edge_grpo.errors import UserError
from edge_grpo.types.history import History, Visit
from edge_grpo.types.problems import Problem


@dataclass(frozen=True)
class Greso(Skipping):
    """A problem whose last n visits were all easy, or all hard, is passed over with probability 1 - max(p^n, floor).

    Easy is a visit of which a share of at least `easy` was right, hard one of at most `hard`; each kind has its p
    (GRESO, 2506.02177, with the values of its code). Both p start at `p_start`. After every iteration from the first
    in which a problem came back (the second pass through the data) p falls by `p_step` where the share of such visits
    among the iteration's was above the kind's target, else rises by it, within [`p_min`, `p_max`]. All of it follows
    from the history, so ranks agree. What is left over is refilled as in `Dynamic`. GRESO's size of a round, which
    follows what is missing, is left out.

    Assumes that a dead problem tends to stay dead. Degenerate case: in the first pass nothing has a streak, and it is
    `Dynamic`.

    Args:
        easy, hard: a visit is easy (or hard) with at least (at most) this share of right responses;
            0 <= hard < easy <= 1.
        p_start, p_step, p_min, p_max: p at the start, its step an iteration, and its bounds; p_min <= p_start <= p_max.
        easy_target, hard_target: shares of easy and of hard visits in an iteration that p is moved towards.
        floor: a problem is sampled with this probability at least; above 0, so that none is lost for good.

    Raises:
        UserError: a number out of range.

    >>> greso = Greso(10, None, "reward", "none", 4, 0.98, 0.11, 0.5, 0.01, 0.05, 0.95, 1 / 12, 1 / 6, 0.01)
    >>> hard = tuple(Visit(i, 8, 0, 0.0, 0.0) for i in range(3))
    >>> greso.skip_probability(hard, {"easy": 0.9, "hard": 0.5})  # 1 - 0.5^3
    0.875
    """

    easy: float
    hard: float
    p_start: float
    p_step: float
    p_min: float
    p_max: float
    easy_target: float
    hard_target: float
    floor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("easy", "hard", "p_start", "p_step", "p_min", "p_max", "easy_target", "hard_target", "floor")
        check_share(**{name: getattr(self, name) for name in names})
        if not self.hard < self.easy:
            raise UserError(f"allocation.hard={self.hard} must be below allocation.easy={self.easy}")
        if not self.p_min <= self.p_start <= self.p_max:
            raise UserError(
                f"allocation.p_start={self.p_start} must be between p_min={self.p_min} and p_max={self.p_max}"
            )
        if self.floor == 0:
            raise UserError("allocation.floor=0 must be above 0: a problem that is passed over would be lost for good")

    def skips(self, draw: Draw) -> Callable[[Problem], bool]:
        """See `Skipping`."""
        p = self.probabilities(draw.history)

        def skip(problem: Problem) -> bool:
            uniform = torch.rand((), dtype=torch.float64, generator=draw.generator).item()
            return uniform < self.skip_probability(draw.history.of(problem.id), p)

        return skip

    def skip_probability(self, visits: Sequence[Visit], p: dict[str, float]) -> float:
        """1 - max(p^n, floor) of a problem with these visits; 0 where the last one was neither easy nor hard."""
        kinds = [self._kind(visit) for visit in visits]
        if not kinds or kinds[-1] is None:
            return 0.0
        streak = next((n for n, kind in enumerate(reversed(kinds)) if kind != kinds[-1]), len(kinds))
        return float(1 - max(p[kinds[-1]] ** streak, self.floor))

    def probabilities(self, history: History) -> dict[str, float]:
        """p of each kind, after all iterations of the history."""
        kinds = defaultdict[int, list[str | None]](list)
        for visits in history.visits.values():
            for visit in visits:
                kinds[visit.iteration].append(self._kind(visit))
        second_pass = min((v[1].iteration for v in history.visits.values() if len(v) > 1), default=None)
        p = {"easy": self.p_start, "hard": self.p_start}
        targets = {"easy": self.easy_target, "hard": self.hard_target}
        for iteration in sorted(kinds):
            if second_pass is None or iteration < second_pass:
                continue
            for kind, target in targets.items():
                share = kinds[iteration].count(kind) / len(kinds[iteration])
                moved = p[kind] + (-self.p_step if share > target else self.p_step)
                p[kind] = min(max(moved, self.p_min), self.p_max)
        return p

    def _kind(self, visit: Visit) -> Literal["easy", "hard"] | None:
        right = visit.right / visit.rows
        return "easy" if right >= self.easy else "hard" if right <= self.hard else None
