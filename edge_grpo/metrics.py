"""Every logged name with its unit and estimator, and the pure functions that compute the rollout's metrics.

The step of every metric is the number of updates the policy has had (iteration i logs at step i, the evaluation of
the updated policy at step i + 1). Where TRL logs the same quantity the name is TRL's behind `train/`.
`python -m edge_grpo.metrics` prints docs/metrics.md.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import collapsed
from edge_grpo.types import Provenance, Rollout, ScoredRollout


@dataclass(frozen=True)
class Metric:
    """Unit and estimator of one logged name; `*` in a name stands for one variable part."""

    unit: str
    estimator: str


METRICS: dict[str, Metric] = {
    "train/reward": Metric("reward", "mean over rows after correction: what the advantage is taken over"),
    "train/reward_std": Metric("reward", "mean over groups of the standard deviation (G - 1), after correction"),
    "train/frac_reward_zero_std": Metric("share", "groups whose rewards are all equal, after correction"),
    "train/rewards/*/mean": Metric("reward", "mean over rows of one reward before weighting, after correction"),
    "train/accuracy": Metric("share", "rows that the policy itself got right: before correction"),
    "train/accuracy_corrected": Metric("share", "rows that are right after correction"),
    "train/entropy": Metric(
        "nats", "mean over sampled tokens of the full-vocabulary entropy at the rollout temperature, before correction"
    ),
    "train/advantage_var": Metric("advantage^2", "population variance over rows of the row's mean token advantage"),
    "train/effective_rows": Metric("share", "rows whose advantage is not 0"),
    "train/completions/mean_length": Metric("tokens", "mean over rows of the response length, after correction"),
    "train/completions/clipped_ratio": Metric("share", "sampled responses cut by their budget, before correction"),
    "train/clip_ratio/low_mean": Metric("share", "trained tokens clipped at 1 - epsilon_low, over all update epochs"),
    "train/clip_ratio/high_mean": Metric("share", "trained tokens clipped at 1 + epsilon_high, over all update epochs"),
    "train/kl": Metric("nats", "mean over trained tokens of the chosen KL estimator; only where beta > 0"),
    "train/loss": Metric("loss", "sum of the micro-batches' shares, mean over update epochs"),
    "train/grad_norm": Metric("norm", "global gradient norm before clipping, mean over update epochs"),
    "train/skipped_steps": Metric(
        "steps", "optimiser steps of the iteration that were skipped: loss or gradient not finite"
    ),
    "train/lr": Metric("1", "learning rate of the iteration"),
    "train/num_tokens": Metric("tokens", "response tokens trained on so far, all ranks"),
    "train/num_rollouts": Metric("responses", "responses sampled so far, reflections included, all ranks"),
    "collapse/before/all_wrong": Metric("share", "groups without a right response, as sampled"),
    "collapse/before/all_right": Metric("share", "groups of right responses only, as sampled"),
    "collapse/before/mixed": Metric("share", "groups with right and wrong responses, as sampled"),
    "collapse/before/zero_variance": Metric("share", "groups whose rewards are all equal, as sampled"),
    "collapse/after/all_wrong": Metric("share", "groups without a right response, after correction"),
    "collapse/after/all_right": Metric("share", "groups of right responses only, after correction"),
    "collapse/after/mixed": Metric("share", "groups with right and wrong responses, after correction"),
    "collapse/after/zero_variance": Metric("share", "groups whose rewards are all equal, after correction"),
    "collapse/revived_by_correction": Metric("share", "groups with equal rewards before and unequal ones after"),
    "collapse/created_by_correction": Metric("share", "groups with unequal rewards before and equal ones after"),
    "correction/*/count": Metric("rows", "rows that took the branch in this iteration"),
    "correction/*/success_rate": Metric("share", "rows of the branch that are right afterwards"),
    "correction/tokens_not_sampled": Metric("share", "response tokens that the policy did not sample"),
    "eda/multiplier_mean": Metric("1", "mean over rows of 1 / P^ after the clamp"),
    "eda/multiplier_p05": Metric("1", "5 % quantile over rows"),
    "eda/multiplier_p50": Metric("1", "median over rows"),
    "eda/multiplier_p95": Metric("1", "95 % quantile over rows"),
    "eda/multiplier_max": Metric("1", "maximum over rows"),
    "eda/clamped": Metric("share", "rows whose multiplier is at the clamp"),
    "verifier/timeout_rate": Metric(
        "share", "gradings that ran out of time, over the answers graded in this iteration (rollout and correction)"
    ),
    "verifier/error_rate": Metric(
        "share", "gradings whose worker raised or died, over the answers graded in this iteration"
    ),
    "verifier/unparsed_rate": Metric(
        "share", "answers that are missing, too long or no mathematics, over those graded in this iteration"
    ),
    "verifier/cache_hit_rate": Metric(
        "share", "answers with a known verdict (an equal one before), over those graded in this iteration"
    ),
    "verifier/not_finite_rate": Metric(
        "share", "reward values of this iteration that were NaN or infinite: taken as 0"
    ),
    "timing_s/*": Metric("s", "wall time of a stage in this iteration"),
    "perf/rollout_tokens_per_s": Metric("tokens/s", "tokens of the first rollout over its time"),
    "perf/update_tokens_per_s": Metric(
        "tokens/s", "response tokens computed (not skipped), times mu, over the update's time"
    ),
    "perf/skipped_tokens": Metric(
        "tokens", "prompt and response tokens of rows without any loss, whose forward and backward were skipped"
    ),
    "perf/peak_memory_gb": Metric("GB", "peak memory: of the GPU, or the process's resident set on the CPU"),
    "eval/*/accuracy": Metric("share", "problems answered right, mean over samples (avg@n)"),
    "eval/*/mean_length": Metric("tokens", "mean response length"),
    "eval/*/clipped_ratio": Metric("share", "responses cut by their budget"),
    "sft/loss": Metric("nats", "mean over reference tokens of the cross-entropy"),
}


def describe(name: str) -> Metric | None:
    """The definition of a logged name, None if there is none."""
    return next((METRICS[pattern] for pattern in METRICS if fnmatch.fnmatchcase(name, pattern)), None)


def collapse_metrics(before: ScoredRollout, after: ScoredRollout) -> dict[str, float]:
    """`collapse/*` of one iteration."""
    g = before.rollout.num_generations
    metrics: dict[str, float] = {}
    equal = {}
    for when, scored in (("before", before), ("after", after)):
        right = scored.scores.correct.view(-1, g)
        equal[when] = collapsed(scored.scores.rewards.view(-1, g))
        metrics |= {
            f"collapse/{when}/all_wrong": share(~right.any(1)),
            f"collapse/{when}/all_right": share(right.all(1)),
            f"collapse/{when}/mixed": share(right.any(1) & ~right.all(1)),
            f"collapse/{when}/zero_variance": share(equal[when]),
        }
    metrics["collapse/revived_by_correction"] = share(equal["before"] & ~equal["after"])
    metrics["collapse/created_by_correction"] = share(~equal["before"] & equal["after"])
    return metrics


def reward_metrics(before: ScoredRollout, after: ScoredRollout) -> dict[str, float]:
    """`train/reward*`, accuracies, lengths and the sampling entropy of one iteration."""
    rewards = after.scores.rewards.view(-1, after.rollout.num_generations)
    return {
        "train/reward": float(rewards.mean()),
        "train/reward_std": float(rewards.std(1).mean()),
        "train/frac_reward_zero_std": share(collapsed(rewards)),
        **{f"train/rewards/{name}/mean": float(part.mean()) for name, part in after.scores.parts.items()},
        "train/accuracy": share(before.scores.correct),
        "train/accuracy_corrected": share(after.scores.correct),
        "train/completions/mean_length": _mean([len(r) for r in after.rollout.responses]),
        "train/entropy": float(torch.cat([r.entropies for r in before.rollout.responses]).mean()),
        "train/completions/clipped_ratio": _mean([r.finish_reason == "length" for r in before.rollout.responses]),
    }


def correction_metrics(after: ScoredRollout, branches: Sequence[str | None]) -> dict[str, float]:
    """`correction/*` of one iteration; only the branches that were taken appear."""
    metrics: dict[str, float] = {}
    for branch in sorted({b for b in branches if b is not None}):
        rows = [row for row, taken in enumerate(branches) if taken == branch]
        metrics[f"correction/{branch}/count"] = len(rows)
        metrics[f"correction/{branch}/success_rate"] = share(after.scores.correct[rows])
    metrics["correction/tokens_not_sampled"] = 1 - share(_is_sampled(after.rollout))
    return metrics


def verifier_metrics(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, float]:
    """`verifier/*` from the running counts of `WeightedRewards` before and after an iteration's grading.

    Rewards that grade no answers (`total` stands still) have no rates but `not_finite_rate`.
    """
    new = {name: after[name] - before[name] for name in after}
    metrics = {"verifier/not_finite_rate": new["not_finite"] / new["values"]}
    if new["total"]:
        metrics |= {
            "verifier/timeout_rate": new["timeout"] / new["total"],
            "verifier/error_rate": (new["error"] + new["crash"]) / new["total"],
            "verifier/unparsed_rate": new["unparsed"] / new["total"],
            "verifier/cache_hit_rate": new["cached"] / new["total"],
        }
    return metrics


def advantage_metrics(advantages: Tensor, mask: Tensor, extra: Mapping[str, Tensor]) -> dict[str, float]:
    """[N, T] advantages and mask, and the strategy's own [N] metrics -> `train/advantage_var` and its like, `eda/*`.

    The strategy's own are over the rows that have one: NaN stands where a row was skipped.
    """
    per_row = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
    metrics = {
        "train/advantage_var": float(per_row.var(correction=0)),
        "train/effective_rows": share((advantages * mask).abs().sum(1) > 0),
    }
    for name, row_values in extra.items():
        values = row_values[~row_values.isnan()]
        if not len(values):
            continue
        metrics |= _multiplier_metrics(values) if name == "eda/multiplier" else {name: float(values.float().mean())}
    return metrics


def _multiplier_metrics(multiplier: Tensor) -> dict[str, float]:
    levels = torch.tensor([0.05, 0.5, 0.95], device=multiplier.device, dtype=torch.float32)
    quantiles = torch.quantile(multiplier.float(), levels)
    p05, p50, p95 = quantiles.tolist()
    return {
        "eda/multiplier_mean": float(multiplier.mean()),
        "eda/multiplier_p05": p05,
        "eda/multiplier_p50": p50,
        "eda/multiplier_p95": p95,
        "eda/multiplier_max": float(multiplier.max()),
    }


def share(mask: Tensor) -> float:
    """Share of true entries; 0 for an empty mask."""
    return float(mask.float().mean()) if mask.numel() else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_sampled(rollout: Rollout) -> Tensor:
    return torch.cat([r.provenance for r in rollout.responses]) == Provenance.SAMPLED


def as_markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        *((__doc__ or "").strip().splitlines()[2:]),
        "",
        "| name | unit | estimator |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | {metric.unit} | {metric.estimator} |" for name, metric in METRICS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
