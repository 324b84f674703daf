"""LoRA: what is trained, what is kept, what is exported, and that the model under the adapters never changes."""

import importlib.util
import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_runs import SHORT, composed, equal_weights, metrics_rows, run_small, weights
from test_difficulty import SMALL as DIFFICULTY
from test_evaluate import evaluate, small
from test_grpo_module import Kept, clipped, eda, exact, run
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from edge_grpo.errors import UserError
from edge_grpo.policy import tiny
from edge_grpo.policy.base import Policy
from edge_grpo.policy.load import load_policy
from edge_grpo.policy.lora import Lora
from edge_grpo.policy.support import check_head, check_packed
from edge_grpo.policy.tiny import byte_tokenizer, random_tiny_policy
from edge_grpo.programs.difficulty_run import measure_difficulty
from edge_grpo.rollouts.hf import HFRollout
from edge_grpo.rollouts.native import NativeRollout
from edge_grpo.runs.checkpoints import checkpoints, read_manifest
from edge_grpo.runs.settings import FROZEN

SHAPE = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 48}
IDS = torch.tensor([[5, 17, 200, 3, 99]])
PREFIXES = [[5, 17, 200], [9, 9]]
LORA = ("model.lora.r=2", "model.lora.alpha=8")
FOUR = (
    "experiment=edge_grpo",
    *SHORT,
    *LORA,
    "trainer.max_iterations=4",
    "optimizer.lr=0.05",
    "evaluation.every_n_iterations=2",
)


def plain():
    return random_tiny_policy(0, **SHAPE)


def adapted(**settings):
    return random_tiny_policy(0, **SHAPE, lora=Lora(**{"r": 4, "alpha": 8, **settings}))


