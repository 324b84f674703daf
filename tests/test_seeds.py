"""Every draw has a seed of its own: of seed, stage, iteration, rank, call, row."""

import random
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import SMALL_GRPO, composed

from edge_grpo.corrections.base import Corrected
from edge_grpo.evaluation.sampling import sample
from edge_grpo.programs.train_run import build_module
from edge_grpo.rollouts.base import Sampling
from edge_grpo.seeding import seed_globals, stage_seed
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, written_response


class Recorder:
    """An engine that notes the seeds of the generators it is handed."""

    sampling, max_new_tokens = Sampling(), 4

    def __init__(self):
        self.seeds = []

    def generate(self, policy, prefixes, budgets, sampling, generator):
        self.seeds += [g.initial_seed() for g in ([generator] if isinstance(generator, torch.Generator) else generator)]
        return [written_response(torch.tensor([65]), Provenance.SAMPLED, "length") for _ in prefixes]


def test_every_part_of_a_key_makes_another_seed():
    # Among them 1 and 11 in either place, which a key without separators would mix up.
    keys = list(product((1, 11), ("rollout", "correction"), (1, 11), (0, 1), (0, 1)))
    seeds = {stage_seed(seed, stage, iteration=i, rank=r, call=c) for seed, stage, i, r, c in keys}
    assert len(seeds) == len(keys) == 32
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_all_three_global_generators_follow_from_seed_iteration_and_rank():
    drawn = []
    for seed, iteration, rank in [(0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]:
        seed_globals(seed, iteration=iteration, rank=rank)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    for of_one in zip(*drawn[1:], strict=True):
        assert len(set(of_one)) == 4


@pytest.fixture(scope="module")
def module():
    cfg, _ = composed("train", *SMALL_GRPO)
    made = build_module(cfg)
    made.rollout = Recorder()
    made._trainer = SimpleNamespace(current_epoch=0, global_rank=0)
    return made


def seeds_at(module, iteration, rank):
    """Of the rollout, of two generations and the draws of a correction, and of the global generators."""
    module._trainer.current_epoch, module._trainer.global_rank = iteration, rank
    module.rollout.seeds = seeds = []

    def correction(scored, tools):
        for _ in range(2):
            tools.generate([[65]], [1])
        seeds.append(tools.generator.initial_seed())
        return Corrected(scored, (None,) * 2)

    module.correction = correction
    module.on_train_epoch_start()
    module.correct(module.score(module.roll_out([Problem("p", "1 + 1 = ?", ("2",), prompt_ids=(65,))], group_size=2)))
    return [*seeds, torch.initial_seed()]


def test_no_two_draws_of_a_run_share_a_seed(module):
    at = {key: seeds_at(module, *key) for key in ((0, 0), (1, 0), (0, 1))}
    assert len({seed for seeds in at.values() for seed in seeds}) == 3 * 5
    assert seeds_at(module, 1, 0) == at[1, 0]


def test_every_sample_of_every_evaluation_has_its_own_seed(policy):
    problems = [Problem(name, "?", ("1",), prompt_ids=(65,)) for name in "ab"]
    engine, settings = Recorder(), {"num_samples": 3, "sampling": Sampling(), "max_new_tokens": 4}
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        sample(engine, policy, problems, **settings, seed=seed, step=step)
    assert len(set(engine.seeds)) == 3 * 2 * 3
    again = Recorder()
    sample(again, policy, problems[1:], **settings, seed=0, step=1)
    assert again.seeds == engine.seeds[9:12]
