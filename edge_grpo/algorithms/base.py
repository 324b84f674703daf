"""What the GRPO and the SFT module share: the policy, its optimiser, grading, and the log."""

import math
import pickle
import resource
import statistics
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor

from edge_grpo.algorithms.metrics import idle_shares
from edge_grpo.algorithms.schedules import take_settings
from edge_grpo.errors import UserError
from edge_grpo.loggers.hooks import run_loggers
from edge_grpo.loggers.metrics import describe
from edge_grpo.policy.base import Policy
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.policy.four_bit import compute_in
from edge_grpo.policy.sharding import full, is_sharded, shard, whole
from edge_grpo.policy.support import check_head, check_packed
from edge_grpo.rewards.base import WeightedRewards, score_rollout
from edge_grpo.rollouts.base import RolloutEngine
from edge_grpo.seeding import seed_globals
from edge_grpo.types.metric import Metric
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import Rollout, ScoredRollout
from edge_grpo.types.update import Step

OptimizerFactory = Callable[..., torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]
MicrobatchLoss = Callable[[], Tensor]

ALONE = ("rollout", "reward", "correction", "logprobs")
"""stages in which a rank waits for no other"""

REDUCTIONS: dict[str, Callable[[list[float]], float]] = {"sum": sum, "min": min, "max": max, "mean": statistics.fmean}
"""`Metric.ranks` -> how the values of several ranks become one"""


