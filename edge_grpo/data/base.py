"""The data stage: problems with their prompts as tokens, checked before any work starts."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor

from edge_grpo.data.bad_rows import BadRow, BadRowError, in_order, passing, refusal
from edge_grpo.data.checks import gradable, incomplete_rows, refuse_no_reference, tell_repeats, with_distinct_ids
from edge_grpo.data.templates import EarlierTurnsError
from edge_grpo.errors import UserError, first_lines
from edge_grpo.seeding import stage_generator
from edge_grpo.types.problems import Problem, ProblemBatch, Turn

READ_BY_ARM = "this arm reads it (correction=none and correction=forced_reflection do not)"
READ_BY_SELECTION = "reads it (measure it with edge-grpo-difficulty, or set data.max_correctness_rate=null)"


class PromptTemplate(Protocol):
    """Question, behind the earlier turns of its chat -> text of the whole prompt, special tokens written out."""

    def __call__(self, question: str, tokenizer: Any, turns: Sequence[Turn] = ()) -> str: ...


def with_prompt(problem: Problem, template: PromptTemplate, tokenizer: Any) -> Problem:
    """The problem with its prompt as text and as tokens."""
    prompt = template(problem.question, tokenizer, problem.turns)
    return replace(problem, prompt=prompt, prompt_ids=tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"]))


class ProblemDataModule(pl.LightningDataModule):
    """Training and held-out problems; `load` says where they come from.

    Args:
        template: makes prompts of questions.
        problems_per_iteration: P over all ranks.
        max_prompt_tokens: a row with a longer prompt is bad; nothing is ever cut.
        max_correctness_rate: keep training problems whose measured rate is at most this; null keeps all.
        check_references: grade the reference solutions before training; one that fails is never trained on.
        on_bad_row: error refuses the run if a row is bad, and tells of all of them; skip leaves bad rows out.
        seed: of the order.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        template: PromptTemplate,
        problems_per_iteration: int,
        max_prompt_tokens: int,
        max_correctness_rate: float | None,
        check_references: bool,
        on_bad_row: Literal["error", "skip"],
        seed: int,
    ) -> None:
        super().__init__()
        if problems_per_iteration < 1 or max_prompt_tokens < 1:
            raise UserError(
                f"data.problems_per_iteration={problems_per_iteration} and "
                f"data.max_prompt_tokens={max_prompt_tokens} must be at least 1"
            )
        if max_correctness_rate is not None and not 0 <= max_correctness_rate <= 1:
            raise UserError(f"data.max_correctness_rate={max_correctness_rate} must be in [0, 1]")
        self.template, self.problems_per_iteration = template, problems_per_iteration
        self.max_prompt_tokens, self.max_correctness_rate = max_prompt_tokens, max_correctness_rate
        self.check_references, self.on_bad_row, self.seed = check_references, on_bad_row, seed
        self.train_problems: tuple[Problem, ...] = ()
        self.held_out_problems: tuple[Problem, ...] = ()
        self.failed_references: tuple[Problem, ...] = ()
        self.bad_rows: list[BadRow] = []
        self._loaded: tuple[list[Problem], list[Problem]] | None = None  # until `load_prepared`

    @abstractmethod
    def load(self) -> tuple[list[Problem], list[Problem]]:
        """Training and held-out problems, without tokens; rows that do not fit join `bad_rows`."""

    def check_fields(self, required_fields: frozenset[str]) -> None:
        """Read the rows, and refuse an arm that reads a field which none of them has, before a model is loaded.

        Args:
            required_fields: fields of `Problem` that the arm reads.

        Raises:
            UserError: names the field; or a file that cannot be read.
        """
        self._loaded = self.load()
        incomplete_rows(self._loaded[0], self._reasons(required_fields))

    def check_ranks(self, ranks: int) -> None:
        """Refuse an iteration's problems that so many ranks cannot share evenly."""
        if (count := self.problems_per_iteration) % ranks:
            raise UserError(f"data.problems_per_iteration={count} must be a multiple of the {ranks} ranks")

    def divide(self, train: list[Problem], held_out: list[Problem]) -> tuple[list[Problem], list[Problem]]:
        """(training, held-out) problems of those that passed the checks; a subclass may hold out training problems."""
        return train, held_out

    def load_prepared(
        self,
        tokenizer: Any,
        *,
        required_fields: frozenset[str],
        grade: Callable[[Sequence[Problem], Sequence[str]], Tensor],
        ungradable: Callable[[Sequence[Problem]], Sequence[str | None]],
        hold_out: bool = True,
    ) -> None:
        """Load, encode, check, divide and select; called once before training.

        Args:
            tokenizer: of the policy.
            required_fields: fields of `Problem` that the arm reads.
            grade: (problems, texts) -> [n] bool, right or not.
            ungradable: problems -> what is wrong with their gold answers, as `found: expected ...`; None where they
                can be graded.
            hold_out: False leaves `held_out_problems` empty and keeps all problems for training.

        Raises:
            UserError: bad rows under `on_bad_row=error`, a field that no row has, nothing left to train on, or
                references that are all wrong.
        """
        loaded, self._loaded = self._loaded or self.load(), None
        train, held_out = (self._checked(part, tokenizer, ungradable) for part in loaded)
        incomplete = incomplete_rows(train, self._reasons(required_fields))
        if self.on_bad_row == "error" and (self.bad_rows or incomplete):
            raise UserError(refusal(in_order([*self.bad_rows, *incomplete.values()])))
        self._refuse_none(train, "to train on")
        train, held_out = self.divide(train, held_out) if hold_out else (train, [])
        # Only now: what an arm reads of training rows must not move the draw of the held-out ones.
        self.bad_rows = in_order([*self.bad_rows, *(incomplete[p.id] for p in train if p.id in incomplete)])
        train = [p for p in train if p.id not in incomplete]
        self._refuse_none(train, "to train on")
        if hold_out:
            self._refuse_none(held_out, "to evaluate on")
        train = self._select(train)
        tell_repeats(train, held_out)
        if self.check_references and "solution" in required_fields:
            train = self._graded(train, grade)
        self.train_problems, self.held_out_problems = tuple(train), tuple(held_out)

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the loaded training and held-out problems, so that a resumed run notices that a file changed."""
        return {
            "training problems": fingerprint(self.train_problems),
            "held-out problems": fingerprint(self.held_out_problems),
        }

    @property
    def repeats_in_iteration(self) -> bool:
        """Whether an iteration has more problems than there are, so that some are in it several times."""
        return self.problems_per_iteration > len(self.train_problems)

    def problems_at(self, iteration: int, *, rank: int = 0, world_size: int = 1) -> list[Problem]:
        """This rank's problems of an iteration.

        The stream of problems is one seeded permutation after another; iteration i takes the i-th run of
        `problems_per_iteration` from it. Nothing but (seed, iteration, rank) decides, so a resume needs no state.

        Raises:
            UserError: the problems cannot be shared evenly by the ranks.
        """
        self.check_ranks(world_size)
        count, n = self.problems_per_iteration, len(self.train_problems)
        mine = range(
            iteration * count + rank * count // world_size, iteration * count + (rank + 1) * count // world_size
        )
        orders = {epoch: self._order(epoch) for epoch in {position // n for position in mine}}
        return [self.train_problems[orders[position // n][position % n]] for position in mine]

    def train_dataloader(self) -> "IterationBatches":
        """One batch an epoch: a Lightning epoch is an iteration."""
        return IterationBatches(self)

    def _order(self, epoch: int) -> list[int]:
        generator = stage_generator(self.seed, "data", iteration=epoch)
        return torch.randperm(len(self.train_problems), generator=generator).tolist()

    def _checked(
        self,
        problems: list[Problem],
        tokenizer: Any,
        ungradable: Callable[[Sequence[Problem]], Sequence[str | None]],
    ) -> list[Problem]:
        """The problems with tokens, without those that are bad rows whatever the arm reads."""
        distinct = with_distinct_ids(problems, self.bad_rows)
        encoded = passing(distinct, lambda problem: self._encoded(problem, tokenizer), self.bad_rows)
        return gradable(encoded, ungradable(encoded), self.bad_rows)

    def _reasons(self, required_fields: frozenset[str]) -> dict[str, str]:
        """Field that every training problem must have -> why."""
        reasons = dict.fromkeys(sorted(required_fields), READ_BY_ARM)
        if self.max_correctness_rate is not None:
            reasons["correctness_rate"] = f"data.max_correctness_rate={self.max_correctness_rate} {READ_BY_SELECTION}"
        return reasons

    def _refuse_none(self, problems: list[Problem], purpose: str) -> None:
        if not problems:
            count = len(self.bad_rows)
            raise UserError(f"no row is left {purpose}; {count} bad rows:\n{first_lines(self.bad_rows)}")

    def _select(self, problems: list[Problem]) -> list[Problem]:
        """Problems that are hard enough."""
        if self.max_correctness_rate is None:
            return problems
        kept = [p for p in problems if (p.correctness_rate or 0.0) <= self.max_correctness_rate]
        if not kept:
            raise UserError(
                f"data.max_correctness_rate={self.max_correctness_rate} leaves none of {len(problems)} problems"
            )
        return kept

    def _graded(
        self, problems: list[Problem], grade: Callable[[Sequence[Problem], Sequence[str]], Tensor]
    ) -> list[Problem]:
        """The problems with `solution_passes` set by the project's own grading."""
        passes = grade(problems, [p.solution or "" for p in problems]).tolist()
        graded = [replace(p, solution_passes=ok) for p, ok in zip(problems, passes, strict=True)]
        self.failed_references = tuple(p for p in graded if not p.solution_passes)
        refuse_no_reference(self.failed_references, len(graded))
        return graded

    def _encoded(self, problem: Problem, tokenizer: Any) -> Problem:
        """The problem with its prompt and solution as tokens.

        Raises:
            BadRowError: the prompt is over the budget, or has turns that the template has no place for.
        """
        try:
            encoded = with_prompt(problem, self.template_for(problem), tokenizer)
        except EarlierTurnsError as error:
            raise BadRowError(BadRow(problem.origin, "prompt", error.found, error.expected)) from error
        if len(encoded.prompt_ids) > self.max_prompt_tokens:
            found = f"{len(encoded.prompt_ids)} tokens long"
            expected = f"at most data.max_prompt_tokens={self.max_prompt_tokens}"
            raise BadRowError(BadRow(problem.origin, "prompt", found, expected))
        solution = tokenizer(problem.solution, add_special_tokens=False)["input_ids"] if problem.solution else ()
        return replace(encoded, solution_ids=tuple(solution))

    def template_for(self, problem: Problem) -> PromptTemplate:
        """The template of one problem; the same for all unless a subclass mixes them."""
        return self.template


def fingerprint(problems: Sequence[Problem]) -> str:
    """SHA-256 of what a run reads of problems, in their order."""
    digest = hashlib.sha256()
    for p in problems:
        # The type alone of what JSON has no word for: the repr of an object may name its place in memory.
        columns = json.dumps(dict(p.columns), default=lambda value: type(value).__name__)
        chat = (p.turns, p.is_chat)
        digest.update(repr((p.id, chat, p.question, p.answers, p.solution, p.correctness_rate, columns)).encode())
    return digest.hexdigest()


class IterationBatches:
    """An iterable of one batch: the problems of the trainer's current epoch."""

    def __init__(self, data: ProblemDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[ProblemBatch]:
        trainer: Any = self.data.trainer
        of_rank = partial(self.data.problems_at, rank=trainer.global_rank, world_size=trainer.world_size)
        count = self.data.problems_per_iteration // trainer.world_size
        stretch = lru_cache(maxsize=2)(of_rank)  # a permutation of all problems for each
        yield ProblemBatch(
            stretch(trainer.current_epoch), lambda position: stretch(position // count)[position % count]
        )
