"""Checks of problems that hold whatever they come from; each collects the rows that fail it."""

import logging
from collections.abc import Mapping, Sequence

from edge_grpo.data.bad_rows import BadRow, BadRowError, passing
from edge_grpo.data.formats import OPTIONS
from edge_grpo.errors import UserError
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.types.problems import Problem, Turn

log = logging.getLogger(__name__)


def with_distinct_ids(problems: Sequence[Problem], bad_rows: list[BadRow]) -> list[Problem]:
    """The problems whose id no earlier one has."""
    first: dict[str, str] = {}

    def check(problem: Problem) -> Problem:
        if problem.id in first:
            found = f"{problem.id!r}, which stands at {first[problem.id]} already"
            raise BadRowError(BadRow(problem.origin, "id", found, "another id in every row"))
        first[problem.id] = problem.origin
        return problem

    return passing(problems, check, bad_rows)


def asked(problem: Problem) -> tuple[tuple[Turn, ...], str]:
    """What two rows share that ask the same, whatever their system prompts and blanks.

    >>> one = Problem("a", "1 + 1?", ("2",), turns=(Turn("system", "Think."),))
    >>> asked(one) == asked(Problem("b", "1 +  1?\\n", ("2",)))
    True
    """
    return tuple(turn for turn in problem.turns if turn.role != "system"), " ".join(problem.question.split())


def tell_repeats(train: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    """Log how many training rows repeat a question, and warn of those that stand in the held-out set too."""
    first: dict[object, Problem] = {}
    for problem in train:
        first.setdefault(asked(problem), problem)
    if repeats := len(train) - len(first):
        log.info("%d of %d training rows repeat the question of another; they are kept", repeats, len(train))
    seen = {asked(problem): problem for problem in held_out}
    both = [problem for problem in train if asked(problem) in seen]
    if both:
        log.warning(
            "%d of %d training rows stand in the held-out set too (%s is %s), so held-out accuracy is partly that of "
            "questions trained on",
            len(both),
            len(train),
            both[0].origin,
            seen[asked(both[0])].origin,
        )


def tell_hidden_options(problems: Sequence[Problem], source: str) -> None:
    """Warn where the options of a multiple choice stand in a column of their own and not in the question."""
    for name in OPTIONS:
        hidden = [problem for problem in problems if not _shows(problem, _options(problem.columns.get(name)))]
        if hidden:
            log.warning(
                "%s: in %d of %d rows the question lacks options that stand in the column %r, so the model never sees "
                "them (%s): write them into the question, with the letter or the text of one as its answer",
                source,
                len(hidden),
                len(problems),
                name,
                hidden[0].origin,
            )


def _options(value: object) -> list[str]:
    """
    >>> _options(["3", 4]), _options({"text": ["3", "4"], "label": ["A", "B"]}), _options(3)
    (['3', '4'], ['3', '4'], [])
    """
    texts = value.get("text") if isinstance(value, Mapping) else value
    return [str(text) for text in texts] if isinstance(texts, list | tuple) else []


def _shows(problem: Problem, options: Sequence[str]) -> bool:
    return all(option in problem.question for option in options)


def gradable(problems: Sequence[Problem], wrong: Sequence[str | None], bad_rows: list[BadRow]) -> list[Problem]:
    """The problems for which `wrong` is None; else it says `found`, and may go on with `: expected ...`."""

    def check(pair: tuple[Problem, str | None]) -> Problem:
        problem, text = pair
        if text is not None:
            found, _, expected = text.partition(": expected ")
            expected = expected or "one that the reward can grade"
            raise BadRowError(BadRow(problem.origin, "answer", f"ungradable ({found})", expected))
        return problem

    return passing(list(zip(problems, wrong, strict=True)), check, bad_rows)


def incomplete_rows(problems: Sequence[Problem], reasons: Mapping[str, str]) -> dict[str, BadRow]:
    """Id -> what is missing, of the problems that lack a field.

    Args:
        problems: with distinct ids.
        reasons: field of `Problem`, or `columns.NAME` for one of its other columns -> why it must be there.

    Raises:
        UserError: no problem has the field.
    """
    incomplete: dict[str, BadRow] = {}
    for name, reason in reasons.items():
        lacking = [p for p in problems if _lacks(p, name)]
        column = name.partition(".")[2]
        if lacking and len(lacking) == len(problems):
            found = f"column `{column}`" if column else f"`{name}`"
            way_out = f"name its column in data.columns.{name.removesuffix('s')}" if not column else "add the column"
            raise UserError(
                f"{lacking[0].origin}: no {found}, nor in any other of {len(problems)} problems, and {reason}; in a "
                f"table, {way_out}"
            )
        for problem in lacking:
            incomplete.setdefault(problem.id, BadRow(problem.origin, column or name, "missing", f"one, for {reason}"))
    return incomplete


def _lacks(problem: Problem, name: str) -> bool:
    """
    >>> problem = Problem("a", "1 + 1?", ("2",), columns={"hints": []})
    >>> _lacks(problem, "solution"), _lacks(problem, "answers"), _lacks(problem, "columns.hints")
    (True, False, True)
    """
    field, _, column = name.partition(".")
    value = getattr(problem, field)
    value = value.get(column) if column else value
    return value is None or (isinstance(value, str | tuple | list) and not value)


def why_failed(problem: Problem) -> str:
    """Why the reference solution is wrong by the run's reward, as far as its last box tells."""
    boxed, gold = last_boxed(problem.solution or ""), " or ".join(problem.answers)
    if boxed is None:
        return "no \\boxed{...}"
    if boxed in problem.answers:
        return f"the last \\boxed{{...}} holds the gold answer {gold}, and the reward is below 1 all the same"
    return f"the last \\boxed{{...}} holds {boxed}, the gold answer is {gold}"


def refuse_no_reference(failed: Sequence[Problem], total: int) -> None:
    """Refuse references of which none is right.

    Raises:
        UserError: with the first one, and the ways out.
    """
    if not failed or len(failed) < total:
        return
    first = failed[0]
    raise UserError(
        f"none of {total} reference solutions is right by this run's own reward, so the arm could train on none of "
        f"them. The first, {first.origin or first.id}: {why_failed(first)}. Ways out: a reward that reads answers as "
        "the references write them; an arm that reads none (correction=none); data.check_references=false, which "
        "trains on them unchecked"
    )