def moved(policy):
    """The policy after a training that is as good as any: adapters that do something."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(policy).values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return policy


def trained(policy):
    return {name: p for name, p in policy.model.named_parameters() if p.requires_grad}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def greedy(engine, policy):
    kind = {"native": NativeRollout, "hf": HFRollout}[engine]
    made = kind(8, 0.0, 1.0, 0, 0.0, (), None)
    responses = made.generate(policy, PREFIXES, [8, 8], made.sampling, torch.Generator().manual_seed(0))
    return [response.token_ids.tolist() for response in responses]


def test_starts_as_the_model_and_trains_a_and_b_alone():
    policy = adapted()
    torch.testing.assert_close(logits(policy.model), logits(plain().model), rtol=0, atol=0)
    sizes = {
        name.partition(".layers.")[2].removesuffix(".default.weight"): p.shape for name, p in trained(policy).items()
    }
    # 7 linear layers in each of 2 blocks, A and B each. K has 2 heads of 32 / 4.
    assert len(sizes) == 2 * 7 * 2
    assert sizes["1.self_attn.k_proj.lora_A"] == (4, 32)
    assert sizes["1.self_attn.k_proj.lora_B"] == (2 * 8, 4)
    assert sizes["0.mlp.down_proj.lora_A"] == (4, 48)


def test_the_seed_draws_a_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (trained(adapted(seed=seed)) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_a_layer_by_hand():
    policy = adapted(r=1, alpha=6, targets="o_proj")
    layer = policy.model.get_base_model().model.layers[0].self_attn.o_proj
    h = torch.zeros(32)
    h[:2] = torch.tensor([1.0, 2.0])
    a, b = torch.zeros(1, 32), torch.zeros(32, 1)
    a[0, :2], b[3] = torch.tensor([10.0, 100.0]), 0.5
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
    # alpha / r * B A h = 6 / 1 * 0.5 * (10 + 200) in place 3
    added = torch.zeros(32)
    added[3] = 630.0
    torch.testing.assert_close(layer(h), layer.base_layer(h) + added, rtol=0, atol=0)
    merged = dict(policy.named_weights())["model.layers.0.self_attn.o_proj.weight"]
    # In W the same is 6 * 0.5 * 10 at [3, 0] and 6 * 0.5 * 100 at [3, 1].
    expected = torch.zeros(32, 32)
    expected[3, :2] = torch.tensor([30.0, 300.0])
    torch.testing.assert_close(merged, layer.base_layer.weight.detach() + expected, rtol=0, atol=0)


def test_adapters_are_float32_on_bfloat16_weights(tmp_path):
    plain().save(tmp_path)
    policy = load_policy(str(tmp_path), "bfloat16", "sdpa", False, False, None, lora=Lora(2))
    assert {p.dtype for p in trained(policy).values()} == {torch.float32}
    assert {p.dtype for p in policy.frozen().values()} == {torch.bfloat16}
    assert {weight.dtype for _, weight in moved(policy).named_weights()} == {torch.bfloat16}
    check_head(policy.model, 2)
    check_packed(policy.model)


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_rollouts_go_through_the_adapters(engine, tmp_path):
    policy = moved(adapted())
    check_head(policy.model, 2)
    check_packed(policy.model)
    policy.save(tmp_path)
    merged = load_policy(str(tmp_path), "float32", "sdpa", False, False, None)
    assert greedy(engine, policy) == greedy(engine, merged) == greedy("hf", merged)
    assert greedy(engine, policy) != greedy(engine, plain())


def test_the_reference_is_the_model_without_adapters_and_holds_no_tensor_of_its_own():
    policy = adapted()
    initial = policy.initial()
    moved(policy)
    reference = initial()
    torch.testing.assert_close(logits(reference), logits(plain().model), rtol=0, atol=0)
    assert not any(".lora_" in name for name, _ in reference.named_parameters())
    theirs = {tensor.data_ptr() for tensor in (*reference.parameters(), *reference.buffers())}
    assert theirs <= {tensor.data_ptr() for tensor in (*policy.model.parameters(), *policy.model.buffers())}
    assert not torch.equal(logits(policy.model), logits(reference))  # the policy has kept its adapters
    assert len(trained(policy)) == 28


def test_a_policy_without_adapters_keeps_a_copy_of_itself():
    policy = adapted(r=None)
    initial = policy.initial()
    policy.model.model.norm.weight.data += 1
    torch.testing.assert_close(logits(initial()), logits(plain().model), rtol=0, atol=0)
    assert policy.frozen() == {}
    assert policy.frozen_digest() is None


def digest(**weights):
    model = plain().model.requires_grad_(True)
    for name, weight in weights.items():
        model.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))
    return Policy(model, byte_tokenizer()).frozen_digest()


def test_the_digest_is_of_names_types_shapes_and_bits():
    zeros = torch.zeros(2, 3)
    others = (
        digest(b=zeros),
        digest(a=zeros.reshape(3, 2)),
        digest(a=torch.zeros(2, 6, dtype=torch.bfloat16)),
        digest(a=-zeros),  # equal, and other bits
        digest(a=zeros, b=zeros),
    )
    assert digest(a=zeros) == digest(a=zeros.clone())
    assert len({digest(a=zeros), *others}) == 6


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_kl_term_is_zero_at_first(precision, tmp_path):
    settings = (*SHORT, *LORA, "loss.beta=0.1", "optimizer.lr=0.05", f"trainer.precision={precision}")
    rows = metrics_rows(run_small(tmp_path, "experiment=gec", *settings))
    first, second = (float(row["train/kl"]) for row in rows[:2])
    assert first == 0
    assert second > 0


@pytest.mark.parametrize("packing", [True, False])
def test_gradient_checkpointing_reaches_adapters_under_frozen_embeddings(packing, tmp_path):
    seen = {}
    for checkpointing in (False, True):
        if not checkpointing:
            plain().save(tmp_path)
        policy = load_policy(str(tmp_path), "float32", "sdpa", checkpointing, False, None, lora=Lora(4))
        model = exact(moved(policy).model)
        with (kept := Kept()):
            gradients, _, _ = run(model, clipped(), eda(), packing=packing)
        assert all(p.grad is None for p in policy.model.parameters() if not p.requires_grad)
        seen[checkpointing] = gradients[0], kept.bytes
    assert seen[False][0].abs().max() > 0
    torch.testing.assert_close(seen[True][0], seen[False][0], rtol=1e-12, atol=1e-12)
    assert seen[True][1] < 0.5 * seen[False][1]


def test_named_weights_are_the_plain_models():
    policy = moved(adapted())
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    found, model = dict(policy.named_weights()), plain().model
    assert list(found) == list(dict(model.named_parameters())) == list(dict(plain().named_weights()))
    assert "lm_head.weight" not in found  # it is tied to the embedding
    model.load_state_dict(found, strict=False)
    torch.testing.assert_close(logits(model), logits(policy.model), rtol=0, atol=1e-5)
    assert (logits(model) - logits(plain().model)).abs().max() > 0.01
    assert equal_weights(policy.model.state_dict(), before)


def test_transposed_layers_are_merged_too(tmp_path):
    config = GPT2Config(vocab_size=261, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=256)
    policy = moved(Lora(2).adapt(Policy(GPT2LMHeadModel(config), byte_tokenizer())))
    policy.save(tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(found), logits(policy.model), rtol=0, atol=1e-5)


def test_the_export_loads_with_and_without_peft_and_changes_no_bit(tmp_path):
    policy = moved(adapted())
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    policy.save(tmp_path)
    assert equal_weights(policy.model.state_dict(), before)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(merged), logits(policy.model), rtol=0, atol=1e-5)
    alone = PeftModel.from_pretrained(plain().model, tmp_path / "adapter")
    torch.testing.assert_close(logits(alone), logits(policy.model), rtol=0, atol=0)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_adapters_folder_is_a_model(tmp_path):
    plain().save(tmp_path / "base")
    settings = ("float32", "sdpa", False, False, None)
    policy = moved(load_policy(str(tmp_path / "base"), *settings, lora=Lora(4)))
    policy.save(tmp_path / "model")
    found = load_policy(str(tmp_path / "model" / "adapter"), *settings)
    assert found.frozen() == {}
    assert equal_weights(dict(found.model.named_parameters()), dict(policy.named_weights()))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"the model that this adapter belongs to, .*/base, is not there: set base_model_"
    ):
        load_policy(str(tmp_path / "model" / "adapter"), *settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"r": 0}, "model.lora.r=0 must be at least 1"),
        ({"alpha": 0}, "model.lora.alpha=0 must be above 0"),
        ({"dropout": 1.0}, "model.lora.dropout=1.0 must be at least 0 and below 1"),
        (
            {"targets": "proj"},
            "proj names no linear layer of Qwen2ForCausalLM, which has q_proj, k_proj, v_proj, o_proj",
        ),
        ({"targets": ["q_proj", "lm_head"]}, "targets=['q_proj', 'lm_head']: lm_head names no linear layer"),
        ({"targets": "embed_tokens"}, "embed_tokens names no linear layer"),
        ({"targets": []}, "targets=[]: nothing names no linear layer"),
    ],
)
def test_what_is_refused(settings, told):
    with pytest.raises(UserError, match=re.escape(told)):
        adapted(**settings)


def test_targets_by_whole_name_and_by_its_end():
    found = trained(adapted(targets=["layers.1.mlp.up_proj", "v_proj"]))
    layers = {name.partition(".layers.")[2].partition(".lora_")[0] for name in found}
    assert layers == {"1.mlp.up_proj", "0.self_attn.v_proj", "1.self_attn.v_proj"}


def test_peft_is_asked_for_before_the_model_loads(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny, "byte_tokenizer", None)  # no model without it
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else there(name, *more))
    with pytest.raises(UserError, match=re.escape("model.lora.r=2 needs peft: pip install 'edge-grpo[lora]'")):
        run_small(tmp_path, *LORA)


def test_r_switches_adapters_on_and_the_node_may_be_null():
    for typed, expected in (("model.lora.r=8", 8), ("model.lora={r: 8}", 8), ("model.lora.r=null", None)):
        node = composed("train", typed)[0].model.lora
        assert (node.r, node.alpha, node.targets) == (expected, 32, "all-linear")
    assert composed("train", "model.lora=null")[0].model.lora is None


# Runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four iterations in one go."""
    return run_small(tmp_path_factory.mktemp("whole") / "run", *FOUR)


