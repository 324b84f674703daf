"""Right responses of earlier iterations in new groups of their problems: ExGRPO."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected, CorrectionTools, Encode
from edge_grpo.corrections.groups import (
    check_positive,
    groups_with_equal_rewards,
    kept,
    of_groups,
    rows_of,
    sampled_groups,
    share_of_groups,
    with_groups,
)
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response
from edge_grpo.types.rollouts import Rollout, ScoredRollout


class Experience(NamedTuple):
    """The best right response to a problem."""

    bucket: int
    """right responses at the problem's last visit that had a right and a wrong one"""
    iteration: int
    """in which the response was sampled"""
    response: Response


class ExGRPO:
    """A dead group is replaced by one of a stored problem: one stored right response and G - 1 fresh ones (2510.02245).

    Stored is, of every problem that was answered both right and wrong, the right response of lowest mean token entropy
    as recorded when it was sampled; the problem's bucket k is the number of right responses at its last such visit. A
    problem whose responses are all right retires for good. From the first iteration on whose batch accuracy reaches
    `start_accuracy`, up to `share` of the groups are replaced: a bucket is drawn with the weight
    exp(-(k - G/2)^2 / 2) of a normal distribution about G/2, a problem of it uniformly, no problem twice and none of
    this batch. The stored row is off-policy, with rho against its recorded log-probs, and weighs rho / (rho + gamma)
    without a clip; the fresh rows are on-policy, are generated under the problem's own prompt, and are stored in turn.

    Differs from the authors' code, where half of every batch are replay problems: a correction comes after the rollout,
    so here groups of equal rewards alone give way, and their sampled rows are lost (`train/num_rollouts` counts both).
    Fresh rows of a replay are no visit of `History`. The authors use no deviation (`advantage=dr_grpo`).

    Never a row that a correction before this one made. Every rank has a store of its own; it is in the checkpoint.
    Assumes a policy that is right at times. Degenerate case: where all groups are live, or nothing is stored, nothing
    is replaced; all-right and all-wrong groups are replaced alike.

    Args:
        share: of the groups, rounded up, above 0 and at most 1; 0.5 in the paper.
        start_accuracy: in [0, 1]; 0.35 in the paper.
        shaping: gamma, above 0; 0.1 in the paper.
        capacity: problems that are stored, at least 1; the one whose visit is longest ago gives way.

    Raises:
        UserError: a value out of range.
    """

    token_weight = UNIFORM_WEIGHT
    required_fields: frozenset[str] = frozenset()
    makes_off_policy = True
    reads_sampling_logprobs = True
    reads_recorded_entropy = True
    metrics: ClassVar[StrategyMetrics] = {
        "exgrpo/groups": StrategyMetric("share", "groups that a stored problem's group replaced"),
        "exgrpo/age": StrategyMetric("iterations", "since a replayed response was sampled, mean over these groups"),
        "exgrpo/stored": StrategyMetric("problems", "with a stored response, on a rank"),
        "exgrpo/retired": StrategyMetric("problems", "that were answered all right once, on a rank"),
    }

    def __init__(self, share: float, start_accuracy: float, shaping: float, capacity: int) -> None:
        check_positive(share=share, shaping=shaping, capacity=capacity)
        if share > 1:
            raise UserError(f"correction.share={share} must be at most 1")
        if not 0 <= start_accuracy <= 1:
            raise UserError(f"correction.start_accuracy={start_accuracy} must be in [0, 1]")
        self.share, self.start_accuracy, self.shaping, self.capacity = share, start_accuracy, shaping, capacity
        self._stored: dict[str, Experience] = {}  # the latest visit last
        self._retired: set[str] = set()
        self._started = False

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`."""
        return max_new_tokens

    def state_dict(self) -> dict[str, Any]:
        """A snapshot in plain types."""
        stored = [(name, bucket, i, dict(vars(response))) for name, (bucket, i, response) in self._stored.items()]
        return {"stored": stored, "retired": sorted(self._retired), "started": self._started}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        self._stored = {name: Experience(bucket, i, Response(**r)) for name, bucket, i, r in state["stored"]}
        self._retired, self._started = set(state["retired"]), state["started"]

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Replace dead groups, then store what the policy has sampled."""
        rollout, own = scored.rollout, sampled_groups(scored)
        right = scored.scores.correct[[row for group in own for row in rows_of(group, rollout)]]
        self._started |= bool(len(right)) and float(right.float().mean()) >= self.start_accuracy
        places = self._places(scored, tools.generator) if self._started else []
        others = {problem.id for problem in rollout.problems}
        names = self._drawn(len(places), rollout.num_generations, others, tools.generator)
        used = {name: self._stored[name] for name in names}
        new = dict(zip(places, self._replayed(used, rollout.num_generations, tools), strict=False))
        for group in own:
            rows = rows_of(group, rollout)
            responses = [rollout.responses[row] for row in rows]
            self._visit(rollout.problems[group].id, responses, scored.scores.correct[rows], tools.iteration)
        for name, one in zip(names, new.values(), strict=True):
            self._visit(name, one.rollout.responses[1:], one.scores.correct[1:], tools.iteration)
        branches: list[str | None] = [None] * rollout.num_rows
        for group in new:
            first, *others_of = rows_of(group, rollout)
            branches[first] = "replayed"
            for row in others_of:
                branches[row] = "fresh"
        ages = [float(tools.iteration - experience.iteration) for experience in used.values()]
        reports = {
            "exgrpo/groups": share_of_groups(new, rollout),
            "exgrpo/age": of_groups(dict(zip(new, ages, strict=True)), rollout),
            "exgrpo/stored": of_groups({}, rollout, otherwise=len(self._stored)),
            "exgrpo/retired": of_groups({}, rollout, otherwise=len(self._retired)),
        }
        return Corrected(with_groups(scored, new), tuple(branches), reports)

    def _places(self, scored: ScoredRollout, generator: torch.Generator) -> list[int]:
        """Dead groups that may give way, in a drawn order."""
        dead = groups_with_equal_rewards(scored)
        order = torch.randperm(len(dead), generator=generator).tolist()
        return [dead[i] for i in order][: math.ceil(self.share * len(scored.rollout.problems))]

    def _drawn(self, count: int, g: int, without: Collection[str], generator: torch.Generator) -> list[str]:
        """At most `count` stored problems, each once."""
        buckets: dict[int, list[str]] = {}
        for name, experience in self._stored.items():
            if name not in without:
                buckets.setdefault(experience.bucket, []).append(name)
        names: list[str] = []
        while buckets and len(names) < count:
            ks = sorted(buckets)
            k = ks[int(torch.multinomial(bucket_weights(ks, g), 1, generator=generator))]
            names.append(buckets[k].pop(int(torch.randint(len(buckets[k]), (), generator=generator))))
            if not buckets[k]:
                del buckets[k]
        return names

    def _replayed(self, used: Mapping[str, Experience], g: int, tools: CorrectionTools) -> list[ScoredRollout]:
        """A group of each problem: the stored response, then fresh ones; all are graded."""
        if not used:
            return []
        problems = [tools.problem(name) for name in used]
        prefixes = [list(problem.prompt_ids) for problem in problems for _ in range(g - 1)]
        fresh = tools.generate(prefixes, [tools.max_new_tokens] * len(prefixes))
        responses: list[Response] = []
        for i, experience in enumerate(used.values()):
            stored = replace(experience.response, off_policy=True, shaping=self.shaping)
            responses += [stored, *fresh[i * (g - 1) : (i + 1) * (g - 1)]]
        texts = [tools.decode(response.token_ids) for response in responses]
        scores = tools.score([problem for problem in problems for _ in range(g)], texts, responses)
        groups = []
        for i, problem in enumerate(problems):
            rows = list(range(i * g, (i + 1) * g))
            own = scores.selected(rows)
            rollout = Rollout((problem,), tuple(responses[row] for row in rows), g)
            groups.append(ScoredRollout(rollout, tuple(texts[row] for row in rows), own, (own.rewards,)))
        return groups

    def _visit(self, name: str, responses: Sequence[Response], correct: Tensor, iteration: int) -> None:
        """Store the best right response, or let the problem retire; an all-wrong visit changes nothing."""
        count = int(correct.sum())
        if count == len(responses):
            self._retired.add(name)
            self._stored.pop(name, None)
        elif count and name not in self._retired:
            right = [r for r, is_right in zip(responses, correct.tolist(), strict=True) if is_right]
            found = [Experience(count, iteration, response) for response in right]
            before = [self._stored.pop(name)] if name in self._stored else []
            best = min([*before, *found], key=_mean_entropy)
            self._stored[name] = Experience(count, best.iteration, kept(best.response))
            if len(self._stored) > self.capacity:
                del self._stored[next(iter(self._stored))]


def _mean_entropy(experience: Experience) -> float:
    entropies = experience.response.entropies
    assert entropies is not None, "an engine without entropies is refused before the run"
    return float(entropies.mean())


def bucket_weights(ks: Sequence[int], g: int) -> Tensor:
    """The weights of buckets of k right responses of G, of a normal distribution about G / 2, not normalised.

    >>> bucket_weights([1, 2, 4], 4)  # exp(-1/2), 1, exp(-2)
    tensor([0.6065, 1.0000, 0.1353], dtype=torch.float64)
    """
    return torch.exp(-((torch.tensor(ks, dtype=torch.float64) - g / 2) ** 2) / 2)
