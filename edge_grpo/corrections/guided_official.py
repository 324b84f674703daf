"""GEC as the released code does it: departures 7 to 12 of docs/departures.md, for comparison only."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from edge_grpo.corrections.base import Corrected, CorrectionTools
from edge_grpo.corrections.guided import GuidedCorrection
from edge_grpo.errors import UserError
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import FinishReason, Provenance, Response, join, written_response
from edge_grpo.types.rollouts import Rollout, ScoredRollout


class OfficialGuidedCorrection(GuidedCorrection):
    """`GuidedCorrection` with the released trainer's behaviour.

    - Edits are made of texts: those of the responses without special tokens, and the reference as the data has it.
      Reflections continue from the encoded text of prompt and response (7).
    - Prompt and response of *every* row are then encoded as one text. So every response loses its EOS, ids may change,
      and a response that begins with what the tokenizer joins to the end of the prompt begins behind it (7).
    - The tokens are cut at the width of the longest prompt: a row whose prompt is k tokens shorter loses its first k
      response tokens; what is graded is the whole text (8).
    - Shorter rows are padded, and EOS alone says where a response ends. So where the padding token is the tokenizer's
      EOS, the first one becomes the row's EOS; where it is not, all of it becomes part of the response (7).
    - "Wrong" means below the highest possible reward (9).
    - Nothing is corrected if a prompt of the batch has `max_batch_prompt_tokens` or more (10).
    - Every row of the batch is continued, even when none reflects, and what is not needed is thrown away (11).
    - The corrected response is bounded by nothing but the two budgets (12), and by the model's context.

    Encoded tokens have the provenance of the response as a whole (a mixed one counts as sampled), padding is injected.

    Args:
        max_batch_prompt_tokens: prompts padded to this width or more are not corrected, as in the released code (256).
        batch: the rows that are padded and cut together: those of an "iteration" (on this rank), or each "row" alone,
            as the released script launches it.
        guided: arguments of `GuidedCorrection`; `keep_eos` must be false, `max_response_tokens` null and every one of
            `loss_weights` 1.

    Raises:
        UserError: one of these set, which the released code has no notion of.
    """

    refuses_reference = (
        "correction=guided_official trains on other tokens than the released code shows the reference (whole texts, "
        "not cut at the longest prompt), so a KL term would not be the released one"
    )

    foreign_logprobs = True
    """what is encoded again was not drawn as it is"""

    refuses_chain = (
        "guided_official encodes the prompt of every row anew, so what another correction made of rows would be lost; "
        "use guided"
    )

    def __init__(self, max_batch_prompt_tokens: int, batch: Literal["iteration", "row"], **guided: Any) -> None:
        super().__init__(**guided)
        weighed = any(weight != 1 for weight in self.token_weight.values())
        if self.keep_eos or self.max_response_tokens is not None or weighed:
            raise UserError(
                "correction=guided_official needs keep_eos=false, max_response_tokens=null and loss_weights of 1"
            )
        self.max_batch_prompt_tokens, self.batch = max_batch_prompt_tokens, batch

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Edit the texts of wrong rows, then encode every row."""
        rollout = scored.rollout
        batches = self._batches(rollout)
        rows = [row for batch in batches for row in batch]
        if not rows:
            return Corrected(scored=scored, branches=(None,) * rollout.num_rows)
        texts, branches = self._edited(scored, rows, tools)
        responses = list(rollout.responses)
        for batch in batches:
            for row, response in zip(batch, _encoded(rollout, batch, texts, branches, tools), strict=True):
                responses[row] = response
        scores = tools.score([rollout.problem_of(row) for row in rows], [texts[row] for row in rows])
        graded = ScoredRollout(
            rollout=replace(rollout, responses=tuple(responses)),
            texts=tuple(texts),
            drawn=scored.drawn,
            scores=scored.scores.replaced(rows, scores),
        )
        return Corrected(graded, tuple(branches))

    def _wrong(self, scored: ScoredRollout, tools: CorrectionTools) -> torch.Tensor:
        return scored.scores.rewards < tools.max_reward

    def _limit(self, max_new_tokens: int) -> int | None:
        return None

    def _batches(self, rollout: Rollout) -> list[list[int]]:
        """Rows that are padded and cut together, without the batches that have a prompt too long."""
        rows = list(range(rollout.num_rows))
        batches = [rows] if self.batch == "iteration" else [[row] for row in rows]
        return [batch for batch in batches if _width(rollout, batch) < self.max_batch_prompt_tokens]

    def _edited(
        self, scored: ScoredRollout, rows: Sequence[int], tools: CorrectionTools
    ) -> tuple[list[str], list[str | None]]:
        """The text and the branch of every row of the rollout; `rows` are those that take part."""
        rollout, triggered = scored.rollout, self._triggered(scored, tools)
        draws = torch.rand(rollout.num_rows, generator=tools.generator, dtype=torch.float32).tolist()
        texts = list(scored.texts)
        branches: list[str | None] = [None] * rollout.num_rows
        for row in rows:
            if triggered[row]:
                candidates = self._texts(rollout.problem_of(row), texts[row], tools)
                branches[row] = branch = self._draw(draws[row], candidates) or "no_room"
                texts[row] = candidates.get(branch, texts[row])
        continued = self._continued(rollout, rows, texts, tools)
        return [t + (continued[r] if branches[r] == "reflect" else "") for r, t in enumerate(texts)], branches

    def _texts(self, problem: Problem, text: str, tools: CorrectionTools) -> dict[str, str]:
        """Branch -> edited text (a reflection's without its continuation), for the branches that fit the context."""
        made = {"reflect": text + self.reflect_phrase, "answer": text + self._answer(problem)}
        if problem.solution and problem.solution_passes:
            made["solution"] = problem.solution
        return {
            branch: edit
            for branch, edit in made.items()
            if self.probabilities[branch] > 0
            and self._left(tools.encode(problem.prompt + edit), tools) >= (1 if branch == "reflect" else 0)
        }

    def _left(self, prefix: Sequence[int], tools: CorrectionTools) -> int:
        """New tokens of a reflection behind `prefix`, a prompt with its response; negative if that is too long."""
        if tools.context_length is None:
            return self.reflection_tokens
        return min(self.reflection_tokens, tools.context_length - len(prefix))

    def _continued(
        self, rollout: Rollout, rows: Sequence[int], texts: Sequence[str], tools: CorrectionTools
    ) -> dict[int, str]:
        """Row -> how the policy continues its text, for all rows that the context has room for."""
        prefixes = {row: list(tools.encode(rollout.problem_of(row).prompt + texts[row])) for row in rows}
        budgets = {row: self._left(prefix, tools) for row, prefix in prefixes.items()}
        able = [row for row in rows if budgets[row] > 0]
        new = tools.generate([prefixes[row] for row in able], [budgets[row] for row in able])
        return {row: tools.decode(response.token_ids) for row, response in zip(able, new, strict=True)}


