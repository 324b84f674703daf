"""Strategies of somebody else that are wrong: each ends the run with a line that names its class."""

from dataclasses import replace

import pytest
import torch
from small_runs import metrics_rows, run_small

from edge_grpo.advantages.base import RewardAdvantage
from edge_grpo.allocations.base import Ask
from edge_grpo.allocations.uniform import Uniform
from edge_grpo.corrections.base import Corrected
from edge_grpo.corrections.keep import Keep
from edge_grpo.errors import UserError
from edge_grpo.importance_corrections.uncorrected import Uncorrected
from edge_grpo.types.metric import StrategyMetric

OF_MINE = {"mine/x": StrategyMetric("1", "mean over rows")}
HERE = "allowed_targets=[test_wrong_strategies]"


class Wrong:
    """Returns what the function that `kind` names makes of the inputs."""

    def __init__(self, kind: str):
        self.kind = kind


class WrongAdvantage(Wrong, RewardAdvantage):
    metrics = OF_MINE

    def __call__(self, inputs):
        r = inputs.grouped_rewards
        flat = r.flatten() - r.mean()
        return {
            "grouped": (r, {}),
            "alone": flat,
            "short": (flat[:-1], {}),
            "whole": (flat.long(), {}),
            "list": (flat.tolist(), {}),
            "not_finite": (flat * float("nan"), {}),
            "infinite": (flat + float("inf"), {}),
            "per_group": (flat, {"mine/x": r.mean(1)[:1]}),
            "number": (flat, {"mine/x": 0.5}),
        }[self.kind]


class WrongZero(RewardAdvantage):
    def __call__(self, inputs):
        return inputs.rewards - inputs.rewards.mean(), {}

    def zero_advantage_groups(self, inputs):
        return torch.zeros(len(inputs.rewards), dtype=torch.bool)


class LateNaN(RewardAdvantage):
    """Not finite from the second update on."""

    calls = 0

    def __call__(self, inputs):
        self.calls += 1
        flat = torch.arange(len(inputs.rewards), dtype=torch.float32)
        return flat * float("nan") if self.calls == 2 else flat, {}

    def zero_advantage_groups(self, inputs):
        return torch.zeros(len(inputs.grouped_rewards), dtype=torch.bool)


class WrongLoss(Wrong):
    beta = 0.0
    reads_every_row = True

    def __call__(self, inputs, size):
        per_row = -(inputs.logprobs * inputs.advantages).sum(1)
        return {
            "rows": (per_row, {}),
            "alone": per_row.sum(),
            "cut": (per_row.sum().detach(), {}),
            "number": (float(per_row.detach().sum()), {}),
        }[self.kind]


class WrongCorrection(Wrong, Keep):
    def __call__(self, scored, tools):
        done = super().__call__(scored, tools)
        return {
            "scored": done.scored,
            "branches": replace(done, branches=done.branches[:-1]),
            "reports": Corrected(done.scored, done.branches, {"mine/x": torch.zeros(1)}),
        }[self.kind]

    metrics = OF_MINE


class WrongFilter(Wrong):
    def __call__(self, groups):
        return {
            "rows": torch.ones(groups.rewards.numel(), dtype=torch.bool),
            "grouped": groups.correct,
            "numbers": torch.ones(len(groups.rewards)),
            "list": [True] * len(groups.rewards),
        }[self.kind]


class WrongAllocation(Wrong, Uniform):
    def first(self, draw):
        asks = super().first(draw)
        kinds = {"nothing": [], "problems": [ask.problem for ask in asks], "no_rows": [Ask(asks[0].problem, 0)]}
        return kinds.get(self.kind, asks)

    def select(self, pool, draw):
        chosen = super().select(pool, draw)
        return {"unequal": [rows[:-1] for rows in chosen], "outside": [[900, 901]], "flat": [0, 1]}.get(
            self.kind, chosen
        )


class WrongTokenFilter(Wrong):
    reads_advantages = False

    def __call__(self, inputs):
        ones = torch.ones_like(inputs.sampling_logprobs)
        return {
            "rows": (ones[:, 0], {}),
            "alone": ones,
            "negative": (-ones, {}),
            "not_finite": (ones * float("nan"), {}),
            "mask": (inputs.trained, {}),
        }[self.kind]


class WrongWeights(Wrong, Uncorrected):
    def __call__(self, mismatch):
        weighed = super().__call__(mismatch)
        return {"alone": weighed.weights, "rows": weighed._replace(weights=weighed.weights[:, 0])}[self.kind]


