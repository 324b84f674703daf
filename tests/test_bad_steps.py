"""Losses and gradients that are not finite, and groups at the edge of what an update is defined for."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import SHORT, SMALL_GRPO, command_from_scratch, equal_weights, metrics_rows, run_small, weights

from edge_grpo.advantages.base import RewardAdvantage
from edge_grpo.callbacks.bad_steps import BadSteps
from edge_grpo.errors import UserError
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.runs.checkpoints import checkpoints

GEC = ("experiment=gec", *SHORT, "trainer.max_iterations=5", "optimizer.lr=0.01", "allowed_targets=[test_bad_steps]")


class Breaks(torch.nn.Module, RewardAdvantage):
    """Advantages that are not finite in some iterations, in the first row of the first group."""

    def __init__(self, iterations: list[int], value: float):
        super().__init__()
        self.iterations, self.value = iterations, value
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, inputs):
        advantages = torch.arange(len(inputs.rewards)) - 1.5
        if int(self.calls) in self.iterations:
            advantages[0] = self.value
        self.calls += 1
        return advantages, {}

    def zero_advantage_groups(self, inputs):
        return torch.zeros(len(inputs.grouped_rewards), dtype=torch.bool)


def breaking(iterations, value=math.nan):
    return ("~advantage", f"+advantage={{_target_: test_bad_steps.Breaks, iterations: {iterations}, value: {value}}}")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_step_is_skipped_counted_and_its_rows_written(tmp_path, caplog, value):
    folder = run_small(tmp_path, *GEC, *breaking([1, 3], value))
    assert [row["train/skipped_steps"] for row in metrics_rows(folder)[:5]] == ["0.0", "1.0", "0.0", "1.0", "0.0"]
    assert sum("step skipped, 1 in a row" in message for message in caplog.messages) == 2
    assert all(v.isfinite().all() for v in weights(folder).values())
    rows = [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]
    # One micro-batch holds both groups of two; only its first row is broken.
    assert [row["step"] for row in rows] == [1] * 4 + [3] * 4
    assert [row["advantages_finite"] for row in rows] == [False, True, True, True] * 2
    assert all(row["logprobs_finite"] and row["question"] and row["origin"] for row in rows)


def test_only_the_micro_batch_at_fault_is_named(tmp_path):
    folder = run_small(tmp_path, *GEC, *breaking([1]), "algorithm.microbatch_tokens=1")
    rows = [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]
    assert [row["advantages_finite"] for row in rows] == [False]


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_found_too(tmp_path, monkeypatch):
    from edge_grpo.losses.clipped import ClippedLoss

    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    original = ClippedLoss.__call__
    calls = []

    def wrapped(self, inputs, size):
        loss, counts = original(self, inputs, size)
        calls.append(None)
        # Micro-batch 1 of 4 of the second iteration, and again where each is computed alone.
        return (Explodes.apply(loss) if len(calls) in (6, 10) else loss), counts

    monkeypatch.setattr(ClippedLoss, "__call__", wrapped)
    folder = run_small(tmp_path, *GEC, *breaking([]), "algorithm.microbatch_tokens=1", "trainer.max_iterations=2")
    rows = metrics_rows(folder)
    assert [row["train/skipped_steps"] for row in rows[:2]] == ["0.0", "1.0"]
    assert math.isfinite(float(rows[1]["train/loss"]))
    assert len((folder / "bad_steps.jsonl").read_text().splitlines()) == 1


def test_too_many_in_a_row_end_the_run_with_a_checkpoint_from_before(tmp_path):
    settings = (*GEC, *breaking([2, 3, 4, 5]), "checkpoint.every_n_iterations=1", "trainer.max_iterations=9")
    with pytest.raises(UserError, match="iteration 4: loss or gradient not finite in 3 optimiser steps in a row"):
        run_small(tmp_path / "ends", *settings)
    assert [path.name for path in checkpoints(tmp_path / "ends" / "checkpoints")][-1] == "iteration-000002"
    assert not (tmp_path / "ends" / "model").exists()
    # Going on from there meets the same steps again; their rows are not written twice.
    with pytest.raises(UserError, match="iteration 4"):
        run_small(tmp_path / "ends", *settings)
    lines = (tmp_path / "ends" / "bad_steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2] * 4 + [3] * 4 + [4] * 4
    before = run_small(tmp_path / "two", *GEC, *breaking([]), "trainer.max_iterations=2")
    state = torch.load(tmp_path / "ends/checkpoints/iteration-000002/state.ckpt", weights_only=True)["state_dict"]
    saved = {name.removeprefix("model."): value for name, value in state.items()}
    assert equal_weights({name: saved[name] for name in weights(before)}, weights(before))


@pytest.mark.slow
def test_two_ranks_end_with_a_checkpoint_from_before_too(tmp_path):
    settings = (*GEC, *breaking([2, 3, 4, 5]), "checkpoint.every_n_iterations=100", "trainer.max_iterations=9")
    ddp = (*SMALL_GRPO, *settings, "trainer.devices=2", "trainer.strategy=ddp", f"hydra.run.dir={tmp_path}")
    process = command_from_scratch(*ddp, path=Path(__file__).parent)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "iteration 4: loss or gradient not finite in 3 optimiser steps in a row" in output
    (kept,) = checkpoints(tmp_path / "checkpoints")
    # Iteration 2, the third, was skipped: two optimiser steps have moved these weights.
    state = torch.load(kept / "state.ckpt", weights_only=True)
    assert kept.name == "iteration-000003"
    assert {int(v["step"]) for v in state["optimizer_states"][0]["state"].values()} == {2}


def test_the_limit_is_at_least_one():
    with pytest.raises(UserError, match="max_consecutive_bad_steps=0 must be at least 1"):
        BadSteps(".", 0)


def test_sft_skips_them_too(tmp_path, monkeypatch):
    original, calls = MicrobatchForward.__call__, []

    def broken(*args, **kwargs):
        stats = original(*args, **kwargs)
        calls.append(None)
        return replace(stats, logprobs=stats.logprobs * math.nan) if len(calls) == 2 else stats

    monkeypatch.setattr(MicrobatchForward, "__call__", broken)
    folder = run_small(tmp_path, "trainer.max_iterations=3", config_name="sft")
    assert [row["train/skipped_steps"] for row in metrics_rows(folder)[:3]] == ["0.0", "1.0", "0.0"]
    assert [json.loads(line)["step"] for line in (folder / "bad_steps.jsonl").read_text().splitlines()] == [1, 1]
