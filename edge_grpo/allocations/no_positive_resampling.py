"""Problems that are solved do not come back."""

from collections.abc import Callable
from dataclasses import dataclass

from edge_grpo.allocations.base import Draw
from edge_grpo.allocations.skipping import Skipping
from edge_grpo.errors import UserError
from edge_grpo.types.problems import Problem


@dataclass(frozen=True)
class NoPositiveResampling(Skipping):
    """A problem of which a share of at least `retire_at` was right at its last visit is passed over from then on.

    "No positive resampling" (ScaleRL, 2510.13786; Olmo 3), with the refill of `Dynamic`. Assumes that what was solved
    once stays solved. Degenerate case: where all problems are retired, the last one that a round looked at is sampled,
    and it comes back if it is solved no longer.

    Args:
        retire_at: share of right responses, above 0 and at most 1.

    Raises:
        UserError: a number out of range.
    """

    retire_at: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.retire_at <= 1:
            raise UserError(f"allocation.retire_at={self.retire_at} must be above 0 and at most 1")

    def skips(self, draw: Draw) -> Callable[[Problem], bool]:
        """See `Skipping`."""

        def retired(problem: Problem) -> bool:
            visits = draw.history.of(problem.id)
            return bool(visits) and visits[-1].right / visits[-1].rows >= self.retire_at

        return retired
