"""An allocation's rounds as `GRPOModule.draw` has them, of one rank, with responses that are made up."""

from collections import Counter
from contextlib import nullcontext

import torch

from edge_grpo.algorithms.grpo import GRPOModule
from edge_grpo.seeding import stage_generator
from edge_grpo.types.history import History, Visit
from edge_grpo.types.problems import Problem, ProblemBatch
from edge_grpo.types.responses import Provenance, written_response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores


class Rounds:
    """What `GRPOModule.draw` reads of the module.

    Args:
        allocation: under test.
        rewards: problem id -> rewards of its responses, in the order in which they are drawn, again and again; right
            are those of reward 1. The stream is these problems, again and again.
        groups: P.
        num_generations: G.
        history: what was sampled before.
        others_want: rounds that another rank asks for.
    """

    position = 0
    iteration = 5
    timed = staticmethod(lambda name: nullcontext())

    def __init__(self, allocation, rewards, groups=2, num_generations=2, history=None, seed=0, others_want=0):
        self.inner, self.allocation = allocation, self
        self.rewards, self.groups, self.num_generations = rewards, groups, num_generations
        self.history, self.seed, self.others_want = history or History(), seed, others_want
        self.problems = [Problem(name, "?", ("1",), prompt_ids=(65,)) for name in rewards]
        self.drawn, self.rounds, self.asked, self.pools, self.calls = Counter(), [], [], [], []

    def draw(self):
        """Runs it; `rounds` are then the problem ids of every response of a round, `result` the `Drawn`."""
        at = lambda position: self.problems[position % len(self.problems)]  # noqa: E731
        self.result = GRPOModule.draw(self, ProblemBatch([at(i) for i in range(self.groups)], at))
        return self.result

    @property
    def chosen(self):
        """Problem id and rewards of every group."""
        scored = self.result.scored
        grouped = scored.scores.rewards.view(-1, self.num_generations).tolist()
        return [(problem.id, rewards) for problem, rewards in zip(scored.rollout.problems, grouped, strict=True)]

    # --- the allocation, overheard

    @property
    def max_rounds(self):
        return self.inner.max_rounds

    def first(self, draw):
        self.asked.append(list(self.inner.first(draw)))
        return self.asked[-1]

    def more(self, pool, draw):
        self.asked.append(list(self.inner.more(pool, draw)))
        return self.asked[-1]

    def select(self, pool, draw):
        self.pool = pool
        return self.inner.select(pool, draw)

    # --- the module

    def generator(self, stage):
        return stage_generator(self.seed, stage)

    def total_over_ranks(self, asks):
        return [float(asks + (len(self.rounds) < self.others_want))]

    def roll_out(self, problems, *, group_size, call):
        self.rounds.append([problem.id for problem in problems])
        self.calls.append(call)
        response = written_response(torch.tensor([65]), Provenance.SAMPLED, "stop")
        return Rollout(tuple(problems), (response,) * len(problems), group_size)

    def score(self, rollout):
        values = []
        for problem in rollout.problems:
            of_problem = self.rewards[problem.id]
            values.append(of_problem[self.drawn[problem.id] % len(of_problem)])
            self.drawn[problem.id] += 1
        rewards = torch.tensor(values)
        return ScoredRollout(rollout, ("",) * len(values), Scores(rewards, {"accuracy": rewards}, rewards == 1))


def visited(**right):
    """A history: problem id -> right ones of 8 responses at each visit, the n-th in iteration n; None for no visit."""
    history = History()
    for iteration in range(max(map(len, right.values()), default=0)):
        at = [(name, of[iteration]) for name, of in right.items() if len(of) > iteration and of[iteration] is not None]
        history.record((name, Visit(iteration, 8, c, c / 8, 0.0)) for name, c in at)
    return history
