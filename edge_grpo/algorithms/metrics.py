"""The pure functions behind one iteration's metrics; their names are defined in loggers/metrics.py."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from edge_grpo.advantages.base import collapsed
from edge_grpo.algorithms.collapse import (
    advantage_logprob_covariance,
    distinct_answers,
    effective_rows,
    revival_metrics,
)
from edge_grpo.algorithms.mismatch import foreign_logprobs, mismatch_metrics
from edge_grpo.algorithms.reports import Reports, row_means
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.corrections.base import Corrected, Correction
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import ScoredRollout
from edge_grpo.types.update import Step


def grpo_metrics(
    sampled: ScoredRollout,
    corrected: Corrected,
    update: GRPOUpdate,
    steps: Sequence[Step],
    correction: Correction,
    generated: int,
    total_over_ranks: Callable[..., list[float]],
) -> dict[str, float]:
    """All that one GRPO iteration logs of its rollout and update; `generated` counts this rank's responses."""
    after = corrected.scored
    rewards = after.scores.rewards.double()
    of_correction = Reports(correction, after.rollout.num_rows)
    of_correction.add(corrected.reports, torch.arange(after.rollout.num_rows), torch.ones(len(rewards), 1).bool())
    effective, responses = total_over_ranks(effective_rows(update), generated)
    return {
        **reward_metrics(sampled, after),
        "train/effective_rows_per_generated": effective / responses,
        "train/distinct_answers": distinct_answers(sampled),
        "train/reward_std": deviation(*total_over_ranks(len(rewards), rewards.sum(), rewards.square().sum())),
        **completion_metrics(sampled),
        **collapse_metrics(sampled, after),
        **revival_metrics(sampled, after, update),
        **correction_metrics(after, corrected.branches),
        **of_correction.reduced(),
        **update_metrics(update, steps),
        **({} if foreign_logprobs(correction) else mismatch_metrics(update, total_over_ranks)),
    }


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
    right = before.scores.correct.view(-1, g)
    metrics["collapse/phantom"] = share((right == right[:, :1]).all(1) & ~equal["before"])
    metrics["collapse/revived_by_correction"] = share(equal["before"] & ~equal["after"])
    metrics["collapse/created_by_correction"] = share(~equal["before"] & equal["after"])
    return metrics


def reward_metrics(before: ScoredRollout, after: ScoredRollout) -> dict[str, float]:
    """`train/reward*` and accuracies of one iteration."""
    rewards = after.scores.rewards.view(-1, after.rollout.num_generations)
    metrics = {
        "train/reward": float(rewards.mean()),
        "train/reward_group_std": float(rewards.std(1).mean()),
        "train/frac_reward_zero_std": share(collapsed(rewards)),
        "train/accuracy": share(before.scores.correct),
        "train/accuracy_corrected": share(after.scores.correct),
    }
    for name, part in after.scores.parts.items():
        metrics |= {f"train/rewards/{name}/mean": float(part.mean()), f"train/rewards/{name}/std": float(part.std())}
    return metrics


def completion_metrics(sampled: ScoredRollout) -> dict[str, float]:
    """`train/completions/*` and the sampling entropies of one iteration: of the responses before correction."""
    responses, correct = sampled.rollout.responses, sampled.scores.correct.tolist()
    lengths = [len(r) for r in responses]
    metrics = {f"train/completions/{name}": value for name, value in _extent(lengths, "length").items()}
    terminated = [len(r) for r in responses if r.finish_reason == "stop"]
    metrics |= {f"train/completions/{name}": value for name, value in _extent(terminated, "terminated_length").items()}
    metrics["train/completions/clipped_ratio"] = 1 - len(terminated) / len(responses)
    right = [r for r, is_right in zip(responses, correct, strict=True) if is_right]
    wrong = [r for r, is_right in zip(responses, correct, strict=True) if not is_right]
    for name, chosen in (("entropy", responses), ("entropy_correct", right), ("entropy_wrong", wrong)):
        entropies = [r.entropies for r in chosen if r.entropies is not None]
        if sum(map(len, entropies)) and len(entropies) == len(chosen):  # the engine has told them
            metrics[f"train/{name}"] = float(torch.cat(entropies).mean())
    return metrics


def correction_metrics(after: ScoredRollout, branches: Sequence[str | None]) -> dict[str, float]:
    """`correction/*` of one iteration; only the branches that were taken appear."""
    responses = after.rollout.responses
    metrics: dict[str, float] = {}
    for branch in sorted({b for b in branches if b is not None}):
        rows = [row for row, taken in enumerate(branches) if taken == branch]
        metrics[f"correction/{branch}/count"] = len(rows)
        metrics[f"correction/{branch}/success_rate"] = share(after.scores.correct[rows])
        metrics[f"correction/{branch}/tokens_not_sampled"] = int(_not_sampled([responses[row] for row in rows]).sum())
    metrics["correction/tokens_not_sampled"] = share(_not_sampled(responses))
    metrics["correction/mean_length"] = sum(map(len, responses)) / len(responses)
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