PAIR = "expected a pair: "
CASES = {
    ("advantage", "WrongAdvantage"): {
        "grouped": r"a tensor of shape \(2, 2\) of float32, expected advantages .*\[N\] = \(4,\) or \[N, T\]",
        "alone": rf"a tensor of shape \(4,\) of float32, {PAIR}advantages \[N\] or \[N, T\], and a dictionary",
        "short": r"a tensor of shape \(3,\)",
        "whole": r"of int64, expected advantages as a float tensor",
        "list": r"a list of 4, expected",
        "not_finite": r"advantages that are NaN or infinite",
        "infinite": r"advantages that are NaN or infinite",
        "per_group": r"a tensor of shape \(1,\) of float32, expected mine/x",
        "number": r"a float, expected mine/x",
    },
    ("loss", "WrongLoss"): {
        "rows": r"expected the micro-batch's loss as a float tensor of shape \[\], one number",
        "alone": rf"{PAIR}the micro-batch's loss",
        "cut": r"a loss without a graph",
        "number": r"a float, expected the micro-batch's loss",
    },
    ("correction", "WrongCorrection"): {
        "scored": r"a ScoredRollout, expected Corrected\(scored, branches, reports\)",
        "branches": r"3 branches, expected one a row: 4",
        "reports": r"expected mine/x",
    },
    ("group_filter", "WrongFilter"): {
        "rows": r"a tensor of shape \(4,\) of bool, expected which groups to keep .* \[P\] = \(2,\)",
        "grouped": r"a tensor of shape \(2, 2\)",
        "numbers": r"of float32, expected which groups to keep as a bool tensor",
        "list": r"a list of 2",
    },
    ("allocation", "WrongAllocation"): {
        "nothing": r"no Ask, expected at least one",
        "problems": r"a list of 2, expected a list of Ask",
        "no_rows": r"rows=0",
        "unequal": r"2 groups of \[1\] rows, expected 1 to 2 groups of 2 different rows",
        "outside": r"rows that are not among the 4",
        "flat": r"as lists of row numbers",
    },
    ("token_filter", "WrongTokenFilter"): {
        "rows": r"a tensor of shape \(4,\) of float32, expected factors",
        "alone": rf"{PAIR}factors \[N, T\]",
        "negative": r"factors that are negative, NaN or infinite",
        "not_finite": r"factors that are negative, NaN or infinite",
        "mask": r"of bool, expected factors as a float tensor",
    },
    ("importance_correction", "WrongWeights"): {
        "alone": r"expected Weighed\(weights",
        "rows": r"expected weights as a float tensor",
    },
}


def run(folder, stage, name, *arguments, iterations=1):
    target = ", ".join([f"_target_: test_wrong_strategies.{name}", *arguments])
    return run_small(
        folder,
        "correction=none",
        f"trainer.max_iterations={iterations}",
        HERE,
        f"~{stage}",
        f"+{stage}={{{target}}}",
    )


@pytest.mark.parametrize(
    ("stage", "name", "kind"), [(*of, kind) for of, kinds in CASES.items() for kind in kinds], ids=str
)
def test_what_a_strategy_returns_wrongly_is_told_with_its_class(tmp_path, stage, name, kind):
    with pytest.raises(UserError) as caught:
        run(tmp_path, stage, name, f"kind: {kind}")
    pattern = CASES[stage, name][kind]
    assert f"test_wrong_strategies.{name}" in str(caught.value)
    caught.match(pattern)


def test_which_groups_have_no_advantage_is_one_a_group(tmp_path):
    with pytest.raises(UserError, match=r"test_wrong_strategies\.WrongZero: zero_advantage_groups returned .* \[P\]"):
        run(tmp_path, "advantage", "WrongZero")


def test_a_base_that_is_wrong_is_told_by_its_own_class(tmp_path):
    with pytest.raises(UserError, match=r"test_wrong_strategies\.WrongAdvantage returned a tensor of shape \(2, 2\)"):
        run_small(
            tmp_path,
            *("correction=none", HERE, "advantage=entropy_driven", "~advantage.base"),
            "+advantage.base={_target_: test_wrong_strategies.WrongAdvantage, kind: grouped}",
        )


def test_advantages_that_are_not_finite_later_are_a_skipped_step_and_named(tmp_path, caplog):
    folder = run(tmp_path, "advantage", "LateNaN", iterations=3)
    assert [row["train/skipped_steps"] for row in metrics_rows(folder)[:3]] == ["0.0", "1.0", "0.0"]
    assert (
        sum("test_wrong_strategies.LateNaN returned advantages that are NaN" in text for text in caplog.messages) == 1
    )
