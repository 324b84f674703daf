"""The data stage: problems with their prompts as tokens, checked before any work starts."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.seeding import stage_generator
from edge_grpo.types import Problem, ProblemBatch


class PromptTemplate(Protocol):
    """Question -> text of the whole prompt, special tokens written out."""

    def __call__(self, question: str, tokenizer: Any) -> str: ...


class ProblemDataModule(pl.LightningDataModule):
    """Training and held-out problems; `load` says where they come from.

    Args:
        template: makes prompts of questions.
        problems_per_iteration: P over all ranks.
        max_prompt_tokens: a longer prompt is an error, never cut.
        max_correctness_rate: keep training problems whose measured rate is at most this; null keeps all.
        check_references: grade the reference solutions before training; one that fails is never trained on.
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
        self.check_references, self.seed = check_references, seed
        self.train_problems: tuple[Problem, ...] = ()
        self.held_out_problems: tuple[Problem, ...] = ()
        self.failed_references: tuple[Problem, ...] = ()

    @abstractmethod
    def load(self) -> tuple[list[Problem], list[Problem]]:
        """Training and held-out problems, without tokens."""

    def load_prepared(
        self,
        tokenizer: Any,
        *,
        required_fields: frozenset[str],
        grade: Callable[[Sequence[Problem], Sequence[str]], Tensor],
    ) -> None:
        """Load, check, select and encode; called once before training.

        Args:
            tokenizer: of the policy.
            required_fields: fields of `Problem` that the arm reads.
            grade: (problems, texts) -> [n] bool, right or not.

        Raises:
            UserError: a missing field, a repeated id, a prompt over the budget, or nothing left to train on.
        """
        train, held_out = self.load()
        _check_ids(train)
        _check_ids(held_out)
        _check_fields(train, required_fields)
        train = self._select(train)
        if self.check_references and "solution" in required_fields:
            train = self._graded(train, grade)
        self.train_problems = tuple(self._encoded(problem, tokenizer) for problem in train)
        self.held_out_problems = tuple(self._encoded(problem, tokenizer) for problem in held_out)

    def problems_at(self, iteration: int, *, rank: int = 0, world_size: int = 1) -> list[Problem]:
        """This rank's problems of an iteration.

        The stream of problems is one seeded permutation after another; iteration i takes the i-th run of
        `problems_per_iteration` from it. Nothing but (seed, iteration, rank) decides, so a resume needs no state.

        Raises:
            UserError: the problems cannot be shared evenly by the ranks.
        """
        count = self.problems_per_iteration
        if count % world_size:
            raise UserError(f"data.problems_per_iteration={count} must be a multiple of the {world_size} ranks")
        n = len(self.train_problems)
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

    def _select(self, problems: list[Problem]) -> list[Problem]:
        """Problems that are hard enough."""
        if self.max_correctness_rate is None:
            return problems
        unknown = [p for p in problems if p.correctness_rate is None]
        if unknown:
            raise UserError(
                f"data.max_correctness_rate={self.max_correctness_rate}, but {len(unknown)} of {len(problems)} "
                f"problems have no correctness_rate (first: {unknown[0].origin}): measure it with edge-grpo-difficulty "
                "or set data.max_correctness_rate=null"
            )
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
        return graded

    def _encoded(self, problem: Problem, tokenizer: Any) -> Problem:
        """The problem with its prompt and solution as tokens."""
        prompt = self.template_for(problem)(problem.question, tokenizer)
        prompt_ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if len(prompt_ids) > self.max_prompt_tokens:
            raise UserError(
                f"{problem.origin}: a prompt of {len(prompt_ids)} tokens is over data.max_prompt_tokens="
                f"{self.max_prompt_tokens}: raise it or take the row out"
            )
        solution = tokenizer(problem.solution, add_special_tokens=False)["input_ids"] if problem.solution else ()
        return replace(problem, prompt_ids=prompt_ids, solution_ids=tuple(solution))

    def template_for(self, problem: Problem) -> PromptTemplate:
        """The template of one problem; the same for all unless a subclass mixes them."""
        return self.template


class IterationBatches:
    """An iterable of one batch: the problems of the trainer's current epoch."""

    def __init__(self, data: ProblemDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[ProblemBatch]:
        trainer: Any = self.data.trainer
        problems = self.data.problems_at(trainer.current_epoch, rank=trainer.global_rank, world_size=trainer.world_size)
        yield ProblemBatch(problems)


def _check_ids(problems: list[Problem]) -> None:
    repeated = [name for name, count in Counter(p.id for p in problems).items() if count > 1]
    if repeated:
        where = [p.origin for p in problems if p.id == repeated[0]]
        raise UserError(f"{where[1]}: id {repeated[0]!r} stands at {where[0]} already ({len(repeated)} ids repeat)")


def _check_fields(problems: list[Problem], required: frozenset[str]) -> None:
    for name in sorted(required):
        lacking = [p for p in problems if not getattr(p, name)]
        if lacking:
            raise UserError(
                f"{lacking[0].origin}: no `{name}`, nor in {len(lacking) - 1} other of {len(problems)} problems, "
                f"and this arm needs it: in a table, name its column in data.columns.{name.removesuffix('s')}; or "
                "choose an arm that does without (correction=none or correction=forced_reflection)"
            )
