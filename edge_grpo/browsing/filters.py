"""Which groups are shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pandas as pd


class Filter(NamedTuple):
    """A property of groups.

    Args:
        key: that switches it on and off.
        title: short.
        meaning: a sentence's part: the group ...
    """

    key: str
    title: str
    meaning: str


FILTERS: Mapping[str, Filter] = {
    "all_wrong": Filter("1", "all wrong", "no response was right as sampled"),
    "mixed": Filter("2", "mixed", "some responses were right as sampled and some wrong"),
    "all_right": Filter("3", "all right", "every response was right as sampled"),
    "revived": Filter("4", "revived", "all rewards were equal as sampled, and no more after correction"),
    "made_uniform": Filter("5", "made uniform", "all rewards are equal after correction, and were not as sampled"),
    "clamped": Filter("6", "clamped", "a response's multiplier is at the clamp"),
    "cut": Filter("7", "cut", "a response was cut at the length limit, as sampled or after correction"),
    "unparsed": Filter("8", "unparsed", "a response as sampled has no answer that the grader can read"),
}


@dataclass(frozen=True)
class Query:
    """What a group must have to be shown; nothing at first.

    Args:
        marks: keys of `FILTERS`, all of which must hold.
        problem: part of the problem's id.
        text: part of the question or of a response, before or after correction; capitals do not matter.
    """

    marks: frozenset[str] = field(default_factory=frozenset)
    problem: str = ""
    text: str = ""

    def toggled(self, mark: str) -> "Query":
        """With `mark` asked for, or no more."""
        return replace(self, marks=self.marks ^ {mark})

    def __str__(self) -> str:
        named = [FILTERS[mark].title for mark in FILTERS if mark in self.marks]
        named += [f"problem {self.problem!r}"] if self.problem else []
        return ", ".join(named + ([f"text {self.text!r}"] if self.text else []))


def marks_of_groups(rows: pd.DataFrame, group: list[str]) -> pd.DataFrame:
    """Which filters each group passes.

    Args:
        rows: one a response, with the columns of `runs.rollout_files.NUMBERS`.
        group: columns that name the group of a row.

    Returns:
        A row a group in the order of these columns, a column of bools for each of `FILTERS`.
    """
    clamped = rows["eda/clamped"].fillna(0) > 0 if "eda/clamped" in rows else False
    cut = (rows["finish_reason"] == "length") | (rows["finish_reason_after"] == "length")
    by = rows.assign(clamped=clamped, cut=cut).groupby(group, sort=True)
    uniform, uniform_after = (by[name].nunique() == 1 for name in ("reward", "reward_after"))
    right, some = by["correct"].all(), by["correct"].any()
    return pd.DataFrame(
        {
            "all_wrong": ~some,
            "mixed": some & ~right,
            "all_right": right,
            "revived": uniform & ~uniform_after,
            "made_uniform": ~uniform & uniform_after,
            **{name: by[name].any() for name in ("clamped", "cut", "unparsed")},
        }
    )[list(FILTERS)]
