"""What corrections share that give all-wrong groups a hint in the user turn and train them under the hinted prompt."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from edge_grpo.corrections.base import UNIFORM_WEIGHT, CorrectionTools, Encode
from edge_grpo.corrections.groups import of_groups
from edge_grpo.corrections.guided import rescored
from edge_grpo.errors import UserError
from edge_grpo.types.history import History
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import ScoredRollout

Prompt = tuple[int, ...]
NO_BRANCHES: Mapping[int, str] = {}


class HintCorrection:
    """What is the same for all of them: every token is sampled, and no response gets longer than the rollout's."""

    token_weight = UNIFORM_WEIGHT

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`; a hint lengthens the prompt, which is held against the context later."""
        return max_new_tokens


def check_template(key: str, template: str, *names: str) -> None:
    """Refuse a template that does not hold each `{name}` once.

    Raises:
        UserError: names the key.
    """
    for name in names:
        if template.count(f"{{{name}}}") != 1:
            raise UserError(f"{key}={template!r} must hold {{{name}}} once")


def filled(template: str, **values: str) -> str:
    """The template with its names in braces replaced at once, so that no value is read as a template.

    >>> filled("{a} and {b}", a="{b}", b="x")
    '{b} and x'
    """
    return re.sub("|".join(rf"\{{{name}\}}" for name in values), lambda found: values[found[0][1:-1]], template)


def fits(prompt: Sequence[int], new_tokens: int, tools: CorrectionTools) -> bool:
    """Whether the model's context holds a prompt and so many tokens behind it."""
    return tools.context_length is None or len(prompt) + new_tokens <= tools.context_length


@dataclass
class Climbed:
    """A rollout whose all-wrong groups went up a ladder of hints.

    Args:
        scored: the rollout, with the rows of the last level that was drawn.
        tried: level, from 1 -> group that was drawn at it -> whether one of these rows was right.
        without_room: groups of which at least one hinted prompt left no room for a response.
        drawn: group -> rewards of the hinted rows, a tensor a level.
    """

    scored: ScoredRollout
    tried: dict[int, dict[int, bool]] = field(default_factory=dict)
    without_room: set[int] = field(default_factory=set)
    drawn: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def level(self) -> dict[int, int]:
        """Group -> the last level that was drawn for it."""
        return {group: level for level, groups in sorted(self.tried.items()) for group in groups}

    @property
    def solved(self) -> set[int]:
        """Groups of which a hinted row was right."""
        return {group for groups in self.tried.values() for group, right in groups.items() if right}

    def branches(self, others: Mapping[int, str] = NO_BRANCHES) -> tuple[str | None, ...]:
        """[N]: `hint_<level>` for the rows of a group that was drawn again, `no_room` where no hinted prompt had any.

        Args:
            others: group that got no hint -> why.
        """
        why = {**others, **dict.fromkeys(self.without_room, "no_room")}
        why |= {group: f"hint_{level}" for group, level in self.level.items()}
        rollout = self.scored.rollout
        return tuple(why.get(row // rollout.num_generations) for row in range(rollout.num_rows))

    def rebased(self) -> ScoredRollout:
        """`scored`, with the rewards drawn for a hinted group those of the rows that it now has.

        What was drawn under the plain prompt is no baseline for rows of the hinted one.
        """
        if not self.scored.drawn:
            return self.scored
        own = (self.drawn[g][-1] if g in self.drawn else rewards for g, rewards in enumerate(self.scored.drawn))
        return replace(self.scored, drawn=tuple(own))


def climb(
    scored: ScoredRollout,
    groups: Sequence[int],
    levels: int,
    prompt_of: Callable[[int, int], Prompt | None],
    rows: int,
    tools: CorrectionTools,
) -> Climbed:
    """Draw rows of these groups again under the prompts of level 1, 2, ..., each group until one of them is right.

    A level is one call of `tools.generate`. A prompt that leaves no room for the rollout's budget is passed over.

    Args:
        groups: all-wrong ones.
        levels: how many there are.
        prompt_of: (group, level from 1) -> the hinted prompt; None where the group has no hint of this level.
        rows: of a group that are drawn at each level, its first ones.
    """
    result, waiting, size = Climbed(scored), list(groups), scored.rollout.num_generations
    for level in range(1, levels + 1):
        hinted = {group: prompt for group in waiting if (prompt := prompt_of(group, level)) is not None}
        prompts = {group: prompt for group, prompt in hinted.items() if fits(prompt, tools.max_new_tokens, tools)}
        result.without_room |= hinted.keys() - prompts.keys()
        if not prompts:
            continue
        places = [(group, group * size + i) for group in prompts for i in range(rows)]
        drawn = tools.generate([list(prompts[group]) for group, _ in places], [tools.max_new_tokens] * len(places))
        edited = {
            row: replace(response, prompt_ids=prompts[group])
            for (group, row), response in zip(places, drawn, strict=True)
        }
        result.scored = rescored(result.scored, edited, tools)
        scores, own = result.scored.scores, {group: slice(group * size, group * size + rows) for group in prompts}
        result.tried[level] = {group: bool(scores.correct[part].any()) for group, part in own.items()}
        for group, part in own.items():
            result.drawn.setdefault(group, []).append(scores.rewards[part])
        waiting = [group for group in waiting if group not in result.solved]
    return result


@dataclass(frozen=True)
class HintMetrics:
    """What a correction with hints reports.

    Args:
        name: of the correction, before the slash.
        levels: how many there are; 0 where it differs between problems, and `solved_<level>` is left out.
    """

    name: str
    levels: int = 0

    @property
    def definitions(self) -> StrategyMetrics:
        """Logged name -> definition."""
        defined = {
            "hinted": "groups of which rows were drawn with a hint",
            "solved": "hinted groups of which a hinted row was right",
            **{f"solved_{level}": f"groups drawn with hint {level} that it solved" for level in self._levels},
            "unhinted_accuracy": "rows that are right as they come to the correction, of problems that were all wrong "
            "at an earlier visit and so were due for a hint: whether hints help where there is none",
        }
        level = StrategyMetric("level", "mean over hinted groups of the last level that was drawn", "mean")
        shares = {f"{self.name}/{key}": StrategyMetric("share", text, "mean") for key, text in defined.items()}
        return {**shares, f"{self.name}/level": level}

    @property
    def _levels(self) -> range:
        return range(1, self.levels + 1)

    def reports(
        self, scored: ScoredRollout, climbed: Climbed, history: History, *, since: int = 0
    ) -> dict[str, Tensor]:
        """Name -> [N], NaN for the rows of which it says nothing.

        Args:
            scored: before the correction.
            history: of the iterations before.
            since: the first iteration in which hints were given.
        """
        rollout = scored.rollout
        due = {
            group: 1.0
            for group, problem in enumerate(rollout.problems)
            if any(visit.right == 0 and visit.iteration >= since for visit in history.of(problem.id))
        }
        reports = {
            "hinted": of_groups(dict.fromkeys(climbed.level, 1.0), rollout, otherwise=0.0),
            "level": of_groups({group: float(level) for group, level in climbed.level.items()}, rollout),
            "solved": of_groups({group: float(group in climbed.solved) for group in climbed.level}, rollout),
            "unhinted_accuracy": of_groups(due, rollout) * scored.scores.correct,
        }
        for level in self._levels:
            reports[f"solved_{level}"] = of_groups(
                {g: float(ok) for g, ok in climbed.tried.get(level, {}).items()}, rollout
            )
        return {f"{self.name}/{key}": values for key, values in reports.items()}
