"""`LOCAL_RANK=0 python ddp_gradients.py OUT`, and with 1: gradients of updates of scripted responses on two ranks.

Run by test_invariance.py, which also calls `gradient` for one rank.
"""

import os
import sys
from collections import Counter

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from small_runs import SMALL_MODEL, composed
from torch import nn

from edge_grpo.command_line.check import instantiate
from edge_grpo.policy.sharding import full
from edge_grpo.programs.train_run import build_module
from edge_grpo.runs.trainer import build_trainer

TEXTS = [
    "{answer}",
    "\\boxed{{answer}}",
    "it is 12, so \\boxed{12}",
    "\\boxed{}",
    "first {answer}, then \\boxed{{answer}} after all",
    "I do not know...",
    "\\boxed{7}",
]
# Bounds that cut 16 rows into 1, 2 and 7 micro-batches on one rank.
BOUNDS = {1: 10_000, 2: 350, 7: 72}


SETTINGS = (
    "experiment=eda",
    *SMALL_MODEL,
    "data.train_count=8",
    "data.held_out_count=2",
    "data.problems_per_iteration=4",
    "data.max_correctness_rate=null",
    "data.correctness_rates=null",
    "algorithm.num_generations=4",
    "algorithm.max_grad_norm=null",
)
# Every aggregation; an advantage that reads entropies, one that does not, one that reads all groups of the update.
CASES = [*((loss, "entropy_driven") for loss in ("grpo", "dapo", "dr_grpo", "bnpo"))]
CASES += [("grpo", "vanilla"), ("dapo", "dgpo")]


# In two optimiser steps of four groups, two of each rank.
EIGHT_GROUPS = ("data.problems_per_iteration=8", "algorithm.minibatch_rows=16", "advantage=vanilla", "loss=dapo")

PRECISIONS = ("64-true", "32-true")


def cases_of(precision):
    """In float32 the two that differ most, and `bnpo`: the rest would only say again that it rounds more."""
    return CASES if precision == "64-true" else [CASES[0], CASES[3], CASES[-1]]


class Gradients(pl.Callback):
    """Keeps the gradients that the optimiser gets, and counts the micro-batches behind them."""

    def __init__(self):
        self.microbatches, self.gradient, self.gradients, self.ranks = 0, None, [], None
        self.groups = []

    def on_before_backward(self, trainer, module, loss):
        self.microbatches += 1

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradient = torch.cat([full(p.grad).flatten() for p in module.model.parameters()]).clone()
        self.gradients.append(self.gradient)
        # Of all ranks' parts together, where each holds one.
        assert module._gradient_norm() == pytest.approx(float(self.gradient.norm()), rel=1e-4)
        self.ranks = module.gathered(module.global_rank)
        if len(self.ranks) > 1:
            here = module.global_rank
            parcels = module.delivered([(here, there, "x" * 100 * (here + 2 * there)) for there in self.ranks])
            assert [(rank, here, len(text)) for rank, there, text in parcels if there == here] == [
                (rank, here, 100 * (rank + 2 * here)) for rank in self.ranks
            ]

    def on_train_batch_end(self, trainer, module, outputs, *args):
        """Of each rank, the problems of its update and the tokens of those that can move the policy."""
        done = outputs["iteration"]
        rollout, tokens = done.corrected.scored.rollout, Counter()
        for row, advantage in zip(done.trained.row_ids.tolist(), done.trained.advantages.tolist(), strict=True):
            tokens[rollout.problem_of(row).id] += len(rollout.responses[row]) if advantage else 0
        self.groups = module.gathered(dict(tokens))


class TwoRanks(LightningEnvironment):
    """Lightning's own way to start them; how many is asked before that."""

    def world_size(self):
        return 2


