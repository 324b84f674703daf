"""Weights spread over ranks by FSDP2, on one rank of gloo; two are in test_invariance.py."""

import os
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


def test_an_engine_gets_what_was_written_to_the_parts_of_a_sharded_model(policy, monkeypatch):
    fake_vllm.install(monkeypatch)
    monkeypatch.setattr(Engine, "_compare", lambda *_: Comparison([], []))  # its samples may miss a small change
    monkeypatch.setattr(torch.nn.Parameter, "data_ptr", lambda _: 0, raising=False)  # a GPU's allocator gives the same
    made = VLLMRollout(4, 1.0, 1.0, 0, 0.0, (), None, 64, 0.5, None, enforce_eager=True)

    def pushed():
        with sharding.whole(policy.model):
            for _ in range(2):
                made.generate(policy, [[65, 66]], [2], Sampling(), torch.Generator())
        return made._engine.syncs

    assert pushed() == 1
    with torch.no_grad():
        for part in policy.model.parameters():
            part.mul_(1.1)
    assert pushed() == 2
