"""Rollout through the model's own forward: unique prompts are prefilled once and finished rows leave the batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.rollout.base import Sampling, check_rows, choose
from edge_grpo.types import FinishReason, Provenance, Response


class NativeRollout:
    """Batched decoding for any decoder-only Hugging Face model.

    A row's uniforms are drawn for its whole budget before decoding starts, so its tokens depend on the seed and
    its own index; other rows can change them only through floating-point rounding of a batched matmul.

    Args:
        max_new_tokens: budget of a fresh response, in tokens.
        temperature, top_p, top_k, min_p: see `Sampling`.
        max_batch_rows: rows decoded at once, a bound on KV-cache memory; null decodes all together.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        min_p: float,
        max_batch_rows: int | None,
    ) -> None:
        if max_new_tokens < 1 or (max_batch_rows is not None and max_batch_rows < 1):
            raise UserError(f"rollout needs max_new_tokens={max_new_tokens} and max_batch_rows={max_batch_rows} >= 1")
        self.sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
        self.max_new_tokens = max_new_tokens
        self.max_batch_rows = max_batch_rows

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator,
    ) -> list[Response]:
        """See `RolloutEngine.generate`."""
        if not prefixes:
            return []
        check_rows(policy, prefixes, budgets)
        uniforms = torch.rand(len(prefixes), max(budgets), generator=generator, dtype=torch.float32)
        size = self.max_batch_rows or len(prefixes)
        was_training = policy.model.training
        policy.model.eval()
        responses: list[Response] = []
        for start in range(0, len(prefixes), size):
            rows = slice(start, start + size)
            responses += self._decode(policy, prefixes[rows], budgets[rows], uniforms[rows], sampling)
        policy.model.train(was_training)
        return responses

    def _decode(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        uniforms: Tensor,
        sampling: Sampling,
    ) -> list[Response]:
        """Rows that are decoded together; `uniforms` [n, longest budget] are their draws."""
        return _Decoding(policy, prefixes, budgets, uniforms, sampling).run()


class _Decoding:
    """One batch from prefill to the last live row. Buffers are indexed by row, live tensors by place in the batch."""

    def __init__(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        uniforms: Tensor,
        sampling: Sampling,
    ) -> None:
        self.policy, self.sampling = policy, sampling
        self.device = policy.model.device
        self.prefixes = prefixes
        self.budgets = torch.tensor(budgets, device=self.device)
        self.uniforms = uniforms.to(self.device)
        n, longest = uniforms.shape
        self.tokens = torch.full((n, longest), policy.pad_id, device=self.device)
        self.logprobs = torch.zeros(n, longest, device=self.device, dtype=torch.float32)
        self.lengths = torch.zeros(n, dtype=torch.long, device=self.device)
        self.stopped = torch.zeros(n, dtype=torch.bool, device=self.device)
        self.eos = torch.tensor(policy.eos_ids, device=self.device)
        self.cache = DynamicCache(config=policy.model.config)
        self.mask = torch.empty(0)

    def run(self) -> list[Response]:
        logits = self._prefill()
        rows = torch.arange(len(self.prefixes), device=self.device)
        for step in range(self.uniforms.shape[1]):
            chosen, alive = self._record(step, rows, logits)
            if not alive.any():
                break
            if not alive.all():
                places = alive.nonzero().squeeze(-1)
                rows, chosen, self.mask = rows[places], chosen[places], self.mask[places]
                self.cache.batch_select_indices(places)
            logits = self._forward(chosen[:, None])
        return self._responses()

    def _prefill(self) -> Tensor:
        """Forward each unique prefix once, left-padded, then share its cache among its rows; [n, V] logits."""
        unique = list(dict.fromkeys(map(tuple, self.prefixes)))
        place = {prefix: i for i, prefix in enumerate(unique)}
        width = max(map(len, unique))
        ids = torch.full((len(unique), width), self.policy.pad_id)
        self.mask = torch.zeros(len(unique), width, dtype=torch.long)
        for i, prefix in enumerate(unique):
            ids[i, width - len(prefix) :] = torch.tensor(prefix)
            self.mask[i, width - len(prefix) :] = 1
        self.mask = self.mask.to(self.device)
        logits = self._forward(ids.to(self.device), self.mask)
        index = torch.tensor([place[tuple(prefix)] for prefix in self.prefixes], device=self.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]
        return logits[index]

    def _forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """[n, L] new tokens through the model with the cache; logits of the last position [n, V]."""
        if mask is None:
            self.mask = mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.policy.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]

    def _record(self, step: int, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Draw and store token `step` of the live rows; the tokens and which of the rows go on."""
        chosen, logprobs = choose(logits, self.uniforms[rows, step], self.sampling)
        self.tokens[rows, step] = chosen
        self.logprobs[rows, step] = logprobs
        self.lengths[rows] = step + 1
        ended = torch.isin(chosen, self.eos)
        self.stopped[rows] = ended
        return chosen, ~ended & (self.lengths[rows] < self.budgets[rows])

    def _responses(self) -> list[Response]:
        tokens, logprobs = self.tokens.cpu(), self.logprobs.cpu()
        responses = []
        for row, (length, stopped) in enumerate(zip(self.lengths.tolist(), self.stopped.tolist(), strict=True)):
            reason: FinishReason = "stop" if stopped else "length"
            responses.append(
                Response(
                    token_ids=tokens[row, :length].clone(),
                    behaviour_logprobs=logprobs[row, :length].clone(),
                    provenance=torch.full((length,), Provenance.SAMPLED, dtype=torch.int8),
                    finish_reason=reason,
                )
            )
        return responses
