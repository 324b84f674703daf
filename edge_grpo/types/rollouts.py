"""Responses to the problems of an iteration, with what grading says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response


@dataclass(frozen=True)
class Rollout:
    """G responses to each of P problems; `responses[p * G + g]` answers `problems[p]`."""

    problems: tuple[Problem, ...]
    responses: tuple[Response, ...]
    num_generations: int

    def __post_init__(self) -> None:
        expected = len(self.problems) * self.num_generations
        if len(self.responses) != expected:
            raise ValueError(
                f"{len(self.problems)} problems x {self.num_generations} generations need {expected} "
                f"responses, got {len(self.responses)}"
            )

    def problem_of(self, row: int) -> Problem:
        return self.problems[row // self.num_generations]

    def prompt_of(self, row: int) -> tuple[int, ...]:
        """The prompt that the row is trained under."""
        own = self.responses[row].prompt_ids
        return self.problem_of(row).prompt_ids if own is None else own

    @property
    def num_rows(self) -> int:
        return len(self.responses)


@dataclass(frozen=True)
class Scores:
    """What grading says of n responses.

    Args:
        rewards: [n] float32, weighted sum of the parts.
        parts: name -> [n] float32, before weighting.
        correct: [n] bool, by the accuracy reward alone.
    """

    rewards: Tensor
    parts: dict[str, Tensor]
    correct: Tensor

    def __post_init__(self) -> None:
        n = self.rewards.shape[0]
        wrong = {k: tuple(v.shape) for k, v in self.parts.items() if tuple(v.shape) != (n,)}
        if wrong or tuple(self.correct.shape) != (n,):
            raise ValueError(f"scores of {n} rows with parts {wrong}, correct {tuple(self.correct.shape)}")

    def selected(self, rows: list[int]) -> "Scores":
        """The scores of some rows, in that order."""
        parts = {name: part[rows] for name, part in self.parts.items()}
        return Scores(self.rewards[rows], parts, self.correct[rows])

    def replaced(self, rows: list[int], new: "Scores") -> "Scores":
        """These scores with `rows` taken from `new` (one entry a row, in that order)."""

        def put(old: Tensor, values: Tensor) -> Tensor:
            out = old.clone()
            out[rows] = values
            return out

        return Scores(
            rewards=put(self.rewards, new.rewards),
            parts={name: put(part, new.parts[name]) for name, part in self.parts.items()},
            correct=put(self.correct, new.correct),
        )


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with its texts (N, for graders and people) and scores (N).

    Args:
        drawn: [P], of each group the rewards [n] of all responses that were drawn for it, kept or not, as sampled;
            empty where nobody counted.
    """

    rollout: Rollout
    texts: tuple[str, ...]
    scores: Scores
    drawn: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        n = self.rollout.num_rows
        if self.drawn and len(self.drawn) != len(self.rollout.problems):
            raise ValueError(f"rewards drawn for {len(self.drawn)} of {len(self.rollout.problems)} groups")
        if len(self.texts) != n or self.scores.rewards.shape[0] != n:
            raise ValueError(f"{n} rows, {len(self.texts)} texts, {self.scores.rewards.shape[0]} rewards")

    def group(self, group: int) -> "ScoredRollout":
        """One group alone."""
        size = self.rollout.num_generations
        rows = range(group * size, (group + 1) * size)
        return ScoredRollout(
            Rollout((self.rollout.problems[group],), self.rollout.responses[rows.start : rows.stop], size),
            self.texts[rows.start : rows.stop],
            self.scores.selected(list(rows)),
            self.drawn[group : group + 1],
        )

    @staticmethod
    def joined(parts: Sequence["ScoredRollout"]) -> "ScoredRollout":
        """The groups of all parts, one part behind the other; all have G responses a group and the same rewards."""
        scores = [part.scores for part in parts]
        return ScoredRollout(
            Rollout(
                tuple(problem for part in parts for problem in part.rollout.problems),
                tuple(response for part in parts for response in part.rollout.responses),
                parts[0].rollout.num_generations,
            ),
            tuple(text for part in parts for text in part.texts),
            Scores(
                torch.cat([part.rewards for part in scores]),
                {name: torch.cat([part.parts[name] for part in scores]) for name in scores[0].parts},
                torch.cat([part.correct for part in scores]),
            ),
            tuple(rewards for part in parts for rewards in part.drawn),
        )
