"""GEC as the released code does it: departures 7 to 12 of docs/departures.md, for comparison only."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from edge_grpo.corrections.base import Corrected, CorrectionTools
from edge_grpo.corrections.guided import GuidedCorrection, rescored
from edge_grpo.errors import UserError
from edge_grpo.responses import written_response
from edge_grpo.types import Provenance, Response, Rollout, ScoredRollout


class OfficialGuidedCorrection(GuidedCorrection):
    """`GuidedCorrection` with the released trainer's behaviour.

    - The whole batch goes through text: decoded without special tokens and encoded again, so that *every* response
      loses its EOS and ids may change (7); encoded tokens keep the provenance of the response as a whole.
    - Tokens are cut at the width of the longest prompt: a row whose prompt is k tokens shorter loses its first k
      response tokens; what is graded is the whole text (8).
    - "Wrong" means below the highest possible reward (9).
    - Nothing is corrected if a prompt of the batch has `max_batch_prompt_tokens` or more (10).
    - Every row of the batch is continued when any reflects, and what is not needed is thrown away (11).
    - The corrected response is bounded by nothing but the two budgets (12), and by the model's context.

    Args:
        max_batch_prompt_tokens: the released code's 256.
        guided: arguments of `GuidedCorrection`; `keep_eos` must be false and `max_response_tokens` null.

    Raises:
        UserError: `keep_eos` or `max_response_tokens` set, which the released code has no notion of.
    """

    def __init__(self, max_batch_prompt_tokens: int, **guided: Any) -> None:
        super().__init__(**guided)
        if self.keep_eos or self.max_response_tokens is not None:
            raise UserError("correction=guided_official needs keep_eos=false and max_response_tokens=null")
        self.max_batch_prompt_tokens = max_batch_prompt_tokens

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Edit the wrong rows, then send every row through text."""
        rollout = scored.rollout
        width = max(len(p.prompt_ids) for p in rollout.problems)
        if width >= self.max_batch_prompt_tokens:
            return Corrected(scored=scored, branches=(None,) * rollout.num_rows)
        edited, branches = self._edit(scored, self._triggered(scored, tools), tools)
        whole = {row: _through_text(edited.get(row, r), tools) for row, r in enumerate(rollout.responses)}
        graded = rescored(scored, whole, tools)
        cut = tuple(
            _without_first(response, width - len(rollout.problem_of(row).prompt_ids))
            for row, response in enumerate(graded.rollout.responses)
        )
        return Corrected(replace(graded, rollout=replace(graded.rollout, responses=cut)), branches)

    def _wrong(self, scored: ScoredRollout, tools: CorrectionTools) -> torch.Tensor:
        return scored.scores.rewards < tools.max_reward

    def _limit(self, max_new_tokens: int) -> int | None:
        return None

    def _reflect(
        self, rollout: Rollout, reflecting: Mapping[int, Response], tools: CorrectionTools
    ) -> dict[int, Response]:
        """Continue the whole batch, right rows included, and keep the rows that reflect."""
        if not reflecting:
            return {}
        everything = {row: reflecting.get(row, response) for row, response in enumerate(rollout.responses)}
        everything = {row: r for row, r in everything.items() if self._budget(rollout.problem_of(row), r, tools) > 0}
        continued = super()._reflect(rollout, everything, tools)
        return {row: continued[row] for row in reflecting}


def _without_first(response: Response, lost: int) -> Response:
    """The response without its first `lost` tokens."""
    return Response(
        response.token_ids[lost:],
        response.sampling_logprobs[lost:],
        response.entropies[lost:],
        response.provenance[lost:],
        response.finish_reason,
    )


def _through_text(response: Response, tools: CorrectionTools) -> Response:
    """Decode without special tokens and encode again.

    A response of one provenance keeps it; a mixed one counts as sampled up to where the injected text can no longer
    be told apart, which is to say everywhere.
    """
    ids = torch.tensor(tools.encode(tools.decode(response.token_ids)), dtype=torch.long)
    kinds = set(response.provenance.tolist())
    kind = kinds.pop() if len(kinds) == 1 else Provenance.SAMPLED
    return written_response(ids, Provenance(kind), "length")
