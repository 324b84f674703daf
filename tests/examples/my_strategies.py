"""One strategy of each kind, as somebody who uses edge_grpo would write them in a file of their own."""

from dataclasses import dataclass, replace

import torch

from edge_grpo.advantages.base import RewardAdvantage
from edge_grpo.allocations.base import Ask
from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected
from edge_grpo.types.metric import StrategyMetric


class TopHalf(RewardAdvantage):
    """Advantage: +1 for rewards above the group's median, -1 below, 0 at it. Reports each response's rank."""

    metrics = {"mine/rank": StrategyMetric("1", "mean over rows of the rank within the group, from 0")}

    def __call__(self, inputs):
        grouped = inputs.grouped_rewards
        rank = grouped.argsort(1).argsort(1).flatten().to(grouped.dtype)
        return torch.sign(grouped - grouped.median(1, keepdim=True).values).flatten(), {"mine/rank": rank}


@dataclass(frozen=True)
class EntropyBonus:
    """Loss: -(log pi A + bonus H) over the trained tokens of the update, H their entropy; no ratio and no clip."""

    bonus: float
    beta = 0.0
    reads_every_row = True  # groups without an advantage have an entropy too
    differentiates_entropy = True
    metrics = {"mine/entropy": StrategyMetric("nats", "mean over trained tokens of the entropy in the update")}

    def __call__(self, inputs, size):
        per_token = -(inputs.logprobs * inputs.advantages + self.bonus * inputs.entropy) * inputs.token_weights
        loss = torch.where(inputs.trained, per_token, 0.0).sum() / max(size.tokens, 1)
        return loss, {"mine/entropy": inputs.entropy}


class TryAgain:
    """Correction: every wrong response is replaced by a new one, twice if need be."""

    token_weight = UNIFORM_WEIGHT
    required_fields = frozenset()
    metrics = {"mine/tries": StrategyMetric("tries", "mean over corrected rows")}

    def __call__(self, scored, tools):
        tries = torch.full((scored.rollout.num_rows,), torch.nan)  # NaN: nothing to say of this row
        for attempt in (1, 2):
            rows = (~scored.scores.correct).nonzero().flatten().tolist()
            prefixes = [list(scored.rollout.problem_of(row).prompt_ids) for row in rows]
            new = tools.generate(prefixes, [tools.max_new_tokens] * len(rows))
            scored = self._with(scored, dict(zip(rows, new, strict=True)), tools)
            tries[rows] = attempt
        branches = tuple(None if number.isnan() else "again" for number in tries)
        return Corrected(scored, branches, {"mine/tries": tries})

    def _with(self, scored, new, tools):
        responses, texts, rows = list(scored.rollout.responses), list(scored.texts), list(new)
        for row, response in new.items():
            responses[row], texts[row] = response, tools.decode(response.token_ids)
        scores = tools.score([scored.rollout.problem_of(row) for row in rows], [texts[row] for row in rows])
        rollout = replace(scored.rollout, responses=tuple(responses))
        return replace(scored, rollout=rollout, texts=tuple(texts), scores=scored.scores.replaced(rows, scores))


class UntilMixed:
    """Allocation: new problems until P of them have responses of different rewards, for four rounds at most."""

    max_rounds = 4

    def first(self, draw):
        return [Ask(problem, draw.num_generations) for problem in draw.take(draw.groups)]

    def more(self, pool, draw):
        return self.first(draw) if pool.unequal.sum() < draw.groups else []

    def select(self, pool, draw):
        mixed_first = pool.unequal.int().argsort(descending=True, stable=True)
        return [pool.rows[candidate] for candidate in mixed_first[: draw.groups]]


class FirstGroups:
    """Group filter: the first half of the iteration's problems."""

    def __call__(self, groups):
        first = torch.arange(len(groups.rewards), device=groups.rewards.device)
        return first < (len(first) + 1) // 2


def even_checksum(question: str, answer: str, response: str) -> float:
    """Reward: 1 for a response whose characters add up to an even number."""
    return float(sum(map(ord, response)) % 2 == 0)
