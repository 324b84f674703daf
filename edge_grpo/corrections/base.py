"""The correction stage: wrong responses of a scored rollout are edited before the advantage is taken.

A correction never imports another stage: what it needs of rollout and grading is handed to it as `CorrectionTools`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from edge_grpo.types.history import History
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import ScoredRollout, Scores

log = logging.getLogger(__name__)

Encode = Callable[[str], tuple[int, ...]]
"""text -> token ids, no special tokens added"""


class Generate(Protocol):
    """n token prefixes and n budgets -> n continuations."""

    def __call__(
        self, prefixes: list[list[int]], budgets: list[int], temperature: float | None = None
    ) -> list[Response]: ...


class Score(Protocol):
    """n problems, n texts and perhaps the n responses behind them -> n scores."""

    def __call__(
        self, problems: Sequence[Problem], texts: Sequence[str], responses: Sequence[Response] | None = None
    ) -> Scores: ...


@dataclass(frozen=True)
class CorrectionTools:
    """What the training loop lends to a correction.

    Args:
        generate: (token prefixes, budgets, temperature=None) -> continuations by the policy, in order, at the rollout's
            temperature unless another is given. Every call draws other tokens, and counts as rollouts.
        score: (problems, texts) -> their scores; each call grades. A third argument, the responses behind the texts,
            is for rewards that read tokens or the finish reason.
        encode: text -> token ids, no special tokens added.
        decode: token ids -> text without special tokens.
        eos_ids: tokens that end a response; the first one, the tokenizer's own, is written where an edit ends.
        pad_id: the tokenizer's padding token; its EOS if it has none.
        generator: CPU generator of this stage and iteration.
        max_new_tokens: the rollout's budget.
        max_reward: the reward of a perfect response.
        prompt: (problem, another question) -> the prompt that asks this instead, as tokens: for hints.
        problem: id -> the training problem.
        history: what was sampled before this iteration, by every rank.
        iteration: updates the policy has had.
        context_length: longest prompt + response that the model takes, in tokens; None if it sets no bound.
    """

    generate: Generate
    score: Score
    encode: Encode
    decode: Callable[[torch.Tensor], str]
    eos_ids: tuple[int, ...]
    pad_id: int
    generator: torch.Generator
    max_new_tokens: int
    max_reward: float
    prompt: Callable[[Problem, str], tuple[int, ...]]
    problem: Callable[[str], Problem]
    history: History
    iteration: int
    context_length: int | None = None


@dataclass(frozen=True)
class Corrected:
    """The rollout after correction.

    Args:
        scored: same number of groups; only edited rows differ. A replay may put another problem in a group's place.
        branches: [N] name of the branch a row took, None where it was left alone.
        reports: name -> [N], what the correction reports of each row, NaN for rows of which it says nothing; its
            attribute `metrics` says how each is logged (see `StrategyMetric`).
    """

    scored: ScoredRollout
    branches: tuple[str | None, ...]
    reports: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Correction(Protocol):
    """Correction strategy.

    An attribute `changes_rewards` that is false says that the rows stay as they were sampled.
    It may have `refuses_reference`: why it cannot be used with a KL term (loss.beta > 0), as a sentence;
    `refuses_chain`: why it cannot be a step of `chain`; and `makes_off_policy`, true where its rows can be off-policy
    (see `Response`), so that the importance ratio is not 1 even at the first optimiser step.
    `reads_sampling_logprobs` is true where sampled tokens are in them, so that a rollout which truncates is refused.
    `foreign_logprobs` is true where rows that are not off-policy can have sampled tokens whose log-probs are not those
    with which they were drawn under the prompt that they are trained under: nothing can then be said of engine and
    trainer. One that keeps something has `state_dict`, a snapshot in plain types, and `load_state_dict`; it is
    saved for every rank.
    """

    token_weight: Mapping[Provenance, float]
    """loss weight of a token by who wrote it"""

    @property
    def required_fields(self) -> frozenset[str]:
        """Fields of `Problem` that the correction reads, so that every training problem must have them.

        `columns.NAME` is a column of the data that no other field holds.
        """
        ...

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """Tokens of a response to this problem after correction, at most.

        It is held against the model's context before any work. A correction without this method is taken to make no
        response longer than `max_new_tokens`, the rollout's budget.
        """
        ...

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected: ...


def longest_responses(
    correction: Correction, problems: Sequence[Problem], max_new_tokens: int, encode: Encode
) -> list[int]:
    """Tokens that a response to each problem can have, sampled or corrected (see `Correction.longest_response`)."""
    bound = getattr(correction, "longest_response", None)
    if bound is None:
        log.info(
            "%s has no method longest_response: of its rows only rollout.max_new_tokens=%d is held against the model's "
            "context",
            type(correction).__name__,
            max_new_tokens,
        )
        return [max_new_tokens] * len(problems)
    return [max(max_new_tokens, bound(problem, max_new_tokens, encode)) for problem in problems]


UNIFORM_WEIGHT: Mapping[Provenance, float] = dict.fromkeys(Provenance, 1.0)
