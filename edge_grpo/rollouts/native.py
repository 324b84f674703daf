"""Rollout through the model's own forward, on flat tokens and a preallocated KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_grpo.policy.base import Policy
from edge_grpo.policy.fused_layers import fused_layers
from edge_grpo.policy.kv_cache import RowCache, Stored, cache_name
from edge_grpo.policy.packed_attention import Layout, RowsLayout, packed_attention
from edge_grpo.policy.precision import weights_cast_once
from edge_grpo.policy.support import check_packed
from edge_grpo.policy.varlen_attention import trees_layout
from edge_grpo.rollouts.base import Ends, Rows, SamplingEngine, choose, sampled_response
from edge_grpo.types.responses import Response

# Tokens of one prefill forward: more do not make it faster, and their activations take memory.
_PREFILL_TOKENS = 4096


class NativeRollout(SamplingEngine):
    """Batched decoding for any Hugging Face decoder whose attention is full or sliding-window softmax attention.

    Each unique prefix is prefilled once and its keys and values are shared by its rows. Rows that end leave the
    batch at once (the last live row moves into the hole), and where not all have room at once, waiting rows are
    admitted into freed places.

    Args: as `SamplingEngine`.
    """

    def _decode(self, policy: Policy, rows: Rows) -> list[Response]:
        """See `SamplingEngine._decode`."""
        check_packed(policy.model)
        places = self._places(policy.model, rows)
        model = policy.model
        with packed_attention(model), fused_layers(model), weights_cast_once(model.device):
            return _Decoding(policy, rows, Ends(policy, self.stop_strings), places).run()


class _Decoding:
    """All rows of one call, from the first prefill to the last live row.

    Books are kept on the CPU: per row what was sampled, per place (a slot of the cache; the live ones come first)
    which row it holds.
    """

    def __init__(self, policy: Policy, rows: Rows, ends: Ends, num_places: int) -> None:
        self.model, self.sampling, self.ends = policy.model, rows.sampling, ends
        self.cache_name = cache_name(policy.model)
        self.device = policy.model.device
        self.prefixes = [tuple(prefix) for prefix in rows.prefixes]
        self.prefix_lengths = torch.tensor([len(prefix) for prefix in self.prefixes])
        self.budgets, self.uniforms = torch.tensor(rows.budgets), rows.uniforms
        self.tokens = torch.full(self.uniforms.shape, policy.pad_id)
        self.logprobs, self.entropies = torch.zeros(2, *self.uniforms.shape, dtype=torch.float32)
        self.counts = torch.zeros(len(self.prefixes), dtype=torch.long)
        self.stopped = torch.zeros(len(self.prefixes), dtype=torch.bool)
        self.cache = RowCache(num_places, int((self.prefix_lengths + self.budgets).max()))
        self.rows = torch.empty(0, dtype=torch.long)
        self.waiting = list(range(len(self.prefixes)))
        self.stored: dict[tuple[int, ...], tuple[Stored, Tensor]] = {}
        # A prefill costs about a step of the live rows, so a few places are collected before it.
        self.admit_at = max(num_places // 8, 1)

    def run(self) -> list[Response]:
        """Decode until every row has ended."""
        while self.waiting or len(self.rows):
            free = self.cache.num_places - len(self.rows)
            if self.waiting and (free >= min(self.admit_at, len(self.waiting)) or not len(self.rows)):
                self._admit(free)
            else:
                self._record(self.rows, self._step())
            self._leave()
        return [
            sampled_response(
                self.tokens[row, :n], self.logprobs[row, :n], self.entropies[row, :n], stopped=bool(self.stopped[row])
            )
            for row, n in enumerate(self.counts.tolist())
        ]

    def _admit(self, free: int) -> None:
        """Give places to the next waiting rows and draw their first tokens."""
        new, self.waiting = self.waiting[:free], self.waiting[free:]
        shared: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(new, start=len(self.rows)):
            shared.setdefault(self.prefixes[row], []).append(place)
        self.rows = torch.cat([self.rows, torch.tensor(new)])
        still_wanted = {self.prefixes[row] for row in self.waiting}
        fresh = sorted((prefix for prefix in shared if prefix not in self.stored), key=len, reverse=True)
        last: dict[tuple[int, ...], Tensor] = {}
        for prefix in shared.keys() - set(fresh):
            stored, last[prefix] = self.stored[prefix]
            self.cache.write(shared[prefix], stored)
        for some in _cut(fresh, _PREFILL_TOKENS):
            last |= zip(some, self._prefill(some, [shared[prefix] for prefix in some]), strict=True)
        for prefix in shared.keys() & still_wanted - self.stored.keys():
            self.stored[prefix] = self.cache.read(shared[prefix][0], len(prefix)), last[prefix]
        self.stored = {prefix: kept for prefix, kept in self.stored.items() if prefix in still_wanted}
        self._record(torch.tensor(new), torch.stack([last[self.prefixes[row]] for row in new]))

    def _prefill(self, prefixes: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> Tensor:
        """Forward each prefix once into the places of its rows; logits of its last token, [n, V]."""
        lengths = [len(prefix) for prefix in prefixes]
        position = torch.cat([torch.arange(length) for length in lengths])
        ids = torch.tensor([token for prefix in prefixes for token in prefix])
        flat = torch.arange(len(ids)).split(lengths)
        source = torch.cat([run for run, shared in zip(flat, places, strict=True) for _ in shared])
        place = torch.cat(
            [torch.tensor(shared).repeat_interleave(n) for n, shared in zip(lengths, places, strict=True)]
        )
        self.cache.prefill_at(source.to(self.device), place.to(self.device), position[source].to(self.device))
        last = torch.tensor(lengths).cumsum(0) - 1
        return self._forward(ids, position, trees_layout(lengths, [], [], self.device), last.to(self.device))

    def _step(self) -> Tensor:
        """The newest token of every live row through the model; [n, V] logits."""
        counts = self.counts[self.rows]
        position = self.prefix_lengths[self.rows] + counts - 1
        width = int(position.max()) + 1
        self.cache.decode_at(position.to(self.device), width)
        layout = RowsLayout((position + 1).to(self.device), width)
        return self._forward(self.tokens[self.rows, counts - 1], position, layout, slice(None))

    def _forward(self, ids: Tensor, position: Tensor, layout: Layout, keep: Tensor | slice) -> Tensor:
        """Flat tokens [M] -> logits [kept, V]."""
        out = self.model(
            input_ids=ids[None].to(self.device),
            position_ids=position[None].to(self.device),
            use_cache=True,
            layout=layout,
            logits_to_keep=0 if isinstance(keep, slice) else keep,
            **{self.cache_name: self.cache},
        )
        return out.logits[0]

    def _record(self, rows: Tensor, logits: Tensor) -> None:
        """Draw and store the next token of these rows."""
        step = self.counts[rows]
        drawn = choose(logits, self.uniforms[rows, step].to(self.device), self.sampling)
        self.tokens[rows, step] = drawn.tokens.cpu()
        self.logprobs[rows, step] = drawn.logprobs.cpu()
        self.entropies[rows, step] = drawn.entropies.cpu()
        self.counts[rows] += 1
        self.stopped[rows] = self.ends(self.tokens, rows, self.counts[rows])

    def _leave(self) -> None:
        """Take ended rows out of the batch: only as many rows are copied as have ended before the last live one."""
        alive = ~self.stopped[self.rows] & (self.counts[self.rows] < self.budgets[self.rows])
        left = int(alive.sum())
        if left == len(alive):
            return
        holes = (~alive[:left]).nonzero().flatten()
        sources = alive[left:].nonzero().flatten() + left
        if len(holes):
            moved = self.rows[sources]
            width = int((self.prefix_lengths[moved] + self.counts[moved]).max()) - 1
            self.cache.move(sources.to(self.device), holes.to(self.device), width)
            self.rows[holes] = moved
        self.rows = self.rows[:left]


def _cut(prefixes: Sequence[tuple[int, ...]], max_tokens: int) -> list[list[tuple[int, ...]]]:
    """Runs of prefixes with at most `max_tokens` together; a longer one is alone."""
    cuts: list[list[tuple[int, ...]]] = []
    used = max_tokens
    for prefix in prefixes:
        used += len(prefix)
        if used > max_tokens:
            cuts.append([])
            used = len(prefix)
        cuts[-1].append(prefix)
    return cuts
