"""Every response of every iteration as a row of `rollouts/`: what the analysis of a run and its reader read."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from edge_grpo.algorithms.iteration import Iteration, TrainedRows
from edge_grpo.callbacks.token_texts import TokenTexts
from edge_grpo.errors import UserError
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.runs.rollout_files import RolloutFiles
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import ScoredRollout


class RolloutRecords(pl.Callback):
    """Writes a file an iteration into `<folder>/rollouts`, in every rank the rows of its update.

    Args:
        folder: of the run.
        tokens: whether the rows have an entropy and a log-prob for each token, as half-floats.
        keep_gb: of files with texts, in 1e9 bytes, of all ranks together. Beyond it the oldest iterations lose texts
            and tokens and keep their numbers. 0 keeps numbers alone, null everything.

    Raises:
        UserError: `keep_gb` below 0.
    """

    def __init__(self, folder: str, tokens: bool, keep_gb: float | None) -> None:
        if keep_gb is not None and keep_gb < 0:
            raise UserError(f"callbacks.rollouts.keep_gb={keep_gb} must be at least 0, or null to keep everything")
        self.folder, self.tokens, self.keep_gb = Path(folder), tokens, keep_gb
        self._texts: TokenTexts | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drop what a resumed run will write again."""
        keep = None if self.keep_gb is None else self.keep_gb * 1e9 / trainer.world_size
        self._files = RolloutFiles(self.folder, trainer.global_rank, keep, trainer.world_size)
        self._files.cut_back(trainer.current_epoch)
        self._texts = TokenTexts(pl_module.policy.decode)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Mapping[str, Iteration], *args: Any
    ) -> None:
        assert self._texts is not None
        rows = rollout_rows(outputs["iteration"], self._texts, pl_module.rewards, tokens=self.tokens)
        if rows:
            self._files.append(trainer.current_epoch, rows)


def rollout_rows(
    iteration: Iteration, texts: TokenTexts, rewards: WeightedRewards, *, tokens: bool
) -> list[dict[str, Any]]:
    """One record a row of the rollout (see `runs/rollout_files.py`); none where nothing was sampled.

    `advantage` (the mean over the row's tokens) and what the advantage strategy reports, such as `eda/multiplier`, are
    null for rows that the group filter took out; the latter also where all advantages of the group are 0. Where a
    replay has put another problem's group in a row's place, what is said of it after correction is of that group.
    """
    sampled, corrected, trained = iteration.sampled, iteration.corrected, iteration.trained
    if sampled is None or corrected is None or trained is None:
        return []
    taken = _advantages(trained)
    nothing = dict.fromkeys(("advantage", *trained.values))
    before = _graded(sampled, rewards, "")
    after = _graded(corrected.scored, rewards, "_after")
    g = sampled.rollout.num_generations
    return [
        {
            "group": row // g,
            "row": row % g,
            "entropy": _mean_entropy(sampled.rollout.responses[row]),
            "branch": corrected.branches[row] or "",
            "sampled_tokens_after": _sampled_tokens(corrected.scored.rollout.responses[row]),
            **before[row],
            **after[row],
            **taken.get(row, nothing),
            **_written(sampled, corrected.scored, row, texts, tokens=tokens),
        }
        for row in range(len(before))
    ]


def _graded(scored: ScoredRollout, rewards: WeightedRewards, when: str) -> list[dict[str, Any]]:
    """What grading says of each row, before or after correction."""
    rollout, scores = scored.rollout, scored.scores
    problems = [rollout.problem_of(row) for row in range(rollout.num_rows)]
    unparsed = rewards.unparsed(problems, scored.texts)
    return [
        {
            f"correct{when}": bool(scores.correct[row]),
            f"unparsed{when}": unparsed[row],
            f"reward{when}": float(scores.rewards[row]),
            f"tokens{when}": len(response),
            f"finish_reason{when}": response.finish_reason,
            **{f"reward{when}/{name}": float(part[row]) for name, part in scores.parts.items()},
        }
        for row, response in enumerate(rollout.responses)
    ]


def _written(
    sampled: ScoredRollout, after: ScoredRollout, row: int, texts: TokenTexts, *, tokens: bool
) -> dict[str, Any]:
    """Problem, texts and tokens of a row."""
    problem, other = sampled.rollout.problem_of(row), after.rollout.problem_of(row)
    response, changed = sampled.rollout.responses[row], after.rollout.responses[row]
    record: dict[str, Any] = {
        "problem": problem.id,
        "question": problem.transcript,
        "answers": _encodable(problem.answers),
        "response": sampled.texts[row],
    }
    if tokens:
        record |= _tokens(response, texts.characters(response, sampled.texts[row]), "")
    if _same(response, changed):
        return record
    characters = texts.characters(changed, after.texts[row])
    pieces = texts.pieces(changed, after.texts[row], characters)
    record["pieces_after"] = [{"by": by, "text": text} for by, text in pieces]
    if (prompt := after.rollout.prompt_of(row)) != other.prompt_ids:
        record["prompt_after"] = texts.decode(torch.tensor(prompt))
    return record | (_tokens(changed, characters, "_after") if tokens else {}) | _replaced(problem, other)


def _same(one: Response, other: Response) -> bool:
    if one is other:
        return True
    tensors = ((one.token_ids, other.token_ids), (one.provenance, other.provenance))
    return one.prompt_ids == other.prompt_ids and all(torch.equal(a, b) for a, b in tensors)


def _replaced(problem: Problem, other: Problem) -> dict[str, Any]:
    if other.id == problem.id:
        return {}
    return {
        "problem_after": other.id,
        "question_after": other.transcript,
        "answers_after": _encodable(other.answers),
    }


def _encodable(answers: Sequence[str]) -> list[str]:
    """No tokenizer has seen a gold answer, so it may hold half a surrogate pair, which becomes its escape."""
    return [answer.encode(errors="backslashreplace").decode() for answer in answers]


def _tokens(response: Response, characters: list[int], when: str) -> dict[str, Any]:
    entropies = response.entropies
    return {
        f"token_characters{when}": characters,
        f"entropies{when}": None if entropies is None else _halves(entropies),
        f"logprobs{when}": _halves(response.sampling_logprobs),
    }


def _halves(values: Any) -> Any:
    return values.detach().cpu().numpy().astype(np.float16)


def _sampled_tokens(response: Response) -> int:
    return int((response.provenance == Provenance.SAMPLED).sum())


def _advantages(trained: TrainedRows) -> dict[int, dict[str, float | None]]:
    """Row of the rollout -> its advantage and what the strategy reports of it."""
    columns = {"advantage": trained.advantages, **trained.values}
    lists = {name: values.tolist() for name, values in columns.items()}
    return {
        row: {name: _number(values[i]) for name, values in lists.items()}
        for i, row in enumerate(trained.row_ids.tolist())
    }


def _mean_entropy(response: Response) -> float | None:
    if response.entropies is None or not len(response):
        return None
    return _number(float(response.entropies.mean()))


def _number(value: float) -> float | None:
    """A row has null in place of NaN."""
    return value if math.isfinite(value) else None
