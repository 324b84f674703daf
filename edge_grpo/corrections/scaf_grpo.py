"""Scaf-GRPO's hints: prepared ones of the data, and one right row that they lead to."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from edge_grpo.corrections.base import Corrected, CorrectionTools, Encode
from edge_grpo.corrections.groups import all_wrong_groups
from edge_grpo.corrections.hints import (
    Climbed,
    HintCorrection,
    HintMetrics,
    check_template,
    climb,
    filled,
)
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetrics
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import ScoredRollout, Scores


class ScafGRPO(HintCorrection):
    """One wrong row of an all-wrong group becomes a right row that was drawn with a hint (Scaf-GRPO, 2510.19807).

        level k   question + `hint` with the first k texts of the problem's column `column`, one below the other
                  -> one new response; level k + 1 only if it is wrong
        right     it takes the place of the group's first row; all the others stay as they were sampled

    The published data has 12 texts: knowledge 1 to 4, planning 5 to 8, solution 9 to 12. The row is trained under its
    hinted prompt, or under the plain one (`replace_hint_prompt`); in both its importance ratio is against the policy
    before the update under that same prompt, 1 in the first step. Hints begin after `warmup_iterations`. Third-party
    code was read: it draws all levels at once and takes the lowest right one, which gives the same and costs more.
    Levels whose prompt has no room for `rollout.max_new_tokens` in the model's context are passed over ("no_room").
    Assumes hints that go from vague to plain.

    Degenerate case: groups with a right row are untouched; a group of which no hinted row is right stays exactly as it
    was sampled ("unsolved"). Of rewards 0 and 1 a solved group has one 1.

    Args:
        column: of the data, a list of texts in every row.
        hint: what stands behind the question; holds `{hint}` once.
        replace_hint_prompt: train the new row under the prompt without the hint.
        warmup_iterations: iterations without hints.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, column: str, hint: str, replace_hint_prompt: bool, warmup_iterations: int) -> None:
        check_template("correction.hint", hint, "hint")
        if not column:
            raise UserError("correction.column is empty: name the column of the data that holds the hints")
        if warmup_iterations < 0:
            raise UserError(f"correction.warmup_iterations={warmup_iterations} must not be negative")
        self.column, self.hint = column, hint
        self.replace_hint_prompt, self.warmup_iterations = replace_hint_prompt, warmup_iterations
        self._metrics = HintMetrics("scaf_grpo")

    @property
    def foreign_logprobs(self) -> bool:
        """Rows were drawn with a hint and are trained under the prompt without it."""
        return self.replace_hint_prompt

    @property
    def metrics(self) -> StrategyMetrics:
        """See `HintMetrics`."""
        return self._metrics.definitions

    @property
    def required_fields(self) -> frozenset[str]:
        """The column."""
        return frozenset({f"columns.{self.column}"})

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`.

        Raises:
            UserError: the problem's hints are no list of texts.
        """
        self._hints(problem)
        return max_new_tokens

    def _hints(self, problem: Problem) -> Sequence[str]:
        found = problem.columns[self.column]
        if not isinstance(found, list | tuple) or not all(isinstance(hint, str) and hint.strip() for hint in found):
            shown = f"{found!r:.60} ({type(found).__name__})"
            raise UserError(f"{problem.origin}: column {self.column} is {shown}, expected a list of texts")
        return found

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Put right rows into all-wrong groups; see `Correction`."""
        problems = scored.rollout.problems
        groups = all_wrong_groups(scored) if tools.iteration >= self.warmup_iterations else []
        hints = {group: self._hints(problems[group]) for group in groups}

        def prompt_of(group: int, level: int) -> tuple[int, ...] | None:
            if level > len(hints[group]):
                return None
            text = filled(self.hint, hint="\n".join(hints[group][:level]))
            return tools.prompt(problems[group], problems[group].question + text)

        climbed = climb(scored, groups, max(map(len, hints.values()), default=0), prompt_of, 1, tools)
        reports = self._metrics.reports(scored, climbed, tools.history, since=self.warmup_iterations)
        return Corrected(self._result(scored, climbed), self._branches(climbed), reports)

    def _branches(self, climbed: Climbed) -> tuple[str | None, ...]:
        """Of the first rows alone; the others were left as they are."""
        size = climbed.scored.rollout.num_generations
        unsolved = {group for group in climbed.level if group not in climbed.solved}
        branches = list(climbed.branches())
        for row in range(len(branches)):
            if row % size:
                branches[row] = None
            elif row // size in unsolved:
                branches[row] = "unsolved"
        return tuple(branches)

    def _result(self, before: ScoredRollout, climbed: Climbed) -> ScoredRollout:
        """The solved groups' new rows, the rows as they were in the other groups, and all rewards that were drawn."""
        after, size = climbed.scored, before.rollout.num_generations
        responses, texts = list(after.rollout.responses), list(after.texts)
        if self.replace_hint_prompt:
            for row in (group * size for group in climbed.solved):
                # Named, although it may be the problem's: the row was not drawn under it (`Response.as_sampled`).
                responses[row] = replace(responses[row], prompt_ids=before.rollout.prompt_of(row))
        back = [group * size for group in climbed.level if group not in climbed.solved]
        for row in back:
            responses[row], texts[row] = before.rollout.responses[row], before.texts[row]
        old = before.scores
        parts = {name: part[back] for name, part in old.parts.items()}
        scores = after.scores.replaced(back, Scores(old.rewards[back], parts, old.correct[back]))
        drawn = tuple(torch.cat([own, *climbed.drawn.get(group, [])]) for group, own in enumerate(before.drawn))
        return ScoredRollout(replace(after.rollout, responses=tuple(responses)), tuple(texts), scores, drawn)
