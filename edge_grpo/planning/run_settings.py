"""What of a run's config decides its memory."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from edge_grpo.command_line.check import instantiate, to_dict
from edge_grpo.planning.skeleton import Adapters, ModelPlan
from edge_grpo.planning.stand_ins import Microbatch
from edge_grpo.policy.kv_cache import cache_bytes
from edge_grpo.policy.memory import GIB

PHRASE_TOKENS = 32
"""of what a correction writes before a reflection, at most"""


@dataclass(frozen=True)
class RunSettings:
    """Of one rank. Lengths are the longest that the settings allow.

    Args:
        model: which model, in which types; `can_adapt`: whether its loader knows LoRA; `can_quantise`: and 4 bits.
        optimizer: parameters -> optimiser; `fused_optimizer`: whether it steps without results in memory.
        on_gpu: where the run computes.
        ranks: each with a whole copy of all, or where it is `sharded` with a part of weights, gradients and optimiser.
        problems, generations: P and G of an iteration; G is 1 for supervised fine-tuning.
        prompt_tokens: S; `sampled_tokens`: of a fresh response; `response_tokens`: T, of one that was corrected.
        step_rows: of one optimiser step.
        microbatch_tokens, chunk_tokens, packing: see `PolicyModule`.
        whole_groups: a micro-batch holds a group however long it is.
        reference: a frozen copy of the model answers for the KL term.
        max_batch_rows: see `SamplingEngine`. cache_bound: bytes that the KV cache of the rows which are decoded at once
            may take; None where it is a share of a device that is not known.
        engine_cache: bytes of the cache of a rollout engine with weights of its own (`rollout.kv_cache_gb` GiB); None:
            the rollout uses the policy's weights. `engine_element`: bytes of one of its weights.
        fused_layers: the rollout holds weights a second time, see `policy.fused_layers`.
        evaluated_rows: rows of the largest set that is evaluated at once, None where the config does not tell.
        evaluated_tokens: of an evaluated response.
        checkpoints: on the disk at once.
    """

    model: ModelPlan
    can_adapt: bool
    can_quantise: bool
    optimizer: Callable[..., Any]
    fused_optimizer: bool
    on_gpu: bool
    ranks: int
    sharded: bool
    problems: int
    generations: int
    prompt_tokens: int
    sampled_tokens: int
    response_tokens: int
    step_rows: int
    microbatch_tokens: int
    chunk_tokens: int
    packing: bool
    whole_groups: bool
    reference: bool
    max_batch_rows: int | None
    cache_bound: int | None
    engine_cache: int | None
    engine_element: int
    fused_layers: bool
    evaluated_rows: int | None
    evaluated_tokens: int
    checkpoints: int

    @property
    def rows(self) -> int:
        """N: responses of an iteration."""
        return self.problems * self.generations

    @property
    def row_tokens(self) -> int:
        """The longest row."""
        return self.prompt_tokens + self.response_tokens

    def tokens_of(self, rows: int) -> int:
        """In the update: each prompt once where rows are packed."""
        prompts = -(-rows // self.generations) if self.packing else rows
        return prompts * self.prompt_tokens + rows * self.response_tokens

    @property
    def microbatch(self) -> Microbatch:
        """The largest of the update: as many tokens as the settings allow, and no more than there are."""
        least = self.tokens_of(self.generations if self.whole_groups else 1)
        tokens = min(max(self.microbatch_tokens, least), self.tokens_of(self.step_rows))
        group = self.tokens_of(self.generations)
        # Rows of another group fill what one group leaves.
        most = max(tokens // self.row_tokens, 1)
        prompts = min(-(-tokens // group), most) if self.packing else most
        left = tokens - prompts * self.prompt_tokens
        # A prompt has G rows at most, and groups stay whole where they fit.
        rows = min(max(-(-left // self.response_tokens), 1), prompts * self.generations) if self.packing else prompts
        return Microbatch(rows, prompts, self.prompt_tokens, min(left // rows, self.response_tokens), self.on_gpu)

    @property
    def several_microbatches(self) -> bool:
        """Whether the gradients of one step wait for other micro-batches."""
        return self.tokens_of(self.step_rows) > self.microbatch.tokens


def computes_on_gpu(cfg: DictConfig) -> bool:
    """Where the run computes."""
    accelerator: str = cfg.trainer.accelerator
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


def run_settings(cfg: DictConfig, config: Any, memory: int | None) -> RunSettings:
    """The settings of a composed config of `edge-grpo-train`.

    Args:
        cfg: resolved.
        config: the model's `PretrainedConfig`.
        memory: bytes of a device; None where it is not known.

    Raises:
        UserError: a value that a constructor refuses.
    """
    on_gpu = computes_on_gpu(cfg)
    ranks = _ranks(cfg.trainer, on_gpu=on_gpu)
    grpo = cfg.get("loss") is not None
    loss: Any = instantiate(cfg.loss) if grpo else None
    advantage: Any = instantiate(cfg.advantage) if grpo else None
    generations = int(cfg.algorithm.num_generations) if grpo else 1
    problems = max(int(cfg.data.problems_per_iteration) // ranks, 1)
    step_rows = OmegaConf.select(cfg, "algorithm.minibatch_rows")
    sampled = int(cfg.rollout.max_new_tokens)
    prompt, response = _lengths(cfg, sampled, getattr(config.get_text_config(), "max_position_embeddings", None))
    cache = OmegaConf.select(cfg, "rollout.kv_cache_gb")
    own_weights = getattr(get_class(cfg.rollout._target_), "own_weights", False)
    return RunSettings(
        model=_model_plan(cfg, config),
        can_adapt="lora" in cfg.model,
        can_quantise="load_in_4bit" in cfg.model,
        optimizer=_optimizer(cfg.optimizer),
        fused_optimizer=bool(cfg.optimizer.get("fused")),
        on_gpu=on_gpu,
        ranks=ranks,
        sharded=ranks > 1 and cfg.trainer.strategy == "fsdp2",
        problems=problems,
        generations=generations,
        prompt_tokens=prompt,
        sampled_tokens=sampled,
        response_tokens=response,
        step_rows=problems * generations if step_rows is None else max(step_rows // ranks, generations),
        microbatch_tokens=int(cfg.algorithm.microbatch_tokens),
        chunk_tokens=int(cfg.algorithm.chunk_tokens),
        packing=bool(cfg.algorithm.packing),
        whole_groups=grpo and bool(getattr(loss, "needs_whole_groups", False) or advantage.inside_update),
        reference=grpo and loss.beta > 0,
        max_batch_rows=OmegaConf.select(cfg, "rollout.max_batch_rows"),
        cache_bound=int(cache * GIB) if cache is not None else None if memory is None else cache_bytes(memory),
        engine_cache=int(cache * GIB) if own_weights else None,
        engine_element=_engine_element(cfg, on_gpu=on_gpu),
        fused_layers=not on_gpu
        and cfg.trainer.precision != "bf16-mixed"
        and cfg.rollout._target_.endswith(".NativeRollout"),
        evaluated_rows=_evaluated_rows(cfg, ranks),
        evaluated_tokens=int(cfg.evaluation.max_new_tokens),
        checkpoints=int(cfg.checkpoint.keep) + 1,
    )


def _model_plan(cfg: DictConfig, config: Any) -> ModelPlan:
    precision = cfg.trainer.precision
    asked = {"bf16-true": "bfloat16", "64-true": "float64"}.get(precision)
    lora = OmegaConf.select(cfg, "model.lora")
    adapters = None
    if lora is not None and lora.get("r") is not None:
        targets = lora.get("targets")
        targets = (
            None if targets in (None, "all-linear") else (targets,) if isinstance(targets, str) else tuple(targets)
        )
        adapters = Adapters(int(lora.r), float(lora.get("dropout") or 0.0), targets, asked or "float32")
    return ModelPlan(
        config=config,
        dtype=asked or cfg.model.get("dtype", "float32"),
        autocast=precision == "bf16-mixed",
        gradient_checkpointing=bool(cfg.model.get("gradient_checkpointing", False)),
        adapters=adapters,
        four_bit=bool(cfg.model.get("load_in_4bit", False)),
    )


def _engine_element(cfg: DictConfig, *, on_gpu: bool) -> int:
    """An engine of its own has half precision on a GPU, and the policy's types elsewhere, unless it is told."""
    asked = OmegaConf.select(cfg, "rollout.dtype") or ("bfloat16" if on_gpu else cfg.model.get("dtype", "float32"))
    return torch.empty(0, dtype=getattr(torch, asked)).element_size()


