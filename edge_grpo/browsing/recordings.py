"""What can be read: the rollouts of a run, or the completions of an evaluation."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from edge_grpo.browsing.filters import FILTERS, Query, marks_of_groups
from edge_grpo.browsing.groups import Group
from edge_grpo.browsing.rows import completion_of, response_of
from edge_grpo.evaluation.completions import read_completions
from edge_grpo.runs.rollout_files import read_iteration, read_rollouts, read_table

_GROUP = ["step", "rank", "group"]


class Recording:
    """Groups in order, numbered from 0. Numbers are read at once, texts when a group is asked for.

    Args:
        name: shown to tell it from others.
        path: of the run's folder or of the file.
    """

    kind: str
    """run or evaluation"""
    section_name: str
    """what the groups are divided into: iteration or benchmark"""
    index: pd.DataFrame
    """a row a group: `section`, `problem`, `size` (responses), and a column of bools for each filter"""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sections(self) -> list[Any]:
        """Iterations or benchmarks, in order."""
        return list(dict.fromkeys(self.index["section"].tolist()))

    def select(self, query: Query) -> list[int]:
        """The groups that pass, in order."""
        there = np.ones(len(self), dtype=bool)
        for mark in query.marks:
            there &= self.index[mark].to_numpy(dtype=bool)
        if query.problem:
            there &= self.index["problem"].str.contains(query.problem, regex=False).to_numpy(dtype=bool)
        if query.text:
            there &= self.with_text(query.text)
        return np.flatnonzero(there).tolist()

    def of_problem(self, problem: str) -> list[int]:
        """All groups of a problem: one problem through training."""
        return np.flatnonzero(self.index["problem"] == problem).tolist()

    def group(self, i: int) -> Group:
        """Group `i` with its responses."""
        raise NotImplementedError

    def with_text(self, text: str) -> np.ndarray:
        """[groups] bool: `text` is in the question or a response; capitals do not matter."""
        raise NotImplementedError

    def _marks(self, i: int) -> frozenset[str]:
        return frozenset(name for name in FILTERS if self.index[name].iat[i])


class RunRecording(Recording):
    """The rollouts of a run. A text that the bound of `callbacks.rollouts.keep_gb` dropped is None."""

    kind, section_name = "run", "iteration"

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        rows = read_rollouts(path)
        problems = rows.groupby(_GROUP, sort=True)["problem"]
        marks = marks_of_groups(rows, _GROUP)
        self.index = marks.assign(problem=problems.first(), size=problems.size()).reset_index()
        self.index["section"] = self.index["step"]
        self._iteration = lru_cache(maxsize=4)(partial(read_iteration, path))

    def group(self, i: int) -> Group:
        at = self.index.iloc[i]
        table = self._iteration(int(at["step"]))
        own = pc.and_(pc.equal(table["rank"], int(at["rank"])), pc.equal(table["group"], int(at["group"])))
        rows = table.filter(own).to_pylist()
        first = rows[0]
        replaced = None if first["problem_after"] is None else (first["problem_after"], first["question_after"] or "")
        return Group(
            section=int(at["step"]),
            problem=first["problem"],
            question=first["question"],
            answers=tuple(first["answers"] or ()),
            responses=tuple(map(response_of, rows)),
            marks=self._marks(i),
            replaced_by=replaced,
        )

    def with_text(self, text: str) -> np.ndarray:
        found = set()
        for step in self.sections:
            table = read_table(self.path, [*_GROUP, "question", "response", "pieces_after"], steps=[step])
            there = pc.or_(_contains(table["question"], text), _contains(table["response"], text))
            there = pc.or_(there, _in_pieces(table["pieces_after"], text))
            found |= {tuple(row.values()) for row in table.filter(there).select(_GROUP).to_pylist()}
        keys = self.index[_GROUP].itertuples(index=False, name=None)
        return np.array([key in found for key in keys], dtype=bool)


class EvaluationRecording(Recording):
    """The completions of an evaluation; what forced reflection made of a response stands after it."""

    kind, section_name = "evaluation", "benchmark"

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path)
        self._rows = read_completions(path).astype({"forced_correct": "boolean"})
        group = ["benchmark", "problem"]
        # In the order of the file, which is that of the benchmarks.
        self._rows["place"] = self._rows.groupby(group, sort=False).ngroup()
        right = self._rows["correct"].astype(float)
        rewards = {"reward": right, "reward_after": self._rows["forced_correct"].astype("Float64").fillna(right)}
        rows = self._rows.assign(finish_reason_after="", **rewards)
        of_group = self._rows.groupby("place")
        first = of_group[group].first()
        self.index = marks_of_groups(rows, ["place"]).assign(
            problem=first["problem"], section=first["benchmark"], size=of_group.size()
        )

    def group(self, i: int) -> Group:
        frame = self._rows[self._rows["place"] == i].astype(object)
        rows: list[Any] = frame.where(frame.notna(), None).to_dict("records")
        return Group(
            section=rows[0]["benchmark"],
            problem=rows[0]["problem"],
            question=rows[0]["question"],
            answers=tuple(rows[0]["answers"]),
            responses=tuple(map(completion_of, rows)),
            marks=self._marks(i),
        )

    def with_text(self, text: str) -> np.ndarray:
        columns = (self._rows[name].fillna("") for name in ("question", "response", "forced_response"))
        there = np.any([column.str.lower().str.contains(text.lower(), regex=False) for column in columns], axis=0)
        found = set(self._rows["place"][there])
        return np.array([i in found for i in range(len(self))], dtype=bool)


def counterpart(one: Recording, i: int, other: Recording) -> int | None:
    """The group of another recording to lay beside group `i`.

    It is of the same problem, and of the same iteration or benchmark where there is one; else of the nearest iteration
    in which the problem was drawn, the earlier of two; None where it was drawn in none.
    """
    same = other.of_problem(str(one.index["problem"].iat[i]))
    section, there = one.index["section"].tolist()[i], other.index["section"].tolist()
    here = [j for j in same if there[j] == section]
    if here or not same or one.kind != "run" or other.kind != "run":
        return next(iter(here or same), None)
    return min(same, key=lambda j: abs(there[j] - section))


def _contains(column: pa.ChunkedArray, text: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.match_substring(column, text, ignore_case=True), False)


def _in_pieces(column: pa.ChunkedArray, text: str) -> pa.Array:
    """Pieces are joined first: what is looked for may begin in one and end in the next."""
    whole = ["".join(piece["text"] for piece in pieces or ()) for pieces in column.to_pylist()]
    return _contains(pa.array(whole, pa.string()), text)
