"""The varlen layout against the trees and the model's own forward, with a loop in place of the CUDA kernel."""

import pytest
import torch
from test_packed_attention import GROUPED, RIGHT, large
from transformers import MistralConfig, MistralForCausalLM
from varlen_loop import varlen_loop

from edge_grpo.errors import UserError
from edge_grpo.policy import support, varlen_attention
from edge_grpo.policy.packed_attention import AttentionOptions, TreesLayout, packed_attention
from edge_grpo.policy.support import check_packed
from edge_grpo.policy.varlen_attention import VarlenLayout, fits, kernel, trees_layout

CPU = torch.device("cpu")
PROMPTS, RESPONSES, PROMPT_OF = [9, 4, 3], [12, 11, 5, 5, 1], [2, 0, 0, 1, 2]


@pytest.fixture
def calls(monkeypatch):
    """The kernel is a loop that takes any numbers; what it was called with."""
    made = []

    def noted(*args, **kwargs):
        made.append((args, kwargs))
        return varlen_loop(*args, **kwargs)

    monkeypatch.setattr(varlen_attention, "kernel", lambda device: noted)
    monkeypatch.setattr(support, "kernel", lambda device: noted)
    monkeypatch.setattr(varlen_attention, "TYPES", (torch.float32, torch.float64, torch.bfloat16))
    return made


def forward_and_gradient(model, layout):
    """Hidden states of the flat tokens, and the gradient of a loss that tells them apart."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    position = [torch.arange(n) for n in PROMPTS]
    position += [PROMPTS[p] + torch.arange(n) for p, n in zip(PROMPT_OF, RESPONSES, strict=True)]
    ids = torch.randint(0, 31, (1, sum(PROMPTS) + sum(RESPONSES)), generator=generator)
    with packed_attention(model):
        hidden = model.get_decoder()(
            input_ids=ids, position_ids=torch.cat(position)[None], use_cache=False, layout=layout
        ).last_hidden_state[0]
        (hidden * torch.randn(hidden.shape, generator=generator)).sum().backward()
    return hidden.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("window", [None, 1, 6])
def test_hidden_states_and_gradients_are_those_of_the_trees(window, calls):
    """Grouped heads of 8; a window that ends within a response, and one that reaches into its prompt."""
    make = RIGHT["llama"]
    if window is not None:
        make = lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=window))  # noqa: E731
    model = large(make).double()
    ours = forward_and_gradient(model, VarlenLayout(PROMPTS, RESPONSES, PROMPT_OF, CPU))
    assert len(calls) == model.config.num_hidden_layers
    theirs = forward_and_gradient(model, TreesLayout(PROMPTS, RESPONSES, PROMPT_OF, CPU))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)  # RMSNorm is float32


def test_the_kernel_gets_no_mask_no_padding_and_no_copied_heads(calls):
    forward_and_gradient(large(RIGHT["llama"]), VarlenLayout(PROMPTS, RESPONSES, PROMPT_OF, CPU))
    (query, key, value, *bounds), _ = calls[0]
    # 3 prompts and 5 responses; the keys of a response are its prompt's too.
    assert query.shape == (sum(PROMPTS) + sum(RESPONSES), 4, 8)
    assert key.shape == value.shape == (sum(PROMPTS) + sum(RESPONSES) + 3 + 9 + 9 + 4 + 3, 2, 8)
    assert bounds[0].tolist() == [0, 9, 13, 16, 28, 39, 44, 49, 50]
    assert bounds[1].tolist() == [0, 9, 13, 16, 31, 51, 65, 74, 78]
    assert bounds[2:] == [12, 20]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
def test_the_self_check_compares_it_with_the_models_own_forward(name, calls):
    check_packed(large(RIGHT[name]))
    # The packed forward and the prefill, in float32 and under autocast; no soft cap, and no heads of 4.
    assert len(calls) == (2 * 2 * 2 if name in ("llama", "mistral") else 0)
    types = {args[0].dtype for args, _ in calls}
    assert types == ({torch.float32, torch.bfloat16} if calls else set())


def test_a_kernel_that_aligns_the_mask_to_the_first_key_is_refused(calls, monkeypatch):
    def first_key(q, k, v, cu_q, *others, **kwargs):
        return varlen_loop(q, k[: len(q)], v[: len(q)], cu_q, cu_q, others[1], others[1], **kwargs)

    monkeypatch.setattr(varlen_attention, "kernel", lambda device: first_key)
    with pytest.raises(UserError, match="gives other logits on flat tokens"):
        check_packed(large(RIGHT["llama"]))


def test_what_the_kernel_does_not_know_goes_through_the_trees():
    plain = AttentionOptions(None, None, None, 0.0)
    half = torch.zeros(1, 4, 3, 64, dtype=torch.bfloat16)
    assert fits(half, half, torch.bfloat16, plain)
    assert fits(half, half, torch.float16, AttentionOptions(0.5, 3, None, 0.0))
    assert not fits(half, half, torch.float32, plain)
    assert not fits(half, half, torch.bfloat16, AttentionOptions(None, None, 30.0, 0.0))
    assert not fits(half, half, torch.bfloat16, AttentionOptions(None, None, None, 0.1))
    assert not fits(half[..., :12], half[..., :12], torch.bfloat16, plain)
    assert not fits(half, half[..., :32], torch.bfloat16, plain)
    assert not fits(half.repeat(1, 1, 1, 5), half.repeat(1, 1, 1, 5), torch.bfloat16, plain)


def test_the_cpu_has_the_trees_and_torch_has_the_kernel():
    assert kernel(CPU) is None
    assert isinstance(trees_layout(PROMPTS, RESPONSES, PROMPT_OF, CPU), TreesLayout)
    assert varlen_attention._varlen_attn() is not None  # with all that is asked of it


def test_under_autocast_it_computes_in_autocasts_type():
    assert varlen_attention._computed_in(torch.zeros(1)) is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert varlen_attention._computed_in(torch.zeros(1)) is torch.bfloat16
