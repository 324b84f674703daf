"""Evaluation during training."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import SMALL_GRPO, composed, metrics_rows, run_small
from torch import Generator

from edge_grpo.command_line.check import instantiate
from edge_grpo.errors import UserError
from edge_grpo.loggers.metrics import describe
from edge_grpo.rollouts.native import NativeRollout

BENCHMARKS = (
    "experiment=vanilla",
    "evaluation=arithmetic",
    "~evaluation.benchmarks.chain3",
    "~evaluation.benchmarks.chain4",
    "~evaluation.benchmarks.chain5",
    "evaluation.limit=2",
    "evaluation.num_samples=3",
    "evaluation.max_new_tokens=4",
    "evaluation.every_n_iterations=1",
)

AGAINST = ("solved_gain", "solved_loss", "delta_pass@2", "delta_pass@3")  # against step 0, and not of the total


@pytest.fixture(scope="module")
def seeds():
    """Of the generators of every call of the engine in the run, filled by it."""
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory, seeds):
    generate = NativeRollout.generate

    def noted(self, policy, prefixes, budgets, sampling, generator):
        seeds.append([g.initial_seed() for g in ([generator] if isinstance(generator, Generator) else generator)])
        return generate(self, policy, prefixes, budgets, sampling, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeRollout, "generate", noted)
        return run_small(tmp_path_factory.mktemp("periodic") / "run", *BENCHMARKS)


def test_no_two_samples_of_a_run_share_a_seed(run, seeds):
    # Evaluations at steps 0, 1 and 2 of three sets (two problems of three samples), and a rollout before the last two.
    assert sorted(map(len, seeds)) == [1] * 2 + [6] * 9
    every = [seed for call in seeds for seed in call]
    assert len(set(every)) == len(every)


def test_held_out_benchmarks_and_their_total_are_logged_at_every_evaluation(run):
    rows = metrics_rows(run)
    sets = ("held_out", "chain2", "chain6", "total")
    metrics = ("avg@3", "pass@2", "pass@3", "maj@3", "mean_length", "clipped_ratio", "unparsed_rate")
    logged = {name for name in rows[0] if name.startswith("eval/")}
    logged_later = {f"eval/{name}/{metric}" for name in sets[:3] for metric in AGAINST}
    assert logged == {f"eval/{name}/{metric}" for name in sets for metric in metrics} | logged_later
    assert all(describe(name) for name in logged)
    for step, row in enumerate(rows):  # steps 0, 1 and 2
        assert all((row[name] != "") == (step > 0 or not name.endswith(AGAINST)) for name in logged)
        assert 1 <= float(row["eval/chain6/mean_length"]) <= 4
        assert float(row["eval/total/unparsed_rate"]) == 1  # four bytes hold no box
    # Two problems each: the total is the mean of both.
    both = [float(rows[0][f"eval/{name}/mean_length"]) for name in ("chain2", "chain6")]
    assert float(rows[0]["eval/total/mean_length"]) == pytest.approx(sum(both) / 2)


def test_the_bound_on_the_cache_changes_no_metric(run, tmp_path):
    bounded = run_small(tmp_path / "run", *BENCHMARKS, "rollout.kv_cache_gb=1.0e-9")
    for ours, theirs in zip(metrics_rows(bounded), metrics_rows(run), strict=True):
        for name in ours:
            if name.startswith("eval/"):
                assert ours[name] == theirs[name]


def test_what_has_changed_since_step_0_by_hand():
    """Four problems, two samples each; the first evaluation solves a and b, the second b, c and d."""
    cfg, _ = composed("train", *SMALL_GRPO, "evaluation.num_samples=2", "evaluation.temperature=1.0")
    evaluation = instantiate(cfg.evaluation)
    evaluation.sets = {"held_out": tuple(SimpleNamespace(id=name) for name in "abcd")}
    module = SimpleNamespace(
        trainer=SimpleNamespace(global_rank=0, world_size=1),
        total_over_ranks=lambda *sums: list(sums),
        gathered=lambda value: [value],
    )

    def measured(step, right):
        values = dict.fromkeys(evaluation._names, np.zeros(4))
        values |= {"avg@2": np.array(right) / 2, "pass@2": np.array(right) > 0}
        evaluation._values = lambda *_: values
        return evaluation._scores(module, "held_out", step)

    assert not {"solved_gain", "delta_pass@2"} & measured(0, [2, 1, 0, 0]).keys()
    state = evaluation.state_dict()
    later = measured(5, [0, 2, 1, 1])
    assert (later["solved_gain"], later["solved_loss"], later["delta_pass@2"]) == (2 / 4, 1 / 4, 3 / 4 - 2 / 4)
    resumed = instantiate(cfg.evaluation)
    resumed.load_state_dict(state)
    resumed.sets, resumed._values = evaluation.sets, evaluation._values
    assert resumed._scores(module, "held_out", 5) == later


def test_the_total_weighs_sets_by_their_problems():
    cfg, _ = composed("train", *BENCHMARKS)
    evaluation = instantiate(cfg.evaluation)
    evaluation.sets = {"held_out": (None,) * 9, "chain2": (None,), "chain6": (None,) * 3}
    names = evaluation._names
    scores = {"held_out": dict.fromkeys(names, 9.0), "chain2": dict.fromkeys(names, 1.0)}
    scores["chain6"] = dict.fromkeys(names, 0.0)
    assert evaluation._total(scores) == dict.fromkeys(names, 1 / 4)


def test_the_summary_has_held_out_avg_at_n(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["accuracy"]["after"] == float(metrics_rows(run)[-1]["eval/held_out/avg@3"])


def test_a_negative_interval_is_refused():
    cfg, _ = composed("train", "evaluation.every_n_iterations=-1")
    with pytest.raises(UserError, match=r"evaluation\.every_n_iterations=-1 must be at least 0"):
        instantiate(cfg.evaluation)


def test_a_benchmark_may_not_take_the_name_of_another_set():
    cfg, _ = composed("train", "evaluation=arithmetic", "+evaluation.benchmarks.total=${evaluation.benchmarks.chain2}")
    with pytest.raises(UserError, match=r"evaluation\.benchmarks\.total: total is a set of every run"):
        instantiate(cfg.evaluation)


def test_the_released_trainer_evaluates_as_it_trains():
    cfg, _ = composed("train", "evaluation=official_trainer", "rollout.temperature=0.6", "algorithm.num_generations=5")
    evaluation = instantiate(cfg.evaluation)
    assert evaluation.correct
    assert (evaluation.num_samples, evaluation.max_new_tokens) == (5, cfg.rollout.max_new_tokens)
    assert evaluation.sampling == instantiate(cfg.rollout).sampling
    assert evaluation.seed == cfg.seed


def test_the_released_evaluate_model_never_corrects_and_takes_the_clock():
    for program in ("train", "evaluate"):
        cfg, _ = composed(program, "evaluation=official_evaluate_model", "paths.evaluation_suite=DIR", "seed=5")
        first, second = instantiate(cfg.evaluation), instantiate(cfg.evaluation)
        assert not getattr(first, "correct", False)
        assert (first.sampling.temperature, first.max_new_tokens, first.num_samples) == (0.1, 3000, 1)
        assert list(first.benchmarks) == ["AIME24", "AMC", "MATH500", "Minerva", "OlympiadBench"] == first.average
        assert first.seed != second.seed
