"""Log-prob of the chosen token and entropy from final hidden states, without the [M, V] logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.policy.base import causal_head

# Entries of a block that is worked on at once: small enough to stay in the processor's cache. A GPU takes a chunk.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Head:
    """The map from hidden states to the logits that are sampled from.

    logits = softcap(multiplier * (W h + b)) / temperature, with softcap(x) = c tanh(x / c).

    Args:
        weight: [V, H]; `bias`: [V] or None.
        multiplier: of the model's own (Cohere's logit_scale, Granite's 1 / logits_scaling).
        softcap: c, None for none (Gemma 2).
        temperature: of the rollout.
        chunk_tokens: rows of logits that are in memory at once.
    """

    weight: Tensor
    bias: Tensor | None
    multiplier: float
    softcap: float | None
    temperature: float
    chunk_tokens: int

    @classmethod
    def of(cls, model: Any, temperature: float, chunk_tokens: int) -> "Head":
        """The head of a Hugging Face model.

        Raises:
            UserError: no head, or one that is not a plain linear map. Logits that are scaled in another way than
                those below are found by `check_head`.
        """
        linear = causal_head(model)
        if type(linear) is not torch.nn.Linear:
            raise UserError(
                f"{type(model).__name__}'s head is a {type(linear).__name__}, not a linear map, which is not supported"
            )
        config = model.config.get_text_config()
        multiplier = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(linear.weight, linear.bias, multiplier, softcap, temperature, chunk_tokens)

    def __call__(self, states: Tensor, ids: Tensor, *, entropy_grad: bool, in_place: bool) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of M tokens, each [M], float32 (float64 for a float64 model).

        Args:
            states: [M, H]; ids: [M].
            entropy_grad: let the gradient flow through the entropies too.
            in_place: add the head's gradient to `weight.grad` where there is one, instead of returning another
                [V, H]; for `backward()` only, not for `torch.autograd.grad`.
        """
        return _HeadStats.apply(states, self.weight, self.bias, ids, self, entropy_grad, in_place)

    def logits(self, states: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """[m, H] -> `out` [m, V], before the temperature's division nothing is rounded below float32."""
        _matmul(states, weight, out)
        if bias is not None:
            out += bias
        if self.softcap is not None:
            out.mul_(self.multiplier / self.softcap).tanh_().mul_(self.softcap / self.temperature)
        elif self.multiplier != self.temperature:
            out.mul_(self.multiplier / self.temperature)
        return out

    def through_logits(self, grad: Tensor, logits: Tensor) -> None:
        """Gradient w.r.t. the logits -> w.r.t. W h + b, in place on `grad`."""
        if self.softcap is not None:
            capped = logits * (self.temperature / self.softcap)
            grad.mul_(1 - capped.square_())
        if self.multiplier != self.temperature:
            grad.mul_(self.multiplier / self.temperature)


class _HeadStats(torch.autograd.Function):
    """Forward and backward go through the chunks one by one; the backward computes a chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        head: Head,
        entropy_grad: bool,
        in_place: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype, half = _accumulation_dtype(weight), _half(states, weight)
        logprobs, entropies, normalisers = torch.empty(3, len(ids), dtype=dtype, device=states.device)
        buffer = _buffer(head, states, weight, dtype)
        with torch.autocast(states.device.type, enabled=False):
            x, w = (states, weight) if half is None else (states.to(half), weight.to(half))
            for start in range(0, len(ids), head.chunk_tokens):
                part = slice(start, start + head.chunk_tokens)
                logits = head.logits(x[part], w, bias, buffer[: len(ids[part])])
                chosen = logits.gather(-1, ids[part, None]).squeeze(-1)
                _normalise(logits, normalisers[part], entropies[part])
                logprobs[part] = chosen - normalisers[part]
        ctx.save_for_backward(states, weight, bias, ids, normalisers, entropies)
        ctx.head, ctx.entropy_grad, ctx.in_place, ctx.half = head, entropy_grad, in_place, half
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Any, ...]:
        states, weight, bias, ids, normalisers, entropies = ctx.saved_tensors
        head, dtype, half = ctx.head, _accumulation_dtype(weight), ctx.half
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_states = torch.empty_like(states) if wants_states else None
        grad_weight, returned = _weight_gradient(weight, dtype, in_place=ctx.in_place) if wants_weight else (None, None)
        grad_bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and wants_bias else None
        buffer = _buffer(head, states, weight, dtype)
        through_entropy = ctx.entropy_grad
        with torch.autocast(states.device.type, enabled=False):
            x, w = (states, weight) if half is None else (states.to(half), weight.to(half))
            for start in range(0, len(ids), head.chunk_tokens):
                part = slice(start, start + head.chunk_tokens)
                grad = head.logits(x[part], w, bias, buffer[: len(ids[part])])
                _to_gradient(
                    grad,
                    ids[part],
                    normalisers[part],
                    grad_logprobs[part],
                    (grad_entropies[part], entropies[part]) if through_entropy else None,
                    head,
                )
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad = grad if half is None else grad.to(half)
                if grad_states is not None:
                    _matmul_into(grad, w, grad_states[part])
                if grad_weight is not None:
                    _add_outer(grad, x[part], grad_weight)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        if returned is not None and returned.dtype != weight.dtype:
            returned = returned.to(weight.dtype)
        return grad_states, returned, grad_bias, None, None, None, None


def _accumulation_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _buffer(head: Head, states: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    rows = min(head.chunk_tokens, len(states))
    return torch.empty(rows, len(weight), dtype=dtype, device=states.device)


def _weight_gradient(weight: Tensor, dtype: torch.dtype, *, in_place: bool) -> tuple[Tensor, Tensor | None]:
    """Where to add the head's gradient, and what the backward returns for it.

    A gradient in half precision is not accumulated into: adding many small terms would lose them.
    """
    if in_place and weight.grad is not None and weight.grad.dtype == dtype:
        return weight.grad, None
    fresh = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    return fresh, fresh


def _half(states: Tensor, weight: Tensor) -> torch.dtype | None:
    """The type of the operands of matrix products where tensor cores sum them in float32; None for those they have.

    It is autocast's, as for every other layer, or that of half-precision weights.
    """
    if not _on_gpu(states):
        return None
    if torch.is_autocast_enabled(states.device.type):
        return torch.get_autocast_dtype(states.device.type)
    return next((x.dtype for x in (weight, states) if x.dtype.itemsize == 2), None)


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _blocks(logits: Tensor) -> list[slice]:
    rows = len(logits) if _on_gpu(logits) else max(_BLOCK // logits.shape[1], 1)
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def _normalise(logits: Tensor, normalisers: Tensor, entropies: Tensor) -> None:
    """Write logsumexp and entropy [m] of logits [m, V]; H = log Z - E[x - max]."""
    for block in _blocks(logits):
        x = logits[block]
        top = x.amax(-1, keepdim=True)
        x = x - top
        weights = x.exp()
        total = weights.sum(-1)
        entropies[block] = total.log() - torch.linalg.vecdot(weights, x) / total
        normalisers[block] = total.log() + top.squeeze(-1)


def _to_gradient(
    logits: Tensor,
    ids: Tensor,
    normalisers: Tensor,
    grad_logprobs: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
    head: Head,
) -> None:
    """Logits [m, V] -> gradient w.r.t. W h + b, in place.

    d log p_c / d x_j = 1[j = c] - p_j;  d H / d x_j = -p_j (log p_j + H).
    """
    for block in _blocks(logits):
        x = logits[block]
        logp = x - normalisers[block, None]
        grad = logp.exp()
        if entropy is None:
            grad *= -grad_logprobs[block, None]
        else:
            grad_entropies, entropies = entropy
            inner = logp.add_(entropies[block, None]).mul_(-grad_entropies[block, None])
            grad *= inner.sub_(grad_logprobs[block, None])
        grad.scatter_add_(-1, ids[block, None], grad_logprobs[block, None])
        head.through_logits(grad, x)
        logits[block] = grad


# Half-precision operands are multiplied in float32: on a GPU by the tensor cores' own accumulators (see `_half`), on
# the CPU a block of the vocabulary at a time.
_VOCABULARY_BLOCK = 8192


def _mm(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b, with operands of half precision and sums and results of single; on CUDA alone."""
    torch.mm(a, b, out_dtype=out.dtype, out=out)


def _matmul(states: Tensor, weight: Tensor, out: Tensor) -> None:
    """out = states @ weight.T"""
    if states.dtype == weight.dtype == out.dtype:
        torch.mm(states, weight.T, out=out)
    elif _on_gpu(states):
        _mm(states, weight.T, out)
    else:
        wide = states.to(out.dtype)
        for start in range(0, len(weight), _VOCABULARY_BLOCK):
            block = slice(start, start + _VOCABULARY_BLOCK)
            out[:, block] = wide @ weight[block].to(out.dtype).T


def _matmul_into(grad: Tensor, weight: Tensor, out: Tensor) -> None:
    """out = grad @ weight"""
    if grad.dtype == weight.dtype == out.dtype:
        torch.mm(grad, weight, out=out)
    elif _on_gpu(grad):
        wide = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        _mm(grad, weight, wide)
        out.copy_(wide)
    else:
        total = torch.zeros(out.shape, dtype=grad.dtype)
        for start in range(0, len(weight), _VOCABULARY_BLOCK):
            block = slice(start, start + _VOCABULARY_BLOCK)
            total.addmm_(grad[:, block], weight[block].to(grad.dtype))
        out.copy_(total)


def _add_outer(grad: Tensor, states: Tensor, out: Tensor) -> None:
    """out += grad.T @ states"""
    if grad.dtype != out.dtype:
        added = torch.empty_like(out)
        _mm(grad.T, states, added)
        out += added
    else:
        out.addmm_(grad.T, states.to(out.dtype))
