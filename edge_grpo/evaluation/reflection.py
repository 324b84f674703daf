"""Does a second look repair a wrong answer? Reflections that the policy writes by itself, and forced ones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from edge_grpo.errors import UserError
from edge_grpo.evaluation.sampling import row_generator
from edge_grpo.policy.base import Policy
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.rollouts.base import RolloutEngine, Sampling
from edge_grpo.types.responses import Response, append, join, without_eos
from edge_grpo.types.rollouts import ScoredRollout

MARKERS = re.compile(
    r"\b(?:wait|hold on|something is wrong|on second thought|"
    r"let(?:'s| us| me) (?:re-?\s?check|re-?\s?examine|re-?\s?evaluate|re-?\s?consider|double[- ]?check|verify)|"
    r"(?:i|we) (?:made|have made) (?:a|an) (?:mistake|error)|that(?:'s| is) (?:not right|wrong|incorrect))\b",
    re.IGNORECASE,
)
"""what counts as a spontaneous reflection (our choice: the paper does not list its words)"""


def spontaneous(scored: ScoredRollout, rewards: WeightedRewards) -> pd.DataFrame:
    """The columns `reflection` (first marker) and `correct_before_reflection`, one row a response.

    An answer that was boxed before the first marker is graded; with none before it there is nothing to repair and
    the verdict is null.
    """
    found = [MARKERS.search(text) for text in scored.texts]
    before = [text[: m.start()] if m else "" for text, m in zip(scored.texts, found, strict=True)]
    answered = [row for row, text in enumerate(before) if last_boxed(text) is not None]
    problems = [scored.rollout.problem_of(row) for row in answered]
    verdicts = rewards(problems, [before[row] for row in answered]).correct.tolist() if answered else []
    known = dict(zip(answered, verdicts, strict=True))
    return pd.DataFrame(
        {
            "reflection": pd.Series([m and m[0] for m in found], dtype=object),
            "correct_before_reflection": pd.Series([known.get(row) for row in range(len(found))], dtype=object),
        }
    )


@dataclass(frozen=True)
class ForcedReflection:
    """Every response, right or wrong, is continued after an injected phrase and graded again (2507.21848, analysis).

    The response loses its EOS; grading reads the whole, so that an answer which is not given again stays the last one.

    Args:
        phrase: injected behind the response.
        max_new_tokens: of the continuation, at least 1. Where the model's context leaves no room for one new token the
            row has no forced reflection.

    Raises:
        UserError: a value below 1.
    """

    phrase: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"reflection.max_new_tokens={self.max_new_tokens} must be at least 1")

    def __call__(
        self,
        scored: ScoredRollout,
        engine: RolloutEngine,
        policy: Policy,
        rewards: WeightedRewards,
        sampling: Sampling,
        seed: int,
    ) -> pd.DataFrame:
        """The columns `forced_response`, `forced_tokens` and `forced_correct`, one row a response."""
        rollout, phrase = scored.rollout, policy.encode(self.phrase)
        begun = [append(without_eos(response, policy.eos_ids), phrase) for response in rollout.responses]
        rooms = [self._room(rollout.problem_of(row).prompt_ids, r, policy) for row, r in enumerate(begun)]
        rows = [row for row, room in enumerate(rooms) if room > 0]
        continuations = engine.generate(
            policy,
            [[*rollout.problem_of(row).prompt_ids, *begun[row].token_ids.tolist()] for row in rows],
            [rooms[row] for row in rows],
            sampling,
            [self._generator(scored, row, seed) for row in rows],
        )
        whole = [join(begun[row], more) for row, more in zip(rows, continuations, strict=True)]
        texts = [policy.decode(response.token_ids) for response in whole]
        correct = rewards([rollout.problem_of(row) for row in rows], texts, whole).correct.tolist() if rows else []
        made = pd.DataFrame(
            {
                "forced_response": pd.Series([policy.decode(r.token_ids) for r in continuations], dtype=object),
                "forced_tokens": pd.Series(list(map(len, continuations)), dtype="Int32"),
                "forced_correct": pd.Series(correct, dtype=object),
            }
        )
        return made.set_index(pd.Index(rows, dtype=int)).reindex(range(rollout.num_rows))

    def _room(self, prompt: Sequence[int], response: Response, policy: Policy) -> int:
        """New tokens that the budget and the model's context allow."""
        limit = policy.context_length
        return self.max_new_tokens if limit is None else min(self.max_new_tokens, limit - len(prompt) - len(response))

    def _generator(self, scored: ScoredRollout, row: int, seed: int) -> torch.Generator:
        rollout = scored.rollout
        return row_generator(seed, rollout.problem_of(row), row % rollout.num_generations, stage="forced_reflection")
