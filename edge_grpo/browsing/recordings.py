"""What can be read: the rollouts of a run, or the completions of an evaluation."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from edge_grpo.browsing.filters import FILTERS, Query, marks_of_groups
from edge_grpo.browsing.finding import find
from edge_grpo.browsing.groups import Group, Response, Version
from edge_grpo.evaluation.completions import read_completions
from edge_grpo.runs.rollout_files import read_iteration, read_rollouts, read_table

_GROUP = ["step", "rank", "group"]
_ASKED = "\n[asked to look again]\n"  # the phrase itself is not in completions.parquet


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
    """a row a group: `section`, `problem`, and a column of bools for each filter"""

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
        first = rows.groupby(_GROUP, sort=True)["problem"].first()
        self.index = marks_of_groups(rows, _GROUP).assign(problem=first).reset_index()
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
            responses=tuple(map(_response, rows)),
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
        firsts = self._rows.groupby("place")[group].first()
        self.index = marks_of_groups(rows, ["place"]).assign(problem=firsts["problem"], section=firsts["benchmark"])

    def group(self, i: int) -> Group:
        frame = self._rows[self._rows["place"] == i].astype(object)
        rows: list[Any] = frame.where(frame.notna(), None).to_dict("records")
        return Group(
            section=rows[0]["benchmark"],
            problem=rows[0]["problem"],
            question=rows[0]["question"],
            answers=tuple(rows[0]["answers"]),
            responses=tuple(map(_completion, rows)),
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


class Recordings(Sequence[Recording]):
    """What some paths name, each under the shortest name that tells it from the others, read when it is asked for.

    Args:
        paths: folders of runs, sweeps or evaluations, or files completions.parquet.

    Raises:
        UserError: there is nothing to read at one of them; later, one that cannot be read.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._found = [source for path in paths for source in find(path)]
        self.names = short_names([path if kind == "run" else path.parent for kind, path in self._found])
        self._read: dict[int, Recording] = {}

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, i: int) -> Recording: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Recording]: ...
    def __getitem__(self, i: int | slice) -> Recording | Sequence[Recording]:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        if i not in self._read:
            kind, path = self._found[i]
            self._read[i] = (RunRecording if kind == "run" else EvaluationRecording)(self.names[i], path)
        return self._read[i]

    def reload(self, i: int) -> None:
        """Read it again when it is asked for: a run may have gone on."""
        self._read.pop(i, None)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell them apart.

    >>> short_names([Path("/a/sweep/0"), Path("/a/sweep/1")]), short_names([Path("/a/x/0"), Path("/a/y/0")])
    (['0', '1'], ['x/0', 'y/0'])
    """
    parts = [path.resolve().parts for path in paths]
    longest = max((len(each) for each in parts), default=0)
    for count in range(1, longest + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _response(row: Mapping[str, Any]) -> Response:
    pieces = row["pieces_after"]
    left_alone = pieces is None and not row["branch"] and row["problem_after"] is None
    before = None if row["response"] is None else ((("sampled", row["response"]),) if row["response"] else ())
    after = None if pieces is None else tuple((piece["by"], piece["text"]) for piece in pieces)
    return Response(
        row=row["row"],
        before=_version(row, "", before),
        after=None if left_alone else _version(row, "_after", after),
        branch=row["branch"],
        base_advantage=row.get("advantage/base"),
        advantage=row["advantage"],
        multiplier=row.get("eda/multiplier"),
        clamped=bool(row.get("eda/clamped")),
    )


def _version(row: Mapping[str, Any], when: str, pieces: tuple[tuple[str, str], ...] | None) -> Version:
    prefix = f"reward{when}/"
    return Version(
        correct=row[f"correct{when}"],
        unparsed=row[f"unparsed{when}"],
        reward=row[f"reward{when}"],
        parts={name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)},
        tokens=row[f"tokens{when}"],
        finish_reason=row[f"finish_reason{when}"],
        pieces=pieces,
        characters=tuple(row[f"token_characters{when}"] or ()),
        entropies=_numbers(row[f"entropies{when}"]),
        logprobs=_numbers(row[f"logprobs{when}"]),
    )


def _numbers(values: Iterable[Any] | None) -> tuple[float, ...]:
    return tuple(float(value) for value in values or ())


def _completion(row: Mapping[str, Any]) -> Response:
    said = ("sampled", row["response"])
    before = Version(
        correct=row["correct"],
        unparsed=row["unparsed"],
        reward=None,
        parts={},
        tokens=row["tokens"],
        finish_reason=row["finish_reason"],
        pieces=(said,),
    )
    if row["forced_response"] is None:
        return Response(row["sample"], before)
    after = Version(
        correct=row["forced_correct"],
        unparsed=None,
        reward=None,
        parts={},
        tokens=row["tokens"] + int(row["forced_tokens"]),
        finish_reason="",
        pieces=(said, ("injected", _ASKED), ("sampled", row["forced_response"])),
    )
    return Response(row["sample"], before, after, branch="forced reflection")


def _contains(column: pa.ChunkedArray, text: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.match_substring(column, text, ignore_case=True), False)


def _in_pieces(column: pa.ChunkedArray, text: str) -> pa.Array:
    """Pieces are joined first: what is looked for may begin in one and end in the next."""
    whole = ["".join(piece["text"] for piece in pieces or ()) for pieces in column.to_pylist()]
    return _contains(pa.array(whole, pa.string()), text)