def test_two_and_two_iterations_are_four(whole, tmp_path):
    run_small(tmp_path, *FOUR, "trainer.max_iterations=2")
    run_small(tmp_path, *FOUR)
    assert equal_weights(weights(tmp_path), weights(whole))
    adapters = [load_file(folder / "model" / "adapter" / "adapter_model.safetensors") for folder in (tmp_path, whole)]
    assert equal_weights(*adapters)
    assert any(value.abs().max() > 0 for name, value in adapters[0].items() if "lora_B" in name)
    assert metrics_rows(tmp_path, timed=False) == metrics_rows(whole, timed=False)


def state_of(folder):
    newest = checkpoints(folder / "checkpoints")[-1]
    return torch.load(newest / "state.ckpt", weights_only=True), read_manifest(newest)


def test_a_checkpoint_holds_what_is_trained(whole):
    state, manifest = state_of(whole)
    of_model = [name for name in state["state_dict"] if name.startswith("model.")]
    assert len(of_model) == 7 * 2
    assert all(".lora_" in name for name in of_model)
    assert len(state["optimizer_states"][0]["state"]) == 7 * 2
    assert len(manifest[FROZEN]) == 64


def changed(adapt):
    """`adapt` on a model of which one weight is another."""

    def on_another(lora, policy):
        policy.model.model.norm.weight.data[3] += 1e-6
        return adapt(lora, policy)

    return on_another