class PolicyModule(pl.LightningModule):
    """A policy under manual optimisation, one iteration a Lightning epoch.

    It is built without its policy, which `adopt` gives it, so that what is wrong with the settings does not wait for a
    model to load. A subclass sets `corrects` where it has a correction and with it a method `correct`.

    Args:
        rollout: engine for training and evaluation.
        rewards: grading for training and evaluation.
        optimizer: parameters -> optimiser; where it has a method `check`, that refuses what is not installed.
        scheduler: optimiser -> learning-rate scheduler, stepped once an iteration.
        max_grad_norm: gradients are clipped to this global norm; null for none.
        microbatch_tokens: bound on the tokens of one forward and backward.
        chunk_tokens: tokens whose logits are in memory at once (times the vocabulary, in float32).
        packing: compute a prompt once for all its responses and no padding; false runs padded rows through the
            model's own attention, for models whose attention the project does not know.
        seed: of every draw.

    Raises:
        UserError: a value out of range.
    """

    corrects = False

    def __init__(
        self,
        rollout: RolloutEngine,
        rewards: WeightedRewards,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory,
        max_grad_norm: float | None,
        microbatch_tokens: int,
        chunk_tokens: int,
        packing: bool,
        seed: int,
    ) -> None:
        super().__init__()
        bounds = {"microbatch_tokens": microbatch_tokens, "chunk_tokens": chunk_tokens, "max_grad_norm": max_grad_norm}
        for name, value in bounds.items():
            if value is not None and value <= 0:
                raise UserError(f"algorithm.{name}={value} must be above 0")
        if hasattr(optimizer, "check"):
            optimizer.check()
        self.automatic_optimization = False
        self.rollout, self.rewards = rollout, rewards
        self.strict_loading = False  # frozen weights are in no checkpoint; `on_load_checkpoint` holds all other names
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self.max_grad_norm, self.seed = max_grad_norm, seed
        self.microbatch_tokens, self.chunk_tokens, self.packing = microbatch_tokens, chunk_tokens, packing
        self.strategy_metrics: Mapping[str, Metric] = {}
        """logged name -> definition, of what the strategies report"""
        self.timings: dict[str, float] = {}
        self._alone_s = 0.0  # of this iteration's updates, before gradients are exchanged
        self.metrics: dict[str, float] = {}
        """all that was recorded since this iteration began, its evaluation too"""
        self.bad_steps = 0
        """optimiser steps in a row that were skipped because the loss or the gradient was not finite"""

    policy: Policy
    shorter_responses: str
    """what the user can do about a response that outgrows the model's context"""

    def adopt(self, policy: Policy) -> None:
        """Take the model and its tokenizer, once, before anything else is asked of the module."""
        self.policy = policy
        self.model = policy.model  # registered, so that Lightning moves, wraps and saves it

    def check_ranks(self, ranks: int) -> None:
        """Refuse settings that so many ranks cannot share."""

    @abstractmethod
    def longest_responses(self, problems: Sequence[Problem]) -> list[int]:
        """Tokens that a response to each of these training problems can have."""

    @property
    def iteration(self) -> int:
        """Updates the policy has had."""
        return self.trainer.current_epoch

    def configure_model(self) -> None:
        """Lightning's moment to spread the model over the ranks (`trainer.strategy=fsdp2`); its precision is known."""
        compute_in(self.model, self.trainer.precision)
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not is_sharded(self.model):
            self.shard(strategy.device_mesh["data_parallel"])

    def shard(self, mesh: Any) -> None:
        """Leave this rank its part of the policy."""
        precision = self.trainer.precision_plugin
        shard(precision.convert_module(self.model), mesh)

    def on_fit_start(self) -> None:
        """Refuse a model that the update or the rollout engine cannot compute, before any work."""
        with whole(self.model):
            check_head(self.model, self.chunk_tokens)
            if self.packing:
                check_packed(self.model)
        if hasattr(self.rollout, "start"):  # an engine of its own: all ranks at once
            self.rollout.start(self.policy)
        for logger in run_loggers(self.trainer.loggers):
            logger.define_metrics(self.strategy_metrics)

    def on_train_epoch_start(self) -> None:
        """Global generators follow from the iteration too, so that a resumed run draws the same."""
        seed_globals(self.seed, iteration=self.iteration, rank=self.global_rank)
        self.metrics = {}

    def on_train_batch_end(self, *args: Any) -> None:
        """The metrics of this step are complete: those of the evaluation came before."""
        for logger in self.trainer.loggers:
            logger.save()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model; hand the rewards what they kept; let the settings of now hold.

        Raises:
            UserError: names the first parameter that is missing, unexpected or of another shape.
        """
        # Of a sharded model Lightning has restored the weights by now, on every rank its part.
        ours = {name: tuple(value.shape) for name, value in self._kept(self.state_dict()).items()}
        weights = checkpoint.get("state_dict")
        theirs = ours if weights is None else {name: tuple(value.shape) for name, value in weights.items()}
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise UserError(
                    f"the checkpoint is of another model: {name} is {theirs.get(name, 'absent')} there and "
                    f"{ours.get(name, 'absent')} here: set `model` as it was, or resume=never"
                )
        self.rewards.load_state_dict(checkpoint["rewards"])
        if checkpoint.get("optimizer_states"):
            fresh = self.configure_optimizers()
            take_settings(checkpoint, fresh["optimizer"], fresh["lr_scheduler"])
            if is_sharded(self.model):  # Lightning has restored this optimiser already
                restored: Any = self.optimizers()
                for group, saved in zip(
                    restored.param_groups, checkpoint["optimizer_states"][0]["param_groups"], strict=True
                ):
                    group |= {name: value for name, value in saved.items() if name != "params"}

    def configure_optimizers(self) -> dict[str, Any]:
        """The injected optimiser and scheduler."""
        optimizer = self._make_optimizer(p for p in self.model.parameters() if p.requires_grad)
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what is frozen; keep what the rewards remember (of rank 0: the rank that writes)."""
        checkpoint["state_dict"] = self._kept(checkpoint["state_dict"])
        checkpoint["rewards"] = self.rewards.state_dict()

    def _kept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of the module's state is in a checkpoint."""
        frozen = {f"model.{name}" for name in self.policy.frozen()}
        return {name: value for name, value in state.items() if name not in frozen}

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, the rollout engine may be called, by each rank as often as it likes; all ranks enter together.

        A sharded policy is whole on every rank meanwhile, or stays apart where the engine has weights of its own.
        """
        following = getattr(self.rollout, "following", None)
        with following(self.policy) if following and is_sharded(self.model) else whole(self.model):
            yield

    def score(self, rollout: Rollout) -> ScoredRollout:
        """Decode and grade every row once."""
        return score_rollout(rollout, self.rewards, self.policy.decode)

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tensor:
        """[n] bool: which texts answer their problem right."""
        return self.rewards(problems, texts).correct

    def remarks(self) -> list[str]:
        """What of the settings has an effect that may surprise, a sentence each."""
        return []

    def ungradable(self, problems: Sequence[Problem]) -> list[str | None]:
        """What is wrong with the gold answers of each problem; None where they can be graded."""
        return self.rewards.ungradable(problems)

    def optimise(self, microbatch_losses: Sequence[MicrobatchLoss]) -> Step:
        """One optimiser step on the sum of the micro-batches' losses; skipped where that or its gradient is not finite.

        Args:
            microbatch_losses: each computes the loss of one micro-batch, with graph; together they are the update's.
        """
        optimizer: Any = self.optimizers()
        last = len(microbatch_losses) - 1
        computed = [self._backward(loss, sync=i == last) for i, loss in enumerate(microbatch_losses)]
        norm = self._gradient_norm()
        losses = [float(loss) for loss in computed]
        if not self._finite_on_every_rank(*losses, norm):
            self.bad_steps += 1
            bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
            # Of a sharded model no rank can compute one alone.
            bad = bad if bad or is_sharded(self.model) else self._without_gradient(microbatch_losses)
            self._drop_gradients(optimizer)
            return Step(sum(losses), norm, tuple(bad))
        self.bad_steps = 0
        if self.max_grad_norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.max_grad_norm, gradient_clip_algorithm="norm")
        optimizer.step()
        self._drop_gradients(optimizer)
        return Step(sum(losses), norm)

    def _drop_gradients(self, optimizer: Any) -> None:
        """Their memory is the next rollout's. Under DDP they lie in its buckets, which stay."""
        optimizer.zero_grad(set_to_none=self.trainer.world_size == 1 or is_sharded(self.model))

    def _backward(self, microbatch_loss: MicrobatchLoss, *, sync: bool) -> Tensor:
        """Add the gradient of one loss, which is returned; DDP averages the gradients of all at the last one."""
        optimizer: Any = self.optimizers()
        start = time.perf_counter()
        with optimizer.toggle_model(sync_grad=sync):
            loss = microbatch_loss()
            if sync:
                if self.device.type == "cuda" and self.trainer.world_size > 1:
                    torch.cuda.synchronize(self.device)  # what was launched so far waits for no other rank
                self._alone_s += time.perf_counter() - start
            # The denominators count all ranks already.
            self.manual_backward(loss * self.trainer.world_size)
        if not sync:
            self._alone_s += time.perf_counter() - start
        return loss.detach()

    def _gradient_norm(self) -> float:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(full(torch.nn.utils.get_total_norm(gradients)))

    def _finite_on_every_rank(self, *values: float) -> bool:
        here = all(map(math.isfinite, values))
        return self.total_over_ranks(float(not here)) == [0.0]

    def _without_gradient(self, microbatch_losses: Sequence[MicrobatchLoss]) -> list[int]:
        """The micro-batches whose loss is finite and whose gradient is not, each computed again alone."""
        found = []
        for i, microbatch_loss in enumerate(microbatch_losses):
            self.model.zero_grad(set_to_none=True)
            self._backward(microbatch_loss, sync=False)
            if not math.isfinite(self._gradient_norm()):
                found.append(i)
        return found

    def step_scheduler(self) -> float:
        """Advance the schedule by one iteration; the rate that this iteration used."""
        scheduler: Any = self.lr_schedulers()
        rate = float(scheduler.get_last_lr()[0])
        scheduler.step()
        return rate

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's wall time to `timing_s/<stage>` of this iteration."""
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def take_timings(self) -> dict[str, float]:
        """Seconds a stage of this iteration; they start anew."""
        seconds, self.timings = self.timings, {}
        return seconds

    def idle_shares(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """`perf/idle_share` of this iteration's timings, of all ranks.

        Args:
            seconds: see `take_timings`.
        """
        alone = {stage: seconds[stage] for stage in (*ALONE, "total") if stage in seconds}
        if not is_sharded(self.model):  # there every layer waits for the other ranks
            alone["update"] = self._alone_s
        self._alone_s = 0.0
        return idle_shares(self.gathered(alone))

    def missing_microbatches(self, counts: Sequence[int]) -> list[int]:
        """How many more micro-batches another rank has in each optimiser step.

        All ranks gather a sharded model's weights together, as often as the one with the most micro-batches; 0 where
        every rank has all weights.
        """
        if not is_sharded(self.model):
            return [0] * len(counts)
        return [max(ranks) - own for *ranks, own in zip(*self.gathered(list(counts)), counts, strict=True)]

    def total_over_ranks(self, *counts: float) -> list[float]:
        """Sums over ranks."""
        if self.trainer.world_size == 1:
            return list(counts)
        summed = self.trainer.strategy.reduce(
            torch.tensor(counts, dtype=torch.float64, device=self.device), reduce_op="sum"
        )
        return summed.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """The ranks' values, in their order; what they hold is on the CPU."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return [value]
        values: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(values, value, group=self._group_of_objects)
        return values

    def delivered(self, parcels: Sequence[Any]) -> list[Any]:
        """What each rank has for this one, in their order; no other rank receives it.

        Args:
            parcels: for each rank, this one too; what they hold is on the CPU.
        """
        pickled = [pickle.dumps(parcel) for parcel in parcels]
        sizes = torch.tensor([len(one) for one in pickled])
        arriving = torch.empty_like(sizes)
        torch.distributed.all_to_all_single(arriving, sizes, group=self._group_of_objects)
        sent, received = torch.frombuffer(bytearray(b"".join(pickled)), dtype=torch.uint8), arriving.tolist()
        here = torch.empty(sum(received), dtype=torch.uint8)
        torch.distributed.all_to_all_single(here, sent, received, sizes.tolist(), group=self._group_of_objects)
        return [pickle.loads(part.numpy().tobytes()) for part in here.split(received)]

    @cached_property
    def _group_of_objects(self) -> Any:
        """Of all ranks, on the CPU: under NCCL objects would take memory of every GPU. None: the default group."""
        return torch.distributed.new_group(backend="gloo") if torch.distributed.get_backend() == "nccl" else None

    def forward_settings(self, temperature: float, packing: bool) -> MicrobatchForward:
        """How rows go through the model in this algorithm's micro-batches."""
        return MicrobatchForward(
            temperature=temperature,
            microbatch_tokens=self.microbatch_tokens,
            chunk_tokens=self.chunk_tokens,
            packing=packing,
        )

    def record(self, metrics: dict[str, float], *, step: int) -> dict[str, float]:
        """Reduce the metrics over ranks and hand them to every logger; the reduced ones.

        Raises:
            KeyError: a name that neither loggers/metrics.py nor a strategy defines.
        """
        undefined = [name for name in metrics if self._definition(name) is None]
        if undefined:
            raise KeyError(f"neither loggers/metrics.py nor a strategy defines {undefined}")
        metrics = self._over_ranks(metrics)
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=step)
        self.metrics.update(metrics)
        return metrics

    def _definition(self, name: str) -> Metric | None:
        return self.strategy_metrics.get(name) or describe(name)

    def _over_ranks(self, metrics: dict[str, float]) -> dict[str, float]:
        """One value of those ranks that have the metric (a branch may be taken on one only), as its definition says."""
        if self.trainer.world_size == 1:
            return metrics
        ranks = self.gathered(metrics)
        values = {name: [rank[name] for rank in ranks if name in rank] for rank in ranks for name in rank}
        return {name: self._reduction(name)(found) for name, found in values.items()}

    def _reduction(self, name: str) -> Callable[[list[float]], float]:
        metric = self._definition(name)
        assert metric is not None, f"record has refused {name}"
        return REDUCTIONS[metric.ranks]

    def peak_memory_gb(self) -> float:
        """Peak GPU memory of this process, or its peak resident set on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
