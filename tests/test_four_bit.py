"""Adapters on weights of 4 bits: what is refused, what the policy gives others, and runs where bitsandbytes is here.

A stand-in of its layer (`fake_bitsandbytes`) takes part where the package is absent. bitsandbytes computes nf4 on
a CPU too: with it the same tests, and whole runs, go through the loader, past its demand for a GPU.
"""

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import fake_bitsandbytes
import pytest
import small_runs
import torch
from small_runs import SMALL_GRPO, equal_weights, metrics_rows, run_small, weights
from test_lora import IDS, greedy, logits, moved, plain, state_of
from test_plan import CONFIG, model_plan
from test_plan import settings as settings_of
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config

from edge_grpo.errors import UserError
from edge_grpo.planning.advice import _four_bit
from edge_grpo.planning.passes import update_pass
from edge_grpo.planning.passes import weights as weights_of
from edge_grpo.planning.plan import make_plan
from edge_grpo.planning.skeleton import Adapters
from edge_grpo.planning.stand_ins import Microbatch
from edge_grpo.planning.text import table
from edge_grpo.policy import four_bit
from edge_grpo.policy.base import Policy
from edge_grpo.policy.four_bit import check_four_bit, compute_in, plain_config
from edge_grpo.policy.load import load_policy
from edge_grpo.policy.lora import Lora
from edge_grpo.policy.precision import cast_weights
from edge_grpo.policy.support import check_head, check_packed
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.rollouts.vllm_engine import _write_model

HERE = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HERE, reason="needs bitsandbytes")


@pytest.fixture(params=["fake", pytest.param("bitsandbytes", marks=needs_bitsandbytes)])
def policy(request, tmp_path, monkeypatch):
    """Adapters on float32 weights that were rounded to 4 bits."""
    if request.param == "fake":
        base = plain()
        fake_bitsandbytes.quantise(base.model)
        adapted = Lora(4, alpha=8).adapt(base)  # before peft could take the stand-in for the package
        fake_bitsandbytes.install(monkeypatch)
        return adapted
    plain().save(tmp_path / "base")
    return loaded(tmp_path / "base", monkeypatch)


def loaded(folder, monkeypatch, dtype="float32", lora=None):
    monkeypatch.setattr(four_bit, "_sees_gpu", lambda: True)
    return load_policy(str(folder), dtype, "sdpa", False, False, None, lora=lora or Lora(4, alpha=8), load_in_4bit=True)


def packed(policy):
    return [p for p in policy.model.parameters() if getattr(p, "quant_state", None) is not None]


def test_linear_layers_have_four_bits_and_the_rest_stays(policy):
    assert len(packed(policy)) == 7 * 2
    # q [32, 32], k and v [16, 32], o [32, 32], three of the MLP [48, 32]: half a byte each, in both layers.
    assert sum(p.numel() for p in packed(policy)) == 2 * (32 * 32 * 2 + 2 * 16 * 32 + 3 * 48 * 32) // 2
    others = [p for p in policy.model.parameters() if p.dtype is not torch.uint8]
    assert {p.dtype for p in others} == {torch.float32}
    assert {name.rpartition("lora_")[2][0] for name, p in policy.model.named_parameters() if p.requires_grad} == {
        "A",
        "B",
    }


def test_others_get_the_weights_that_the_policy_computes_with(policy):
    names, model = list(dict(plain().named_weights())), plain().model
    fresh, before = dict(policy.named_weights()), dict(plain().named_weights())
    assert list(fresh) == names
    assert fresh["model.layers.0.mlp.up_proj.weight"].shape == (48, 32)
    changed = [name for name in names if not torch.equal(fresh[name], before[name])]
    assert changed == [name for name in names if name.endswith("_proj.weight")]
    assert equal_weights(fresh, dict(policy.named_weights()))
    moved(policy)
    found = dict(policy.named_weights())
    model.load_state_dict(found, strict=False)
    torch.testing.assert_close(logits(model), logits(policy.model), rtol=0, atol=2e-5)
    assert (logits(model) - logits(plain().model)).abs().max() > 0.01


def test_rollouts_and_the_update_run_on_flat_tokens(policy):
    check_head(policy.model, 2)
    check_packed(policy.model)
    moved(policy)
    assert greedy("native", policy) == greedy("hf", policy)