def test_a_model_that_has_changed_under_the_adapters_is_refused(tmp_path, monkeypatch):
    # The same settings, and another bit in the weights that they lead to.
    with monkeypatch.context() as patch:
        run_small(tmp_path, *FOUR, "trainer.max_iterations=1")
        patch.setattr(Lora, "adapt", changed(Lora.adapt))
        with pytest.raises(UserError, match=r"the frozen weights are not those that .*iteration-000001 was trained on"):
            run_small(tmp_path, *FOUR)
        with pytest.raises(UserError, match=r"the frozen weights are not those"):
            evaluate(tmp_path / "out", f"run={tmp_path}/checkpoints/iteration-000001", *small("chain2")[6:])


def test_evaluation_takes_the_export_and_the_checkpoint(whole, tmp_path):
    newest = checkpoints(whole / "checkpoints")[-1]
    settings = small("chain2")[6:]
    exported, checkpointed = (
        evaluate(tmp_path / name, f"run={run}", *settings, "evaluation.temperature=0", "evaluation.num_samples=1")
        for name, run in (("a", whole), ("b", newest))
    )
    assert exported == checkpointed
    texts = [(tmp_path / name / "completions.parquet").exists() for name in ("a", "b")]
    assert all(texts)


def test_difficulty_and_sft_take_adapters(tmp_path):
    cfg, _ = composed("difficulty", *DIFFICULTY, *LORA, f"paths.run_dir={tmp_path}/difficulty")
    assert measure_difficulty(cfg) == 1.0
    folder = run_small(tmp_path / "sft", *LORA, "optimizer.lr=0.05", config_name="sft")
    state, _ = state_of(folder)
    assert {".lora_" in name for name in state["state_dict"]} == {True}
    losses = [float(row["sft/loss"]) for row in metrics_rows(folder) if row.get("sft/loss")]
    assert losses[-1] < losses[0]
