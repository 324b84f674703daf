"""How far groups collapse, who revives them, and what of the sampling teaches: pure functions of one iteration."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_grpo.advantages.base import collapsed
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.allocations.base import Pool
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.types.history import History
from edge_grpo.types.rollouts import ScoredRollout

FIRST = 100
"""iterations of `collapse/acr_100`"""


def first_shares(before: Sequence[float], share: float) -> list[float]:
    """The shares of the first `FIRST` iterations with one more; a new list, so that a checkpoint may hold the old."""
    return [*before, share][:FIRST]


def live_shares(pool: Pool, history: History) -> dict[str, float]:
    """The share of groups with right and wrong rows, expected and observed, of sampled problems with a visit before.

    A problem of success rate p whose n rows are drawn independently is mixed with probability 1 - p^n - (1 - p)^n. p is
    the share right over all its visits. Nothing where no problem has had a visit.
    """
    expected, observed = [], []
    for problem, rows in zip(pool.problems, pool.rows, strict=True):
        visits, correct = history.of(problem.id), pool.correct[rows]
        if visits:
            p = sum(visit.right for visit in visits) / sum(visit.rows for visit in visits)
            expected.append(1 - p ** len(correct) - (1 - p) ** len(correct))
            observed.append(float(correct.any() and not correct.all()))
    if not expected:
        return {}
    return {
        "collapse/expected_live": sum(expected) / len(expected),
        "collapse/observed_live": sum(observed) / len(observed),
    }


def revived_by_allocation(pool: Pool, chosen: Sequence[Sequence[int]], groups: int) -> float:
    """The share of chosen groups whose rewards differ and that uniform sampling would not have had.

    It would have had the first `groups` problems that were sampled, each with the first responses to it, as many as a
    group has. So a group counts that is of a later problem, or of one whose first responses were all rewarded equally.
    """
    revived = 0
    for rows in chosen:
        candidate, size = int(pool.candidate[rows[0]]), len(rows)
        first = pool.rewards[pool.rows[candidate][:size]]
        live = bool((pool.rewards[list(rows)] != pool.rewards[rows[0]]).any())
        revived += live and (candidate >= groups or bool((first == first[0]).all()))
    return revived / len(chosen)


def revival_metrics(sampled: ScoredRollout, after: ScoredRollout, update: GRPOUpdate) -> dict[str, float]:
    """Which dead groups got a signal from the advantage or a replay, and which groups have none in the end.

    Shares of all groups of the rollout; a group that the filter has dropped has none. A loss that reads no
    advantages takes its signal from every group that is trained on.
    """
    g, groups = update.num_generations, len(after.rollout.problems)
    dead = collapsed(update.rewards.view(-1, g))
    moved = (_trained_advantages(update) != 0).view(len(dead), -1).any(1)
    was = collapsed(sampled.scores.rewards.view(-1, g))
    now = collapsed(after.scores.rewards.view(-1, g))
    reads = getattr(update.loss, "reads_advantages", True)
    taught = moved if reads else update.batch.trained.view(len(dead), -1).any(1)
    pairs = zip(sampled.rollout.problems, after.rollout.problems, strict=True)
    replaced = torch.tensor([one.id != other.id for one, other in pairs])
    return {
        "collapse/revived_by_advantage": int((dead & moved).sum()) / groups,
        "collapse/revived_by_replay": int((was & ~now & replaced).sum()) / groups,
        "collapse/no_advantage": 1 - int(taught.sum()) / groups,
    }


def effective_rows(update: GRPOUpdate) -> int:
    """Rows with a trained token whose advantage is not 0."""
    return int((_trained_advantages(update) != 0).any(1).sum())


def distinct_answers(scored: ScoredRollout) -> float:
    """Mean over groups of the number of different boxed answers, as texts, over the responses of the group."""
    g = scored.rollout.num_generations
    answers = [last_boxed(text) for text in scored.texts]
    counts = [len({a for a in answers[i : i + g] if a is not None}) for i in range(0, len(answers), g)]
    return sum(counts) / len(answers)


def advantage_logprob_covariance(update: GRPOUpdate) -> dict[str, float]:
    """Covariance over the trained tokens of computed rows of the advantage and the log-prob before the update.

    It predicts how the update changes the entropy: upwards where it is negative (2505.22617). Nothing without such a
    token.
    """
    trained = update.batch.trained
    chosen = torch.zeros_like(trained)
    chosen[update.computed] = trained[update.computed]
    if not chosen.any():
        return {}
    advantages, logprobs = update.advantages[chosen].double(), update.old_logprobs[chosen].double()
    product = (advantages - advantages.mean()) * (logprobs - logprobs.mean())
    return {"train/cov_advantage_logprob": float(product.mean())}


def _trained_advantages(update: GRPOUpdate) -> Tensor:
    """[N, T], 0 at tokens that are not trained on."""
    return torch.where(update.batch.trained, update.advantages, 0.0)
