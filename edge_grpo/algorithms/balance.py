"""Which rank computes which groups: whole groups change ranks before the update, so that each has as many tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edge_grpo.corrections.base import Corrected
from edge_grpo.types.rollouts import ScoredRollout

Place = tuple[int, int]
"""the rank that drew a group, and its number there"""


@dataclass(frozen=True)
class Group:
    """One group, as it was sampled and after correction."""

    sampled: ScoredRollout
    corrected: Corrected


def balanced(costs: Sequence[Sequence[int]]) -> list[list[Place]]:
    """Groups for every rank, as many as it drew, so that the rank with most tokens has few more than the others.

    A group of the fullest rank is exchanged for a lighter one of another as long as that lowers the fuller of the two,
    beginning with the emptiest. The sum of squares falls with every exchange, so it ends.

    Args:
        costs: [rank][group] tokens.

    Returns:
        [rank][group]: where it is now. A group that stays keeps its number.

    >>> balanced([[9, 8], [1, 2]])
    [[(1, 1), (0, 1)], [(1, 0), (0, 0)]]
    """
    places = [[(rank, group) for group in range(len(own))] for rank, own in enumerate(costs)]
    held = [list(own) for own in costs]
    loads = [sum(own) for own in held]
    while True:
        full = max(range(len(held)), key=lambda rank: loads[rank])
        for other in sorted(range(len(held)), key=lambda rank: loads[rank]):
            gap = loads[full] - loads[other]
            moves = [
                (abs(gap - 2 * (mine - theirs)), i, j)
                for i, mine in enumerate(held[full])
                for j, theirs in enumerate(held[other])
                if 0 < mine - theirs < gap
            ]
            if moves:
                _, i, j = min(moves)
                break
        else:
            return places
        shift = held[full][i] - held[other][j]
        loads[full], loads[other] = loads[full] - shift, loads[other] + shift
        held[full][i], held[other][j] = held[other][j], held[full][i]
        places[full][i], places[other][j] = places[other][j], places[full][i]


def balanced_steps(
    costs: Sequence[Sequence[int]], minibatch_rows: int | None, num_generations: int
) -> list[list[Place]]:
    """`balanced`, among the groups of each optimiser step: the step has the same rows as without.

    Args:
        costs: [rank][group] tokens.
        minibatch_rows: of a step over all ranks (see `minibatches`); None: all groups are of one step.
        num_generations: G.
    """
    most = max(map(len, costs))
    size = most if minibatch_rows is None else minibatch_rows // (num_generations * len(costs))
    places: list[list[Place]] = [[] for _ in costs]
    for first in range(0, most, size):
        of_step = balanced([own[first : first + size] for own in costs])
        for mine, new in zip(places, of_step, strict=True):
            mine += [(rank, group + first) for rank, group in new]
    return places


def imbalances(costs: Sequence[Sequence[int]], places: Sequence[Sequence[Place]]) -> dict[str, float]:
    """`perf/token_imbalance/*`: the fullest rank's tokens over the mean of the ranks, less 1, before and after.

    >>> imbalances([[9, 8], [1, 2]], balanced([[9, 8], [1, 2]]))
    {'perf/token_imbalance/drawn': 0.7, 'perf/token_imbalance/update': 0.0}
    """
    loads = {
        "drawn": [sum(own) for own in costs],
        "update": [sum(costs[rank][group] for rank, group in own) for own in places],
    }
    mean = sum(loads["drawn"]) / len(costs)
    return {f"perf/token_imbalance/{when}": max(of) / mean - 1 if mean else 0.0 for when, of in loads.items()}


def exchanged(
    sampled: ScoredRollout,
    corrected: Corrected,
    places: Sequence[Sequence[Place]],
    rank: int,
    delivered: Callable[[Sequence[Any]], list[Any]],
) -> tuple[ScoredRollout, Corrected]:
    """The groups that this rank goes on with; a group is sent to the rank that needs it and to no other.

    Args:
        sampled, corrected: of the groups that it drew.
        places: of all ranks, see `balanced`.
        rank: this one.
        delivered: see `PolicyModule.delivered`; every rank calls it.
    """
    if all(owner == here for here, groups in enumerate(places) for owner, _ in groups):
        return sampled, corrected
    own = groups_of(sampled, corrected)
    # A group goes through one pickle, so that a response that no correction has touched stays one object.
    parcels = [
        {group: own[group] for owner, group in groups if owner == rank and there != rank}
        for there, groups in enumerate(places)
    ]
    arrived = delivered(parcels)
    return joined([own[group] if owner == rank else arrived[owner][group] for owner, group in places[rank]])


def groups_of(sampled: ScoredRollout, corrected: Corrected) -> list[Group]:
    """The groups of a rollout."""
    size = sampled.rollout.num_generations
    cut = []
    for group in range(len(sampled.rollout.problems)):
        rows = slice(group * size, (group + 1) * size)
        reports = {name: values[rows].clone() for name, values in corrected.reports.items()}
        after = Corrected(corrected.scored.group(group), corrected.branches[rows], reports)
        cut.append(Group(sampled.group(group), after))
    return cut


def joined(groups: Sequence[Group]) -> tuple[ScoredRollout, Corrected]:
    """A rollout of these groups; a correction that has reported something of some rows says NaN of the others."""
    corrected = [group.corrected for group in groups]
    names = dict.fromkeys(name for part in corrected for name in part.reports)
    nothing = [torch.full((len(part.branches),), torch.nan) for part in corrected]
    reports = {
        name: torch.cat([part.reports.get(name, empty) for part, empty in zip(corrected, nothing, strict=True)])
        for name in names
    }
    after = Corrected(
        ScoredRollout.joined([part.scored for part in corrected]),
        tuple(branch for part in corrected for branch in part.branches),
        reports,
    )
    return ScoredRollout.joined([group.sampled for group in groups]), after
