"""The Lightning trainer of a run: one Lightning epoch is one iteration."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

from edge_grpo.errors import UserError
from edge_grpo.policy.precision import check_precision
from edge_grpo.runs.stopping import TokenBudget

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
STRATEGIES = ("auto", "ddp", "fsdp2")
SHARDED_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def build_trainer(
    max_iterations: int,
    max_generated_tokens: int | None,
    accelerator: str,
    devices: int | str,
    num_nodes: int,
    strategy: str,
    precision: str,
    deterministic: bool,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Any],
    plugins: Sequence[Any] = (),
) -> pl.Trainer:
    """A Trainer whose epochs are iterations.

    An epoch holds exactly one batch, so every checkpoint lies on an iteration boundary and Lightning's own resume
    needs no position inside a dataloader.

    Args:
        max_iterations: iterations in all, at most.
        max_generated_tokens: the run ends after the iteration that reaches so many generated tokens; null for no such
            end.
        accelerator: "auto" takes the GPU where there is one.
        strategy: one of `STRATEGIES`; "auto" is DDP for several ranks; "fsdp2" leaves each rank a part of weights,
            gradients and optimiser state.
        precision: 32-true, bf16-mixed or bf16-true, as Lightning's.
        devices: processes on a node, a GPU each; "auto" for all GPUs that are there.
        num_nodes: machines.
        deterministic: algorithms of torch that give the same bits each time, as Lightning's.
        plugins: of the ranks, see `ranks.group.Ranks`.

    Raises:
        UserError: see `check_trainer`.
    """
    check_trainer(max_iterations, max_generated_tokens, accelerator, strategy, precision)
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=_strategy(strategy, plugins),
        precision=precision,
        deterministic=deterministic,
        max_epochs=max_iterations,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TokenBudget(max_generated_tokens), *callbacks],
        logger=list(loggers),
        plugins=list(plugins),
        log_every_n_steps=1,
    )


def _strategy(name: str, plugins: Sequence[Any]) -> Any:
    if name == "ddp":
        return DDPStrategy(gradient_as_bucket_view=True)
    if name == "fsdp2":
        ranks = plugins[0].world_size()
        # Checkpoints are whole: one file that evaluation, export and another number of ranks can read.
        return ModelParallelStrategy(ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return name


def check_trainer(
    max_iterations: int, max_generated_tokens: int | None, accelerator: str, strategy: str, precision: str
) -> None:
    """Refuse what no trainer can be built of; asked before a model is loaded too.

    Raises:
        UserError: an unknown or absent accelerator, another strategy or precision, or fewer than one iteration or
            token.
    """
    if max_iterations < 1:
        raise UserError(f"trainer.max_iterations={max_iterations} must be at least 1")
    if accelerator not in ACCELERATORS:
        raise UserError(f"trainer.accelerator={accelerator} is none of {', '.join(ACCELERATORS)}")
    if strategy not in STRATEGIES:
        raise UserError(
            f"trainer.strategy={strategy} is none of {', '.join(STRATEGIES)}: other ways to shard the policy (fsdp, "
            "deepspeed) do not work here, nor do those that start ranks without this command line (ddp_spawn, "
            "ddp_fork, ddp_notebook)"
        )
    check_precision("trainer.precision", precision)
    if strategy == "fsdp2" and precision not in SHARDED_PRECISIONS:
        raise UserError(
            f"trainer.precision={precision} does not go with trainer.strategy=fsdp2: it is one of "
            f"{', '.join(SHARDED_PRECISIONS)}"
        )
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator} but torch sees no GPU: set trainer=cpu or trainer=auto")
    TokenBudget(max_generated_tokens)
