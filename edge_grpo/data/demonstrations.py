"""Demonstrations that make a base model in miniature: it can work step by step, and seldom does."""

import random
from collections.abc import Mapping
from typing import Any

from edge_grpo.data.arithmetic import ArithmeticDataModule, chain
from edge_grpo.data.base import PromptTemplate
from edge_grpo.errors import UserError
from edge_grpo.seeding import stage_seed
from edge_grpo.types.problems import Problem

STYLES = ("asked", "worked", "repaired", "guess", "unboxed")


class DemonstrationDataModule(ArithmeticDataModule):
    """Fresh chains every iteration, answered in a mixture of styles that changes from phase to phase.

    Styles (all but the first under the plain prompt):
        asked     the worked solution, under a prompt that asks for the steps
        worked    the worked solution
        repaired  a wrong boxed guess, `wait_phrase`, a new line, the worked solution
        guess     a wrong guess, boxed, outright
        unboxed   the same in words, without the box; it begins unlike a worked solution, because a model that has
                  written a first digit could not know otherwise which of the two follows

    Args:
        phases: in order, each {iterations, styles: style -> probability}; the last one goes on for ever.
        steps_template: the prompt that asks for the steps.
        wait_phrase: what stands between a wrong guess and its repair.
        guess_spread: a wrong guess lies within this distance of the answer, so that guesses look like answers.
        arithmetic: arguments of `ArithmeticDataModule`.

    Raises:
        UserError: an unknown style, or probabilities that do not sum to 1.
    """

    def __init__(
        self,
        phases: list[Mapping[str, Any]],
        steps_template: PromptTemplate,
        wait_phrase: str,
        guess_spread: int,
        **arithmetic: Any,
    ) -> None:
        super().__init__(**arithmetic)
        if not phases or guess_spread < 1:
            raise UserError(f"data.phases needs a phase, and data.guess_spread={guess_spread} must be at least 1")
        for i, phase in enumerate(phases):
            if phase.get("iterations", 0) < 1:
                raise UserError(f"data.phases[{i}].iterations={phase.get('iterations')} must be at least 1")
            styles = phase["styles"]
            if set(styles) - set(STYLES) or abs(sum(styles.values()) - 1) > 1e-6:
                raise UserError(f"data.phases[{i}].styles={dict(styles)}: of {', '.join(STYLES)}, summing to 1")
        self.phases, self.steps_template = phases, steps_template
        self.wait_phrase, self.guess_spread = wait_phrase, guess_spread
        self._tokenizer: Any = None
        self._reserved: set[str] = set()

    def load_prepared(self, tokenizer: Any, **checks: Any) -> None:
        """See `ProblemDataModule.load_prepared`; training problems are made later, iteration by iteration."""
        super().load_prepared(tokenizer, **checks)
        self._tokenizer = tokenizer
        self._reserved = {p.question for p in (*self.train_problems, *self.held_out_problems)}

    @property
    def repeats_in_iteration(self) -> bool:
        """Never: they are made."""
        return False

    def problems_at(self, iteration: int, *, rank: int = 0, world_size: int = 1) -> list[Problem]:
        """Fresh demonstrations; no question of the training or held-out set is among them."""
        rng = random.Random(stage_seed(self.seed, "demonstrations", iteration=iteration, rank=rank))
        styles = self._styles(iteration)
        chosen = rng.choices(list(styles), weights=list(styles.values()), k=self.problems_per_iteration // world_size)
        return [self._demonstration(rng, style) for style in chosen]

    def _styles(self, iteration: int) -> Mapping[str, float]:
        for phase in self.phases[:-1]:
            if iteration < phase["iterations"]:
                return phase["styles"]
            iteration -= phase["iterations"]
        return self.phases[-1]["styles"]

    def _demonstration(self, rng: random.Random, style: str) -> Problem:
        question, answer, solution = chain(rng, *self.shape)
        while question in self._reserved:
            question, answer, solution = chain(rng, *self.shape)
        text = self._respond(rng, style, int(answer), solution)
        problem = Problem(id=style, question=question, answers=(answer,), solution=text, origin=question)
        return self._encoded(problem, self._tokenizer)

    def template_for(self, problem: Problem) -> PromptTemplate:
        """The id of a demonstration names its style."""
        return self.steps_template if problem.id == "asked" else self.template

    def _respond(self, rng: random.Random, style: str, answer: int, solution: str) -> str:
        if style in ("asked", "worked"):
            return solution
        guess = answer
        while guess == answer:
            guess = max(0, answer + rng.randint(-self.guess_spread, self.guess_spread))
        if style == "unboxed":
            return f"It is {guess}."
        boxed = f"\\boxed{{{guess}}}"
        return boxed if style == "guess" else f"{boxed}{self.wait_phrase}\n{solution}"