def _width(rollout: Rollout, batch: Sequence[int]) -> int:
    """Tokens of the longest prompt."""
    return max(len(rollout.problem_of(row).prompt_ids) for row in batch)


def _encoded(
    rollout: Rollout,
    batch: Sequence[int],
    texts: Sequence[str],
    branches: Sequence[str | None],
    tools: CorrectionTools,
) -> list[Response]:
    """The responses of the rows of one batch as the released code trains on them."""
    width, eos = _width(rollout, batch), tools.eos_ids[0]
    encoded = [tools.encode(rollout.problem_of(row).prompt + texts[row])[width:] for row in batch]
    longest = max(map(len, encoded))
    responses = []
    for row, ids in zip(batch, encoded, strict=True):
        padded = (*ids, *(tools.pad_id,) * (longest - len(ids)))
        end = padded.index(eos) + 1 if eos in padded else longest
        kind = Provenance.REFERENCE if branches[row] == "solution" else Provenance.SAMPLED
        ended: FinishReason = "stop" if eos in padded else "length"
        written = written_response(torch.tensor(ids[:end], dtype=torch.long), kind, ended)
        padding = written_response(torch.tensor(padded[len(ids) : end], dtype=torch.long), Provenance.INJECTED, ended)
        responses.append(join(written, padding))
    return responses
