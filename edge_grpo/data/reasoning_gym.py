"""Generated problems from the package reasoning_gym, graded by its own scorer."""

import dataclasses
from typing import Any

from edge_grpo.data.base import ProblemDataModule
from edge_grpo.errors import UserError, nearest
from edge_grpo.types.problems import Problem

# Held-out problems come from the first entries, training from here on: neither count moves the other's problems.
HELD_OUT_POOL = 1024


class ReasoningGymDataModule(ProblemDataModule):
    """Problems of one generator, every question once and none in both sets.

    Needs the extra `reasoning_gym`. A problem's `extra` holds {"generator": name, "entry": entry} for the scorer.

    Args:
        generator: such as chain_sum; see `reasoning_gym.factory.DATASETS`.
        generator_config: its settings, without seed and size.
        train_count, held_out_count: problems.
        problem_seed: of the problems (their order follows `seed`).
        shared: arguments of `ProblemDataModule`.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        generator: str,
        generator_config: dict[str, Any],
        train_count: int,
        held_out_count: int,
        problem_seed: int,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if train_count < 1 or not 1 <= held_out_count <= HELD_OUT_POOL:
            raise UserError(
                f"data.train_count={train_count} must be at least 1 and data.held_out_count={held_out_count} "
                f"in [1, {HELD_OUT_POOL}]"
            )
        self.generator, self.generator_config = generator, generator_config
        self.counts, self.problem_seed = (train_count, held_out_count), problem_seed

    def load(self) -> tuple[list[Problem], list[Problem]]:
        """See `ProblemDataModule.load`.

        Raises:
            UserError: reasoning_gym is not installed, an unknown generator or setting, or too few distinct questions.
        """
        train_count, held_out_count = self.counts
        # Twice as many as asked for, because repeated questions are passed over.
        entries = self._create(size=HELD_OUT_POOL + 2 * train_count)
        seen: set[str] = set()
        held_out = self._distinct(entries, range(HELD_OUT_POOL), seen, held_out_count, "held_out")
        train = self._distinct(entries, range(HELD_OUT_POOL, len(entries)), seen, train_count, "train")
        return train, held_out

    def _create(self, size: int) -> Any:
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise UserError(
                "data=reasoning_gym needs the package reasoning-gym: pip install 'edge-grpo[reasoning_gym]'"
            ) from error
        if self.generator not in DATASETS:
            raise UserError(f"data.generator={self.generator}: no such generator; {_hint(self.generator, DATASETS)}")
        settings = {field.name for field in dataclasses.fields(DATASETS[self.generator][1])} - {"seed", "size"}
        for key in self.generator_config:
            if key not in settings:
                raise UserError(f"data.generator_config.{key}: {self.generator} has none; {_hint(key, settings)}")
        try:
            return reasoning_gym.create_dataset(
                self.generator, seed=self.problem_seed, size=size, **self.generator_config
            )
        except (AssertionError, TypeError, ValueError) as error:
            raise UserError(f"data.generator_config={self.generator_config}: {self.generator} says: {error}") from error

    def _distinct(self, entries: Any, indices: range, seen: set[str], count: int, split: str) -> list[Problem]:
        """The first `count` entries of `indices` with a question not in `seen`, which grows."""
        problems: list[Problem] = []
        for index in indices:
            if len(problems) == count:
                break
            entry = entries[index]
            if entry["question"] not in seen:
                seen.add(entry["question"])
                problems.append(self._problem(entry, index, split))
        if len(problems) < count:
            raise UserError(
                f"data.generator={self.generator}: only {len(problems)} distinct questions for "
                f"data.{split}_count={count}: lower it or widen data.generator_config"
            )
        return problems

    def _problem(self, entry: dict[str, Any], index: int, split: str) -> Problem:
        answer = entry["answer"]
        return Problem(
            id=f"{self.generator}-{split}-{index}",
            question=entry["question"],
            # Some generators have a scorer but no gold answer.
            answers=() if answer is None else (str(answer),),
            origin=f"{self.generator}:{index}",
            extra={"generator": self.generator, "entry": entry},
        )


def _hint(name: str, candidates: Any) -> str:
    near = nearest(name, candidates)
    return f"did you mean {near}?" if near else f"there are {', '.join(sorted(candidates))}"
