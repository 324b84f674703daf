"""GHPO's hints: the beginning of the reference solution, a longer one as long as all responses are wrong."""

from collections.abc import Sequence
from itertools import pairwise

from edge_grpo.corrections.base import Corrected, CorrectionTools
from edge_grpo.corrections.groups import all_wrong_groups
from edge_grpo.corrections.hints import HintCorrection, HintMetrics, check_template, climb, filled
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetrics
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import ScoredRollout


class HintCascade(HintCorrection):
    """All G rows of an all-wrong group are drawn again with a hint (GHPO, 2507.10628; its code was read).

        level k   question + `hint` with the first `levels[k]` of the reference's characters
                  -> G new responses in the group's place; level k + 1 only if they are all wrong too

    The hint stands in the user turn, nothing in the response. The rows are trained under the prompt with the hint, so
    that they are on-policy; the reward is that of the response alone. What one level drew is lost at the next. Assumes
    that the beginning of a solution helps and does not yet give the answer away: with levels of 1 the task becomes
    copying. A reference that fails its own grading is no hint. A group whose hinted prompt has no room for
    `rollout.max_new_tokens` in the model's context is left alone as "no_room". Departures: references, answers and
    prompts are this project's; GHPO also has a start (`start_hint_step`) and adds rewards for format.

    Degenerate case: right rows and groups with a right row are untouched; a group still all wrong at the last level
    keeps that level's rows and stays without a signal.

    Args:
        levels: shares of the solution in (0, 1], ascending (GHPO: 0.25, 0.5, 0.75).
        hint: what stands behind the question; holds `{hint}` once.

    Raises:
        UserError: a value out of range.

    >>> cascade = HintCascade(levels=[0.25, 0.5], hint=" It begins: {hint}")
    >>> problem = Problem("a", "1 + 2?", ("3",), solution="1 + 2 = 3.")
    >>> cascade.question(problem, 1), cascade.question(problem, 2)  # 10 characters: round(2.5) = 2, and 5
    ('1 + 2? It begins: 1 ', '1 + 2? It begins: 1 + 2')
    """

    required_fields = frozenset({"solution"})

    def __init__(self, levels: Sequence[float], hint: str) -> None:
        if not levels or not 0 < levels[0] <= levels[-1] <= 1 or any(a >= b for a, b in pairwise(levels)):
            raise UserError(f"correction.levels={list(levels)} must ascend in (0, 1]")
        check_template("correction.hint", hint, "hint")
        self.levels, self.hint = tuple(levels), hint
        self._metrics = HintMetrics("hint_cascade", len(levels))

    @property
    def metrics(self) -> StrategyMetrics:
        """See `HintMetrics`."""
        return self._metrics.definitions

    def question(self, problem: Problem, level: int) -> str:
        """What is asked at a level, from 1."""
        solution = problem.solution or ""
        return problem.question + filled(self.hint, hint=solution[: round(self.levels[level - 1] * len(solution))])

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Draw the rows of all-wrong groups again; see `Correction`."""
        rollout = scored.rollout

        def prompt_of(group: int, level: int) -> tuple[int, ...] | None:
            problem = rollout.problems[group]
            usable = problem.solution and problem.solution_passes
            return tools.prompt(problem, self.question(problem, level)) if usable else None

        size = rollout.num_generations
        climbed = climb(scored, all_wrong_groups(scored), len(self.levels), prompt_of, size, tools)
        reports = self._metrics.reports(scored, climbed, tools.history)
        return Corrected(climbed.rebased(), climbed.branches(), reports)
