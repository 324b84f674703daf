"""Which row of an iteration tells most of what the method does."""

from typing import NamedTuple

from torch import Tensor

from edge_grpo.advantages.base import collapsed
from edge_grpo.corrections.base import Corrected
from edge_grpo.types.rollouts import ScoredRollout


class Telling(NamedTuple):
    """A row and its group.

    Attributes:
        row: of the rollout.
        kind: of its group: "revived" (equal rewards as sampled, unequal ones after correction), "mixed" (unequal after
            correction), or "collapsed".
        before, after: rewards of the group's rows, as sampled and after correction.
    """

    row: int
    kind: str
    before: list[float]
    after: list[float]


def telling_row(sampled: ScoredRollout, corrected: Corrected) -> Telling:
    """A row of the first revived group, else of the first mixed one, else of the first one.

    In the group it is the best of the rows that a correction edited, if it edited any, else the best one.
    """
    g = corrected.scored.rollout.num_generations
    before, after = (rewards.view(-1, g) for rewards in (sampled.scores.rewards, corrected.scored.scores.rewards))
    live = ~collapsed(after)
    kind, group = _first({"revived": live & collapsed(before), "mixed": live})
    rows = range(group * g, (group + 1) * g)
    edited = [row for row in rows if corrected.branches[row] is not None]
    best = max(edited or rows, key=lambda row: float(corrected.scored.scores.rewards[row]))
    return Telling(best, kind, before[group].tolist(), after[group].tolist())


def _first(kinds: dict[str, Tensor]) -> tuple[str, int]:
    """The first kind of which there is a group, and the first group of it."""
    for kind, groups in kinds.items():
        if groups.any():
            return kind, int(groups.int().argmax())
    return "collapsed", 0
