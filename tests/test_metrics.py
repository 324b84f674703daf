"""Metrics of an iteration by hand, and their page in docs/."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import SMALL_GRPO, composed

from edge_grpo.advantages.avspo import AVSPO
from edge_grpo.advantages.entropy_driven import METRICS as EDA_METRICS
from edge_grpo.algorithms.metrics import (
    advantage_metrics,
    collapse_metrics,
    completion_metrics,
    correction_metrics,
    deviation,
    reward_metrics,
    share,
    verifier_metrics,
)
from edge_grpo.algorithms.reports import Reports, declared
from edge_grpo.errors import UserError
from edge_grpo.loggers.metrics import METRICS, describe
from edge_grpo.losses.adaptive_entropy import AdaptiveEntropyLoss
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.losses.dual_clip import DualClipLoss
from edge_grpo.losses.sapo import SAPOLoss
from edge_grpo.programs.metrics_page import as_markdown
from edge_grpo.programs.train_run import build_module
from edge_grpo.token_filters.clip_cov import ClipCov
from edge_grpo.token_filters.top_entropy import TopEntropy
from edge_grpo.types.metric import StrategyMetric
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores

DOCS = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


def response(kinds, reason="stop", entropy=0.5):
    """One token a letter: s(ampled), i(njected), r(eference)."""
    provenance = torch.tensor(["sir".index(kind) for kind in kinds], dtype=torch.int8)
    n = len(kinds)
    return Response(torch.zeros(n, dtype=torch.long), torch.zeros(n), torch.full((n,), entropy), provenance, reason)


def scored(accuracy, box, responses=None):
    """Rows of two; the reward is accuracy + box."""
    n = len(accuracy)
    accuracy, box = torch.tensor(accuracy, dtype=torch.float32), torch.tensor(box, dtype=torch.float32)
    problems = tuple(Problem(str(i), "?", ("1",)) for i in range(n // 2))
    rollout = Rollout(problems, tuple(responses or [response("ss")] * n), 2)
    scores = Scores(accuracy + box, {"accuracy": accuracy, "format": box}, accuracy == 1)
    return ScoredRollout(rollout, ("",) * n, scores)


# Three groups of two. The first is all wrong and gets one right answer; the second is mixed and gets its wrong row
# repaired; the third is all right and stays.
BEFORE = scored(
    [0, 0, 1, 0, 1, 1],
    [0, 0, 1, 0, 1, 1],
    [
        response("ss", "length"),
        response("sss"),
        response("s"),
        response("ssss", "length"),
        response("s"),
        response("s"),
    ],
)
AFTER = scored(
    [1, 0, 1, 1, 1, 1],
    [1, 0, 1, 1, 1, 1],
    [response("rrrrr"), response("sssii"), response("s"), response("ssssii"), response("s"), response("s")],
)
BRANCHES = ("solution", "reflect", None, "answer", None, None)


def test_collapse_by_hand():
    assert collapse_metrics(BEFORE, AFTER) == pytest.approx(
        {
            "collapse/before/all_wrong": 1 / 3,
            "collapse/before/all_right": 1 / 3,
            "collapse/before/mixed": 1 / 3,
            "collapse/before/zero_variance": 2 / 3,
            "collapse/phantom": 0,
            "collapse/after/all_wrong": 0,
            "collapse/after/all_right": 2 / 3,
            "collapse/after/mixed": 1 / 3,
            "collapse/after/zero_variance": 2 / 3,
            "collapse/revived_by_correction": 1 / 3,
            "collapse/created_by_correction": 1 / 3,
        }
    )


def test_what_correction_revives_is_not_what_it_creates():
    # Three groups: two all wrong ones get a right answer, a mixed one becomes all right.
    before, after = [0, 0, 0, 0, 1, 0], [1, 0, 1, 0, 1, 1]
    metrics = collapse_metrics(scored(before, before), scored(after, after))
    assert metrics["collapse/revived_by_correction"] == pytest.approx(2 / 3)
    assert metrics["collapse/created_by_correction"] == pytest.approx(1 / 3)


def test_a_group_of_one_outcome_whose_rewards_differ_is_a_phantom():
    # Four groups: all wrong with one box, all right with one, mixed, all wrong with two.
    before = scored([0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 0, 1, 1])
    metrics = collapse_metrics(before, scored([2] * 8, [1] * 8))  # what correction makes of them does not count
    assert metrics["collapse/phantom"] == pytest.approx(2 / 4)


def test_ranks_become_one_as_each_metric_says(monkeypatch):
    mine = {"train/reward": 1.0, "train/completions/min_length": 3.0, "train/completions/max_length": 5.0}
    other = {"train/reward": 2.0, "train/completions/min_length": 2.0, "train/completions/max_length": 9.0}
    counts = {"correction/reflect/count": 4.0}  # a branch that one rank took
    monkeypatch.setattr(
        torch.distributed,
        "all_gather_object",
        lambda out, *_, **__: out.__setitem__(slice(None), [mine, other | counts]),
    )
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    cfg, _ = composed("train", *SMALL_GRPO)
    module = build_module(cfg)
    module._trainer = SimpleNamespace(world_size=2)
    expected = {"train/reward": 1.5, "train/completions/min_length": 2, "train/completions/max_length": 9}
    assert module._over_ranks(mine) == expected | counts


def test_zero_variance_is_of_rewards_and_all_wrong_of_answers():
    # Both wrong, one of them in a box: the rewards 1 and 0 differ, so there is an advantage without a right answer.
    metrics = collapse_metrics(scored([0, 0], [1, 0]), scored([0, 0], [1, 0]))
    assert (metrics["collapse/before/all_wrong"], metrics["collapse/before/zero_variance"]) == (1, 0)
    # Right without a box and wrong with one: mixed, but with equal rewards.
    metrics = collapse_metrics(scored([1, 0], [0, 1]), scored([1, 0], [0, 1]))
    assert (metrics["collapse/before/mixed"], metrics["collapse/before/zero_variance"]) == (1, 1)


def test_rewards_by_hand():
    # After correction the rewards are 2, 0 | 2, 2 | 2, 2; the standard deviation of 2 and 0 with n - 1 is sqrt(2).
    # Of either part one value of six is 0 and the others 1: mean 5/6, variance (5/6 * 1/6) * 6/5 = 1/6.
    assert reward_metrics(BEFORE, AFTER) == pytest.approx(
        {
            "train/reward": 10 / 6,
            "train/reward_group_std": math.sqrt(2) / 3,
            "train/frac_reward_zero_std": 2 / 3,
            "train/rewards/accuracy/mean": 5 / 6,
            "train/rewards/accuracy/std": math.sqrt(1 / 6),
            "train/rewards/format/mean": 5 / 6,
            "train/rewards/format/std": math.sqrt(1 / 6),
            "train/accuracy": 3 / 6,
            "train/accuracy_corrected": 5 / 6,
        }
    )


def test_completions_by_hand():
    # As sampled: 2, 3, 1, 4, 1, 1 tokens; the first and the fourth were cut, the others have 3 + 1 + 1 + 1 tokens.
    assert completion_metrics(BEFORE) == pytest.approx(
        {
            "train/completions/mean_length": 12 / 6,
            "train/completions/min_length": 1,
            "train/completions/max_length": 4,
            "train/completions/mean_terminated_length": 6 / 4,
            "train/completions/min_terminated_length": 1,
            "train/completions/max_terminated_length": 3,
            "train/completions/clipped_ratio": 2 / 6,
            "train/entropy": 0.5,  # of every token of these rows
            "train/entropy_correct": 0.5,
            "train/entropy_wrong": 0.5,
        }
    )


def test_entropies_are_over_tokens_and_apart_by_what_was_right():
    # Right: 3 tokens at 0.1 and 1 at 0.5; wrong: 2 at 0.9 and 4 at 0.3.
    rows = [
        response("sss", entropy=0.1),
        response("ss", entropy=0.9),
        response("s", entropy=0.5),
        response("ssss", entropy=0.3),
    ]
    metrics = completion_metrics(scored([1, 0, 1, 0], [0, 0, 0, 0], rows))
    assert metrics["train/entropy_correct"] == pytest.approx(0.8 / 4)
    assert metrics["train/entropy_wrong"] == pytest.approx(3.0 / 6)
    assert metrics["train/entropy"] == pytest.approx(3.8 / 10)


def test_what_is_of_no_response_is_absent():
    metrics = completion_metrics(scored([0, 0], [0, 0], [response("ss", "length"), response("s", "length")]))
    assert metrics["train/completions/clipped_ratio"] == 1
    assert "train/entropy_correct" not in metrics
    assert not [name for name in metrics if "terminated" in name]


def test_corrections_by_hand():
    # Not sampled: 5 reference tokens and 2 + 2 injected ones of 5 + 5 + 1 + 6 + 1 + 1 = 19.
    assert correction_metrics(AFTER, BRANCHES) == pytest.approx(
        {
            "correction/solution/count": 1,
            "correction/solution/success_rate": 1,
            "correction/solution/tokens_not_sampled": 5,
            "correction/reflect/count": 1,
            "correction/reflect/success_rate": 0,
            "correction/reflect/tokens_not_sampled": 2,
            "correction/answer/count": 1,
            "correction/answer/success_rate": 1,
            "correction/answer/tokens_not_sampled": 2,
            "correction/tokens_not_sampled": 9 / 19,
            "correction/mean_length": 19 / 6,
        }
    )
    # Nothing corrected: 12 tokens in 6 rows.
    assert correction_metrics(BEFORE, (None,) * 6) == pytest.approx(
        {"correction/tokens_not_sampled": 0, "correction/mean_length": 2}
    )


def test_advantages_by_hand():
    # Token advantages of row 0: 1 and 3, mean 2; row 1 has one token, -2 (its padding of 9 does not count); row 2
    # is 0. Mean 0, variance (4 + 4 + 0) / 3; two of three rows have an advantage.
    advantages = torch.tensor([[1.0, 3.0], [-2.0, 9.0], [0.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    assert advantage_metrics(advantages, mask, mask) == pytest.approx(
        {"train/advantage_var": 8 / 3, "train/effective_rows": 2 / 3}
    )
    # Row 0 weighs nothing in the loss.
    trained = mask & torch.tensor([[False], [True], [True]])
    assert advantage_metrics(advantages, mask, trained)["train/effective_rows"] == pytest.approx(1 / 3)


def test_a_row_whose_token_advantages_cancel_is_still_effective():
    everything = torch.ones(1, 2, dtype=torch.bool)
    metrics = advantage_metrics(torch.tensor([[1.0, -1.0]]), everything, everything)
    assert metrics == {"train/advantage_var": 0, "train/effective_rows": 1}


def test_multipliers_by_hand():
    # 0, 1, ..., 20 clamped at 18: quantile q of 21 evenly spaced values lies at 20 q: 1, 10 and 19 -> 18.
    # Sum 0 + ... + 20 = 210, minus 1 and 2 that the clamp takes off; 18, 19 and 20 are at it.
    multiplier = torch.arange(21.0).clamp(max=18)
    extra = {"eda/multiplier": multiplier, "eda/clamped": (multiplier >= 18).float()}
    reports = Reports(SimpleNamespace(metrics=EDA_METRICS), 23)
    reports.add(extra, torch.arange(1, 22), torch.ones(21, 1, dtype=torch.bool))  # two others are silent
    metrics = reports.reduced()
    expected = {
        "eda/multiplier_mean": 207 / 21,
        "eda/multiplier_p05": 1,
        "eda/multiplier_p50": 10,
        "eda/multiplier_p95": 18,
        "eda/multiplier_max": 18,
        "eda/clamped": 3 / 21,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_reports_of_tokens_by_hand():
    # Rows 0 and 1 of three; the mask leaves 2 and 1 tokens. Epoch 0: sums 1 and 1, so 2 / 3 over tokens, rows 1/2 and
    # 1. Epoch 1: sums 0 and 1: 1 / 3, rows 0 and 1. Means over epochs: 1/2, smallest rows (1/2 + 0) / 2, largest 1.
    declares = {
        "m": StrategyMetric("1", "e", of="v"),
        "low": StrategyMetric("1", "e", of="v", reduction="min"),
        "high": StrategyMetric("1", "e", of="v", reduction="max"),
        "absent": StrategyMetric("1", "e"),
    }
    reports = Reports(SimpleNamespace(metrics=declares), 3)
    mask = torch.tensor([[True, True], [True, False]])
    for epoch, first in enumerate((True, False)):
        values = torch.tensor([[first, False], [True, True]])
        reports.add({"v": values}, torch.tensor([0, 1]), mask, epoch)
        reports.add({"v": values}, torch.tensor([0, 1]), mask, epoch)  # computed again: counts once
    assert reports.reduced() == pytest.approx({"m": 1 / 2, "low": 1 / 4, "high": 1})
    assert reports.rows()["v"][:2].tolist() == [0.5, 1.0]
    assert reports.rows()["v"][2].isnan()


def test_a_report_that_is_not_declared_is_refused_by_name():
    reports = Reports(SimpleNamespace(), 1)
    with pytest.raises(UserError, match="SimpleNamespace returns mine/x, which it does not declare"):
        reports.add({"mine/x": torch.ones(1)}, torch.tensor([0]), torch.ones(1, 1, dtype=torch.bool))


def test_two_definitions_of_one_name_are_refused():
    one, two = (SimpleNamespace(metrics={"mine/x": StrategyMetric("1", "e")}) for _ in range(2))
    assert list(declared([one], describe)) == ["mine/x"]
    for strategies in ([one, two], [SimpleNamespace(metrics={"train/reward": StrategyMetric("1", "e")})]):
        with pytest.raises(UserError, match="is defined already"):
            declared(strategies, describe)


def test_the_deviation_over_all_rows_by_hand():
    # Of 1, 2 and 6: mean 3, squares about it 4 + 1 + 9 = 14, over 2.
    assert deviation(3, 9.0, 41.0) == pytest.approx(math.sqrt(7))
    assert deviation(1, 5.0, 25.0) == 0


def test_verifier_rates_by_hand():
    before = {"total": 10, "fast": 4, "cached": 2, "unparsed": 1, "timeout": 1, "error": 0, "crash": 3}
    new = {"total": 8, "fast": 3, "cached": 2, "unparsed": 4, "timeout": 1, "error": 1, "crash": 2}
    values = ({"values": 20, "not_finite": 5}, {"values": 36, "not_finite": 6})  # 1 of 16 in between
    after = {name: n + new[name] for name, n in before.items()}
    assert verifier_metrics(before | values[0], after | values[1]) == {
        "verifier/timeout_rate": 1 / 8,
        "verifier/error_rate": 3 / 8,
        "verifier/unparsed_rate": 4 / 8,
        "verifier/cache_hit_rate": 2 / 8,
        "verifier/not_finite_rate": 1 / 16,
    }
    assert verifier_metrics(before | values[0], before | values[1]) == {"verifier/not_finite_rate": 1 / 16}


def test_share_of_nothing_is_zero():
    assert share(torch.zeros(0, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("train/entropy", "nats"),
        ("train/rewards/accuracy/mean", "reward"),
        ("correction/reflect/count", "rows"),
        ("eval/held_out/avg@1", "share"),
        ("eval/AIME24/pass@16", "share"),
        ("eval/MATH500/mean_length", "tokens"),
        ("correction/answer/tokens_not_sampled", "tokens"),
        ("timing_s/rollout", "s"),
        ("train/entropie", None),
        ("reward", None),
        ("eval/held_out/accuracy", None),
        ("train/lr", None),
    ],
)
def test_describe(name, unit):
    found = describe(name)
    assert (found and found.unit) == unit


COUNTED = ("total", "fast", "cached", "unparsed", "timeout", "error", "crash", "values", "not_finite")


def test_what_the_functions_return_is_defined():
    names = {
        *collapse_metrics(BEFORE, AFTER),
        *reward_metrics(BEFORE, AFTER),
        *completion_metrics(BEFORE),
        *correction_metrics(AFTER, BRANCHES),
        *advantage_metrics(torch.zeros(2, 1), *[torch.ones(2, 1, dtype=torch.bool)] * 2),
        *verifier_metrics(dict.fromkeys(COUNTED, 0), dict.fromkeys(COUNTED, 1)),
    }
    assert {name for name in names if describe(name) is None} == set()


def test_every_definition_is_complete():
    for name, metric in METRICS.items():
        assert metric.unit, name
        assert metric.estimator, name
        assert describe(name) is metric, f"an earlier pattern hides {name}"


def test_the_page_is_what_the_module_prints():
    page = as_markdown()
    assert DOCS.read_text() == page, "python -m edge_grpo.programs.metrics_page > docs/metrics.md"
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    reporting = (ClippedLoss, DualClipLoss, SAPOLoss, AdaptiveEntropyLoss, AVSPO, TopEntropy, ClipCov)
    names = {*METRICS, *EDA_METRICS, *(name for strategy in reporting for name in strategy.metrics)}
    found = [line.split("`")[1] for line in rows]
    assert set(found) >= names
    assert len(found) == len(set(found))  # what several losses report stands once
    assert (
        "## Of the loss: AdaptiveEntropyLoss, ClippedLoss, CISPOLoss, DPPOLoss, DualClipLoss, GMPOLoss, GSPOLoss"
        in page
    )
    assert all(row.count("|") == 6 for row in rows)
