"""The memory of a forward and backward pass, of a decoding step and of an optimiser step, counted without data."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edge_grpo.planning.live_memory import LiveMemory
from edge_grpo.planning.skeleton import ModelPlan, Skeleton, total_bytes
from edge_grpo.planning.stand_ins import CountedHead, CountedLayout, HeadSettings, Microbatch
from edge_grpo.policy.base import decoder
from edge_grpo.policy.fused_layers import copied_bytes
from edge_grpo.policy.packed_attention import packed_attention


class Weights(NamedTuple):
    """Parameters of a model and their bytes, tied ones once; those of the plain model, which has no weight of 4 bits;
    those that are trained; bytes of the largest tensor; and V."""

    parameters: int
    bytes: int
    plain_bytes: int
    trained: int
    trained_bytes: int
    largest: int
    vocabulary: int


class UpdatePass(NamedTuple):
    """Bytes at the peak of a pass, above weights and gradients; `logits` is what a chunk of logits adds to it.

    `heap` is how much of the activations is in blocks that glibc keeps when they are freed.
    """

    activations: int
    logits: int
    heap: int


class RolloutPass(NamedTuple):
    """Bytes of the cache a token of a row, and those of a pass without gradient above weights and cache."""

    kv: int
    activations: int


class OptimizerStep(NamedTuple):
    """Bytes that an optimiser keeps, those that it needs besides while it steps, and those that lie in RAM in place of
    what it keeps on the device; 0 where all is on the device."""

    state: int
    moment: int
    host: int = 0


FEW = (2, 3)
"""layers of the models that passes are counted on: every further layer adds what the third adds to the second"""


@lru_cache(maxsize=8)
def skeleton(plan: ModelPlan) -> Skeleton:
    """Made once for all passes of a plan."""
    return Skeleton(plan)


def _of_all_layers(plan: ModelPlan, count: Callable[[ModelPlan], int]) -> int:
    """What a pass takes, which a deep model need not make for it: its layers are alike."""
    if plan.layers <= FEW[1]:
        return count(plan)
    few, more = (count(plan.with_layers(layers)) for layers in FEW)
    return more + (plan.layers - FEW[1]) * (more - few)


def weights(plan: ModelPlan) -> Weights:
    """How many there are."""
    parts = skeleton(replace(plan, autocast=False))
    every, trained = list(parts.model.parameters()), parts.trainable
    plain = list(skeleton(replace(plan, autocast=False, four_bit=False)).model.parameters())
    return Weights(
        parameters=sum(p.numel() for p in plain),
        bytes=total_bytes(every),
        plain_bytes=total_bytes(plain),
        trained=sum(p.numel() for p in trained),
        trained_bytes=total_bytes(trained),
        largest=max(total_bytes([p]) for p in every),
        vocabulary=len(parts.model.get_output_embeddings().weight),
    )


def copied_weights(plan: ModelPlan) -> int:
    """Bytes that a rollout on a CPU holds a second time."""
    return copied_bytes(skeleton(replace(plan, autocast=False)).model)


def update_pass(
    plan: ModelPlan, microbatch: Microbatch, chunk_tokens: int, *, later: bool, in_place: bool
) -> UpdatePass:
    """Forward and backward of one micro-batch.

    Args:
        microbatch: what passes.
        chunk_tokens, in_place: see `Head`.
        later: the gradients exist, from an earlier micro-batch of the step; else they are made in the places that the
            activations leave.
    """
    passed = partial(_update_pass, microbatch=microbatch, chunk_tokens=chunk_tokens, later=later, in_place=in_place)
    activations = _of_all_layers(plan, lambda some: passed(some).activations)
    total = _of_all_layers(plan, lambda some: sum(passed(some)[:2]))
    heap = _of_all_layers(plan, lambda some: passed(some).heap)
    return UpdatePass(max(activations, 0), max(total, 0) - max(activations, 0), max(heap, 0))


@lru_cache(maxsize=64)
def _update_pass(
    plan: ModelPlan, microbatch: Microbatch, chunk_tokens: int, *, later: bool, in_place: bool
) -> UpdatePass:
    parts, memory = skeleton(plan), LiveMemory()
    model, trained = parts.model, parts.trainable
    half = microbatch.on_gpu and parts.element_size == 2
    settings = HeadSettings(chunk_tokens, in_place, microbatch.on_gpu, half, memory)
    model.train()
    try:
        with parts.calls(), packed_attention(model), memory:
            memory.count([*model.parameters(), *model.buffers()])
            for p in trained if later else ():
                p.grad = torch.empty_like(p)
            standing, kept = memory.restart() + (0 if later else total_bytes(trained)), memory.heap
            softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
            masks = torch.empty(microbatch.mask_bytes(parts.element_size, softcap=softcap), dtype=torch.uint8)
            ids, position = torch.empty(2, 1, microbatch.tokens, dtype=torch.long)
            hidden = decoder(model)(
                input_ids=ids, position_ids=position, use_cache=False, layout=CountedLayout(microbatch)
            ).last_hidden_state[0]
            states = hidden.index_select(0, _positions(microbatch.rows * microbatch.response_tokens))
            logprobs = CountedHead.apply(states, model.get_output_embeddings().weight, settings)
            del hidden, states
            logprobs.backward(torch.empty_like(logprobs))
            del logprobs, masks
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
    # Below 0 where gradients that are counted as standing do not exist yet at the peak.
    return UpdatePass(memory.peak_without - standing, memory.peak - memory.peak_without, memory.heap - kept)


def rollout_pass(plan: ModelPlan, prefill_tokens: int, rows: int) -> RolloutPass:
    """The larger of a prefill and a decoding step.

    Args:
        prefill_tokens: of one forward pass over prompts.
        rows: that are decoded at once.
    """
    kv = _of_all_layers(plan, lambda some: _rollout_pass(some, prefill_tokens, rows).kv)
    activations = _of_all_layers(plan, lambda some: _rollout_pass(some, prefill_tokens, rows).activations)
    return RolloutPass(kv, activations)


@lru_cache(maxsize=64)
def _rollout_pass(plan: ModelPlan, prefill_tokens: int, rows: int) -> RolloutPass:
    parts, peaks = skeleton(plan), []
    with torch.no_grad(), parts.calls(), packed_attention(parts.model):
        for tokens in (prefill_tokens, rows):
            layout = CountedLayout(None)
            with LiveMemory() as memory:
                memory.count([*parts.model.parameters(), *parts.model.buffers()])
                standing = memory.restart()
                ids, position = torch.empty(2, 1, tokens, dtype=torch.long)
                parts.model(
                    input_ids=ids,
                    position_ids=position,
                    use_cache=False,
                    layout=layout,
                    logits_to_keep=_positions(min(rows, tokens)),
                )
            peaks.append(memory.peak - standing)
    return RolloutPass(layout.kv_bytes, max(peaks))


@lru_cache(maxsize=16)
def optimizer_step(plan: ModelPlan, make: Callable[..., Any], *, on_gpu: bool) -> OptimizerStep:
    """What the optimiser keeps and needs: one step on tensors of the trained weights' shapes.

    Args:
        make: parameters -> optimiser; where it has a method `state_bytes`, that tells what it will keep of them, and
            `host_bytes` that this lies in RAM, and how much there.
        on_gpu: torch's optimisers step all weights together there, and hold results of all, unless they are fused.
    """
    with torch.device("meta"), LiveMemory() as memory:
        shapes = skeleton(replace(plan, autocast=False)).trainable
        if hasattr(make, "state_bytes"):  # kernels that know no tensors without data
            host = make.host_bytes(shapes) if hasattr(make, "host_bytes") else 0
            return OptimizerStep(make.state_bytes(shapes), 0, host)
        trained = [torch.empty(p.shape, dtype=p.dtype, requires_grad=True) for p in shapes]
        for p in trained:
            p.grad = torch.empty_like(p)
        standing = memory.restart()
        optimizer = make(trained)
        for group in optimizer.param_groups:
            if on_gpu and group.get("foreach", False) is None:
                group["foreach"] = True
        optimizer.step()
        state = memory.bytes - standing
    return OptimizerStep(state, memory.peak - standing - state)


def _positions(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.long)
