"""rollout=vllm against a stand-in for the package; tests/test_vllm_engine.py has the real one."""

import importlib.metadata
import random
from types import SimpleNamespace

import fake_vllm
import numpy as np
import pytest
import torch
from fake_vllm import PADDING, EngineModel, FakeLLM
from small_runs import composed, metrics_rows, run_small

from edge_grpo.command_line.check import instantiate
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import random_tiny_policy
from edge_grpo.programs.context import check_context
from edge_grpo.programs.train_run import build_module
from edge_grpo.rollouts.base import Sampling
from edge_grpo.rollouts.isolation import untouched
from edge_grpo.rollouts.vllm import VLLMRollout
from edge_grpo.rollouts.vllm_engine import Engine
from edge_grpo.rollouts.vllm_weights import compare, policy_samples
from edge_grpo.seeding import stage_generator

PREFIXES = [[65, 66], [67, 68, 69], [65, 66]]


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    fake_vllm.install(monkeypatch)


def rollout(**changed):
    settings = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "stop_strings": ()}
    settings |= {"max_batch_rows": None, "max_model_len": 64, "kv_cache_gb": 0.5, "dtype": None, "enforce_eager": True}
    return VLLMRollout(**(settings | changed))


def generate(made, policy, sampling=None, seed=0, budgets=(6, 4, 6)):
    return made.generate(policy, PREFIXES, budgets, sampling or Sampling(), stage_generator(seed, "test"))


