"""Flat tokens give the model's own numbers, or the model is refused; outside the context nothing has changed."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from edge_grpo.errors import UserError
from edge_grpo.policy import support
from edge_grpo.policy.packed_attention import TreesLayout, packed_attention
from edge_grpo.policy.support import check_packed

BASE = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
GROUPED = BASE | {"num_key_value_heads": 2, "head_dim": 8}
KINDS = ["sliding_attention", "full_attention"]
RIGHT = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**BASE, num_key_value_heads=2)),
    "qwen2 sliding": lambda: Qwen2ForCausalLM(
        Qwen2Config(**BASE, num_key_value_heads=2, use_sliding_window=True, sliding_window=2, max_window_layers=1)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=4, scale_attn_by_inverse_layer_idx=True)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=2)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**GROUPED)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**GROUPED, sliding_window=2, attn_logit_softcapping=0.5, final_logit_softcapping=0.5)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, sliding_window=2, layer_types=KINDS)),
}
REFUSED = {
    "bloom": (lambda: BloomForCausalLM(BloomConfig(vocab_size=31, hidden_size=16, n_layer=2, n_head=4)), "flat tokens"),
    "gpt_oss": (
        lambda: GptOssForCausalLM(
            GptOssConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1, layer_types=KINDS)
        ),
        "s_aux",
    ),
    "mamba": (lambda: MambaForCausalLM(MambaConfig(vocab_size=31, hidden_size=16)), "layers of type linear_attention"),
}


def large(make):
    """Weights that make attention matter: freshly initialised ones are nearly uniform."""
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 4
    return model


@pytest.mark.parametrize("name", RIGHT)
def test_flat_tokens_give_the_models_own_logits(name):
    model = large(RIGHT[name])
    check_packed(model)  # a packed forward, a prefill and a decoding step against the plain forward
    assert model in support._checked


@pytest.mark.parametrize("name", REFUSED)
def test_other_attention_is_refused_and_the_way_out_named(name):
    make, reason = REFUSED[name]
    with pytest.raises(UserError, match=r"use rollout=hf algorithm\.packing=false") as caught:
        check_packed(large(make))
    assert reason in str(caught.value)


def test_a_model_that_computes_something_else_is_refused(monkeypatch):
    model = large(RIGHT["llama"])
    monkeypatch.setattr(TreesLayout, "attend", lambda self, q, k, v, options: q[0].transpose(0, 1) * 0)
    with pytest.raises(UserError, match="gives other logits on flat tokens"):
        check_packed(model)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "gemma2"])
def test_a_training_forward_stays_causal(name):
    """Under a custom attention name transformers builds no mask: a padded forward would see the future."""
    model = large(RIGHT[name])
    ids = torch.tensor([[3, 1, 4, 1, 5], [3, 1, 4, 9, 2]])
    check_packed(model)
    with packed_attention(model):
        pass
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(logits[0, :3], logits[1, :3])
    assert not torch.allclose(logits[0, 3], logits[1, 3])
    with packed_attention(model), pytest.raises(UserError, match="keeps the layout from its attention"):
        model(input_ids=ids)
    with pytest.raises(RuntimeError, match="on purpose"), packed_attention(model):
        raise RuntimeError("on purpose")
    torch.testing.assert_close(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, logits)


@pytest.mark.parametrize("window", [None, 3])
def test_trees_equal_separate_rows(window):
    """Uneven prompts and responses in several buckets, against one plain row each."""
    make = RIGHT["llama"] if window is None else lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=3))
    model = large(make).double()
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 31, (n,), generator=generator) for n in (9, 4, 3)]
    responses = [torch.randint(0, 31, (n,), generator=generator) for n in (12, 11, 5, 5, 1)]
    prompt_of = [2, 0, 0, 1, 2]
    lengths = [len(p) for p in prompts]
    layout = TreesLayout(lengths, [len(r) for r in responses], prompt_of, torch.device("cpu"))
    position = [torch.arange(n) for n in lengths]
    position += [lengths[p] + torch.arange(len(r)) for p, r in zip(prompt_of, responses, strict=True)]
    with packed_attention(model):
        flat = model(
            input_ids=torch.cat([*prompts, *responses])[None],
            position_ids=torch.cat(position)[None],
            use_cache=False,
            layout=layout,
        ).logits[0]
    pieces = flat.split([*lengths, *map(len, responses)])
    for p, response, packed in zip(prompt_of, responses, pieces[3:], strict=True):
        own = model(input_ids=torch.cat([prompts[p], response])[None]).logits[0]
        torch.testing.assert_close(packed, own[lengths[p] :], atol=1e-6, rtol=1e-6)  # RMSNorm is float32
        torch.testing.assert_close(pieces[p], own[: lengths[p]], atol=1e-6, rtol=1e-6)
