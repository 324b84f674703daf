"""Refill that passes over problems of which the history says that they teach nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from edge_grpo.allocations.base import Draw, check_at_least
from edge_grpo.allocations.dynamic import Dynamic
from edge_grpo.types.problems import Problem


@dataclass(frozen=True)
class Skipping(Dynamic):
    """Base of the allocations that pass over problems before they are sampled, and refill as `Dynamic` does.

    Args:
        look_ahead: problems that a round takes from the stream, at most, for each that it samples; at least 1. Where it
            passes over all of them, the last one is sampled.

    Raises:
        UserError: a number below 1.
    """

    look_ahead: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, look_ahead=self.look_ahead)

    def skips(self, draw: Draw) -> Callable[[Problem], bool]:
        """Whether a problem is passed over in this iteration; it is asked once for each problem that is taken."""
        raise NotImplementedError

    def fresh(self, draw: Draw, count: int) -> list[Problem]:
        """See `Dynamic`."""
        skips, kept, last = self.skips(draw), list[Problem](), list[Problem]()
        for _ in range(self.look_ahead * count):
            last = draw.take(1)
            if not skips(last[0]):
                kept += last
            if len(kept) == count:
                break
        return kept or last