def step(policy):
    """What an optimiser step does to the weights."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)


# --- the package ------------------------------------------------------------------------------------------------------


def test_absent_it_is_refused_with_the_command_that_installs_it(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match=r"pip install 'edge-grpo\[vllm\]'.*or set rollout=native"):
        rollout()


@pytest.mark.parametrize(("version", "accepted"), [("0.32.0", True), ("0.32.0+cpu", True), ("0.33.0", False)])
def test_another_version_is_refused(version, accepted, monkeypatch):
    fake_vllm.install(monkeypatch, version=version)
    if accepted:
        rollout()
    else:
        with pytest.raises(UserError, match=r"works with vllm 0\.32\.0, and vllm 0\.33\.0 is installed"):
            rollout()


def test_it_is_refused_before_a_model_is_loaded(monkeypatch):
    fake_vllm.install(monkeypatch, version="0.1")
    cfg, _ = composed("train", "rollout=vllm", "model=hf", "model.path=/no/such/model")
    with pytest.raises(UserError, match=r"works with vllm 0\.32\.0"):
        build_module(cfg)


@pytest.mark.parametrize("changed", [{"kv_cache_gb": 0.0}, {"max_model_len": 1}, {"max_new_tokens": 0}])
def test_values_out_of_range_are_refused(changed):
    with pytest.raises(UserError, match=next(iter(changed))):
        rollout(**changed)


# --- the proof --------------------------------------------------------------------------------------------------------


def compared(policy, model, turn=0):
    return compare(model, policy_samples(policy.named_weights(), torch.float32, turn), turn)


def test_joined_packed_and_padded_weights_are_those_of_the_policy(policy):
    for turn in range(3):
        found = compared(policy, EngineModel(policy.model), turn)
        assert found.different == []
        assert found.unseen == []  # every tensor of the policy was looked at


def of_layer(name):
    return f"model.layers.1.{name}"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            "self_attn.q_proj.weight",
            "self_attn.q_proj.weight + {0}self_attn.k_proj.weight + {0}self_attn.v_proj.weight",
        ),
        ("self_attn.v_proj.bias", "self_attn.q_proj.bias + {0}self_attn.k_proj.bias + {0}self_attn.v_proj.bias"),
        ("mlp.up_proj.weight", "mlp.gate_proj.weight + {0}mlp.up_proj.weight"),
        ("mlp.down_proj.weight", "mlp.down_proj.weight"),
        ("input_layernorm.weight", "input_layernorm.weight"),
    ],
)
def test_one_tensor_that_differs_is_named(changed, told, policy):
    engine = EngineModel(policy.model)
    with torch.no_grad():
        policy.model.get_parameter(of_layer(changed)).add_(1e-6)
    assert compared(policy, engine).different == [of_layer(told.format("model.layers.1."))]


def test_a_head_that_shares_the_embedding_is_used_and_not_read(policy):
    # The embedding is up to date, and the head multiplies by the copy that it packed before.
    old = EngineModel(policy.model).lm_head
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.add_(1.0)
    assert compared(policy, EngineModel(policy.model)).different == []
    assert compared(policy, EngineModel(policy.model, head=old)).different == ["model.embed_tokens.weight"]


def test_in_time_every_column_is_compared(policy):
    # A matrix of 64 columns (down_proj): 7919 and 64 have no common divisor, so 64 turns see each of them once.
    engine = EngineModel(policy.model)
    with torch.no_grad():
        policy.model.get_parameter(of_layer("mlp.down_proj.weight"))[:, 17].add_(1.0)
    found = [bool(compared(policy, engine, turn).different) for turn in range(64)]
    assert sum(found) == 1


def test_what_the_engine_rounds_to_is_compared(policy):
    engine = EngineModel(policy.model).bfloat16()
    for module in engine.modules():
        if hasattr(module, "copy"):
            module.copy = module.copy.bfloat16()
    assert compare(engine, policy_samples(policy.named_weights(), torch.bfloat16, 1), 1).different == []


def test_a_tensor_under_an_unknown_name_is_told(policy):
    engine = EngineModel(policy.model)
    engine.model.norm, engine.model.final = torch.nn.Identity(), engine.model.norm
    assert compared(policy, engine).unseen == ["model.norm.weight"]
    assert PADDING > 0


# --- weights are pushed when they have changed ------------------------------------------------------------------------


def test_weights_are_pushed_once_a_change_and_never_otherwise(policy):
    made = rollout()
    for _ in range(2):
        generate(made, policy)
    [llm] = FakeLLM.made
    assert llm.settings["load_format"] == "dummy"
    assert llm.reloads == 1
    step(policy)
    generate(made, policy)
    generate(made, policy, Sampling(temperature=0))
    assert llm.reloads == 2
    assert llm.resets == 5  # four calls and the check at the start: what was computed before is never reused


def test_writes_that_torch_does_not_count_are_found_out(policy):
    made = rollout()
    generate(made, policy)
    version = policy.model.get_parameter("model.norm.weight")._version
    policy.model.get_parameter("model.norm.weight").data.mul_(2)
    assert policy.model.get_parameter("model.norm.weight")._version == version
    generate(made, policy)
    assert FakeLLM.made[0].reloads == 2
    assert made.take_metrics()["rollout/weights_current"] == 1.0


def test_a_stale_engine_is_caught_in_the_first_rollout(policy, monkeypatch):
    monkeypatch.setattr(FakeLLM, "loads", False)
    with pytest.raises(
        UserError, match=r"does not have the policy's weights \(\d+ of its tensors differ, the first is mo"
    ):
        generate(rollout(), policy)


def test_an_engine_that_turns_stale_is_caught_in_the_next_rollout(policy, monkeypatch):
    made = rollout()
    generate(made, policy)
    monkeypatch.setattr(FakeLLM, "loads", False)
    step(policy)
    with pytest.raises(UserError, match="does not have the policy's weights"):
        generate(made, policy)


def test_the_same_model_object_is_not_taken_for_another_one(policy):
    # A second policy of the same shape in the same engine: pushed, though no write is counted.
    generate(rollout(), policy)
    other = random_tiny_policy(seed=5, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64)
    out = generate(rollout(), other, Sampling(temperature=0))
    [llm] = FakeLLM.made
    assert llm.reloads == 2
    expected = other.model.generate(
        torch.tensor([PREFIXES[0]]), max_new_tokens=6, do_sample=False, eos_token_id=list(other.eos_ids)
    )
    assert out[0].token_ids.tolist() == expected[0, 2:].tolist()


def test_another_model_takes_the_place_of_the_engine(policy):
    generate(rollout(), policy)
    generate(rollout(), random_tiny_policy(seed=0, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2))
    first, second = FakeLLM.made
    assert first.closed
    assert not second.closed


def test_other_settings_take_another_engine_and_several_ranks_refuse(policy, monkeypatch):
    made = rollout()
    generate(made, policy)
    monkeypatch.setattr(made._engine, "_owns_group", False)
    with pytest.raises(UserError, match=r"belongs to an earlier run .* start each run as a process of its own"):
        generate(rollout(max_model_len=32), policy)


def test_a_run_starts_it_before_any_call(tmp_path, monkeypatch):
    """All ranks at once, although one of them may have no problem to evaluate."""
    called = []
    for name in ("start", "generate"):
        own = getattr(VLLMRollout, name)
        monkeypatch.setattr(VLLMRollout, name, lambda *of, name=name, own=own: (called.append(name), own(*of))[1])
    run_small(tmp_path, "rollout=vllm", "rollout.max_model_len=512", "correction=none", "trainer.max_iterations=1")
    assert called[0] == "start"
    assert called.count("start") == len(FakeLLM.made) == 1


def test_it_rests_from_its_start_on_and_ends_with_torchs_group(policy, monkeypatch):
    rested = []
    monkeypatch.setattr(Engine, "rest", lambda engine: rested.append(engine))
    made = rollout()
    made.start(policy)
    assert len(rested) == 1
    generate(made, policy)
    (llm,) = FakeLLM.made
    monkeypatch.setattr(made._engine, "_owns_group", False)  # of several ranks
    Engine.end_with_group()
    Engine.end_with_group()  # there is none any more
    assert llm.closed
    generate(rollout(), policy)  # the next job of a sweep
    assert len(FakeLLM.made) == 2


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_responses_have_tokens_logprobs_and_no_entropies(policy):
    for prefix, response, budget in zip(PREFIXES, generate(rollout(), policy), (6, 4, 6), strict=True):
        assert len(response) <= budget
        assert response.entropies is None
        ids = torch.tensor([[*prefix, *response.token_ids.tolist()]])
        logits = policy.model(ids).logits[0, len(prefix) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, response.token_ids[:, None]).squeeze(1)
        torch.testing.assert_close(response.sampling_logprobs, expected, atol=1e-5, rtol=0)
        assert (response.finish_reason == "stop") == (int(response.token_ids[-1]) in policy.eos_ids)


def test_a_call_has_its_seed(policy):
    made = rollout()
    first, again, other = (generate(made, policy, seed=seed) for seed in (1, 1, 2))
    assert [r.token_ids.tolist() for r in first] == [r.token_ids.tolist() for r in again]
    assert [r.token_ids.tolist() for r in first] != [r.token_ids.tolist() for r in other]
    assert {params.seed for params in FakeLLM.made[0].params} == {None}  # the CPU takes no seed a row


def test_a_gpu_has_a_seed_a_row_and_sleeps_between_calls(policy):
    # The engine believes to be on a GPU; the weights are where they are.
    made = rollout()
    generate(made, policy)
    engine, llm = made._engine, FakeLLM.made[0]
    engine.settings = engine.settings._replace(device=1, sleeps=True)
    calls = []
    llm.sleep, llm.wake_up = lambda level: calls.append(level), lambda: calls.append("awake")
    generate(made, policy)
    assert len({params.seed for params in llm.params}) == 3
    assert calls == [1]
    generate(made, policy)
    assert calls == [1, "awake", 1]


def test_greedy_responses_have_logprob_0(policy):
    for response in generate(rollout(), policy, Sampling(temperature=0)):
        assert response.sampling_logprobs.tolist() == [0.0] * len(response)


def test_settings_reach_the_engine(policy):
    made = rollout(stop_strings=("=", "\n"), top_p=0.9, top_k=5, min_p=0.1, temperature=0.7, max_batch_rows=7)
    generate(made, policy, made.sampling)
    [llm] = FakeLLM.made
    assert llm.settings["max_num_seqs"] == 7
    assert llm.settings["max_model_len"] == 64
    assert llm.settings["kv_cache_memory_bytes"] == 2**29
    assert llm.settings["dtype"] == "float32"
    params = llm.params[1]
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.7, 0.9, 5, 0.1)
    assert (params.max_tokens, params.stop, params.detokenize) == (4, ["=", "\n"], True)
    assert params.stop_token_ids == list(policy.eos_ids)


def test_generators_threads_and_default_type_are_as_before(policy):
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(2), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    generate(rollout(), policy)
    drawn = torch.rand(2), np.random.rand(), random.random()
    assert torch.equal(drawn[0], expected[0])
    assert drawn[1:] == expected[1:]
    assert (torch.get_num_threads(), torch.set_num_threads) == (threads, set_threads)


@pytest.mark.parametrize("eager", [True, False])
def test_an_eager_engine_compiles_nothing(eager):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    function = torch.compile(lambda x: x + 1, backend=backend)
    with untouched(torch.device("cpu"), eager=eager):
        assert function(torch.zeros(2)).tolist() == [1.0, 1.0]
    assert bool(compiled) is not eager


def test_metrics_are_of_the_calls_since_the_last_time(policy):
    made = rollout()
    assert made.take_metrics() == {}
    generate(made, policy)
    generate(made, policy)
    taken = made.take_metrics()
    assert taken["rollout/weights_current"] == 1.0
    assert taken["rollout/weight_sync_s"] > 0
    assert made.take_metrics() == {}


# --- what is refused before training ----------------------------------------------------------------------------------


def test_engine_and_policy_that_disagree_are_refused_with_the_numbers(policy, monkeypatch):
    monkeypatch.setattr(FakeLLM, "sharpness", 1.5)
    with pytest.raises(UserError, match=r"differ by [\d.]+ nats in the mean, and 0\.001 are allowed in float32"):
        generate(rollout(), policy)


def test_an_unknown_architecture_is_refused(policy, monkeypatch):
    fake_vllm.install(monkeypatch, architectures=["LlamaForCausalLM"])
    with pytest.raises(UserError, match=r"vllm 0\.32\.0 does not know Qwen2ForCausalLM: set rollout=native"):
        generate(rollout(), policy)


def test_too_little_memory_is_told_in_one_line(policy, monkeypatch):
    monkeypatch.setattr(FakeLLM, "fails", ValueError("To serve one request, 8 GiB\n KV cache is needed"))
    with pytest.raises(
        UserError, match=r"does not start: To serve one request, 8 GiB KV cache is needed Set rollout\.kv"
    ):
        generate(rollout(), policy)


def test_the_bound_of_the_engine_is_checked_like_the_context(policy):
    with pytest.raises(UserError, match=r"row 1: 3 prompt tokens \+ 6 new tokens exceed rollout\.max_model_len of 8"):
        generate(rollout(max_model_len=8), policy, budgets=(6, 6, 6))
    problem = SimpleNamespace(prompt_ids=(1, 2, 3), origin="file:1")
    check_context([problem], policy, [5], "way out", max_model_len=8)
    with pytest.raises(UserError, match=r"up to 6 response tokens exceed rollout\.max_model_len of 8: way out"):
        check_context([problem], policy, [6], "way out", max_model_len=8)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("token_filter=top_entropy", "TopEntropy"),
        ("loss=adaptive_entropy", "AdaptiveEntropyLoss"),
        ("correction=exgrpo", "ExGRPO"),
    ],
)
def test_what_reads_recorded_entropies_is_refused_by_name(option, name):
    cfg, _ = composed("train", "rollout=vllm", "model=tiny_random", "advantage=vanilla", option)
    with pytest.raises(
        UserError, match=rf"{option.partition('=')[0]} \({name}\) reads the entropies .* set rollout=native"
    ):
        build_module(cfg)


def test_a_run_trains_and_logs_the_proof_and_its_own_entropy(tmp_path):
    folder = run_small(
        tmp_path, "rollout=vllm", "rollout.max_model_len=512", "correction=none", "advantage=entropy_driven"
    )
    rows = [row for row in metrics_rows(folder) if row["train/loss"]]
    assert len(rows) == 2
    for row in rows:
        assert float(row["rollout/weights_current"]) == 1.0
        assert float(row["rollout/weight_sync_s"]) > 0
        assert float(row["train/update_entropy"]) > 0
        assert not row.get("train/entropy")
    assert FakeLLM.made[0].reloads == 3  # before training and after each of two updates, whatever is sampled between


def test_two_runs_of_a_process_share_an_engine(tmp_path):
    for name in ("a", "b"):
        run_small(tmp_path / name, "rollout=vllm", "rollout.max_model_len=512", "correction=none")
    assert len(FakeLLM.made) == 1
    first, second = (metrics_rows(tmp_path / name, timed=False) for name in ("a", "b"))
    for row in (*first, *second):
        row.pop("rollout/weight_sync_s")
    assert first == second


def test_the_option_is_complete():
    cfg, _ = composed("train", "rollout=vllm", "model=tiny_random")
    assert isinstance(instantiate(cfg.rollout), VLLMRollout)
