"""What an allocation's rounds have drawn, and the groups that it chose of it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.algorithms.collapse import live_shares, revived_by_allocation
from edge_grpo.allocations.base import Ask, Draw, Pool
from edge_grpo.types.history import Visit
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import Rollout, ScoredRollout

log = logging.getLogger(__name__)


class Stream:
    """The next problems of this rank.

    Args:
        at: position -> problem.
        position: of the first one that was not taken in an earlier iteration.
    """

    def __init__(self, at: Callable[[int], Problem], position: int) -> None:
        self.at, self.position = at, position
        self.taken: list[Problem] = []
        """in this iteration"""

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems."""
        problems = [self.at(self.position + i) for i in range(count)]
        self.position += count
        self.taken += problems
        return problems


@dataclass(frozen=True)
class Drawn:
    """One iteration's responses on one rank, as the policy wrote them.

    Args:
        scored: the groups to train on.
        position: of the rank's stream, behind what was taken.
        visits: problem id -> what was drawn of it, or that it was passed over.
        metrics: `allocation/*`, how many groups were to be expected live, and whom the allocation revived.
    """

    scored: ScoredRollout
    position: int
    visits: tuple[tuple[str, Visit], ...]
    metrics: dict[str, float]


def one_each(asks: Sequence[Ask]) -> list[Problem]:
    """The problem of every response that is asked for."""
    return [ask.problem for ask in asks for _ in range(ask.rows)]


def pooled(pool: Pool | None, asks: Sequence[Ask], scored: ScoredRollout) -> Pool:
    """The pool with the responses of another round.

    Args:
        pool: None before the first round.
        asks: of the round.
        scored: their responses, as groups of 1.
    """
    problems = [] if pool is None else list(pool.problems)
    candidates = []
    for ask in asks:
        if ask.of is None:
            problems.append(ask.problem)
        candidates += [len(problems) - 1 if ask.of is None else ask.of] * ask.rows
    new = torch.tensor(candidates, dtype=torch.long)
    if pool is None:
        return Pool(tuple(problems), new, scored)
    both = ScoredRollout.joined([pool.scored, scored]) if scored.texts else pool.scored
    return Pool(tuple(problems), torch.cat([pool.candidate, new]), both)


def drawn(pool: Pool, chosen: Sequence[Sequence[int]], stream: Stream, draw: Draw) -> Drawn:
    """What an iteration goes on with.

    Args:
        pool: all rounds'.
        chosen: rows of each group, see `Allocation.select`.
        stream: what was taken of it is asked for or skipped.
        draw: the iteration's.
    """
    rows, candidates = pool.rows, [int(pool.candidate[own[0]]) for own in chosen]
    rewards = [pool.rewards[own] for own in rows]
    visits = [
        (problem.id, _visit(draw.iteration, pool.correct[own], pool.rewards[own]))
        for problem, own in zip(pool.problems, rows, strict=True)
    ]
    asked = {problem.id for problem in pool.problems}
    skipped = [problem.id for problem in stream.taken if problem.id not in asked]
    visits += [(problem_id, Visit(draw.iteration, 0, 0, 0.0, 0.0)) for problem_id in skipped]
    flat = [row for group in chosen for row in group]
    own = tuple(rewards[candidate] for candidate in candidates)
    scored = _selected(pool, flat, candidates, own)
    lengths = torch.tensor([len(response) for response in pool.scored.rollout.responses])
    if len(chosen) < draw.groups:
        log.info(
            "iteration %d: of %d responses to %d problems the allocation chose %d groups, not %d",
            draw.iteration,
            len(lengths),
            len(pool.problems),
            len(chosen),
            draw.groups,
        )
    metrics = {
        "allocation/candidates": float(len(pool.problems)),
        "allocation/skipped": float(len(skipped)),
        "allocation/collapsed": float((~pool.unequal).float().mean()),
        "allocation/groups": float(len(chosen)),
        "allocation/rows_drawn": float(len(lengths)),
        "allocation/tokens_drawn": float(lengths.sum()),
        "allocation/tokens_not_trained": float(lengths.sum() - lengths[flat].sum()),
        "collapse/revived_by_allocation": revived_by_allocation(pool, chosen, draw.groups),
        **live_shares(pool, draw.history),
    }
    return Drawn(scored, stream.position, tuple(visits), metrics)


def _visit(iteration: int, correct: Tensor, rewards: Tensor) -> Visit:
    return Visit(iteration, len(rewards), int(correct.sum()), float(rewards.mean()), float(rewards.std(correction=0)))


def _selected(pool: Pool, rows: Sequence[int], candidates: Sequence[int], drawn: tuple[Tensor, ...]) -> ScoredRollout:
    scored, scores = pool.scored, pool.scored.scores
    problems = tuple(pool.problems[candidate] for candidate in candidates)
    responses = tuple(scored.rollout.responses[row] for row in rows)
    return ScoredRollout(
        Rollout(problems, responses, len(rows) // len(candidates)),
        tuple(scored.texts[row] for row in rows),
        scores.selected(list(rows)),
        drawn,
    )
