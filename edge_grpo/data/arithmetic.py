"""Generated chains of additions and subtractions: hard to guess, easy step by step."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_grpo.data.base import ProblemDataModule
from edge_grpo.errors import UserError
from edge_grpo.seeding import stage_seed
from edge_grpo.types.problems import Problem

# Every set draws from one stream without repeats: the first problems are held out, training starts here.
HELD_OUT_POOL = 1024


def operand(rng: random.Random, max_operand: int) -> int:
    """A number of one digit or, as often, of two (up to `max_operand`)."""
    return rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(10, max_operand)


def chain(rng: random.Random, min_terms: int, max_terms: int, max_operand: int) -> tuple[str, str, str]:
    r"""One problem: question, answer, worked solution; no intermediate result is negative.

    >>> question, answer, solution = chain(random.Random(5), 3, 3, 99)
    >>> print(question, answer, solution, sep="\n")
    55 + 41 - 24 = ?
    72
    55 + 41 = 96
    96 - 24 = 72
    \boxed{72}
    """
    total = operand(rng, max_operand)
    question, lines = str(total), []
    for _ in range(rng.randint(min_terms, max_terms) - 1):
        term = operand(rng, max_operand)
        sign = rng.choice("+-") if term <= total else "+"
        result = total + term if sign == "+" else total - term
        question += f" {sign} {term}"
        lines.append(f"{total} {sign} {term} = {result}")
        total = result
    return f"{question} = ?", str(total), "\n".join([*lines, f"\\boxed{{{total}}}"])


def distinct_chains(seed: int, min_terms: int, max_terms: int, max_operand: int) -> Iterator[tuple[str, str, str]]:
    """An endless seeded stream of `chain`s without a repeated question, the number of terms uniform."""
    rng, seen = random.Random(stage_seed(seed, "arithmetic")), set()
    while True:
        terms = rng.randint(min_terms, max_terms)
        made = chain(rng, terms, terms, max_operand)
        while made[0] in seen:  # the same number of terms again: short chains repeat more often than long ones
            made = chain(rng, terms, terms, max_operand)
        seen.add(made[0])
        yield made


class ArithmeticDataModule(ProblemDataModule):
    """Training and held-out chains, disjoint by construction.

    Args:
        train_count, held_out_count: problems.
        min_terms, max_terms: numbers in a chain, drawn uniformly.
        max_operand: largest number, at least 20 so that there are problems enough.
        problem_seed: of the problems (their order follows `seed`).
        correctness_rates: JSON file, question -> rate over 8 samples of the base model; null for none.

    Raises:
        UserError: a value out of range, or no such file.
    """

    def __init__(
        self,
        train_count: int,
        held_out_count: int,
        min_terms: int,
        max_terms: int,
        max_operand: int,
        problem_seed: int,
        correctness_rates: str | None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if not 2 <= min_terms <= max_terms:
            raise UserError(f"data.min_terms={min_terms} and data.max_terms={max_terms} must be 2 or more, in order")
        if train_count < 1 or not 1 <= held_out_count <= HELD_OUT_POOL:
            raise UserError(
                f"data.train_count={train_count} must be at least 1 and data.held_out_count={held_out_count} "
                f"in [1, {HELD_OUT_POOL}]"
            )
        # The shortest chains are the scarcest, max_operand^min_terms or more of them; a share of them is wanted.
        wanted = (HELD_OUT_POOL + train_count) / (max_terms - min_terms + 1)
        if max_operand < 20 or wanted > max_operand**min_terms / 4:
            raise UserError(
                f"data.max_operand={max_operand} makes too few problems for data.train_count={train_count}: raise it"
            )
        self.counts = (train_count, held_out_count)
        self.shape = (min_terms, max_terms, max_operand)
        self.problem_seed, self.correctness_rates = problem_seed, correctness_rates

    def load(self) -> tuple[list[Problem], list[Problem]]:
        """See `ProblemDataModule.load`."""
        train_count, held_out_count = self.counts
        stream = distinct_chains(self.problem_seed, *self.shape)
        first = [next(stream) for _ in range(HELD_OUT_POOL)][:held_out_count]
        rates = self._rates()
        train = [_problem("train", i, next(stream), rates) for i in range(train_count)]
        return train, [_problem("held-out", i, made, rates) for i, made in enumerate(first)]

    def _rates(self) -> dict[str, float]:
        if self.correctness_rates is None:
            return {}
        path = Path(self.correctness_rates).expanduser()
        if not path.is_file():
            raise UserError(f"data.correctness_rates={path}: no such file")
        try:
            rates = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
        if not isinstance(rates, dict):
            raise UserError(f"{path}: holds {type(rates).__name__}, expected an object {{question: rate}}")
        wrong = [q for q, rate in rates.items() if not isinstance(rate, int | float) or not 0 <= rate <= 1]
        if wrong:
            raise UserError(f"{path}: {wrong[0]!r} has rate {rates[wrong[0]]}, expected a number in [0, 1]")
        return rates


def _problem(split: str, index: int, made: tuple[str, str, str], rates: dict[str, float]) -> Problem:
    question, answer, solution = made
    name = f"arithmetic-{split}-{index}"
    return Problem(
        id=name,
        question=question,
        answers=(answer,),
        solution=solution,
        correctness_rate=rates.get(question),
        origin=name,
    )
