"""Which settings to lower, and by how much, where a plan does not fit."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from edge_grpo.planning.plan import PHASES, Plan, decoded_at_once, make_plan
from edge_grpo.planning.run_settings import RunSettings
from edge_grpo.planning.skeleton import Adapters
from edge_grpo.policy.memory import GIB

LEAST_ROWS, LEAST_CHUNK, LEAST_CACHE = 8, 64, GIB // 2
RANK = 16
Lower = Callable[[RunSettings], RunSettings]
Offer = tuple[str, Lower]


class Change(NamedTuple):
    """A setting as it is typed, and the bytes that it takes off the peak, after those before it."""

    setting: str
    saved: int


def lowered(plan: Plan, memory: int) -> tuple[list[Change], Plan]:
    """Settings to change, and the plan with all of them, which may still be too large.

    The ladder has what costs little time first and what trains something else last: LoRA, then weights of 4 bits. It is
    climbed until all fits, numbers are halved as often as that takes, and then every change is taken back as far as the
    others allow.

    Args:
        plan: that is too large.
        memory: bytes that there are.
    """
    run, taken = plan.settings, dict[int, Offer]()
    for rung, offers in (*enumerate(_LADDER), *enumerate(_LADDER)):  # what did not help may help once others have
        if not _excess(run, memory):
            break
        best = _excess(run, memory)
        for text, lower in offers(run):
            excess = _excess(lower(run), memory)
            if excess >= best:
                break
            best, taken[rung] = excess, (text, lower)
            if not excess:
                break
        run = _with(plan.settings, taken)
    if not _excess(run, memory):
        for rung in list(taken):
            others = _with(plan.settings, {other: offer for other, offer in taken.items() if other != rung})
            if not _excess(others, memory):
                del taken[rung]
                continue
            taken[rung] = next(offer for offer in _LADDER[rung](others) if not _excess(offer[1](others), memory))
    return _told(plan, list(taken.values()))


def _with(run: RunSettings, taken: Mapping[int, Offer]) -> RunSettings:
    for _, lower in taken.values():
        run = lower(run)
    return run


def _told(plan: Plan, offers: Sequence[Offer]) -> tuple[list[Change], Plan]:
    changes = []
    for text, lower in offers:
        smaller = make_plan(lower(plan.settings))
        changes.append(Change(text, plan.peak - smaller.peak))
        plan = smaller
    return changes, plan


def _excess(run: RunSettings, memory: int) -> int:
    """Bytes too many, over all phases."""
    plan = make_plan(run)
    return sum(max(plan.total(phase) - memory, 0) for phase in PHASES)


def _halves(value: int, least: int) -> Iterator[int]:
    """Powers of two below `value`, falling.

    >>> list(_halves(832, 64)), list(_halves(64, 16))
    ([512, 256, 128, 64], [32, 16])
    """
    power = 1 << max(value - 1, 1).bit_length() - 1
    while power >= least:
        yield power
        power //= 2


def _rows(run: RunSettings) -> Iterator[Offer]:
    if run.engine_cache is not None:
        return
    for rows in _halves(max(decoded_at_once(run)), LEAST_ROWS):
        yield f"rollout.max_batch_rows={rows}", partial(replace, max_batch_rows=rows)


def _cache(run: RunSettings) -> Iterator[Offer]:
    for size in _halves(run.engine_cache or 0, LEAST_CACHE):
        yield f"rollout.kv_cache_gb={size / GIB:.3g}", partial(replace, engine_cache=size)


def _fused(run: RunSettings) -> Iterator[Offer]:
    knows = "fused" in inspect.signature(getattr(run.optimizer, "func", run.optimizer)).parameters
    if run.on_gpu and knows and not run.fused_optimizer:
        yield "optimizer.fused=true", partial(replace, fused_optimizer=True)


def _chunk(run: RunSettings) -> Iterator[Offer]:
    there = run.microbatch.rows * run.microbatch.response_tokens  # fewer than a chunk holds, where a chunk is large
    for tokens in _halves(min(run.chunk_tokens, there), LEAST_CHUNK):
        yield f"algorithm.chunk_tokens={tokens}", partial(replace, chunk_tokens=tokens)


def _microbatch(run: RunSettings) -> Iterator[Offer]:
    for tokens in _halves(min(run.microbatch_tokens, run.microbatch.tokens), run.row_tokens):
        yield f"algorithm.microbatch_tokens={tokens}", partial(replace, microbatch_tokens=tokens)


def _checkpointing(run: RunSettings) -> Iterator[Offer]:
    if not run.model.gradient_checkpointing:
        yield (
            "model.gradient_checkpointing=true",
            lambda run: replace(run, model=replace(run.model, gradient_checkpointing=True)),
        )


def _adapters(run: RunSettings) -> Iterator[Offer]:
    if run.can_adapt and run.model.adapters is None:
        adapters = Adapters(RANK, 0.0, None, "float32")
        yield (
            f"model.dtype=bfloat16 model.lora.r={RANK}",
            lambda run: replace(run, model=replace(run.model, dtype="bfloat16", adapters=adapters)),
        )


def _four_bit(run: RunSettings) -> Iterator[Offer]:
    if run.on_gpu and run.can_quantise and not run.sharded and run.model.adapters and not run.model.four_bit:
        yield "model.load_in_4bit=true", lambda run: replace(run, model=replace(run.model, four_bit=True))


_LADDER: tuple[Callable[[RunSettings], Iterator[Offer]], ...] = (
    _rows,
    _cache,
    _fused,
    _chunk,
    _microbatch,
    _checkpointing,
    _adapters,
    _four_bit,
)
