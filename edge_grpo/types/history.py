"""What was sampled of each problem so far."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Visit(NamedTuple):
    """One problem in one iteration, as the policy answered it, before any correction."""

    iteration: int
    rows: int
    """responses drawn, those that were not trained on too; 0 where the problem was passed over"""
    right: int
    mean: float
    """of their rewards"""
    std: float
    """of their rewards, over `rows` (not rows - 1)"""


class History:
    """Problem id -> its visits, in order: of every rank, in the checkpoint, and never of corrected rows.

    Strategies read it; the algorithm alone records.

    >>> history = History()
    >>> history.record([("a", Visit(0, 8, 2, 0.25, 0.43)), ("b", Visit(0, 0, 0, 0.0, 0.0))])
    >>> history.of("a")[-1].right, history.skipped["b"], "b" in history.visits
    (2, 1, False)
    """

    def __init__(self) -> None:
        self._log: list[tuple[str, Any]] = []
        self._visits: dict[str, tuple[Visit, ...]] = {}
        self._skipped: dict[str, int] = {}

    @property
    def visits(self) -> Mapping[str, tuple[Visit, ...]]:
        """Visits with at least one response; a problem without any is absent."""
        return MappingProxyType(self._visits)

    @property
    def skipped(self) -> Mapping[str, int]:
        """How often an allocation passed a problem over; one that it never did is absent."""
        return MappingProxyType(self._skipped)

    def of(self, problem_id: str) -> tuple[Visit, ...]:
        """A problem's visits; none if it has had none."""
        return self._visits.get(problem_id, ())

    def record(self, visits: Iterable[tuple[str, Visit]]) -> None:
        """Add the visits of one iteration, of all ranks in their order."""
        for problem_id, visit in visits:
            self._log.append((problem_id, tuple(visit)))
            if visit.rows:
                self._visits[problem_id] = (*self.of(problem_id), visit)
            else:
                self._skipped[problem_id] = self._skipped.get(problem_id, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """A snapshot in plain types."""
        return {"log": list(self._log)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "History":
        """The history that `state_dict` gave."""
        history = cls()
        history.record((problem_id, Visit(*visit)) for problem_id, visit in state["log"])
        return history
