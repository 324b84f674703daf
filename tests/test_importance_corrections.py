"""Weights by the mismatch of engine and trainer: by hand, in the update, and in runs with an engine that is off."""

import math
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from small_runs import REPO, SMALL_GRPO, composed, equal_weights, metrics_rows, run_small, weights
from test_resume import SELDOM, assert_same, signal_once
from test_update_reference import CASES, OFF_POLICY, WROTE, drawn, models, project_run, statistics, update_of

from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.algorithms.mismatch import mismatch_metrics
from edge_grpo.errors import Stopped, UserError
from edge_grpo.importance_corrections.base import Mismatch
from edge_grpo.importance_corrections.masked import Masked
from edge_grpo.importance_corrections.truncated import Truncated
from edge_grpo.importance_corrections.uncorrected import Uncorrected
from edge_grpo.programs.train_run import build_module
from edge_grpo.rollouts.native import NativeRollout

# Three responses: w = 2, 1/4, (a phrase), 8, with the product 4 and the geometric mean 4^(1/3); twice 1/2, with 1/4 and
# 1/2; a reference.
W = [[2.0, 0.25, 1.0, 8.0], [0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
KNOWN = [[True, True, False, True], [True, True, False, False], [False] * 4]
MEAN = 4 ** (1 / 3)


def mismatch():
    return Mismatch(torch.tensor(W, dtype=torch.float64).log(), torch.tensor(KNOWN))


def close(given, expected):
    torch.testing.assert_close(given, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("strategy", "expected", "capped"),
    [
        (Truncated("token", 3.0), [[2, 1 / 4, 1, 3], [1 / 2, 1 / 2, 1, 1]], [[3], []]),
        (Truncated("token", 1.0), [[1, 1 / 4, 1, 1], [1 / 2, 1 / 2, 1, 1]], [[0, 3], []]),
        (Truncated("sequence", 3.0), [[3, 3, 1, 3], [1 / 4, 1 / 4, 1, 1]], [[0, 1, 3], []]),
        (Truncated("sequence", 5.0), [[4, 4, 1, 4], [1 / 4, 1 / 4, 1, 1]], [[], []]),
        (Truncated("geometric", 2.0), [[MEAN, MEAN, 1, MEAN], [1 / 2, 1 / 2, 1, 1]], [[], []]),
        (Truncated("geometric", 1.5), [[1.5, 1.5, 1, 1.5], [1 / 2, 1 / 2, 1, 1]], [[0, 1, 3], []]),
        (Masked("token", 0.4, 5.0), [[2, 0, 1, 0], [1 / 2, 1 / 2, 1, 1]], [[1, 3], []]),
        (Masked("token", 0.0, math.inf), [[2, 1 / 4, 1, 8], [1 / 2, 1 / 2, 1, 1]], [[], []]),
        (Masked("sequence", 0.0, 3.0), [[0, 0, 1, 0], [1 / 4, 1 / 4, 1, 1]], [[0, 1, 3], []]),
        (Masked("sequence", 0.3, 5.0), [[4, 4, 1, 4], [0, 0, 1, 1]], [[], [0, 1]]),
        (Masked("geometric", 0.4, 1.6), [[MEAN, MEAN, 1, MEAN], [1 / 2, 1 / 2, 1, 1]], [[], []]),
        (Masked("geometric", 0.6, 1.5), [[0, 0, 1, 0], [0, 0, 1, 1]], [[0, 1, 3], [0, 1]]),
        (Uncorrected(), [[1] * 4, [1] * 4], [[], []]),
    ],
)
def test_weights_by_hand(strategy, expected, capped):
    given = strategy(mismatch())
    close(given.weights, [*expected, [1] * 4])
    assert [row.nonzero().flatten().tolist() for row in given.capped] == [*capped, []]


def test_a_weight_at_a_bound_is_not_capped():
    one = Mismatch(torch.tensor([[math.log(2.0), math.log(0.5)]], dtype=torch.float64), torch.ones(1, 2).bool())
    for strategy in (Truncated("token", 2.0), Masked("token", 0.5, 2.0)):
        given = strategy(one)
        close(given.weights, [[2.0, 0.5]])
        assert not given.capped.any()


def test_a_ratio_beyond_any_number_has_a_weight():
    far = Mismatch(torch.tensor([[1e4, -1e4]]), torch.ones(1, 2, dtype=torch.bool))
    assert Truncated("token", 2.0)(far).weights.tolist() == [[2.0, 0.0]]
    assert Masked("token", 0.5, 2.0)(far).weights.tolist() == [[0.0, 0.0]]


@settings(max_examples=40, deadline=None)
@given(
    log_ratio=npst.arrays("float64", (3, 4), elements=st.floats(-3, 3)),
    known=npst.arrays("bool", (3, 4)),
    level=st.sampled_from(["token", "sequence", "geometric"]),
)
def test_truncation_is_the_minimum_and_masking_all_or_nothing(log_ratio, known, level):
    known = torch.as_tensor(known)
    some = Mismatch(torch.where(known, torch.as_tensor(log_ratio), 0.0), known)
    raw = some.at(level).exp()
    torch.testing.assert_close(Truncated(level, 1.5)(some).weights, raw.clamp(max=1.5), rtol=1e-12, atol=0)
    masked = Masked(level, 0.5, 1.5)(some)
    assert ((masked.weights == raw) | (masked.weights == 0)).all()
    assert torch.equal(masked.capped, known & ((raw < 0.5) | (raw > 1.5)))
    assert (masked.weights[~known] == 1).all()
    if level != "token":  # a response weighs one number
        assert all(len(row[mask].unique()) <= 1 for row, mask in zip(masked.weights, known, strict=True))


# --- which tokens --------------------------------------------------------------------------------------------------

OFF, ON = CASES["no kl, eda once, groups cut, off-policy"], CASES["no kl, eda once, cut"]
TRUNCATED = CASES["kl, truncated, off-policy"]


def test_only_trained_tokens_that_this_iterations_policy_sampled_are_known():
    batch = update_of(models()[0], None, "grpo", OFF).batch
    old = torch.full(batch.token_weights.shape, -5.0, dtype=torch.float64)
    found = Mismatch.of(batch, old.requires_grad_())
    expected = [[who == "0" and row not in OFF_POLICY for who in wrote] for row, wrote in enumerate(WROTE)]
    assert [mask[: len(wrote)].tolist() for mask, wrote in zip(found.known, WROTE, strict=True)] == expected
    assert int(found.known.sum()) == sum(map(sum, expected))
    assert not found.log_ratio.requires_grad
    assert (found.log_ratio[~found.known] == 0).all()
    assert float(found.log_ratio[1, 0]) == -5.0 - drawn(1, 0)
    # A response that the budget ended, under `mask_truncated`, is in none of it.
    masked = replace(batch, token_weights=batch.token_weights * (torch.arange(12) != 1)[:, None])
    assert not Mismatch.of(masked, old).known[1].any()


def log_ratios(model, rows, case):
    """log w of the tokens of some rows that are known, by one forward of each row alone."""
    found = []
    with torch.no_grad():
        for row in rows:
            logprobs, _ = statistics(model, row)
            if not (case.off_policy and row in OFF_POLICY):
                found += [float(logprobs[t]) - drawn(row, t) for t, who in enumerate(WROTE[row]) if who == "0"]
    return found


@pytest.mark.parametrize("groups", [None, 1])
@pytest.mark.parametrize("case", [TRUNCATED, OFF], ids=["every row", "two groups"])
def test_metrics_after_two_epochs_are_of_the_policy_before_the_update(case, groups):
    model, frozen = models()
    ratios = log_ratios(model, range(12 if case.beta else 6), case)
    update = update_of(model, frozen, "grpo", case, groups=groups)
    project_run(update)
    found = mismatch_metrics(update, lambda *counts: list(counts))
    w = [math.exp(ratio) for ratio in ratios]
    weighed = [min(value, 1.5) for value in w] if case.weighs else [1.0] * len(w)
    expected = {
        "abs_log_ratio_mean": sum(map(abs, ratios)) / len(w),
        "abs_log_ratio_max": max(map(abs, ratios)),
        "effective_samples": sum(w) ** 2 / len(w) / sum(value * value for value in w),
        "capped": sum(value > 1.5 for value in w) / len(w) if case.weighs else 0.0,
        "weight_mean": sum(weighed) / len(w),
    }
    assert found == pytest.approx({f"mismatch/{name}": value for name, value in expected.items()}, rel=1e-9)
    assert (0 < found["mismatch/capped"] < 1) == bool(case.weighs)


class Rows:
    """As much of an update as the metrics read: one computed row, all sampled, of which trainer and engine say this."""

    def __init__(self, ratios, correction):
        update = update_of(models()[0], None, "grpo", ON, kept=(True, False, False, False))
        lengths = torch.tensor([len(ratios), 0, 0])
        mask = torch.arange(6)[None] < lengths[:, None]
        sampled = torch.zeros(3, 6)
        sampled[0, : len(ratios)] = -torch.tensor(ratios).log()
        self.batch = replace(
            update.batch,
            response_lengths=lengths,
            token_weights=mask.float(),
            sampled_mask=mask,
            sampling_logprobs=sampled,
        )
        self.old_logprobs, self.computed = torch.zeros(3, 6), torch.arange(3)
        self.importance_correction = correction


def on_ranks(updates):
    """The metrics of each rank."""
    given = []
    for update in updates:
        mismatch_metrics(update, lambda *counts: given.append(counts) or list(counts))
    totals = [sum(counts) for counts in zip(*given, strict=True)]
    return [mismatch_metrics(update, lambda *counts: totals) for update in updates]


def test_metrics_are_over_the_tokens_of_all_ranks():
    # w = 1, 4 here and 1 there: ESS (1 + 4 + 1)^2 / (3 (1 + 16 + 1)) = 36/54. Each rank alone has 25/34 and 1.
    first, second = on_ranks([Rows([1.0, 4.0], Truncated("token", 2.0)), Rows([1.0], Truncated("token", 2.0))])
    assert first == pytest.approx(
        {
            "mismatch/abs_log_ratio_mean": math.log(4) / 3,
            "mismatch/abs_log_ratio_max": math.log(4),
            "mismatch/effective_samples": 36 / 54,
            "mismatch/capped": 1 / 3,
            "mismatch/weight_mean": (1 + 2 + 1) / 3,
        },
        rel=1e-6,
    )
    assert second == first | {"mismatch/abs_log_ratio_max": 0.0}  # the largest of the ranks is taken by `record`
    # A rank without such a token has no largest, and where no rank has one there is nothing.
    first, second = on_ranks([Rows([1.0, 4.0], Uncorrected()), Rows([], Uncorrected())])
    assert first.keys() - second.keys() == {"mismatch/abs_log_ratio_max"}
    assert (second["mismatch/effective_samples"], second["mismatch/capped"]) == (pytest.approx(25 / 34), 0.0)
    assert on_ranks([Rows([], Uncorrected())]) == [{}]


# --- whole runs ----------------------------------------------------------------------------------------------------

CHECKSUM = ("reward=python", f"reward.function={REPO}/tests/examples/my_strategies.py:even_checksum")
PLAIN = (
    "correction=none",
    "advantage=vanilla",
    "data.problems_per_iteration=4",
    "algorithm.num_generations=4",
    *CHECKSUM,
)


class Off(NativeRollout):
    """An engine that draws as the native one and says of every other row that its tokens were half as likely."""

    tokens, off = 0, 0

    def generate(self, policy, prefixes, budgets, sampling, generator):
        responses = super().generate(policy, prefixes, budgets, sampling, generator)
        Off.tokens, Off.off = sum(map(len, responses)), sum(map(len, responses[::2]))
        half = [
            replace(response, sampling_logprobs=response.sampling_logprobs - (math.log(2) if row % 2 == 0 else 0.0))
            for row, response in enumerate(responses)
        ]
        return half


OFF_ENGINE = ("rollout._target_=test_importance_corrections.Off", "allowed_targets=[test_importance_corrections]")


def mismatches(folder):
    """`mismatch/*` of each iteration."""
    rows = [row for row in metrics_rows(folder) if row["train/loss"]]
    return [{k.split("/")[1]: float(v) for k, v in row.items() if k.startswith("mismatch/") and v} for row in rows]


@pytest.mark.parametrize("rollout", ["native", "hf"])
def test_the_projects_engines_and_the_trainer_agree_to_rounding(tmp_path, rollout):
    minibatches = ("algorithm.minibatch_rows=8", "algorithm.update_epochs=2", "algorithm.packing=false")
    ways = {"native": ("correction=guided",), "hf": (*PLAIN, *minibatches, "importance_correction=masked_geometric")}
    found = mismatches(run_small(tmp_path / "run", f"rollout={rollout}", "optimizer.lr=0.01", *ways[rollout]))
    assert len(found) == 2
    for metrics in found:
        assert 0 <= metrics["abs_log_ratio_mean"] <= metrics["abs_log_ratio_max"] < 1e-4
        assert metrics["effective_samples"] == pytest.approx(1, abs=1e-6)
        assert metrics["weight_mean"] == pytest.approx(1, abs=1e-5)
        assert metrics["capped"] == 0


@pytest.mark.parametrize("correction", ["none", "truncated"])
def test_an_engine_that_is_off_is_measured_and_weighed(tmp_path, correction):
    # bnpo computes every row. w is 2 for the tokens of every other row and 1 for the others; the cap is 1.5.
    cap = () if correction == "none" else ("importance_correction.cap=1.5",)
    chosen = (f"importance_correction={correction}", *cap)
    folder = run_small(tmp_path / "run", *PLAIN, *OFF_ENGINE, *chosen, "loss=bnpo", "evaluation.every_n_iterations=0")
    last = mismatches(folder)[-1]
    n, k = Off.tokens, Off.off
    assert 0 < k < n
    assert last == pytest.approx(
        {
            "abs_log_ratio_mean": k * math.log(2) / n,
            "abs_log_ratio_max": math.log(2),
            "effective_samples": (n + k) ** 2 / (n * (n + 3 * k)),
            "capped": k / n if cap else 0.0,
            "weight_mean": (n + k / 2) / n if cap else 1.0,
        },
        rel=1e-5,
    )


def test_weights_move_the_policy_and_a_stopped_run_goes_on_with_them(tmp_path, monkeypatch):
    run = (*PLAIN, *OFF_ENGINE, "optimizer.lr=0.01", "trainer.max_iterations=4", "algorithm.minibatch_rows=8")
    weighed = (*run, "importance_correction=truncated", "importance_correction.level=geometric")
    whole = run_small(tmp_path / "whole", *weighed)
    with monkeypatch.context() as patch:
        signal_once(patch, PolicyModule, "optimise", 2, signal.SIGTERM)  # in the third of four iterations
        with pytest.raises(Stopped):
            run_small(tmp_path / "cut", *weighed, SELDOM)
    run_small(tmp_path / "cut", *weighed)
    assert_same(tmp_path / "cut", whole)
    assert not equal_weights(weights(whole), weights(run_small(tmp_path / "plain", *run)))


def test_rows_that_are_encoded_again_have_no_mismatch(tmp_path):
    official = ("experiment=edge_grpo_official", "correction.reflection_tokens=8", "reward=boxed")
    assert mismatches(run_small(tmp_path / "run", *official)) == [{}, {}]


# --- what is refused -----------------------------------------------------------------------------------------------


def of_no_model(*overrides):
    """Build a module whose model does not exist."""
    small = [setting for setting in SMALL_GRPO if not setting.startswith("model")]
    build_module(composed("train", *small, *overrides, "model=hf", "model.path=nowhere/at-all")[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.top_p=0.9"], "algorithm: rollout.top_p=0.9: importance_correction (Truncated) compares log"),
        (["rollout.top_k=5", "rollout.min_p=0.1"], "algorithm: rollout.top_k=5, rollout.min_p=0.1: importance_corr"),
        (["loss=gvpo"], "algorithm: loss (GVPOLoss) is no sum over tokens of something times their advantage, so"),
        (["loss=real"], "algorithm: loss (REALLoss) is no sum over tokens of something times their advantage, so"),
        (
            ["experiment=edge_grpo_official", "reward=boxed"],
            "algorithm: correction (OfficialGuidedCorrection) trains on sampled tokens whose log-prob under",
        ),
        (
            ["correction=scaf_grpo", "correction.replace_hint_prompt=true"],
            "algorithm: correction (ScafGRPO) trains on sampled tokens whose log-prob under",
        ),
        (
            ["correction=chain", "correction@correction.steps.first=scaf_grpo",
             "correction.steps.first.replace_hint_prompt=true"],
            "algorithm: correction (Chain) trains on sampled tokens whose log-prob under",
        ),
    ],
)  # fmt: skip
def test_what_would_make_the_weights_wrong_is_refused_before_a_model_is_loaded(overrides, message):
    with pytest.raises(UserError) as caught:
        of_no_model("importance_correction=truncated", *overrides)
    assert str(caught.value).startswith(message)


def test_without_weights_nothing_is_refused():
    with pytest.raises(UserError, match="nowhere/at-all"):
        of_no_model("rollout.top_p=0.9", "loss=gvpo", "correction=scaf_grpo", "correction.replace_hint_prompt=true")


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        (Truncated, {"cap": 2.0}, {"cap": 0.9}, "cap=0.9 must be at least 1"),
        (Truncated, {"cap": 2.0}, {"cap": math.nan}, "cap=nan must be at least 1"),
        (Masked, {"lowest": 0.5, "highest": 5.0}, {"lowest": 1.1}, "lowest=1.1 must be at least 0 and at most 1"),
        (Masked, {"lowest": 0.5, "highest": 5.0}, {"lowest": -0.1}, "lowest=-0.1 must be at least 0 and at most 1"),
        (Masked, {"lowest": 0.5, "highest": 5.0}, {"highest": 0.9}, "highest=0.9 must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(kind, good, bad, message):
    with pytest.raises(UserError, match=rf"^importance_correction\.{message}"):
        kind(level="token", **(good | bad))
