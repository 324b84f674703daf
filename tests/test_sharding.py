"""Weights spread over ranks by FSDP2, on one rank of gloo; two are in test_invariance.py."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import fake_vllm
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.errors import UserError
from edge_grpo.losses.base import UpdateSize
from edge_grpo.policy import sharding
from edge_grpo.policy.tiny import random_tiny_policy
from edge_grpo.rollouts.base import Sampling
from edge_grpo.rollouts.vllm import VLLMRollout
from edge_grpo.rollouts.vllm_engine import Engine
from edge_grpo.rollouts.vllm_weights import Comparison
from edge_grpo.types.update import Step

SHAPE = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 16}


@pytest.fixture
def mesh(monkeypatch):
    free = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in free.items():
        monkeypatch.setitem(os.environ, name, value)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.fixture
def policy(mesh):
    policy = random_tiny_policy(seed=0, **SHAPE)
    sharding.shard(policy.model, mesh)
    return policy


def is_plain(model):
    return [isinstance(p, torch.distributed.tensor.DTensor) for p in model.parameters()].count(False)


def test_a_model_is_whole_inside_and_taken_apart_afterwards(policy):
    model = policy.model
    count = len(list(model.parameters()))
    assert (sharding.is_sharded(model), sharding.is_whole(model), is_plain(model)) == (True, False, 0)
    with sharding.whole(model):
        with sharding.whole(model):
            pass
        assert sharding.is_whole(model)
        assert is_plain(model) == count
        model(input_ids=torch.tensor([[65, 66]]))
        assert is_plain(model) == count  # a forward pass takes nothing apart
    assert (sharding.is_whole(model), is_plain(model)) == (False, 0)


def test_the_export_of_a_sharded_model_is_the_models(policy, tmp_path):
    with sharding.whole(policy.model):
        policy.save(tmp_path / "sharded")
    random_tiny_policy(seed=0, **SHAPE).save(tmp_path / "plain")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "sharded" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_ranks_stand_in_for_the_micro_batches_they_do_not_have(policy):
    module = SimpleNamespace(model=policy.model, gathered=lambda counts: [[1, 5, 2], counts, [3, 1, 2]])
    assert PolicyModule.missing_microbatches(module, [2, 2, 2]) == [1, 3, 0]
    module.model = random_tiny_policy(seed=0, **SHAPE).model
    assert PolicyModule.missing_microbatches(module, [2, 2, 2]) == [0, 0, 0]


def test_a_bad_micro_batch_is_one_of_this_ranks_own():
    update = SimpleNamespace(steps=[["a"], ["b"]], missing=[2, 2], model=None)
    update.forward, update.batch = SimpleNamespace(nothing=print), SimpleNamespace(select=str)
    update.microbatch_loss = lambda *_, **__: None
    all_bad = lambda losses: Step(float("nan"), 1.0, tuple(range(len(losses))))  # noqa: E731
    assert GRPOUpdate._step(update, 1, UpdateSize(1, 1, 1), 0, all_bad).bad == (1,)


def test_a_model_that_names_no_layers_is_refused(mesh):
    with pytest.raises(UserError, match="Linear does not name its layers"):
        sharding.shard(torch.nn.Linear(2, 2), mesh)


@pytest.fixture
def vllm(policy, monkeypatch):
    """An engine of its own, whose proof sees nothing, and parameters whose addresses say nothing."""
    fake_vllm.install(monkeypatch)
    monkeypatch.setattr(Engine, "_compare", lambda *_: Comparison([], []))  # its samples may miss a small change
    monkeypatch.setattr(torch.nn.Parameter, "data_ptr", lambda _: 0, raising=False)  # a GPU's allocator gives the same
    return VLLMRollout(4, 1.0, 1.0, 0, 0.0, (), None, 64, 0.5, None, enforce_eager=True)


def write(model):
    with torch.no_grad():
        for part in model.parameters():
            part.mul_(1.1)


def sample(rollout, policy):
    for _ in range(2):
        rollout.generate(policy, [[65, 66]], [2], Sampling(), torch.Generator())


@pytest.mark.parametrize("around", ["whole", "following"])
def test_an_engine_gets_what_was_written_to_the_parts_of_a_sharded_model(around, policy, vllm):
    def pushed():
        with sharding.whole(policy.model) if around == "whole" else vllm.following(policy):
            assert sharding.is_whole(policy.model) == (around == "whole")
            sample(vllm, policy)
        return vllm._engine.syncs

    assert [pushed(), pushed()] == [1, 1]
    write(policy.model)
    assert pushed() == 2
    assert vllm.take_metrics()["rollout/weights_current"] == 1
    # Whole or in parts, the weights are the same ones.
    with sharding.whole(policy.model):
        sample(vllm, policy)
    assert vllm._engine.syncs == 2


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_the_steps_of_an_optimiser_are_writes(options, policy):
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3, **options)
    before = sharding.written(policy.model)
    for part in policy.model.parameters():
        part.grad = torch.ones_like(part)
    optimizer.step()
    assert sharding.written(policy.model) != before


def test_the_engine_has_the_weights_of_the_parts_bit_for_bit(policy, monkeypatch):
    fake_vllm.install(monkeypatch)  # with its proof
    rollout = VLLMRollout(4, 1.0, 1.0, 0, 0.0, (), None, 64, 0.5, None, enforce_eager=True)
    rollout.start(policy)
    assert is_plain(policy.model) == 0  # what Lightning restores now goes into parts
    write(policy.model)
    with rollout.following(policy):
        sample(rollout, policy)
    engine = fake_vllm.FakeLLM.made[0].hf.state_dict()
    with sharding.whole(policy.model):
        assert all(torch.equal(engine[name], weight) for name, weight in policy.named_weights())


def test_an_engine_that_follows_refuses_weights_that_were_written_to(policy, vllm):
    with vllm.following(policy):
        write(policy.model)
        with pytest.raises(RuntimeError, match="weights changed between the engine's copy and this rollout"):
            sample(vllm, policy)


def test_all_ranks_copy_together_where_one_of_them_has_to(policy, vllm, monkeypatch):
    vllm.start(policy)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flag, _: flag.fill_(1.0))  # another rank has to
    with vllm.following(policy):
        pass
    assert vllm._engine.syncs == 2


def test_a_policy_stays_in_parts_for_an_engine_of_its_own(policy):
    entered = []
    following = SimpleNamespace(following=lambda policy: nullcontext(entered.append(policy)))
    for rollout, whole in ((SimpleNamespace(), True), (following, False)):
        module = SimpleNamespace(model=policy.model, policy=policy, rollout=rollout)
        with PolicyModule.sampling(module):
            assert sharding.is_whole(policy.model) == whole
    assert entered == [policy]
