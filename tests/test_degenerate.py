"""Whole iterations on batches at the edge of what GRPO is defined for."""

import math

import pytest
import torch
from small_runs import SHORT, equal_weights, metrics_rows, run_small, weights

from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import random_tiny_policy


def scripted(*texts):
    """Responses that are given: see scripted.py."""
    return (
        "rollout._target_=scripted.Scripted",
        "+rollout.texts=[" + ",".join(f"'{text}'" for text in texts) + "]",
        "rollout.max_new_tokens=64",
        "algorithm.num_generations=4",
        "optimizer.lr=0.01",
        "allowed_targets=[scripted,test_degenerate]",
    )


def first_row(folder):
    """The metrics of the first iteration, all finite."""
    row = {name: float(value) for name, value in metrics_rows(folder)[0].items() if value != ""}
    assert all(math.isfinite(value) for value in row.values())
    return row


def certain_policy(**shape):
    """A policy that is so sure of every token that its entropy is exactly 0."""
    policy = random_tiny_policy(**shape)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(1e5)
    return policy


@pytest.mark.parametrize(
    ("text", "length", "clipped"),
    [("", 1.0, 0.0), ("I do not know...", 13.0, 1.0)],
    ids=["all empty", "all truncated"],
)
def test_equal_responses_teach_nothing_and_break_nothing(tmp_path, text, length, clipped):
    folder = run_small(tmp_path / "vanilla", "experiment=vanilla", *scripted(text))
    row = first_row(folder)
    # An empty response is its EOS alone.
    assert (row["train/completions/mean_length"], row["train/completions/clipped_ratio"]) == (length, clipped)
    assert row["collapse/after/zero_variance"] == row["collapse/after/all_wrong"] == 1
    assert (row["train/grad_norm"], row["train/reward"], row["train/skipped_steps"]) == (0, 0, 0)


def test_correction_revives_empty_responses(tmp_path):
    settings = ("experiment=edge_grpo", *SHORT, *scripted(""))
    # Only the two branches that need no generation: a scripted engine would answer nothing again.
    folder = run_small(tmp_path, *settings, "correction.probabilities={reflect: 0.0, answer: 0.5, solution: 0.5}")
    row = first_row(folder)
    assert row["train/accuracy"] == 0
    assert row["train/accuracy_corrected"] == 1


def test_one_right_answer_in_a_group(tmp_path):
    folder = run_small(tmp_path, "experiment=vanilla", *scripted("\\\\boxed{{answer}}", "no", "no", "no"))
    row = first_row(folder)
    # Rewards (2, 0, 0, 0): mean 1/2, sample deviation 1. Advantages (3, -1, -1, -1) / 2, up to epsilon 1e-4, in some
    # order; their population variance is (9 + 3) / 16.
    assert row["collapse/after/mixed"] == 1
    assert (row["train/accuracy"], row["train/effective_rows"]) == (0.25, 1)
    assert row["train/advantage_var"] == pytest.approx(0.75, rel=1e-3)
    assert row["train/grad_norm"] > 0


def test_a_group_of_right_answers_only(tmp_path):
    folder = run_small(tmp_path, "experiment=edge_grpo", *scripted("\\\\boxed{{answer}}"))
    row = first_row(folder)
    assert row["collapse/after/all_right"] == row["collapse/after/zero_variance"] == 1
    assert row["train/grad_norm"] == 0


def test_entropy_of_exactly_zero(tmp_path):
    model = ("model._target_=test_degenerate.certain_policy",)
    folder = run_small(tmp_path, "experiment=edge_grpo", *SHORT, *model, "allowed_targets=[test_degenerate]")
    row = first_row(folder)
    assert row["train/entropy"] == 0
    assert row["collapse/after/mixed"] > 0
    assert row["eda/multiplier_max"] == row["eda/multiplier_p05"] == 1  # equal entropies: EDA is its base
    assert all(value.isfinite().all() for value in weights(folder).values())


def test_a_group_of_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"algorithm\.num_generations=1: a group needs at least 2 responses"):
        run_small(tmp_path, "algorithm.num_generations=1")


class HalfNaN:
    """A reward that is not a number for every second response."""

    def __call__(self, problems, texts):
        return torch.tensor([math.nan if i % 2 else 1.0 for i in range(len(texts))])


def test_rewards_that_are_no_numbers_count_as_nothing(tmp_path):
    part = ("+reward.rewards.half={_target_: test_degenerate.HalfNaN}", "+reward.weights.half=1.0")
    folder = run_small(tmp_path, "experiment=vanilla", *scripted("no"), *part)
    row = first_row(folder)
    # Rewards (1, 0, 1, 0); a third of the values of three rewards, half of it not finite.
    assert row["train/reward"] == 0.5
    assert row["verifier/not_finite_rate"] == pytest.approx(1 / 6)
    assert row["train/grad_norm"] > 0
    assert not equal_weights(weights(folder), weights(run_small(tmp_path / "b", "experiment=vanilla", *scripted("no"))))
