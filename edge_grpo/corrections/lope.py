"""More responses to perturbed prompts where every response is wrong: LoPE."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected, CorrectionTools, Encode
from edge_grpo.corrections.groups import (
    all_wrong_groups,
    check_positive,
    of_groups,
    reference_length,
    reference_of,
    rows_of,
    share_of_groups,
)
from edge_grpo.corrections.guided import rescored
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response
from edge_grpo.types.rollouts import ScoredRollout, Scores

PASSAGE = """
lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore
magna aliqua ut enim ad minim veniam quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo
consequat duis aute irure dolor in reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla pariatur
excepteur sint occaecat cupidatat non proident sunt in culpa qui officia deserunt mollit anim id est laborum
"""


@dataclass(frozen=True)
class _Tried:
    """Graded responses to perturbed prompts, and the group of each."""

    groups: Sequence[int]
    responses: Sequence[Response]
    texts: Sequence[str]
    scores: Scores


@dataclass(frozen=True)
class PromptPerturbation:
    """An all-wrong group gets right responses that were sampled behind meaningless words (LoPE, 2605.05566).

    `rows` further responses are sampled, each under the prompt of its problem with `min_words` to `max_words` words of
    Lorem Ipsum before the question. The right ones take the places of the first wrong rows, at least one of which
    stays. They are trained under the plain prompt: with rho = pi(response, plain) / pi_old(response, perturbed) a token
    weighs rho / (rho + gamma), without a clip. The rewards of all further responses join the group's `drawn`, so that
    an advantage of the whole pool can read them; another one takes the mean of the G rows that are trained on.

    The words are drawn one by one from the passage's, and the chosen are the first right ones. The released scripts
    draw 6 prompts of 4 responses (`rows_per_prompt=4`), or 24 of one; a prompt's keys and values are computed once.
    Assumes that the perturbed prompt leaves the room for a response: one that fits the model's context in part has a
    smaller budget, and where no prompt fits the group is left alone ("no_room"). Degenerate case: where no response is
    right the group stays all wrong, unless `reference` puts the reference in one drawn row; groups with a right row are
    never touched.

    Args:
        rows: further responses of an all-wrong group, at least 1; 24 in the paper.
        rows_per_prompt: how many of them share a perturbed prompt, at least 1 and a divisor of `rows`.
        min_words, max_words: 1 <= min_words <= max_words; 100 and 300 in the paper.
        shaping: gamma, above 0; 0.1 in the paper.
        reference: whether one row of a group that is still all wrong becomes the reference, as in `ReferenceRow`.

    Raises:
        UserError: a value out of range.
    """

    rows: int
    rows_per_prompt: int
    min_words: int
    max_words: int
    shaping: float
    reference: bool

    token_weight = UNIFORM_WEIGHT
    makes_off_policy: ClassVar[bool] = True
    reads_sampling_logprobs: ClassVar[bool] = True
    metrics: ClassVar[StrategyMetrics] = {
        "lope/groups": StrategyMetric("share", "groups that got a right response to a perturbed prompt"),
        "lope/right": StrategyMetric("share", "right responses to perturbed prompts, mean over all-wrong groups"),
    }

    def __post_init__(self) -> None:
        check_positive(rows=self.rows, rows_per_prompt=self.rows_per_prompt, shaping=self.shaping)
        if self.rows % self.rows_per_prompt:
            raise UserError(
                f"correction.rows={self.rows} must be a multiple of correction.rows_per_prompt={self.rows_per_prompt}"
            )
        if not 1 <= self.min_words <= self.max_words:
            raise UserError(
                f"correction.min_words={self.min_words} and correction.max_words={self.max_words}: expected "
                "1 <= min_words <= max_words"
            )

    @property
    def required_fields(self) -> frozenset[str]:
        return frozenset({"solution"} if self.reference else ())

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`."""
        return max(max_new_tokens, reference_length(problem)) if self.reference else max_new_tokens

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Sample, grade and put in."""
        rollout = scored.rollout
        branches: list[str | None] = [None] * rollout.num_rows
        dead = all_wrong_groups(scored)
        tried = self._tried(scored, dead, tools)
        count = Counter(tried.groups)
        for group in dead:
            if not count[group]:
                for row in rows_of(group, rollout):
                    branches[row] = "no_room"
        places = _places(tried, scored)
        after = self._put(scored, tried, places)
        edited: dict[int, Response] = {}
        drawn = torch.randint(rollout.num_generations, (len(rollout.problems),), generator=tools.generator).tolist()
        for row in places:
            branches[row] = "perturbed"
        changed = {row // rollout.num_generations for row in places}
        for group in [group for group in dead if self.reference and group not in changed]:
            reference, row = reference_of(rollout.problems[group], tools), rows_of(group, rollout)[drawn[group]]
            branches[row] = "reference" if reference is not None else "no_reference"
            if reference is not None:
                edited[row] = replace(reference, off_policy=True, shaping=self.shaping)
        right = Counter(g for g, ok in zip(tried.groups, tried.scores.correct.tolist(), strict=True) if ok)
        reports = {
            "lope/groups": share_of_groups(changed, rollout),
            "lope/right": of_groups({group: right[group] / n for group, n in count.items()}, rollout),
        }
        return Corrected(rescored(after, edited, tools), tuple(branches), reports)

    def _tried(self, scored: ScoredRollout, dead: Sequence[int], tools: CorrectionTools) -> _Tried:
        """The further responses, of the groups in order."""
        problems, groups, prefixes, budgets = scored.rollout.problems, [], [], []
        for group in [group for group in dead for _ in range(self.rows // self.rows_per_prompt)]:
            prompt = tools.prompt(problems[group], self._perturbed(problems[group].question, tools.generator))
            room = tools.max_new_tokens
            if tools.context_length is not None:
                room = min(room, tools.context_length - len(prompt))
            if room >= 1:
                groups += [group] * self.rows_per_prompt
                prefixes += [list(prompt)] * self.rows_per_prompt
                budgets += [room] * self.rows_per_prompt
        if not groups:
            return _Tried((), (), (), scored.scores.selected([]))
        responses = tools.generate(prefixes, budgets)
        texts = [tools.decode(response.token_ids) for response in responses]
        return _Tried(groups, responses, texts, tools.score([problems[group] for group in groups], texts, responses))

    def _perturbed(self, question: str, generator: torch.Generator) -> str:
        """The question behind words."""
        count = int(torch.randint(self.min_words, self.max_words + 1, (), generator=generator))
        passage = PASSAGE.split()
        words = [passage[i] for i in torch.randint(len(passage), (count,), generator=generator).tolist()]
        return f"{' '.join(words)}\n\n{question}"

    def _put(self, scored: ScoredRollout, tried: _Tried, places: dict[int, int]) -> ScoredRollout:
        """The tried responses in their places, and the rewards of all of them in `drawn`."""
        responses, texts = list(scored.rollout.responses), list(scored.texts)
        for row, i in places.items():
            responses[row] = replace(tried.responses[i], off_policy=True, shaping=self.shaping)
            texts[row] = tried.texts[i]
        groups = torch.tensor(tried.groups, dtype=torch.long)
        drawn = [
            torch.cat([own, tried.scores.rewards[groups == group].to(own.dtype)])
            for group, own in enumerate(scored.drawn)
        ]
        return ScoredRollout(
            rollout=replace(scored.rollout, responses=tuple(responses)),
            texts=tuple(texts),
            scores=scored.scores.replaced(list(places), tried.scores.selected(list(places.values()))),
            drawn=tuple(drawn),
        )


def _places(tried: _Tried, scored: ScoredRollout) -> dict[int, int]:
    """Row -> which tried response takes its place; one row of each group stays."""
    places: dict[int, int] = {}
    taken: Counter[int] = Counter()
    for i, (group, right) in enumerate(zip(tried.groups, tried.scores.correct.tolist(), strict=True)):
        if right and taken[group] < scored.rollout.num_generations - 1:
            places[rows_of(group, scored.rollout)[taken[group]]] = i
            taken[group] += 1
    return places