def _optimizer(node: DictConfig) -> Callable[..., Any]:
    """Not fused, because tensors without data have no fused kernels."""
    plain = {key: value for key, value in to_dict(node).items() if key != "fused"}
    return _kept_optimizer(json.dumps({"optimizer": plain}))


@lru_cache(maxsize=16)
def _kept_optimizer(text: str) -> Callable[..., Any]:
    """The same object for the same settings, by which `optimizer_step` knows it."""
    make: Callable[..., Any] = instantiate(OmegaConf.create(json.loads(text)).optimizer)
    return make


def _ranks(trainer: Any, *, on_gpu: bool) -> int:
    devices, here = trainer.devices, max(torch.cuda.device_count(), 1) if on_gpu else 1
    known = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else here
    return max(known, 1) * int(trainer.num_nodes)


def _lengths(cfg: DictConfig, sampled: int, context: int | None) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest response to it, corrected too, within the model's context."""
    prompt, response = int(cfg.data.max_prompt_tokens), sampled
    for node in _mappings(OmegaConf.to_container(cfg.correction) if cfg.get("correction") is not None else {}):
        reflection, bound = node.get("reflection_tokens"), node.get("max_response_tokens")
        if reflection is not None:
            corrected = sampled + PHRASE_TOKENS + int(reflection)
            response = max(response, corrected if bound is None else min(corrected, int(bound)))
    if context is not None:
        prompt = min(prompt, context - 1)
        response = min(response, context - prompt)
    return prompt, response


def _mappings(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        yield node
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    for child in children:
        yield from _mappings(child)


def _evaluated_rows(cfg: DictConfig, ranks: int) -> int | None:
    """Of the largest set; a file's length is not known before it is read, unless `evaluation.limit` bounds it."""
    limit = cfg.evaluation.limit
    counts = [cfg.data.held_out_count, *(node.get("count") for node in cfg.evaluation.benchmarks.values())]
    bounded = [limit if count is None else count if limit is None else min(count, limit) for count in counts]
    if None in bounded:
        return None
    return -(-max(bounded) // ranks) * int(cfg.evaluation.num_samples)
