"""What GRPO is made of and what it keeps: its stages, checks before a run, state in the checkpoint, seeds, counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from edge_grpo.advantages.base import Advantage
from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.algorithms.checks import check_minibatches, check_settings, idle_settings, idle_strategies
from edge_grpo.algorithms.collapse import first_shares
from edge_grpo.algorithms.drawing import Drawn
from edge_grpo.algorithms.reports import declared
from edge_grpo.algorithms.states import load_strategy_states, strategy_states
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.allocations.base import Allocation
from edge_grpo.corrections.base import Correction, longest_responses
from edge_grpo.data.base import ProblemDataModule, with_prompt
from edge_grpo.group_filters.base import GroupFilter
from edge_grpo.importance_corrections.base import ImportanceCorrection
from edge_grpo.loggers.metrics import describe
from edge_grpo.losses.base import Loss, UpdateSize
from edge_grpo.policy.base import Policy
from edge_grpo.policy.sharding import shard
from edge_grpo.seeding import stage_generator
from edge_grpo.token_filters.base import TokenFilter
from edge_grpo.types.history import History
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response
from edge_grpo.types.rollouts import Rollout

Probe = Callable[[GRPOUpdate, Rollout, Sequence[UpdateSize]], Mapping[str, float]]
"""(update that is prepared, its rollout, the sizes of its steps) -> logged name -> number; changes nothing"""


class GRPOBase(PolicyModule):
    """The parts of `GRPOModule` that are no step of the algorithm.

    Args:
        allocation, correction, group_filter, advantage, loss, token_filter, importance_correction: the strategies.
        num_generations: G, responses of a group.
        update_epochs: mu, passes over a rollout's rows.
        minibatch_rows: rows of one optimiser step, over all ranks, in whole groups and in the rollout's order, the
            same in every epoch (verl's default; TRL shuffles rows, and problems come shuffled already). The last
            minibatch may be smaller; every one has denominators of its own. null: all rows in one step, so that with
            one epoch the importance ratio is exactly 1 and every clip idle.
        mask_truncated: responses that the token budget ended leave the loss and its denominators (see `kept_rows`).
        balance_batch: on several ranks, whole groups change ranks before the update, within an optimiser step, so that
            each rank computes about as many tokens (verl's `trainer.balance_batch`). The gradient is the same, but for
            what depends by definition on which rows share a micro-batch or a rank's draws: `loss=bnpo`, an advantage
            with `scope=microbatch`, token filters that draw.
        shared: arguments of `PolicyModule`.

    Raises:
        UserError: G below 2 or below what a strategy needs, mu below 1, minibatches that would split a group, two
            strategies that define the same metric, or two that do not go together.
    """

    corrects = True

    def __init__(
        self,
        allocation: Allocation,
        correction: Correction,
        group_filter: GroupFilter,
        advantage: Advantage,
        loss: Loss,
        token_filter: TokenFilter,
        importance_correction: ImportanceCorrection,
        num_generations: int,
        update_epochs: int,
        minibatch_rows: int | None,
        mask_truncated: bool,
        balance_batch: bool,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.strategies: dict[str, Any] = {
            "allocation": allocation,
            "correction": correction,
            "group_filter": group_filter,
            "advantage": advantage,
            "loss": loss,
            "token_filter": token_filter,
            "importance_correction": importance_correction,
        }
        check_settings(self.rollout, self.strategies, num_generations, update_epochs, minibatch_rows)
        self.allocation, self.correction, self.group_filter = allocation, correction, group_filter
        self.advantage, self.loss, self.token_filter = advantage, loss, token_filter
        self.importance_correction = importance_correction
        self.strategy_metrics = declared(tuple(self.strategies.values()), describe)
        self.num_generations, self.update_epochs = num_generations, update_epochs
        self.minibatch_rows, self.mask_truncated, self.balance_batch = minibatch_rows, mask_truncated, balance_batch
        self._reference: Any = None
        self.probes: list[Probe] = []
        """asked about every update before it runs; what they return is logged"""
        self.generated = [0, 0]  # responses and tokens of this iteration on this rank, a correction's too
        self.history = History()
        self._problems: dict[str, Problem] = {}  # by id, once somebody asks
        self._collapse_rates: list[float] = []  # of the first iterations
        self._positions = [0]  # problems that each rank has taken from its stream
        for name in ("num_tokens", "num_rollouts", "num_generated_tokens"):
            self.register_buffer(name, torch.zeros((), dtype=torch.long))

    shorter_responses = (
        "lower rollout.max_new_tokens, correction.reflection_tokens or correction.max_response_tokens, or drop the row"
    )

    def longest_responses(self, problems: Sequence[Problem]) -> list[int]:
        """See `PolicyModule.longest_responses`."""
        return longest_responses(self.correction, problems, self.rollout.max_new_tokens, self.policy.encode)

    def adopt(self, policy: Policy) -> None:
        """See `PolicyModule.adopt`; a KL term keeps the model as it comes."""
        super().adopt(policy)
        # Kept out of the module tree: the reference is frozen, so it is neither saved nor wrapped.
        self._reference = policy.initial() if self.loss.beta > 0 else None

    def shard(self, mesh: Any) -> None:
        """See `PolicyModule.shard`; the reference too."""
        if (reference := self.reference_model()) is not None:
            shard(self.trainer.precision_plugin.convert_module(reference), mesh)
            self._reference = lambda: reference
        super().shard(mesh)

    @property
    def packs(self) -> bool:
        """Whether the update computes packed rows."""
        return self.packing and not self.advantage.reads_padding

    @property
    def required_fields(self) -> frozenset[str]:
        """What training problems must have."""
        return self.correction.required_fields

    def remarks(self) -> list[str]:
        """See `PolicyModule.remarks`."""
        return [
            *idle_settings(self.loss, self.correction, self.update_epochs, self.minibatch_rows),
            *idle_strategies(self.allocation, self.group_filter, self.advantage, self.num_generations),
        ]

    def check_ranks(self, ranks: int) -> None:
        """Refuse minibatches that so many ranks cannot share."""
        check_minibatches(self.minibatch_rows, self.num_generations, ranks)

    def on_fit_start(self) -> None:
        """See `PolicyModule.on_fit_start`."""
        super().on_fit_start()
        self.check_ranks(self.trainer.world_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Snapshots of all that changes within an iteration."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["history"] = self.history.state_dict()
        checkpoint["positions"] = list(self._positions)
        checkpoint["collapse_rates"] = self._collapse_rates
        checkpoint["strategies"] = self.gathered(strategy_states(self.strategies))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `PolicyModule.on_load_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        of_ranks = checkpoint["strategies"]
        self._collapse_rates = list(checkpoint["collapse_rates"])
        load_strategy_states(self.strategies, of_ranks[self.global_rank % len(of_ranks)])
        self.history, self._positions = History.of_state(checkpoint["history"]), list(checkpoint["positions"])

    def prompt(self, problem: Problem, question: str) -> tuple[int, ...]:
        """The prompt of a problem that asks something else, as tokens."""
        template = self._data.template_for(problem)
        return with_prompt(replace(problem, question=question), template, self.policy.tokenizer).prompt_ids

    def problem(self, problem_id: str) -> Problem:
        """A training problem.

        Raises:
            KeyError: there is none of this id.
        """
        if not self._problems:
            self._problems = {problem.id: problem for problem in self._data.train_problems}
        return self._problems[problem_id]

    @property
    def _data(self) -> ProblemDataModule:
        data: Any = self.trainer.datamodule
        return data

    @property
    def position(self) -> int:
        """Problems that this rank has taken from its stream; with another number of ranks as many as any had."""
        same = len(self._positions) == self.trainer.world_size
        return self._positions[self.global_rank] if same else max(self._positions)

    def remember(self, drawn: Drawn) -> None:
        """What an iteration has drawn becomes history, the same on every rank."""
        ranks = self.gathered((drawn.visits, drawn.position))
        for visits, _ in ranks:
            self.history.record(visits)
        self._positions = [taken for _, taken in ranks]

    def collapse_rates(self, drawn: Drawn) -> dict[str, float]:
        """The share of sampled groups of equal rewards, of all ranks: now, and over the first iterations."""
        sampled, dead = drawn.metrics["allocation/candidates"], drawn.metrics["allocation/collapsed"]
        collapsed, candidates = self.total_over_ranks(round(sampled * dead), sampled)
        self._collapse_rates = first_shares(self._collapse_rates, collapsed / candidates)
        mean = sum(self._collapse_rates) / len(self._collapse_rates)
        return {"collapse/acr": collapsed / candidates, "collapse/acr_100": mean}

    def reference_model(self) -> Any | None:
        """In the policy's precision and on its device: Lightning converts the policy only, after it was copied."""
        return None if self._reference is None else self._reference()

    def generate(
        self, stage: str, prefixes: list[list[int]], budgets: list[int], *, call: int, temperature: float | None = None
    ) -> list[Response]:
        """Continuations by the policy, counted.

        Args:
            stage, call: of the seed.
            temperature: None for the rollout's.
        """
        sampling = self.rollout.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        responses = self.rollout.generate(self.policy, prefixes, budgets, sampling, self.generator(stage, call))
        self.generated[0] += len(responses)
        self.generated[1] += sum(map(len, responses))
        return responses

    def probed(self, update: GRPOUpdate, rollout: Rollout, sizes: Sequence[UpdateSize]) -> dict[str, float]:
        """What the probes say of an update."""
        if not self.probes:
            return {}
        with self.timed("probe"):
            return {name: value for probe in self.probes for name, value in probe(update, rollout, sizes).items()}

    def generator(self, stage: str, call: int = 0) -> torch.Generator:
        """A CPU generator of this stage, iteration and rank."""
        return stage_generator(self.seed, stage, iteration=self.iteration, rank=self.global_rank, call=call)

    def counts(self, update: GRPOUpdate) -> Mapping[str, float]:
        """Trained tokens, generated responses and their tokens so far, of all ranks, with this iteration's."""
        trained = int(update.batch.trained.sum())
        names = ("num_tokens", "num_rollouts", "num_generated_tokens")
        for name, new in zip(names, self.total_over_ranks(trained, *self.generated), strict=True):
            self.get_buffer(name).add_(int(new))
        return {f"train/{name}": float(self.get_buffer(name)) for name in names}
