"""What is evaluated, and how responses are sampled."""

import logging
import time
from collections.abc import Mapping, Sequence

from edge_grpo.data.base import PromptTemplate, with_prompt
from edge_grpo.errors import UserError, nearest
from edge_grpo.evaluation.benchmarks import Benchmark, load_benchmarks
from edge_grpo.evaluation.sampling import room, sample
from edge_grpo.policy.base import Policy
from edge_grpo.rollouts.base import RolloutEngine, Sampling
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import Rollout

log = logging.getLogger(__name__)


class Evaluation:
    """Benchmarks and the sampling settings of their responses, which are not those of training.

    Args:
        benchmarks: name -> source of problems; {} for the held-out problems alone.
        average: names in the total and the mean; null for all.
        num_samples: n, responses a problem.
        temperature, top_p: of the sampling; temperature 0 is greedy.
        max_new_tokens: budget of a response, in tokens.
        seed: of the draws; null takes the clock, as the official code does (departure 19).
        limit: the first problems of each benchmark; null for all.
        template: of the prompts; null for the program's own (the training data's, the evaluated run's).

    Raises:
        UserError: a value out of range, or a name in `average` that is no benchmark.
    """

    def __init__(
        self,
        benchmarks: Mapping[str, Benchmark],
        average: Sequence[str] | None,
        num_samples: int,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        seed: int | None,
        limit: int | None,
        template: PromptTemplate | None,
    ) -> None:
        for name, value in {"num_samples": num_samples, "max_new_tokens": max_new_tokens, "limit": limit}.items():
            if value is not None and value < 1:
                raise UserError(f"evaluation.{name}={value} must be at least 1")
        for name in average or ():
            if name not in benchmarks:
                hint = nearest(name, benchmarks) or ", ".join(benchmarks)
                raise UserError(f"evaluation.average: no benchmark {name}; did you mean {hint}?")
        self.sampling = Sampling(temperature=temperature, top_p=top_p)
        if self.sampling.greedy and num_samples > 1:
            raise UserError(
                f"evaluation.num_samples={num_samples} greedy responses to a problem are all equal: set "
                "evaluation.temperature above 0, or evaluation.num_samples=1"
            )
        self.benchmarks, self.average, self.limit = dict(benchmarks), average, limit
        self.num_samples, self.max_new_tokens, self.template = num_samples, max_new_tokens, template
        self.seed = time.time_ns() if seed is None else seed
        self.sets: dict[str, tuple[Problem, ...]] = {}
        """benchmark -> problems with their prompts as tokens, once `load` was called"""
        self._read: Mapping[str, tuple[Problem, ...]] | None = None

    def read(self) -> Mapping[str, tuple[Problem, ...]]:
        """Benchmark -> its problems without tokens; read once, which needs no model.

        Raises:
            UserError: a benchmark that cannot be read.
        """
        if self._read is None:
            self._read = load_benchmarks(self.benchmarks, self.limit)
        return self._read

    def load(self, policy: Policy, template: PromptTemplate) -> None:
        """Read and encode the benchmarks, before any work.

        Args:
            policy: its tokenizer encodes.
            template: where the evaluation has none of its own.

        Raises:
            UserError: a benchmark that cannot be read.
        """
        template = self.template or template
        self.sets = {
            name: tuple(with_prompt(problem, template, policy.tokenizer) for problem in problems)
            for name, problems in self.read().items()
        }
        for name, problems in self.sets.items():
            warn_of_short_rooms(name, problems, policy, self.max_new_tokens)

    def sample(self, engine: RolloutEngine, policy: Policy, problems: Sequence[Problem], *, step: int = 0) -> Rollout:
        """n responses to each of these problems."""
        return sample(
            engine,
            policy,
            problems,
            num_samples=self.num_samples,
            sampling=self.sampling,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            step=step,
        )


def warn_of_short_rooms(name: str, problems: Sequence[Problem], policy: Policy, max_new_tokens: int) -> None:
    """Tell of prompts that leave less of the model's context than the budget: their responses are cut, or empty."""
    short = [p for p in problems if room(p, policy, max_new_tokens) < max_new_tokens]
    if short:
        log.warning(
            "%s: %d of %d problems leave fewer than evaluation.max_new_tokens=%d tokens of the model's context of %s; "
            "%d leave none and count as wrong",
            name,
            len(short),
            len(problems),
            max_new_tokens,
            policy.context_length,
            sum(room(p, policy, max_new_tokens) == 0 for p in short),
        )
