"""The head's numbers: on the CPU the formulas bit for bit, on a GPU products in half precision summed in float32."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edge_grpo.policy import head as module
from edge_grpo.policy.head import Head

V, H, M = 67, 12, 10


def tensors(states=torch.float32, weight=torch.float32):
    generator = torch.Generator().manual_seed(0)
    w = (torch.randn(V, H, generator=generator)).to(weight).requires_grad_()
    x = torch.randn(M, H, generator=generator).to(states).requires_grad_()
    return w, x, torch.randint(0, V, (M,), generator=generator)


def head(weight, chunk=4):
    return Head(weight, None, multiplier=1.0, softcap=None, temperature=0.7, chunk_tokens=chunk)


def test_numbers_on_the_cpu_are_the_formulas_bit_for_bit():
    weight, states, ids = tensors()
    logprobs, entropies = head(weight)(states, ids, entropy_grad=False, in_place=False)
    for start in range(0, M, 4):
        part = slice(start, start + 4)
        logits = (states[part] @ weight.T).detach() * (1 / 0.7)
        top = logits.amax(-1, keepdim=True)
        shifted = logits - top
        total = shifted.exp().sum(-1)
        chosen = logits.gather(-1, ids[part, None]).squeeze(-1)
        assert torch.equal(logprobs[part], chosen - (total.log() + top.squeeze(-1)))
        assert torch.equal(entropies[part], total.log() - torch.linalg.vecdot(shifted.exp(), shifted) / total)


class Casts(TorchDispatchMode):
    """Counts what becomes of half precision, by shape."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            self.shapes.append(tuple(out.shape))
        return out


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Its tensor cores are a float32 product of the same operands; those have to be of half precision."""

    def mm(a, b, out):
        assert (a.dtype, b.dtype, out.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        torch.mm(a.float(), b.float(), out=out)

    monkeypatch.setattr(module, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(module, "_mm", mm)


@pytest.mark.parametrize(
    ("states", "weight", "autocast"),
    [
        (torch.float32, torch.float32, True),  # bf16-mixed: the last norm is float32
        (torch.bfloat16, torch.bfloat16, False),
        (torch.bfloat16, torch.float32, True),
    ],
)
def test_on_a_gpu_half_precision_is_of_operands_alone(as_on_a_gpu, states, weight, autocast):
    w, x, ids = tensors(states, weight)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logprobs, entropies = head(w)(x, ids, entropy_grad=True, in_place=False)
    assert logprobs.dtype == entropies.dtype == torch.float32
    (logprobs * torch.linspace(-1, 1, M) + entropies).sum().backward()
    rounded = [t.detach().bfloat16().double().requires_grad_() for t in (w, x)]
    distribution = torch.distributions.Categorical(logits=rounded[1] @ rounded[0].T / 0.7)
    expected = distribution.log_prob(ids), distribution.entropy()
    torch.testing.assert_close(logprobs.double(), expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies.double(), expected[1], atol=1e-5, rtol=0)
    (expected[0] * torch.linspace(-1, 1, M) + expected[1]).sum().backward()
    for ours, theirs in zip((w, x), rounded, strict=True):
        assert ours.grad.dtype == ours.dtype
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(ours.grad.double() / scale, theirs.grad / scale, atol=1e-2, rtol=0)


def test_on_a_gpu_the_weight_is_cast_once_a_pass_and_a_chunk_is_one_block(as_on_a_gpu):
    w, x, ids = tensors()
    assert module._blocks(torch.empty(7, 1 << 20, device="meta")) == [slice(0, 7)]
    with Casts() as casts, torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = head(w, chunk=2)(x, ids, entropy_grad=False, in_place=False)
        logprobs.sum().backward()
    assert casts.shapes.count((V, H)) == 2  # forward and backward, of five chunks each
    assert casts.shapes.count((2, V)) == 5  # a chunk's gradient, for both products


def test_on_a_gpu_float32_stays_float32(as_on_a_gpu):
    w, x, ids = tensors()
    logprobs, _ = head(w)(x, ids, entropy_grad=False, in_place=False)
    expected = torch.distributions.Categorical(logits=x.double() @ w.double().T / 0.7).log_prob(ids)
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=0)


def test_on_the_cpu_a_block_fits_the_cache():
    assert len(module._blocks(torch.empty(7, 1 << 20, device="meta"))) == 7
