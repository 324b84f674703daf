"""Rows through the model in micro-batches: the one place that knows whether they are packed or padded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from edge_grpo.policy.base import mode
from edge_grpo.policy.batching import group_microbatches, microbatches, packed_microbatches
from edge_grpo.policy.memory import out_of_memory
from edge_grpo.policy.packed_attention import packed_attention
from edge_grpo.policy.sharding import is_whole, through_root, whole
from edge_grpo.policy.token_stats import TokenStats, token_stats
from edge_grpo.types.update import UpdateBatch


@dataclass(frozen=True)
class MicrobatchForward:
    """Cuts an `UpdateBatch` into micro-batches and computes their token statistics.

    Args:
        temperature: of the rollout.
        microbatch_tokens: bound on the tokens of a micro-batch.
        chunk_tokens: bound on the tokens whose logits are in memory at once.
        packing: a prompt is computed once for its rows and no padding is; see `token_stats`.
        every_position: see `token_stats`.
        settings: the settings that lower the memory, for the error that says there is none left.
    """

    temperature: float
    microbatch_tokens: int
    chunk_tokens: int
    packing: bool
    every_position: bool = False
    settings: Sequence[str] = ("algorithm.microbatch_tokens", "algorithm.chunk_tokens")

    def microbatches(self, batch: UpdateBatch, rows: Tensor, whole_groups_of: int | None = None) -> list[Tensor]:
        """Indices of `rows` [M] of the batch, cut by tokens, ascending within a group.

        Args:
            batch: rows back to back by group.
            rows: [M] of them to compute.
            whole_groups_of: G, where no group may be cut, however many tokens it has; None where it may.
        """
        prompts, responses = batch.prompt_lengths[rows].cpu(), batch.response_lengths[rows].cpu()
        limit = self.microbatch_tokens
        if self.packing:
            keys, problems = batch.prompt_keys[rows].tolist(), batch.problem_ids[rows].tolist()
            if whole_groups_of is not None:
                limit = max(limit, _largest_group(prompts.tolist(), responses.tolist(), keys, problems))
            cut = packed_microbatches(prompts.tolist(), responses.tolist(), keys, problems, limit)
        elif whole_groups_of is not None:
            cut = group_microbatches(prompts + responses, whole_groups_of, limit)
        else:
            cut = [some.sort().values for some in microbatches(prompts + responses, limit)]
        return [rows[some.to(rows.device)] for some in cut]

    @contextmanager
    def on(self, model: Any, *, training: bool = False) -> Iterator[None]:
        """Inside, `model` can be called; the backward pass belongs inside too, and wants train mode."""
        with mode(model, training=training), packed_attention(model, self.packing), out_of_memory(*self.settings):
            yield

    def __call__(self, model: Any, part: UpdateBatch, *, entropy_grad: bool = False) -> TokenStats:
        """Statistics of one micro-batch, with graph, inside `on(model)`; of a sharded model, on every rank at once."""
        stats = partial(
            token_stats,
            model,
            part,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            packing=self.packing,
            entropy_grad=entropy_grad,
            every_position=self.every_position,
        )
        if is_whole(model):
            return stats()
        # FSDP2 finds tensors in a tuple, not in a dataclass.
        return TokenStats(*through_root(model, lambda: attrgetter("logprobs", "entropy")(stats())))

    def nothing(self, model: Any, batch: UpdateBatch, rows: Tensor) -> Tensor:
        """0, with a graph through all weights: a rank's part where others have more to compute and wait for it."""
        part = batch.select(rows)
        return torch.where(part.completion_mask, self(model, part).logprobs, 0.0).sum() * 0.0

    @torch.no_grad()
    def over(self, model: Any, batch: UpdateBatch, microbatches: Sequence[Tensor]) -> TokenStats:
        """Statistics [N, T] of the whole batch, without graph; 0 for rows that are in no micro-batch."""
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        logprobs, entropy = torch.zeros(2, *batch.token_weights.shape, dtype=dtype, device=batch.tokens.device)
        with self.on(model), whole(model):
            for rows in microbatches:
                part = self(model, batch.select(rows))
                width = part.logprobs.shape[1]
                logprobs[rows, :width], entropy[rows, :width] = part.logprobs.to(dtype), part.entropy.to(dtype)
        return TokenStats(logprobs, entropy)


def hold_whole_groups(microbatches: Sequence[Tensor], num_generations: int) -> bool:
    """Whether no group of G rows (row p * G + g is response g of group p) is cut.

    >>> hold_whole_groups([torch.tensor([0, 1]), torch.tensor([4, 5, 2, 3])], 2)
    True
    >>> hold_whole_groups([torch.tensor([0, 1, 2]), torch.tensor([3])], 2)
    False
    """
    return all(len(rows) == num_generations * len((rows // num_generations).unique()) for rows in microbatches)


def _largest_group(
    prompts: Sequence[int], responses: Sequence[int], prompt_keys: Sequence[int], problem_ids: Sequence[int]
) -> int:
    """Tokens of the largest group, each of its prompts counted once."""
    sizes: dict[int, int] = {}
    counted: set[tuple[int, int]] = set()
    for prompt, response, key, problem in zip(prompts, responses, prompt_keys, problem_ids, strict=True):
        more = response if (problem, key) in counted else response + prompt
        counted.add((problem, key))
        sizes[problem] = sizes.get(problem, 0) + more
    return max(sizes.values())