def update_metrics(update: GRPOUpdate, steps: Sequence[Step]) -> dict[str, float]:
    """`train/loss` and its like, and what the advantage and the loss report."""
    lengths = update.batch.prompt_lengths + update.batch.response_lengths
    return {
        "train/loss": sum(step.loss for step in steps) / len(steps),
        "train/grad_norm": sum(step.grad_norm for step in steps) / len(steps),
        "train/skipped_steps": float(sum(step.bad is not None for step in steps)),
        **advantage_metrics(update.advantages, update.batch.completion_mask, update.batch.trained),
        "perf/skipped_tokens": float(lengths.sum() - lengths[update.computed].sum()),
        **off_policy_metrics(update),
        **own_entropy(update),
        **advantage_logprob_covariance(update),
        **update.of_advantage.reduced(),
        **update.of_loss.reduced(),
        **update.of_filter.reduced(),
    }


def advantage_metrics(advantages: Tensor, mask: Tensor, trained: Tensor) -> dict[str, float]:
    """The variance of rows' advantages, and the share of rows that have one.

    Args:
        advantages: [N, T].
        mask: [N, T] bool, of the tokens that there are; `trained`: of those that weigh something in the loss.
    """
    return {
        "train/advantage_var": float(row_means(advantages, mask).var(correction=0)),
        "train/effective_rows": share(((advantages != 0) & trained).any(1)),
    }


def own_entropy(update: GRPOUpdate) -> dict[str, float]:
    """`train/update_entropy`, of the update's own forward passes; nothing where the rollout has recorded entropies."""
    if update.recorded is None or update.recorded.entropy is not None:
        return {}
    sampled = (update.recorded.trained & update.recorded.sampled)[update.computed]
    entropy = update.entropy[update.computed][sampled]
    return {"train/update_entropy": float(entropy.mean())} if len(entropy) else {}


def off_policy_metrics(update: GRPOUpdate) -> dict[str, float]:
    """`train/off_policy/*`, of the policy before the update; none where no token is off-policy."""
    batch, rows = update.batch, update.computed
    trained = batch.trained[rows]
    tokens = trained & batch.off_policy[rows][:, None]
    if not tokens.any():
        return {}
    ratio = torch.exp(update.old_logprobs[rows] - batch.sampling_logprobs[rows])[tokens]
    return {
        "train/off_policy/tokens": float(tokens.sum() / trained.sum()),
        "train/off_policy/ratio_mean": float(ratio.mean()),
        "train/off_policy/ratio_max": float(ratio.max()),
        "train/off_policy/shaped": share((batch.shaping[rows] > 0)[:, None].expand_as(tokens)[tokens]),
    }


def timing_metrics(
    seconds: Mapping[str, float], generated: float, update: GRPOUpdate, steps: Sequence[Step]
) -> dict[str, float]:
    """`timing_s/*` and tokens a second.

    Args:
        generated: tokens of the first rollout, of all rounds of the allocation.
    """
    epochs = len(steps) // len(update.steps)
    updated = int(update.batch.response_lengths[update.computed].sum()) * epochs
    return {
        **{f"timing_s/{stage}": value for stage, value in seconds.items()},
        "perf/rollout_tokens_per_s": generated / seconds["rollout"],
        "perf/update_tokens_per_s": updated / seconds["update"],
    }


def idle_shares(ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a rank waits for the slowest one, on the mean of the ranks, as a share of the iteration.

    Args:
        ranks: seconds by stage of each rank, of work that waits for no other rank, and of all as `total`.

    Returns:
        `perf/idle_share/<stage>`, and their sum; nothing for one rank.

    >>> idle_shares([{"rollout": 4.0, "update": 1.0, "total": 8.0}, {"rollout": 2.0, "update": 3.0, "total": 8.0}])
    {'perf/idle_share/rollout': 0.125, 'perf/idle_share/update': 0.125, 'perf/idle_share': 0.25}
    """
    if len(ranks) < 2:
        return {}
    whole, stages = max(rank["total"] for rank in ranks), list(dict.fromkeys(stage for rank in ranks for stage in rank))
    shares = {}
    for stage in stages:
        if stage != "total":
            seconds = [rank.get(stage, 0.0) for rank in ranks]
            shares[f"perf/idle_share/{stage}"] = (max(seconds) - sum(seconds) / len(seconds)) / whole
    return {**shares, "perf/idle_share": sum(shares.values())}


def deviation(n: float, total: float, squares: float) -> float:
    """Standard deviation (N - 1) of N numbers by their sum and the sum of their squares; 0 of fewer than two.

    >>> deviation(2, 2.0, 4.0)  # of 0 and 2: squares about the mean 1 + 1, over 1
    1.4142135623730951
    """
    return math.sqrt(max(squares - total * total / n, 0.0) / (n - 1)) if n > 1 else 0.0


def share(mask: Tensor) -> float:
    """Share of true entries; 0 for an empty mask."""
    return float(mask.float().mean()) if mask.numel() else 0.0


def _extent(lengths: Sequence[int], name: str) -> dict[str, float]:
    """Mean, minimum and maximum; nothing of nothing."""
    if not lengths:
        return {}
    return {f"mean_{name}": sum(lengths) / len(lengths), f"min_{name}": min(lengths), f"max_{name}": max(lengths)}


def _not_sampled(responses: Sequence[Response]) -> Tensor:
    """[tokens] bool, of all responses one behind the other."""
    return torch.cat([r.provenance for r in responses]) != Provenance.SAMPLED
