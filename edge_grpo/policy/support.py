"""Whether a model can run on flat tokens: tried once on a few tokens before any work, not guessed from its name."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.policy.base import causal_head, decoder, eval_mode
from edge_grpo.policy.finite import check_finite, finite_logits
from edge_grpo.policy.fused_layers import fused_layers
from edge_grpo.policy.head import Head
from edge_grpo.policy.kv_cache import RowCache, cache_name
from edge_grpo.policy.packed_attention import RowsLayout, packed_attention
from edge_grpo.policy.varlen_attention import kernel, trees_layout

_WAY_OUT = "use rollout=hf algorithm.packing=false for this model"
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_checked: WeakSet[Any] = WeakSet()


def check_packed(model: Any) -> None:
    """Compare a packed forward, a prefill and a decoding step with the model's own forward.

    Args:
        model: causal language model; the second call for the same one costs nothing.

    Raises:
        UserError: no causal head, layers with a state other than keys and values, logits that are not finite, or other
            numbers come out.
    """
    if model in _checked:
        return
    name = type(model).__name__
    causal_head(model)
    odd = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _LAYER_TYPES
    if odd:
        raise UserError(f"{name} has layers of type {', '.join(sorted(odd))}: {_WAY_OUT}")
    for computing in _precisions(model):
        try:
            with eval_mode(model), computing:
                expected, packed = _own_logits(model), _packed_logits(model)
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UserError(f"{name} does not run on flat tokens ({error}): {_WAY_OUT}") from error
        with finite_logits(model):
            check_finite(expected.amax(-1))
        difference = float((packed - expected).abs().max() / expected.std().clamp(min=1e-6))
        if not difference < _tolerance(expected):
            raise UserError(f"{name} gives other logits on flat tokens (off by {difference:.2g}): {_WAY_OUT}")
    _checked.add(model)


def _precisions(model: Any) -> list[AbstractContextManager[Any]]:
    """As the caller computes, and under autocast too where attention has another kernel there."""
    device = model.device
    as_it_is: list[AbstractContextManager[Any]] = [nullcontext()]
    return as_it_is if kernel(device) is None else [*as_it_is, torch.autocast(device.type, torch.bfloat16)]


@torch.no_grad()
def check_head(model: Any, chunk_tokens: int) -> None:
    """Compare the log-probs of a few tokens with those of the model's own logits.

    Raises:
        UserError: see `Head.of`, logits that are not finite, or the model does more to its logits than `Head` knows.
    """
    head = Head.of(model, temperature=1.0, chunk_tokens=chunk_tokens)
    ids = torch.tensor([[1, 5, 3, 2]], device=model.device)
    for computing in _precisions(model):
        with eval_mode(model), computing:
            states = decoder(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
            logits = model(input_ids=ids).logits[0]
            logprobs, _ = head(states, ids[0], entropy_grad=False, in_place=False)
        with finite_logits(model):
            check_finite(logits.amax(-1))
        expected = logits.to(logprobs.dtype).log_softmax(-1).gather(-1, ids.T).squeeze(-1)
        difference = float((logprobs - expected).abs().max())
        if not difference < _tolerance(logits) * max(float(expected.abs().max()), 1.0):
            raise UserError(
                f"{type(model).__name__} does more to its logits than a linear map, a factor and a soft cap: its "
                f"log-probs come out wrong by {difference:.2g} nats, so it cannot be trained here"
            )


def _tolerance(logits: Tensor) -> float:
    return 1e-3 if logits.dtype in (torch.float32, torch.float64) else 0.1


# Two prompts and three responses of uneven lengths.
_PROMPTS = ((1, 5, 3), (2, 7))
_RESPONSES = ((4, 6, 1), (3, 1), (5, 2))
_PROMPT_OF = (0, 0, 1)


@torch.no_grad()
def _own_logits(model: Any) -> Tensor:
    """[response tokens, V], then those of each prompt's last token after one more token."""
    rows = [[*_PROMPTS[p], *response] for p, response in zip(_PROMPT_OF, _RESPONSES, strict=True)]
    after = [[*prompt, 1] for prompt in _PROMPTS]
    logits = [
        model(input_ids=torch.tensor([row], device=model.device)).logits[0, -keep:]
        for row, keep in [*zip(rows, map(len, _RESPONSES), strict=True), *((row, 1) for row in after)]
    ]
    return torch.cat(logits)


@torch.no_grad()
def _packed_logits(model: Any) -> Tensor:
    """The same by a packed forward, and by a prefill with a decoding step."""
    device = model.device
    lengths, own = [len(p) for p in _PROMPTS], [len(r) for r in _RESPONSES]
    prompt_positions = [t for n in lengths for t in range(n)]
    positions = prompt_positions + [lengths[p] + t for p, n in zip(_PROMPT_OF, own, strict=True) for t in range(n)]
    prompt_ids = [token for prompt in _PROMPTS for token in prompt]
    ids = prompt_ids + [token for response in _RESPONSES for token in response]
    cache = RowCache(len(lengths), max(lengths) + 1)
    kept = {cache_name(model): cache}

    def forward(ids: list[int], positions: list[int], layout: Any, **more: Any) -> Tensor:
        rows = torch.tensor([ids, positions], device=device)
        return model(input_ids=rows[:1], position_ids=rows[1:], layout=layout, **more).logits[0]

    with packed_attention(model):
        trained = forward(ids, positions, trees_layout(lengths, own, _PROMPT_OF, device), use_cache=False)
        with fused_layers(model):  # as a rollout runs it
            flat = torch.arange(len(prompt_ids), device=device)
            place = torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))
            cache.prefill_at(flat, place, torch.tensor(prompt_positions, device=device))
            prefill = trees_layout(lengths, [], [], device)
            forward(prompt_ids, prompt_positions, prefill, use_cache=True, **kept)
            grown = torch.tensor(lengths, device=device)
            cache.decode_at(grown, max(lengths) + 1)
            layout = RowsLayout(grown + 1, max(lengths) + 1)
            decoded = forward([1] * len(lengths), lengths, layout, use_cache=True, **kept)
    return torch.cat([trained[len(prompt_ids) :], decoded])
