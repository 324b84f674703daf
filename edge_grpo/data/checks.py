"""Checks of problems that hold whatever they come from; each collects the rows that fail it."""

from collections.abc import Mapping, Sequence

from edge_grpo.data.bad_rows import BadRow, BadRowError, passing
from edge_grpo.errors import UserError
from edge_grpo.types import Problem


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
        reasons: field of `Problem` -> why it must be there.

    Raises:
        UserError: no problem has the field.
    """
    incomplete: dict[str, BadRow] = {}
    for name, reason in reasons.items():
        lacking = [p for p in problems if getattr(p, name) in (None, (), "")]
        if lacking and len(lacking) == len(problems):
            raise UserError(
                f"{lacking[0].origin}: no `{name}`, nor in any other of {len(problems)} problems, and {reason}; in a "
                f"table, name its column in data.columns.{name.removesuffix('s')}"
            )
        for problem in lacking:
            incomplete.setdefault(problem.id, BadRow(problem.origin, name, "missing", f"one, for {reason}"))
    return incomplete
