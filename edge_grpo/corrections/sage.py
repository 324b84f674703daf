"""SAGE's hints: the policy writes them itself, from the question and its solution."""

import json
import re
from collections.abc import Sequence

from edge_grpo.corrections.base import Corrected, CorrectionTools
from edge_grpo.corrections.groups import all_wrong_groups, of_groups
from edge_grpo.corrections.hints import (
    HintCorrection,
    HintMetrics,
    check_template,
    climb,
    filled,
    fits,
)
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics
from edge_grpo.types.rollouts import ScoredRollout

LEVELS = 3
LOST = {"\b": r"\b", "\f": r"\f", "\r": r"\r", "\t": r"\t"}
"""what JSON makes of the first letter of \frac, \times, ..., and what stood there"""
MORE: StrategyMetrics = {
    "sage/readable": StrategyMetric("share", "groups for which hints were written whose JSON could be read", "mean"),
    "sage/revealing": StrategyMetric("share", "readable hints that held a gold answer and were dropped", "mean"),
}


class Sage(HintCorrection):
    """All G rows of an all-wrong group are drawn again with a hint of the policy's own (SAGE, 2602.03143; code read).

        write     the policy answers `request`, with question and solution, by JSON with `level_1` to `level_3`
        level k   question + `hint` with level k
                  -> G new responses in the group's place; level k + 1 only if they are all wrong too

    Rows are trained under the prompt with the hint; the writing is not trained. A hint that holds a gold answer as a
    word of its own, whatever the case, blanks, dollars and commas within numbers, is dropped and its level passed over.
    Texts are compared, nothing is evaluated: an answer in other words (1/2 for 0.5) is not found, and one that is a
    common word drops many hints. Groups are left alone, under these names, where the text holds no such JSON
    ("unreadable"), where every hint was dropped ("revealing") and where a prompt has no room in the context
    ("no_room"). Assumes a policy that can follow the request. Departures: the request stands in the user turn, since
    the system prompt is the data's; SAGE-light, which adapts the level, is not built.

    Degenerate case: right rows and groups with a right row are untouched; a group still all wrong at the last level
    keeps that level's rows and stays without a signal.

    Args:
        request: asks for the hints; holds `{question}` and `{solution}` once each.
        request_tokens: new tokens of the hints, all three, at most.
        hint: what stands behind the question; holds `{hint}` once.

    Raises:
        UserError: a value out of range.
    """

    required_fields = frozenset({"answers", "solution"})

    def __init__(self, request: str, request_tokens: int, hint: str) -> None:
        check_template("correction.request", request, "question", "solution")
        check_template("correction.hint", hint, "hint")
        if request_tokens < 1:
            raise UserError(f"correction.request_tokens={request_tokens} must be at least 1")
        self.request, self.request_tokens, self.hint = request, request_tokens, hint
        self._metrics = HintMetrics("sage", LEVELS)

    @property
    def metrics(self) -> StrategyMetrics:
        """See `HintMetrics`, and `MORE`."""
        return {**self._metrics.definitions, **MORE}

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Draw the rows of all-wrong groups again; see `Correction`."""
        problems, size = scored.rollout.problems, scored.rollout.num_generations
        written, why = self._written(scored, tools)
        readable = {group: hints for group, hints in written.items() if hints is not None}
        kept = {
            group: [None if reveals(hint, problems[group].answers) else hint for hint in hints]
            for group, hints in readable.items()
        }
        why |= {group: "unreadable" for group, hints in written.items() if hints is None}
        why |= {group: "revealing" for group, hints in kept.items() if not any(hints)}

        def prompt_of(group: int, level: int) -> tuple[int, ...] | None:
            hint = kept[group][level - 1]
            problem = problems[group]
            return None if hint is None else tools.prompt(problem, problem.question + filled(self.hint, hint=hint))

        climbed = climb(scored, list(kept), LEVELS, prompt_of, size, tools)
        reports = self._metrics.reports(scored, climbed, tools.history)
        reports["sage/readable"] = of_groups({g: float(g in readable) for g in written}, scored.rollout)
        dropped = {group: hints.count(None) / LEVELS for group, hints in kept.items()}
        reports["sage/revealing"] = of_groups(dropped, scored.rollout)
        return Corrected(climbed.rebased(), climbed.branches(why), reports)

    def _written(
        self, scored: ScoredRollout, tools: CorrectionTools
    ) -> tuple[dict[int, list[str] | None], dict[int, str]]:
        """Group -> its hints, None where they cannot be read; and group -> why none were asked for."""
        prompts, why = {}, {}
        for group in all_wrong_groups(scored):
            problem = scored.rollout.problems[group]
            if not problem.solution or not problem.solution_passes:
                continue
            asked = filled(self.request, question=problem.question, solution=problem.solution)
            prompt = tools.prompt(problem, asked)
            if fits(prompt, self.request_tokens, tools):
                prompts[group] = list(prompt)
            else:
                why[group] = "no_room"
        texts = tools.generate(list(prompts.values()), [self.request_tokens] * len(prompts)) if prompts else []
        return {g: read_hints(tools.decode(text.token_ids)) for g, text in zip(prompts, texts, strict=True)}, why


def read_hints(text: str) -> list[str] | None:
    r"""The hints of the first JSON object in a text that has all of them; None if there is none.

    LaTeX that was not escaped for JSON is taken as it was meant.

    >>> read_hints(r'Sure: {"level_1": "Add.", "level_2": "Use $\frac{a}{b}$.", "level_3": "1 + \(x\)"} Good luck!')
    ['Add.', 'Use $\\frac{a}{b}$.', '1 + \\(x\\)']
    >>> read_hints('{"level_1": "Add.", "level_2": ""}') is None
    True
    """
    text = re.sub(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4}|)', lambda found: "\\" + (found[1] or "\\"), text)
    for brace in re.finditer(r"\{", text):
        try:
            found, _ = json.JSONDecoder(strict=False).raw_decode(text, brace.start())
            hints = [found.get(f"level_{level}") for level in range(1, LEVELS + 1)]
            readable = all(isinstance(hint, str) and hint.strip() and hint.encode() for hint in hints)
        except (ValueError, RecursionError):  # half a surrogate pair cannot be encoded
            continue
        if readable:
            return [re.sub(r"[\b\f\r\t](?=[a-z])", lambda lost: LOST[lost[0]], hint) for hint in hints]
    return None


def reveals(hint: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the hint, as a text that is no part of a longer word or number.

    >>> [reveals(hint, ["1,7"]) for hint in ("It is $1,7$.", "1,75 is near", "11,7")]
    [True, False, False]
    >>> reveals("half of 2 000", ["2"]), reveals("so 1000", ["$1,000$"]), reveals("2.5", ["2"]), reveals("2.", ["2"])
    (True, True, False, True)
    """
    inside = _plain(hint)
    for answer in filter(None, map(_plain, answers)):
        before = r"(?<!\w)(?<!\d[.,])" if answer[0].isalnum() else ""
        after = r"(?!\w)(?![.,]\d)" if answer[-1].isalnum() else ""
        if re.search(before + re.escape(answer) + after, inside):
            return True
    return False


def _plain(text: str) -> str:
    return " ".join(re.sub(r"(?<=\d),(?=\d{3})", "", text.replace("$", "")).split()).casefold()