def test_the_reference_shares_every_weight(policy):
    initial = policy.initial()
    start = logits(policy.model)
    moved(policy)
    reference = initial()
    torch.testing.assert_close(logits(reference), start, rtol=0, atol=0)
    ours = {id(p) for p in policy.model.parameters()}
    assert all(id(p) in ours for p in reference.parameters())


def test_constants_are_frozen_and_belong_to_the_digest(policy):
    frozen, state = policy.frozen(), policy.model.state_dict()
    assert [name for name in state if name not in frozen] == [name for name in state if ".lora_" in name]
    digest = policy.frozen_digest()
    assert policy.frozen_digest() == digest
    packed(policy)[3].quant_state.absmax[0] += 1  # the same 4 bits, scaled otherwise
    assert policy.frozen_digest() != digest


def test_the_export_is_the_plain_model_of_what_was_trained(policy, tmp_path):
    moved(policy).save(tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(policy.model), rtol=0, atol=2e-5)
    assert found.dtype is torch.float32
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert len(packed(policy)) == 7 * 2  # training could go on


def test_an_engine_of_its_own_is_told_of_a_plain_model(policy, tmp_path):
    policy.model.config.quantization_config = {"load_in_4bit": True}
    _write_model(policy, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert policy.model.config.quantization_config  # of the policy it stays
    assert plain_config(plain().model) is not None


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16)],
)
def test_layers_compute_as_the_trainer_does(policy, precision, expected):
    cast_weights(policy, precision)
    layers = [m for m in policy.model.modules() if hasattr(m, "compute_dtype")]
    assert [layer.compute_dtype for layer in layers] == [expected] * 14
    assert all(p.dtype is torch.uint8 for p in packed(policy))
    assert {p.dtype for p in packed(policy)} == {torch.uint8}
    compute_in(plain().model, precision)  # nothing to do


# What is refused


def test_what_is_not_there_is_refused_before_anything_is_loaded(monkeypatch):
    four = Lora(4)

    def refused(message, lora=four):
        with pytest.raises(UserError, match=message):
            load_policy("nowhere/at-all", "bfloat16", "sdpa", False, False, None, lora=lora, load_in_4bit=True)

    refused(r"adapters must be trained: set model\.lora\.r=16", None)
    refused(r"adapters must be trained: set model\.lora\.r=16", Lora(None))

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    refused(r"needs bitsandbytes: pip install 'edge-grpo\[quantized,lora\]'")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.47.0")
    refused(r"works with bitsandbytes 0\.48 or newer, and 0\.47\.0 is installed")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.100.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(r"torch sees no GPU: set model\.load_in_4bit=false")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_four_bit(adapters=True)


