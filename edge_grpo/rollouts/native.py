"""Rollout through the model's own forward, on flat tokens and a preallocated KV cache."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_grpo.policy.base import Policy
from edge_grpo.policy.finite import NotFiniteError
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


class _Books:
    """What is known of every row of a call, on the model's device. Nothing here waits for the device but `look`.

    A row that has ended may be recorded again: what is drawn for it lies behind its end and counts for nothing.

    Args:
        policy: whose model decodes.
        rows: of the call.
        ends: which tokens end a row.
    """

    def __init__(self, policy: Policy, rows: Rows, ends: Ends) -> None:
        device = policy.model.device
        self.ends, self.sampling = ends, rows.sampling
        self.prefix_lengths = torch.tensor([len(prefix) for prefix in rows.prefixes], device=device)
        self.budgets = torch.tensor(rows.budgets, device=device)
        self.uniforms = F.pad(rows.uniforms, (0, 1)).to(device)  # there is something behind the end of every row
        self.tokens = torch.full(self.uniforms.shape, policy.pad_id, device=device)
        self.logprobs, self.entropies = torch.zeros(2, *self.uniforms.shape, dtype=torch.float32, device=device)
        self.counts = torch.zeros_like(self.budgets)
        self.stopped = torch.zeros_like(self.budgets, dtype=torch.bool)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def newest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The newest token of each of `rows` [n], and its position."""
        at = self.counts[rows] - 1
        return self.tokens[rows, at], self.prefix_lengths[rows] + at

    def record(self, rows: Tensor, logits: Tensor) -> None:
        """Draw and store the next token of `rows` [n] from logits [n, V]."""
        at = self.counts[rows]
        drawn = choose(logits, self.uniforms[rows, at], self.sampling)
        self.finite &= drawn.top.isfinite().all()
        self.tokens[rows, at] = drawn.tokens
        self.logprobs[rows, at] = drawn.logprobs
        self.entropies[rows, at] = drawn.entropies
        self.counts[rows] += self._alive(rows)
        self.stopped[rows] = self.ends(self.tokens, rows, self.counts[rows])

    def look(self, rows: Tensor) -> Tensor:
        """Of `rows` [n], on the CPU, [3, n]: whether it goes on, its tokens with the prefix, those it may still get.

        Raises:
            NotFiniteError: logits that a token was drawn from since the last look were not finite.
        """
        counts = self.counts[rows]
        finite = self.finite.expand(len(rows))
        told = (self._alive(rows), self.prefix_lengths[rows] + counts, self.budgets[rows] - counts, finite)
        seen = torch.stack(told).cpu()
        if not seen[-1].all():
            raise NotFiniteError
        return seen[:-1]

    def responses(self) -> list[Response]:
        """What was sampled, row by row."""
        books = (self.tokens, self.logprobs, self.entropies, self.stopped, self.counts)
        tokens, logprobs, entropies, stopped, counts = (book.cpu() for book in books)
        return [
            sampled_response(tokens[row, :n], logprobs[row, :n], entropies[row, :n], stopped=bool(stopped[row]))
            for row, n in enumerate(counts.tolist())
        ]

    def _alive(self, rows: Tensor) -> Tensor:
        return ~self.stopped[rows] & (self.counts[rows] < self.budgets[rows])


class _Decoding:
    """All rows of one call, from the first prefill to the last live row.

    Which row a place holds (a slot of the cache; the live ones come first) is changed where the books are looked at:
    every `_steps_at_once` steps. A row that has ended meanwhile decodes its last token again.
    """

    def __init__(self, policy: Policy, rows: Rows, ends: Ends, num_places: int) -> None:
        self.model, self.books = policy.model, _Books(policy, rows, ends)
        self.cache_name = cache_name(policy.model)
        self.device = policy.model.device
        self.prefixes = [tuple(prefix) for prefix in rows.prefixes]
        longest = max(len(prefix) + budget for prefix, budget in zip(rows.prefixes, rows.budgets, strict=True))
        self.cache = RowCache(num_places, longest)
        self.rows = torch.empty(0, dtype=torch.long, device=self.device)
        self.waiting = list(range(len(self.prefixes)))
        self.stored: dict[tuple[int, ...], tuple[Stored, Tensor]] = {}
        # A prefill costs about a step of the live rows, so a few places are collected before it.
        self.admit_at = max(num_places // 8, 1)
        # Of the longest live row when last looked at, and the most that a live row could get then.
        self.width, self.wanted = 0, 0

    def run(self) -> list[Response]:
        """Decode until every row has ended."""
        while self.waiting or len(self.rows):
            free = self.cache.num_places - len(self.rows)
            if self.waiting and (free >= min(self.admit_at, len(self.waiting)) or not len(self.rows)):
                self._admit(free)
            else:
                for _ in range(min(_steps_at_once(self.device), self.wanted)):
                    self._step()
            self._leave()
        return self.books.responses()

    def _admit(self, free: int) -> None:
        """Give places to the next waiting rows and draw their first tokens."""
        new, self.waiting = self.waiting[:free], self.waiting[free:]
        shared: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(new, start=len(self.rows)):
            shared.setdefault(self.prefixes[row], []).append(place)
        places = torch.tensor(new, device=self.device)
        self.rows = torch.cat([self.rows, places])
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
        self.books.record(places, torch.stack([last[self.prefixes[row]] for row in new]))

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

    def _step(self) -> None:
        """The newest token of every live row through the model, and the next one drawn."""
        ids, position = self.books.newest(self.rows)
        self.cache.decode_at(position, self.width)
        self.books.record(self.rows, self._forward(ids, position, RowsLayout(position + 1, self.width), slice(None)))
        self.width = min(self.width + 1, self.cache.num_tokens)

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

    def _leave(self) -> None:
        """Take ended rows out of the batch: only as many rows are copied as have ended before the last live one."""
        seen = self.books.look(self.rows)
        alive = seen[0].bool()
        left = int(alive.sum())
        if left < len(alive):
            holes = (~alive[:left]).nonzero().flatten()
            sources = alive[left:].nonzero().flatten() + left
            if len(holes):
                width = int(seen[1, sources].max()) - 1
                to, source = holes.to(self.device), sources.to(self.device)
                self.cache.move(source, to, width)
                self.rows[to] = self.rows[source]
            self.rows = self.rows[:left]
        if left:
            _, self.width, self.wanted = seen[:, alive].amax(1).tolist()


def _steps_at_once(device: torch.device) -> int:
    """Decoding steps between two looks at the books, each of which waits for a GPU. A CPU is not waited for."""
    return 1 if device.type == "cpu" else 16


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
