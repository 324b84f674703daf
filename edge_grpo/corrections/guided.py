"""Guided Error Correction (GEC) of EDGE-GRPO; with probabilities (1, 0, 0) the baseline Force-R."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

import torch

from edge_grpo.corrections.base import Corrected, CorrectionTools, Encode
from edge_grpo.errors import UserError
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response, append, join, reference_response, without_eos
from edge_grpo.types.rollouts import Rollout, ScoredRollout

BRANCHES = ("reflect", "answer", "solution")


class GuidedCorrection:
    """Every triggered wrong response takes one branch, drawn independently (2507.21848, section on GEC).

        reflect   its tokens without EOS + `reflect_phrase`, continued by the policy
        answer    its tokens without EOS + `answer_phrase` with the gold answer, EOS
        solution  the reference solution, EOS

    Edited rows are graded again. A branch that cannot be taken by a row (no room for it within `max_response_tokens` or
    the model's context; no reference, or one that fails its own grading) passes its probability to the row's other
    branches; a row without any branch is left alone as "no_room". Degenerate case: where every wrong row of
    a group is repaired the correction has itself made the group uniform (`collapse/created_by_correction`).

    Args:
        probabilities: of the three branches, summing to 1.
        reflect_phrase, answer_phrase: injected text; `answer_phrase` holds `{answer}` once.
        trigger: "every_wrong" response (paper), those of "all_wrong" groups only, or "leave_one_wrong": all but
            one wrong response of a group, so that correction never makes a group all right.
        reflection_tokens: new tokens of a reflection, at most.
        max_response_tokens: bound on the whole corrected response; null for the rollout's max_new_tokens +
            reflection_tokens.
        keep_eos: end an answer or solution branch with EOS, so that stopping is trained.
        loss_weights: of sampled, injected and reference tokens (paper: all 1).

    Raises:
        UserError: a value out of range, or probabilities that do not sum to 1.
    """

    def __init__(
        self,
        probabilities: Mapping[str, float],
        reflect_phrase: str,
        answer_phrase: str,
        trigger: Literal["every_wrong", "all_wrong", "leave_one_wrong"],
        reflection_tokens: int,
        max_response_tokens: int | None,
        keep_eos: bool,
        loss_weights: Mapping[str, float],
    ) -> None:
        self.probabilities = _checked_probabilities(probabilities)
        self.token_weight = _checked_weights(loss_weights)
        if answer_phrase.count("{answer}") != 1:
            raise UserError(f"correction.answer_phrase={answer_phrase!r} must hold {{answer}} once")
        if reflection_tokens < 1:
            raise UserError(f"correction.reflection_tokens={reflection_tokens} must be at least 1")
        if max_response_tokens is not None and max_response_tokens < 1:
            raise UserError(f"correction.max_response_tokens={max_response_tokens} must be at least 1, or null")
        self.reflect_phrase, self.answer_phrase = reflect_phrase, answer_phrase
        self.trigger, self.keep_eos = trigger, keep_eos
        self.reflection_tokens, self.max_response_tokens = reflection_tokens, max_response_tokens

    @property
    def required_fields(self) -> frozenset[str]:
        """`answers` and `solution` only where their branch can be drawn."""
        fields = {"answer": "answers", "solution": "solution"}
        return frozenset(field for branch, field in fields.items() if self.probabilities[branch] > 0)

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`. A wrong response that its budget cut has no EOS to lose."""
        end, limit = int(self.keep_eos), self._limit(max_new_tokens)
        lengths = {"reflect": max_new_tokens + len(encode(self.reflect_phrase)) + self.reflection_tokens}
        if self.probabilities["answer"] > 0:
            lengths["answer"] = max_new_tokens + len(encode(self._answer(problem))) + end
        if problem.solution_ids and problem.solution_passes:
            lengths["solution"] = len(problem.solution_ids) + end
        taken = (length for branch, length in lengths.items() if self.probabilities[branch] > 0)
        longest = max(taken, default=max_new_tokens)
        return longest if limit is None else min(longest, limit)

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Edit the triggered rows and grade them again."""
        edited, branches = self._edit(scored, self._triggered(scored, tools), tools)
        return Corrected(scored=rescored(scored, edited, tools), branches=branches)

    def _wrong(self, scored: ScoredRollout, tools: CorrectionTools) -> torch.Tensor:
        """[N] bool: wrong is what the accuracy reward says."""
        return ~scored.scores.correct

    def _triggered(self, scored: ScoredRollout, tools: CorrectionTools) -> torch.Tensor:
        """[N] bool: rows to correct."""
        wrong = self._wrong(scored, tools).view(-1, scored.rollout.num_generations)
        if self.trigger == "all_wrong":
            wrong = wrong & wrong.all(1, keepdim=True)
        elif self.trigger == "leave_one_wrong":
            keys = torch.rand(wrong.shape, generator=tools.generator, dtype=torch.float32).masked_fill(~wrong, -1.0)
            left = torch.nn.functional.one_hot(keys.argmax(1), wrong.shape[1]).bool()
            wrong = wrong & ~left
        return wrong.flatten()

    def _edit(
        self, scored: ScoredRollout, triggered: torch.Tensor, tools: CorrectionTools
    ) -> tuple[dict[int, Response], tuple[str | None, ...]]:
        """Row -> its new response, and the branch of every row."""
        rollout = scored.rollout
        draws = torch.rand(rollout.num_rows, generator=tools.generator, dtype=torch.float32).tolist()
        branches: list[str | None] = [None] * rollout.num_rows
        edited: dict[int, Response] = {}
        reflecting: dict[int, Response] = {}
        for row in triggered.nonzero().flatten().tolist():
            candidates = self._candidates(rollout.problem_of(row), rollout.responses[row], tools)
            branch = self._draw(draws[row], candidates)
            branches[row] = branch or "no_room"
            if branch == "reflect":
                reflecting[row] = candidates[branch]
            elif branch is not None:
                edited[row] = candidates[branch]
        edited |= self._reflect(rollout, reflecting, tools)
        return edited, tuple(branches)

    def _draw(self, u: float, candidates: Collection[str]) -> str | None:
        """The branch at quantile u of the probabilities renormalised to the candidates; None if there are none."""
        total = sum(self.probabilities[branch] for branch in candidates)
        cumulative, chosen = 0.0, None
        for branch in candidates:
            if self.probabilities[branch] > 0 and (chosen is None or u * total >= cumulative):
                chosen = branch
            cumulative += self.probabilities[branch]
        return chosen

    def _candidates(self, problem: Problem, response: Response, tools: CorrectionTools) -> dict[str, Response]:
        """Branch -> edited response (a reflection's without its continuation), for the branches that fit."""
        room = self._room(len(response.prompt_ids or problem.prompt_ids), tools)
        end = tools.eos_ids[:1] if self.keep_eos else ()
        kept = without_eos(response, tools.eos_ids)
        made = {
            "reflect": (append(kept, tools.encode(self.reflect_phrase)), 1),  # one token to continue with, at least
            "answer": (append(kept, (*tools.encode(self._answer(problem)), *end)), 0),
        }
        if problem.solution_ids and problem.solution_passes:
            made["solution"] = (reference_response((*problem.solution_ids, *end)), 0)
        return {
            branch: edit
            for branch, (edit, extra) in made.items()
            if self.probabilities[branch] > 0 and (room is None or len(edit) + extra <= room)
        }

    def _answer(self, problem: Problem) -> str:
        return self.answer_phrase.replace("{answer}", problem.answers[0])

    def _limit(self, max_new_tokens: int) -> int | None:
        """Bound on a corrected response, in tokens."""
        return max_new_tokens + self.reflection_tokens if self.max_response_tokens is None else self.max_response_tokens

    def _room(self, prompt_length: int, tools: CorrectionTools) -> int | None:
        """The same, where the model's context does not hold as much behind a prompt."""
        limit = self._limit(tools.max_new_tokens)
        if tools.context_length is None:
            return limit
        left = tools.context_length - prompt_length
        return left if limit is None else min(limit, left)

    def _budget(self, prompt_length: int, response: Response, tools: CorrectionTools) -> int:
        """New tokens of a reflection behind `response`."""
        room = self._room(prompt_length, tools)
        return self.reflection_tokens if room is None else min(self.reflection_tokens, room - len(response))

    def _reflect(
        self, rollout: Rollout, reflecting: Mapping[int, Response], tools: CorrectionTools
    ) -> dict[int, Response]:
        """Let the policy continue the rows that reflect, and only those."""
        prefixes, budgets = [], []
        for row, response in reflecting.items():
            prompt = response.prompt_ids or rollout.problem_of(row).prompt_ids
            prefixes.append([*prompt, *response.token_ids.tolist()])
            budgets.append(self._budget(len(prompt), response, tools))
        continuations = tools.generate(prefixes, budgets)
        return {
            row: join(response, continuation)
            for (row, response), continuation in zip(reflecting.items(), continuations, strict=True)
        }


def rescored(scored: ScoredRollout, edited: Mapping[int, Response], tools: CorrectionTools) -> ScoredRollout:
    """`scored` with the edited rows put in and graded; the other rows are the same objects as before."""
    if not edited:
        return scored
    rows = sorted(edited)
    responses, texts = list(scored.rollout.responses), list(scored.texts)
    for row in rows:
        responses[row] = edited[row]
        texts[row] = tools.decode(edited[row].token_ids)
    problems = [scored.rollout.problem_of(row) for row in rows]
    scores = tools.score(problems, [texts[row] for row in rows], [edited[row] for row in rows])
    return ScoredRollout(
        rollout=replace(scored.rollout, responses=tuple(responses)),
        texts=tuple(texts),
        drawn=scored.drawn,
        scores=scored.scores.replaced(rows, scores),
    )


def _checked_probabilities(probabilities: Mapping[str, float]) -> dict[str, float]:
    values = {name: float(p) for name, p in probabilities.items()}
    if set(values) != set(BRANCHES):
        raise UserError(
            f"correction.probabilities needs exactly {', '.join(BRANCHES)}, got {', '.join(sorted(values))}"
        )
    if any(not 0 <= p <= 1 for p in values.values()) or abs(sum(values.values()) - 1) > 1e-6:
        raise UserError(
            f"correction.probabilities {values} must be in [0, 1] and sum to 1, not {sum(values.values()):g}"
        )
    return {branch: values[branch] for branch in BRANCHES}


def _checked_weights(weights: Mapping[str, float]) -> dict[Provenance, float]:
    names = {provenance.name.lower(): provenance for provenance in Provenance}
    if set(weights) != set(names):
        raise UserError(f"correction.loss_weights needs exactly {', '.join(names)}, got {', '.join(sorted(weights))}")
    if any(w < 0 for w in weights.values()):
        raise UserError(f"correction.loss_weights {dict(weights)} must not be negative")
    return {provenance: float(weights[name]) for name, provenance in names.items()}
