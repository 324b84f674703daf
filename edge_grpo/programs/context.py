"""What a run's parts ask of each other, before any work: a context for every row, weights that can be sharded."""

import logging
from collections.abc import Sequence

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from edge_grpo.data.arithmetic import ArithmeticDataModule
from edge_grpo.data.base import ProblemDataModule
from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.policy.four_bit import check_four_bit
from edge_grpo.rollouts.base import context_bound
from edge_grpo.types.problems import Problem

log = logging.getLogger(__name__)

ARITHMETIC_BUDGET = 128
"""rollout.max_new_tokens where nobody sets it: a worked chain of the embedded arithmetic with room to spare"""


def check_sharding(cfg: DictConfig, ranks: int) -> None:
    """Refuse what does not go with `trainer.strategy=fsdp2`.

    Raises:
        UserError: one rank, adapters, an optimiser with states of its own kind, or a probe of the gradient.
    """
    if cfg.trainer.strategy != "fsdp2":
        return
    chosen = "trainer.strategy=fsdp2 spreads the policy over ranks"
    if ranks < 2:
        raise UserError(f"{chosen}, and here is one: set trainer=gpu, or more trainer.devices or trainer.num_nodes")
    if OmegaConf.select(cfg, "model.lora.r") is not None:
        raise UserError(f"{chosen}, which adapters do not need: set trainer=ddp, or model.lora.r=null")
    if not getattr(get_object(cfg.optimizer._target_), "shards", True):
        raise UserError(f"{chosen}, and this optimizer knows whole tensors alone: set optimizer=adamw")
    if any(node is not None and node._target_.endswith(".GradientShares") for node in cfg.callbacks.values()):
        raise UserError(f"{chosen}, so no rank can probe a gradient alone: set callbacks.gradient_shares=null")


def check_base_weights(cfg: DictConfig) -> None:
    """Refuse what cannot train on weights of 4 bits, before anything is loaded.

    Raises:
        UserError: sharded weights, several ranks, the CPU, or see `check_four_bit`.
    """
    if not OmegaConf.select(cfg, "model.load_in_4bit"):
        return
    if cfg.trainer.strategy == "fsdp2":
        raise UserError("model.load_in_4bit=true leaves nothing to shard: set trainer=gpu, which is one card")
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    if devices not in (1, "1") or nodes != 1:
        raise UserError(
            f"model.load_in_4bit=true with trainer.devices={devices} trainer.num_nodes={nodes}: every rank would "
            "quantise its model on its node's first GPU: set trainer=gpu, which is one card"
        )
    check_four_bit(adapters=OmegaConf.select(cfg, "model.lora.r") is not None)
    if cfg.trainer.accelerator == "cpu":
        raise UserError("model.load_in_4bit=true quantises on a GPU, but trainer.accelerator=cpu: set trainer=gpu")


def check_context(
    problems: Sequence[Problem], policy: Policy, longest: Sequence[int], way_out: str, max_model_len: int | None = None
) -> None:
    """Refuse a run in which a row could outgrow the model's context, or the rollout engine's.

    Args:
        problems: with their prompts as tokens.
        policy: whose context it is.
        longest: tokens of a response to each problem, at most.
        way_out: what makes responses shorter.
        max_model_len: bound of the rollout engine, if it has one.

    Raises:
        UserError: names the row that is over by most.
    """
    limit, whose = context_bound(policy, max_model_len)
    if limit is None:
        return
    rows = zip(problems, longest, strict=True)
    problem, tokens = max(rows, key=lambda row: len(row[0].prompt_ids) + row[1])
    if len(problem.prompt_ids) + tokens > limit:
        raise UserError(
            f"{problem.origin}: {len(problem.prompt_ids)} prompt tokens + up to {tokens} response tokens exceed "
            f"{whose} of {limit}: {way_out}"
        )


def warn_of_small_budget(data: ProblemDataModule, max_new_tokens: int) -> None:
    """Tell of a budget that holds a chain of the embedded arithmetic and hardly a solution of anything else."""
    if max_new_tokens <= ARITHMETIC_BUDGET and not isinstance(data, ArithmeticDataModule):
        log.warning(
            "rollout.max_new_tokens=%d suits the embedded arithmetic: most responses to other problems will be cut and "
            "count as wrong; raise rollout.max_new_tokens",
            max_new_tokens,
        )