class OfFourGroups:
    """Group filter: of groups 0 to 3, of which each of two ranks has two, the third is dropped."""

    def __init__(self, devices):
        self.devices = devices

    def __call__(self, rewards):
        keep = torch.tensor([True, True, False, True])
        return keep if self.devices == 1 else keep.view(2, 2)[int(os.environ.get("LOCAL_RANK", "0"))]


def exact(module):
    """Qwen2's own norm rounds to float32 whatever its weights are."""
    for name, child in list(module.model.named_modules()):
        if "norm" in name.rsplit(".", 1)[-1]:
            norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
            norm.weight = child.weight
            module.model.set_submodule(name, norm)


def gradient(loss, advantage, devices, precision, bound, *overrides, sharded=False):
    chosen = (f"loss={loss}", f"advantage={advantage}", *overrides)
    kept = fitted(devices, precision, bound, *chosen, sharded=sharded)
    return kept.gradient, kept.microbatches


def minibatch_gradients(devices, **stages):
    """The gradients of two epochs of minibatches of two groups, one of each rank."""
    # The filter here knows a group by its place.
    settings = ("algorithm.minibatch_rows=8", "algorithm.update_epochs=2", "algorithm.balance_batch=false")
    return fitted(devices, "64-true", BOUNDS[1], *settings, **stages).gradients


def fitted(devices, precision, bound, *overrides, sharded=False, **stages):
    """The callback after one iteration. A plain gradient step of size 1, which rounding moves by rounding."""
    cfg, _ = composed("train", *SETTINGS, *overrides)
    cfg.optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1.0}
    cfg.algorithm.microbatch_tokens = BOUNDS[1] if sharded and os.environ.get("LOCAL_RANK") == "1" else bound
    cfg.rollout = {"_target_": "scripted.Scripted", "max_new_tokens": 64, "texts": TEXTS}
    pl.seed_everything(0, verbose=False)
    module, data = build_module(cfg), instantiate(cfg.data)
    for name, stage in stages.items():
        setattr(module, name, stage)
    exact(module)
    data.load_prepared(
        module.policy.tokenizer,
        required_fields=module.required_fields,
        grade=module.grade,
        ungradable=module.ungradable,
    )
    kept = Gradients()
    strategy = "fsdp2" if sharded else "ddp" if devices > 1 else "auto"
    ranks = [TwoRanks()] if sharded else []
    trainer = build_trainer(1, None, "cpu", devices, 1, strategy, precision, False, [kept], [], ranks)
    trainer.fit(module, datamodule=data)
    # The ranks' groups happen to have the same statistics, so the gradients alone do not show it.
    assert kept.ranks == list(range(devices))
    return kept


def main(out):
    torch.set_num_threads(1)
    found = {
        precision: {case: gradient(*case, 2, precision, BOUNDS[1]) for case in cases_of(precision)}
        for precision in PRECISIONS
    }
    # Gradients of several micro-batches add up in DDP's buckets, which the last one exchanges.
    found["cut"] = gradient("grpo", "vanilla", 2, "64-true", BOUNDS[7])
    # Rank 1 has one micro-batch, however many rank 0 has.
    found["sharded"] = {
        kind: gradient("grpo", "entropy_driven", 2, "32-true", bound, "loss.beta=0.1", sharded=kind != "ddp")
        for kind, bound in {"ddp": BOUNDS[1], "fsdp2": BOUNDS[1], "fsdp2 cut": BOUNDS[7]}.items()
    }
    found["minibatches"] = {
        "whole": minibatch_gradients(2),
        "dropped": minibatch_gradients(2, group_filter=OfFourGroups(2)),
    }
    found["balance"] = {}
    for balance in (True, False):
        kept = fitted(2, "64-true", BOUNDS[1], *EIGHT_GROUPS, f"algorithm.balance_batch={balance}")
        found["balance"][balance] = kept.gradients, kept.groups
    if os.environ.get("LOCAL_RANK", "0") == "0":
        torch.save(found, out)


if __name__ == "__main__":
    main(sys.argv[1])
