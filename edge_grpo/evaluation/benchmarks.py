"""Benchmarks: problems that are only ever evaluated on."""

import itertools
from collections.abc import Mapping
from typing import Protocol

from edge_grpo.data.arithmetic import HELD_OUT_POOL, distinct_chains
from edge_grpo.data.bad_rows import BadRow
from edge_grpo.data.checks import with_distinct_ids
from edge_grpo.data.file import read_problems
from edge_grpo.data.formats import Columns, check_columns
from edge_grpo.data.hub import read_hub
from edge_grpo.errors import UserError, first_lines
from edge_grpo.types.problems import Problem

KEYS = "name, subset, split or revision under evaluation.benchmarks"


class Benchmark(Protocol):
    """A named source of problems."""

    def load(self, bad_rows: list[BadRow]) -> list[Problem]:
        """All problems, without tokens; rows that do not fit join `bad_rows`."""
        ...


class FileBenchmark:
    """A file or a folder: see `edge_grpo.data.tables.read_table`.

    Args:
        path: a file or folder, in any format of docs/data.md.
        split: which one of a folder that holds several; null where there is one.
        columns: see `FileDataModule`.
    """

    def __init__(self, path: str, split: str | None, columns: Columns) -> None:
        check_columns(columns)
        self.path, self.split, self.columns = path, split, columns

    def load(self, bad_rows: list[BadRow]) -> list[Problem]:
        return read_problems(self.path, self.columns, bad_rows, self.split)


class HubBenchmark:
    """A data set on the Hugging Face hub (the extra `hub`), or a folder that `datasets.load_dataset` takes.

    Args:
        name, subset, split, revision: of the data set on the hub, as `datasets.load_dataset` takes them.
        columns: see `FileBenchmark`.
    """

    def __init__(self, name: str, subset: str | None, split: str, revision: str | None, columns: Columns) -> None:
        check_columns(columns)
        self.name, self.subset, self.split, self.revision, self.columns = name, subset, split, revision, columns

    def load(self, bad_rows: list[BadRow]) -> list[Problem]:
        return read_hub(self.name, self.subset, self.split, self.revision, self.columns, bad_rows, KEYS)


class ArithmeticBenchmark:
    """Chains of one length out of those that `data=arithmetic` holds out, so that no training problem is among them.

    This holds only for data with the same lengths, operands and problem_seed. Other settings draw other chains, and
    short chains may then be in both.

    Args:
        terms: numbers in a chain.
        count: problems, the first of their length.
        min_terms, max_terms, max_operand, problem_seed: of the training data (`ArithmeticDataModule`). Where `terms`
            lies outside its lengths, the chains are of that length alone and none was trained on.

    Raises:
        UserError: fewer chains of this length are held out.
    """

    def __init__(
        self, terms: int, count: int, min_terms: int, max_terms: int, max_operand: int, problem_seed: int
    ) -> None:
        if terms < 2 or count < 1:
            raise UserError(f"a benchmark of {count} chains of {terms} numbers: expected at least 1 of at least 2")
        self.terms, self.count = terms, count
        lengths = (min_terms, max_terms) if min_terms <= terms <= max_terms else (terms, terms)
        self.shape, self.problem_seed = (*lengths, max_operand), problem_seed

    def load(self, bad_rows: list[BadRow]) -> list[Problem]:
        pool = itertools.islice(distinct_chains(self.problem_seed, *self.shape), HELD_OUT_POOL)
        chains = [made for made in pool if made[2].count("\n") == self.terms - 1][: self.count]
        if len(chains) < self.count:
            raise UserError(f"{len(chains)} chains of {self.terms} numbers are held out: ask for at most so many")
        names = [f"arithmetic-{self.terms}-terms-{i}" for i in range(len(chains))]
        return [
            Problem(id=name, question=question, answers=(answer,), solution=solution, origin=name)
            for name, (question, answer, solution) in zip(names, chains, strict=True)
        ]


def _load(name: str, benchmark: Benchmark, bad_rows: list[BadRow]) -> list[Problem]:
    try:
        return benchmark.load(bad_rows)
    except UserError as error:
        place = f"evaluation.benchmarks.{name}"
        said = (
            str(error).replace("data.columns", f"{place}.columns").replace("set data.path (or data.held_out_path)", "")
        )
        raise UserError(f"{place}: {said.rstrip('; ')} ('~{place}' leaves it out)") from error


def load_benchmarks(benchmarks: Mapping[str, Benchmark], limit: int | None) -> dict[str, tuple[Problem, ...]]:
    """Name -> problems without tokens, the first `limit` of each.

    Raises:
        UserError: rows that do not fit: a score over the others would not be the benchmark's.
    """
    bad_rows: list[BadRow] = []
    loaded = {name: with_distinct_ids(_load(name, of, bad_rows), bad_rows) for name, of in benchmarks.items()}
    if bad_rows:
        raise UserError(f"a benchmark is evaluated whole, and {len(bad_rows)} rows are bad:\n{first_lines(bad_rows)}")
    return {name: tuple(problems[:limit]) for name, problems in loaded.items()}
