"""Tiny models of other families: which run on flat tokens, and what is told of those that do not."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
)

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.policy.load import load_policy
from edge_grpo.policy.support import check_head, check_packed
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.rollouts.base import Sampling
from edge_grpo.rollouts.hf import HFRollout
from edge_grpo.rollouts.native import NativeRollout
from edge_grpo.seeding import stage_generator

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 261}
WITH_HEADS = {**SMALL, "hidden_size": 32, "num_key_value_heads": 1, "head_dim": 16}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
OTHER_WAY = r"use rollout=hf algorithm\.packing=false for this model$"
EAGER = (
    r"^model\.path=.*: {} does not support an attention implementation through .* yet: "
    r"set model\.attn_implementation=eager$"
)


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**WITH_HEADS, sliding_window=6, attn_logit_softcapping=2.0))


def gpt_oss():
    layers = ["sliding_attention", "full_attention"]
    return GptOssForCausalLM(GptOssConfig(**WITH_HEADS, **EXPERTS, sliding_window=6, layer_types=layers))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=261, hidden_size=32, num_hidden_layers=2, state_size=4))


def llama4():
    config = Llama4TextConfig(**WITH_HEADS, **EXPERTS, intermediate_size_mlp=64, attention_chunk_size=4)
    return Llama4ForCausalLM(config)


def saved(make, folder):
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():  # an untrained model is so flat that rounding decides its argmax
        if parameter.ndim == 2:
            parameter.data *= 3
    Policy(model, byte_tokenizer()).save(folder)
    return str(folder)


def loaded(make, folder, attn_implementation):
    return load_policy(saved(make, folder), "float32", attn_implementation, False, False, None)


def engine(kind):
    return kind(12, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, stop_strings=(), max_batch_rows=None)


@pytest.mark.parametrize("make", [gemma2, gpt_oss, mamba])
def test_a_model_without_sdpa_attention_is_told_the_one_it_has(make, tmp_path):
    with pytest.raises(UserError, match=EAGER.format(type(make()).__name__)):
        loaded(make, tmp_path, "sdpa")


def test_gemma2_runs_on_flat_tokens_once_it_is_eager(tmp_path):
    policy = loaded(gemma2, tmp_path, "eager")
    check_packed(policy.model)
    check_head(policy.model, chunk_tokens=64)


@pytest.mark.parametrize(
    ("make", "attn_implementation", "why"),
    [
        (gpt_oss, "eager", r"GptOssAttention hands \['s_aux'\] to its attention"),
        (mamba, "eager", "MambaForCausalLM has layers of type linear_attention"),
        (llama4, "sdpa", "Llama4ForCausalLM has layers of type chunked_attention"),
    ],
)
def test_a_model_with_another_attention_is_told_the_engine_that_runs_it(make, attn_implementation, why, tmp_path):
    policy = loaded(make, tmp_path, attn_implementation)
    prefixes = [policy.encode(text) for text in ("1 + 2 = ?", "12 + 45 - 7 = ?", "9")]

    def sampled(kind):
        return engine(kind).generate(policy, prefixes, [12] * 3, Sampling(temperature=0), stage_generator(0, "test"))

    with pytest.raises(UserError, match=f"^{why}: {OTHER_WAY}"):
        sampled(NativeRollout)
    # The way out: padded rows through `generate` give what each row gives alone, and the update knows the head.
    for prefix, response in zip(prefixes, sampled(HFRollout), strict=True):
        alone = policy.model.generate(
            torch.tensor([prefix]), max_new_tokens=12, do_sample=False, eos_token_id=list(policy.eos_ids)
        )
        assert response.token_ids.tolist() == alone[0, len(prefix) :].tolist()
    check_head(policy.model, chunk_tokens=64)
