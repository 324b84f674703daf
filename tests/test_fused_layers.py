"""The faster layers of a rollout on a CPU against the model's own."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from edge_grpo.errors import UserError
from edge_grpo.policy import fused_layers as fused_module
from edge_grpo.policy import packed_linear
from edge_grpo.policy.base import Policy
from edge_grpo.policy.fused_layers import copied_bytes, fused_layers
from edge_grpo.policy.kv_cache import RowCache
from edge_grpo.policy.packed_attention import AttentionOptions, RowsLayout, TreesLayout, packed_attention
from edge_grpo.policy.support import check_packed
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.rollouts.native import NativeRollout

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 261}
LLAMA = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10}
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, num_attention_heads=4, num_key_value_heads=1)),
    "qwen2, window of 3": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **SMALL,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=3,
            max_window_layers=1,
        )
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "llama, biases": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True)),
    "llama, gelu": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, hidden_act="gelu")),
}


def model_of(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = MODELS[name]().eval().to(dtype)
    for parameter in model.parameters():  # biases are 0 and norms 1 in a new model, and hide what is done to them
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits_of(model):
    """Of a prefill of two prompts of 4 and 2 tokens, and of one more token of each."""
    cache = RowCache(2, 6)
    prefill = TreesLayout([4, 2], [], [], torch.device("cpu"))
    position = torch.tensor([0, 1, 2, 3, 0, 1])
    cache.prefill_at(torch.arange(6), torch.tensor([0, 0, 0, 0, 1, 1]), position)
    with packed_attention(model):
        first = model(torch.tensor([[1, 5, 3, 9, 2, 7]]), position_ids=position[None], layout=prefill, cache=cache)
        grown = torch.tensor([4, 2])
        cache.decode_at(grown, 5)
        layout = RowsLayout(grown + 1, 5)
        second = model(torch.tensor([[4, 8]]), position_ids=grown[None], layout=layout, cache=cache, use_cache=True)
    return torch.cat([first.logits[0], second.logits[0]])


@pytest.mark.parametrize("fewest", [0, 10**9], ids=["packed", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_logits(name, fewest, monkeypatch):
    monkeypatch.setattr(packed_linear, "_FEWEST", fewest)
    monkeypatch.setattr(packed_linear, "_wins", lambda dtype: True)  # whatever this processor is
    model = model_of(name)
    own = logits_of(model)
    with fused_layers(model):
        faster = logits_of(model)
        changed = [module for module in model.modules() if "forward" in vars(module)]
    # Two layers, and with packing the head; or the 14 linear layers of a model that is not known, and the head.
    layers = 2 if name != "llama, gelu" else 0 if fewest else 14
    assert len(changed) == layers + (not fewest)
    torch.testing.assert_close(faster, own, atol=2e-5, rtol=2e-5)
    assert torch.equal(logits_of(model), own)  # as before again


def test_bfloat16_is_as_near_to_float32_as_the_models_own():
    exact, model = logits_of(model_of("llama")), model_of("llama", torch.bfloat16)
    own = (logits_of(model).float() - exact).abs().mean()
    with fused_layers(model):
        faster = (logits_of(model).float() - exact).abs().mean()
    assert faster < 1.2 * own


@pytest.mark.parametrize(
    ("capability", "amx", "packed"),
    [("AVX512_VNNI", True, [True, True]), ("AVX512", False, [True, False]), ("AVX2", True, [False, False])],
)
def test_only_processors_that_were_measured_pack(capability, amx, packed, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    wins = packed_linear._wins.__wrapped__  # not what is remembered of this processor
    assert [wins(torch.float32), wins(torch.bfloat16)] == packed
    assert not wins(torch.float64)


def test_an_error_leaves_the_model_as_it_was():
    model = model_of("llama")
    with pytest.raises(RuntimeError, match="stop"), fused_layers(model):
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_changes_in_the_numbers_of_others_is_left_alone():
    model = model_of("llama")
    seen = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(0))
    with fused_layers(model):
        logits_of(model)
        assert ["forward" in vars(layer) for layer in model.model.layers] == [False, True]
    assert seen == [0, 0]
    model.model.layers[1].input_layernorm = torch.nn.RMSNorm(32)
    with fused_layers(model):
        assert not any("forward" in vars(layer) for layer in model.model.layers)
    plain = model_of("llama")
    with torch.autocast("cpu", torch.bfloat16), fused_layers(plain):  # would be computed in float32
        assert not any("forward" in vars(module) for module in plain.modules())


def test_copies_are_of_the_weights_of_now_and_of_no_other_rollout(monkeypatch):
    monkeypatch.setattr(packed_linear, "_FEWEST", 0)
    monkeypatch.setattr(packed_linear, "_wins", lambda dtype: True)
    model = model_of("qwen2")
    policy, engine = Policy(model, byte_tokenizer()), NativeRollout(6, 1.0, 1.0, 0, 0.0, (), None)

    def rollout():
        return engine.generate(
            policy, [[1, 5, 3], [2, 7]] * 4, [6] * 8, engine.sampling, torch.Generator().manual_seed(0)
        )

    def values(responses):
        return torch.cat([response.sampling_logprobs for response in responses])

    before, again = rollout(), rollout()
    assert torch.equal(values(before), values(again))
    for parameter in model.parameters():
        parameter.data *= 1.1
    after = rollout()
    ids = torch.tensor([[1, 5, 3, *after[0].token_ids.tolist()]])
    expected = model(ids).logits[0, 2:-1].log_softmax(-1).gather(1, after[0].token_ids[:, None]).squeeze(1)
    torch.testing.assert_close(after[0].sampling_logprobs, expected.detach(), atol=1e-5, rtol=1e-4)


def test_what_is_copied_is_counted(monkeypatch):
    model = model_of("llama")
    made = []
    monkeypatch.setattr(packed_linear, "_wins", lambda dtype: True)
    monkeypatch.setattr(packed_linear, "_FEWEST", 32 * 40 + 1)  # the output of attention stays as it is
    monkeypatch.setattr(packed_linear, "_pack", lambda weight: made.append(weight.nbytes) or weight.to_mkldnn())
    with fused_layers(model):
        pass
    assert sum(made) == copied_bytes(model)


@pytest.mark.parametrize("window", [None, 2])
def test_keys_may_lie_in_either_order(window):
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 3, 8), torch.randn(5, 2, 8, 7)[:3], torch.randn(5, 2, 7, 6)[:3]
    key = key.transpose(2, 3)[:, :, :6]  # [D, tokens] in memory
    layout = RowsLayout(torch.tensor([1, 6, 4]), 6)
    for scale in (None, 0.3):
        options = AttentionOptions(scale, window, None, 0.0)
        attended = [layout.attend(query, k, value[:, :, :6], options) for k in (key, key.contiguous())]
        torch.testing.assert_close(*attended, atol=1e-6, rtol=1e-6)
    cache = RowCache(2, 5)
    cache.prefill_at(torch.arange(3), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]))
    cache.update(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8), 0)
    assert cache.keys[0].shape == (2, 2, 5, 8)
    assert cache.keys[0].stride()[2:] == (1, 5)


def test_the_models_self_check_runs_the_faster_layers(monkeypatch):
    faster = fused_module._FusedLayer.__call__
    monkeypatch.setattr(fused_module._FusedLayer, "__call__", lambda self, x, **more: 1.1 * faster(self, x, **more))
    with pytest.raises(UserError, match="gives other logits on flat tokens"):
        check_packed(model_of("llama"))
