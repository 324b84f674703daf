"""The base model that ships: what it can do, and (slow) that its recipe makes it again."""

import subprocess
import sys

import pytest
import torch

from edge_grpo.command_line.resolvers import asset
from edge_grpo.data.arithmetic import distinct_chains
from edge_grpo.policy.base import Policy
from edge_grpo.policy.load import load_policy
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.rollouts.base import Sampling
from edge_grpo.rollouts.native import NativeRollout
from edge_grpo.seeding import stage_generator

PLAIN = "<|user|>{}<|assistant|>"
ASKED = "<|system|>Step by step.<|user|>{}<|assistant|>"


def load(path: str) -> Policy:
    return load_policy(path, "float32", "sdpa", False, False, None)


def accuracy(policy: Policy, prompt: str, sampling: Sampling, samples: int, problems: int = 128) -> torch.Tensor:
    """[problems] share right on the first held-out problems of data=arithmetic."""
    stream = distinct_chains(0, 2, 4, 99)
    rows = [next(stream) for _ in range(problems)]
    prefixes = [policy.encode(prompt.format(q)) for q, _, _ in rows for _ in range(samples)]
    engine = NativeRollout(128, 1.0, 1.0, 0, 0.0, (), None)
    out = engine.generate(policy, prefixes, [128] * len(prefixes), sampling, stage_generator(0, "test"))
    right = [last_boxed(policy.decode(r.token_ids)) == rows[i // samples][1] for i, r in enumerate(out)]
    return torch.tensor(right).float().view(problems, samples).mean(1)


def test_the_base_can_work_step_by_step_but_seldom_does():
    policy = load(asset("tiny_base"))
    assert sum(p.numel() for p in policy.model.parameters()) < 1_000_000
    assert accuracy(policy, ASKED, Sampling(temperature=0), 1).mean() >= 0.7
    assert accuracy(policy, PLAIN, Sampling(temperature=0), 1).mean() <= 0.1
    groups = accuracy(policy, PLAIN, Sampling(), 8)
    assert (groups == 0).float().mean() >= 0.7  # groups that are all wrong: collapse is there to be seen
    assert (groups > 0).any()


@pytest.mark.slow
def test_the_recipe_makes_the_base_again(tmp_path):
    command = [
        sys.executable,
        "-m",
        "edge_grpo.programs.sft",
        "experiment=tiny_base",
        f"hydra.run.dir={tmp_path}",
        "logger=csv",
    ]
    subprocess.run(command, check=True)
    ours, shipped = load(str(tmp_path / "model")), load(asset("tiny_base"))
    # 128 problems: the standard error of a difference of two shares near 0.9 is 0.04.
    for prompt, tolerance in ((ASKED, 0.12), (PLAIN, 0.06)):
        again = accuracy(ours, prompt, Sampling(temperature=0), 1).mean()
        assert again == pytest.approx(accuracy(shipped, prompt, Sampling(temperature=0), 1).mean(), abs=tolerance)
