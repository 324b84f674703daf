"""What one run does with gradients, rates, counts, evaluations and checkpoints, read from its files."""

from dataclasses import replace

import pytest
import torch
from small_runs import SHORT, SMALL_GRPO, composed, metrics_rows, run_small

from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.corrections.base import Corrected
from edge_grpo.programs.train_run import build_module
from edge_grpo.runs.checkpoints import checkpoints
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores

RATE, MAX_NORM = 2.0, 0.01
SGD = ("optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps", f"optimizer.lr={RATE}")
# Two problems, four responses each, of which one is right.
SCRIPTED = (
    "rollout._target_=scripted.Scripted",
    "+rollout.texts=['\\\\boxed{{answer}}', no, 'not this', nothing]",
    "rollout.max_new_tokens=64",
    "algorithm.num_generations=4",
    "allowed_targets=[scripted]",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = (
        "experiment=force_r", *SHORT, *SCRIPTED, *SGD, f"algorithm.max_grad_norm={MAX_NORM}", "scheduler=linear",
        "trainer.max_iterations=3", "checkpoint.keep=2", "evaluation.every_n_iterations=2",
    )  # fmt: skip
    return run_small(tmp_path_factory.mktemp("optimisation") / "run", *settings)


def column(run, name):
    return [float(row[name]) if row[name] else None for row in metrics_rows(run)]


def test_the_step_is_the_clipped_gradient_times_the_rate_that_is_logged(run):
    # Three iterations, falling to 0: RATE x (1, 2/3, 1/3).
    assert column(run, "train/learning_rate")[:3] == pytest.approx([RATE, RATE * 2 / 3, RATE / 3])
    assert min(column(run, "train/grad_norm")[:3]) > 2 * MAX_NORM  # as it was before clipping
    second, third = (
        torch.load(path / "state.ckpt", weights_only=True)["state_dict"] for path in checkpoints(run / "checkpoints")
    )
    # The head's weights are the embedding's, under a second name.
    names = [name for name in third if name.startswith("model.") and "lm_head" not in name]
    moved = torch.cat([(third[name] - second[name]).flatten().double() for name in names])
    assert float(moved.norm()) == pytest.approx(RATE / 3 * MAX_NORM, rel=1e-3)


def test_the_newest_checkpoints_stay(run):
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["iteration-000002", "iteration-000003"]


def test_evaluations_are_before_training_every_second_iteration_and_at_the_end(run):
    assert [value is not None for value in column(run, "eval/held_out/avg@1")] == [True, False, True, True]


def test_reflections_count_as_rollouts(run):
    # 8 responses an iteration, and a reflection for each of the 6 wrong ones.
    assert column(run, "train/num_rollouts")[:3] == [14, 28, 42]
    mean_lengths = column(run, "correction/mean_length")[:3]
    assert column(run, "train/num_tokens")[2] == pytest.approx(8 * sum(mean_lengths))


def test_every_step_starts_from_no_gradient(tmp_path, monkeypatch):
    steps, optimise = [], PolicyModule.optimise

    def kept(self, microbatch_losses):
        steps.append(optimise(self, microbatch_losses))
        assert all(parameter.grad is None for parameter in self.parameters())  # a rollout has their memory
        return steps[-1]

    monkeypatch.setattr(PolicyModule, "optimise", kept)
    settings = ("optimizer.lr=0.0", "algorithm.update_epochs=2", "trainer.max_iterations=1")
    run_small(tmp_path, "experiment=vanilla", *SCRIPTED, *SGD, *settings)
    # At rate 0 the second step sees what the first one saw.
    assert len(steps) == 2
    assert steps[0].grad_norm > 0
    assert steps[1].grad_norm == pytest.approx(steps[0].grad_norm, rel=1e-4)


def test_the_update_knows_the_temperature_and_the_rewards_of_the_rows_that_are_kept():
    cfg, _ = composed("train", *SMALL_GRPO, "group_filter=drop_zero_variance", "rollout.temperature=0.7")
    module = build_module(cfg)
    problem = Problem("p", "?", ("1",), prompt_ids=(65,))
    problems = (problem, replace(problem, id="q", prompt_ids=(66, 67)))
    engine = module.rollout.generate(
        module.policy, [[65]] * 4, [3] * 4, module.rollout.sampling, torch.Generator().manual_seed(0)
    )
    rewards = torch.tensor([1.0, 1.0, 0.0, 2.0])
    scored = ScoredRollout(
        Rollout(problems, tuple(engine), 2), ("",) * 4, Scores(rewards, {"accuracy": rewards}, rewards >= 1)
    )
    update = module.update_of(Corrected(scored, (None,) * 4))
    assert update.batch.row_ids.tolist() == [2, 3]
    assert update.rewards.tolist() == [0.0, 2.0]
    assert update.forward.temperature == 0.7