def test_an_adapters_folder_is_no_model_of_four_bits(monkeypatch, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("edge_grpo.policy.load.check_four_bit", lambda adapters: None)
    with pytest.raises(UserError, match=r"is an adapter, and model\.load_in_4bit=true would round it away"):
        loaded(tmp_path, monkeypatch)


# With bitsandbytes


@needs_bitsandbytes
def test_transposed_layers_are_exported_as_they_came(tmp_path, monkeypatch):
    config = GPT2Config(vocab_size=261, n_embd=32, n_layer=1, n_head=2, n_positions=64, eos_token_id=256)
    Policy(GPT2LMHeadModel(config), byte_tokenizer()).save(tmp_path / "base")
    policy = moved(loaded(tmp_path / "base", monkeypatch))
    policy.save(tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(policy.model), rtol=0, atol=2e-5)


@needs_bitsandbytes
def test_gradient_checkpointing_reaches_the_adapters(tmp_path, monkeypatch):
    plain().save(tmp_path)
    policy = moved(loaded(tmp_path, monkeypatch, "bfloat16"))
    seen = []
    for checkpointing in (False, True):
        if checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.model.train().zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            policy.model(input_ids=IDS).logits.float().log_softmax(-1)[..., 3].sum().backward()
        seen.append([p.grad.clone() for p in policy.model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(*seen, strict=True))


@needs_bitsandbytes
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_two_and_two_iterations_are_four(precision, tmp_path, monkeypatch):
    monkeypatch.setattr(four_bit, "_sees_gpu", lambda: True)
    monkeypatch.setattr(small_runs, "SMALL_GRPO", [s for s in SMALL_GRPO if not s.startswith("model")])
    plain().save(tmp_path / "base")
    settings = (
        "experiment=vanilla",
        "reward=python",
        f"reward.function={Path(__file__).parent}/examples/my_strategies.py:even_checksum",
        "model=hf",
        f"model.path={tmp_path / 'base'}",
        "model.load_in_4bit=true",
        "model.lora.r=2",
        "optimizer.lr=0.05",
        "loss.beta=0.1",
        "evaluation.every_n_iterations=2",
        f"trainer.precision={precision}",
    )
    whole = run_small(tmp_path / "whole", *settings, "trainer.max_iterations=4")
    run_small(tmp_path / "parts", *settings, "trainer.max_iterations=2")
    parts = run_small(tmp_path / "parts", *settings, "trainer.max_iterations=4")
    assert equal_weights(weights(whole), weights(parts))
    assert metrics_rows(whole, timed=False) == metrics_rows(parts, timed=False)
    state, manifest = state_of(whole)
    assert {".lora_" in name for name in state["state_dict"] if name.startswith("model.")} == {True}
    assert len(manifest["frozen_weights"]) == 64
    rows = metrics_rows(whole)
    assert float(rows[0]["train/kl"]) == 0 < float(rows[3]["train/kl"])


# The plan


def bytes_of(count):
    """Of a weight of so many numbers: half a byte each, a byte for 64, four for 64 * 256, and 273 numbers of four."""
    return -(-count // 2) + -(-count // 64) + 4 * -(-count // (64 * 256)) + 4 * 273


def four_bit_plan(**changes):
    return model_plan(**{"four_bit": True, "adapters": Adapters(1, 0.0, None, "float32"), **changes})


def test_the_plan_counts_four_bits_by_hand():
    of, whole = weights_of(four_bit_plan()), weights_of(four_bit_plan(four_bit=False))
    # A layer's matrices: q and o 8 * 8, k and v 4 * 8, three of the MLP 12 * 8. Embedding, head and norms are float32.
    matrices = 2 * [64, 32, 32, 64, 96, 96, 96]
    assert of.bytes == whole.bytes - 4 * sum(matrices) + sum(map(bytes_of, matrices))
    assert (of.parameters, of.plain_bytes, of.trained) == (whole.parameters, whole.bytes, whole.trained)
    plan = make_plan(settings_of("model=hf", "model.path=x", "model.load_in_4bit=true", "model.lora.r=1"))
    assert (plan.weights, plan.exported) == (of.bytes, whole.bytes)
    assert "in float32, linear layers in 4 bits" in table(plan, "somewhere")


def test_the_plan_has_room_for_the_weight_of_a_product():
    # [5,000, 64] in float32 is made for a product, where two tokens keep a few numbers of each of the 5,000.
    config = Qwen2Config(**CONFIG.to_dict() | {"hidden_size": 64, "intermediate_size": 5000})
    two = Microbatch(1, 1, 1, 1, False)
    plain_pass, four = (
        update_pass(four_bit_plan(config=config, four_bit=bits), two, 4, later=True, in_place=True).activations
        for bits in (False, True)
    )
    assert plain_pass < 4 * 64 * 5000 < four


def test_four_bits_are_the_last_advice_for_adapters_on_a_gpu():
    hf = ("model=hf", "model.path=x", "trainer.accelerator=gpu")
    offers = [text for text, _ in _four_bit(settings_of(*hf, "model.lora.r=4"))]
    assert offers == ["model.load_in_4bit=true"]
    for others in (hf, (*hf[:2], "trainer.accelerator=cpu", "model.lora.r=4"), ("trainer.accelerator=gpu",)):
        assert not list(_four_bit(settings_of(*others)))
    assert not list(_four_bit(settings_of(*hf, "model.lora.r=4", "model.load_in_4bit=true")))


@needs_bitsandbytes
def test_the_weights_take_what_the_plan_says(tmp_path, monkeypatch):
    plain().save(tmp_path)
    policy = loaded(tmp_path, monkeypatch, "bfloat16", Lora(1))
    kept = [p.nbytes for p in policy.model.parameters()]
    for weight in packed(policy):
        state = weight.quant_state
        kept += [x.nbytes for x in (state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset)]
    plan = four_bit_plan(config=plain_config(policy.model), dtype="bfloat16")
    assert weights_of(plan).bytes == sum(kept)
