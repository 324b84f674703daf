"""The memory of a run, by part and by what the run does at the time."""

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from edge_grpo.planning.passes import (
    Weights,
    copied_weights,
    optimizer_step,
    rollout_pass,
    update_pass,
    weights,
)
from edge_grpo.planning.run_settings import RunSettings

ROLLOUT, EVALUATION, UPDATE, STEP = "rollout", "evaluation", "update", "step"
PHASES = (ROLLOUT, EVALUATION, UPDATE, STEP)
WEIGHTS, GATHERED = "weights", "gathered weights"
PREFILL_TOKENS = 4096
"""of one forward pass over prompts in `rollouts/native.py`"""
DRAWING_COPIES = 4
"""of the logits [n, V] in float32, while a token of every row is drawn on a GPU; on the CPU it is done row by row"""
GPU_PROGRAM = 1_500_000_000
"""bytes of CUDA's context and libraries, and of what the allocator has and cannot use: reckoned, not measured"""
ENGINE_WORKSPACE = 1_500_000_000
"""bytes that a rollout engine with weights of its own has besides weights and cache: reckoned, not measured"""
HOLES, ADAPTED_HOLES = 0.2, 0.9
"""of the update's blocks in glibc's heap, what lies freed between them at the peak: measured, see docs/real_models.md;
every adapter makes three results of its layer's size that are freed beside one that is kept"""


class Part(NamedTuple):
    """Bytes of one part in each phase in which it is there, and what it is of."""

    name: str
    bytes: Mapping[str, int]
    note: str = ""


class Plan(NamedTuple):
    """What a run needs on each device.

    Args:
        settings: that it was made of.
        parts: of the memory; the first is the weights.
        parameters, trained: of the model, and those that the optimiser moves.
        checkpoint: bytes of one; `exported`: of the trained model in `model/`; `base`: of the model without adapters.
        host: bytes of RAM that the optimiser takes in place of a GPU's.
    """

    settings: RunSettings
    parts: tuple[Part, ...]
    parameters: int
    trained: int
    checkpoint: int
    exported: int
    base: int
    host: int

    def total(self, phase: str) -> int:
        """Bytes in this phase."""
        return sum(part.bytes.get(phase, 0) for part in self.parts)

    @property
    def peak_phase(self) -> str:
        return max(PHASES, key=self.total)

    @property
    def peak(self) -> int:
        """The largest total."""
        return self.total(self.peak_phase)

    @property
    def weights(self) -> int:
        """Bytes of the weights where most of them are there at once."""
        of_weights = [part for part in self.parts if part.name in (WEIGHTS, GATHERED)]
        return max(sum(part.bytes.get(phase, 0) for part in of_weights) for phase in PHASES)

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints that are there at once, one of them being written, and of the exported model."""
        return self.settings.checkpoints * self.checkpoint + self.exported

    @property
    def tokens(self) -> int:
        """Of an iteration of this rank, if every row is as long as it may be."""
        run = self.settings
        return run.problems * run.prompt_tokens + run.rows * run.response_tokens


def make_plan(run: RunSettings) -> Plan:
    """Count every part; no weight is loaded, and no draw of the process changes.

    Raises:
        UserError: a model that does not run on flat tokens, which nothing is known of.
    """
    with torch.random.fork_rng(devices=[]):
        return _plan(run)


def _plan(run: RunSettings) -> Plan:
    of, full = weights(run.model), run.model.adapters is None
    step = optimizer_step(run.model, run.optimizer, on_gpu=run.on_gpu)
    apart = run.on_gpu and step.host > 0
    parts = [
        _always(WEIGHTS, _share(run, of.bytes), _said(run, of)),
        _gradients(run, of),
        _always("optimizer", 0 if apart else _share(run, step.state)),
    ]
    if run.sharded:
        parts.append(_gathered(run, of))
    if run.reference and full:
        parts.append(_always("reference", _share(run, of.bytes), "loss.beta > 0"))
    parts += _rollout(run, of) if run.engine_cache is None else _engine(run, of)
    parts += _update(run)
    parts.append(Part("work of the step", {STEP: 0 if run.fused_optimizer else _share(run, step.moment)}))
    parts.append(_program(on_gpu=run.on_gpu))
    return Plan(
        settings=run,
        parts=tuple(parts),
        parameters=of.parameters,
        trained=of.trained,
        checkpoint=(of.bytes if full else of.trained_bytes) + step.state,
        exported=of.plain_bytes,
        base=of.plain_bytes - (0 if full else of.trained_bytes),
        host=step.host if apart else 0,
    )


def _said(run: RunSettings, of: Weights) -> str:
    in_four = ", linear layers in 4 bits" if run.model.four_bit else ""
    return f"{of.parameters / 1e6:,.1f} M in {run.model.dtype}{in_four}"


def _gradients(run: RunSettings, of: Weights) -> Part:
    """On several ranks they lie in DDP's buckets, which stay."""
    note = f"{of.trained / 1e6:,.1f} M trained"
    if run.sharded:
        return Part("gradients", dict.fromkeys((UPDATE, STEP), _share(run, of.trained_bytes)), note)
    if run.ranks > 1:
        return _always("gradients", of.trained_bytes, f"{note}, in DDP's buckets")
    return Part("gradients", dict.fromkeys((UPDATE, STEP), of.trained_bytes), note)


def _share(run: RunSettings, size: int) -> int:
    """Of so many bytes on this rank."""
    return -(-size // run.ranks) if run.sharded else size


def _gathered(run: RunSettings, of: Weights) -> Part:
    """While rows are decoded all weights. In an update those of two layers and of what is around them, and as much of
    their gradients before the ranks share them. An engine of its own gets one tensor after the other, and all weights
    are there at other times: for log-probs in advance and for the export, which like a step have no activations."""
    layer = weights(run.model.with_layers(2)).bytes - weights(run.model.with_layers(1)).bytes
    at_once = of.bytes - max(run.model.layers - 2, 0) * layer
    if run.engine_cache is None:
        held = {ROLLOUT: of.bytes, EVALUATION: of.bytes}
    else:
        held = {ROLLOUT: of.largest, EVALUATION: of.largest, STEP: of.bytes}
    return Part(GATHERED, {**held, UPDATE: 2 * at_once}, "reckoned")


def _always(name: str, size: int, note: str = "") -> Part:
    return Part(name, dict.fromkeys(PHASES, size), note)


def _rollout(run: RunSettings, of: Weights) -> list[Part]:
    """The cache of the rows that are decoded at once, as long as they may become, and the passes that fill it."""
    rows, evaluated = decoded_at_once(run)
    prompts = (
        run.rows * run.row_tokens if run.response_tokens > run.sampled_tokens else run.problems * run.prompt_tokens
    )
    one = rollout_pass(run.model, min(PREFILL_TOKENS, prompts), max(rows, evaluated))
    shared = run.problems * run.prompt_tokens if rows < run.rows else 0  # prompts whose other rows are waiting
    cache = {
        ROLLOUT: (rows * run.row_tokens + shared) * one.kv,
        EVALUATION: evaluated * (run.prompt_tokens + run.evaluated_tokens) * one.kv,
    }
    drawing = {
        phase: n * of.vocabulary * 4 * DRAWING_COPIES if run.on_gpu else 0
        for phase, n in ((ROLLOUT, rows), (EVALUATION, evaluated))
    }
    copied = copied_weights(run.model) if run.fused_layers else 0
    cast = of.trained_bytes // 2 if run.model.autocast else 0  # one copy in half precision, of what is float32
    return [
        Part("weights in bfloat16", dict.fromkeys((ROLLOUT, EVALUATION), cast), "while rows are decoded"),
        Part("KV cache", cache, f"{rows} rows of {run.row_tokens:,} tokens; evaluation {evaluated}"),
        Part("decoding", {phase: one.activations + drawn for phase, drawn in drawing.items()}),
        Part("packed weights", dict.fromkeys((ROLLOUT, EVALUATION), copied)),
    ]


def decoded_at_once(run: RunSettings) -> tuple[int, int]:
    """Rows in a rollout and in an evaluation, as the engine bounds them; a file of unknown length fills the bound."""
    held = _held(run, run.row_tokens), _held(run, run.prompt_tokens + run.evaluated_tokens)
    evaluated = held[1] if run.evaluated_rows is None else run.evaluated_rows
    return _least(run.rows, held[0], run.max_batch_rows), _least(evaluated or run.rows, held[1], run.max_batch_rows)


def _held(run: RunSettings, tokens: int) -> int | None:
    """Rows of so many tokens that the bound on the cache holds; None without one."""
    if run.cache_bound is None:
        return None
    return max(run.cache_bound // (tokens * rollout_pass(run.model, 1, 1).kv), 1)


def _least(*counts: int | None) -> int:
    return min(count for count in counts if count is not None)


def _engine(run: RunSettings, of: Weights) -> list[Part]:
    """An engine of its own holds the weights a second time; on a GPU it sleeps while the others work."""
    awake = (ROLLOUT, EVALUATION) if run.on_gpu else PHASES
    merged = of.parameters - (0 if run.model.adapters is None else of.trained)
    return [
        Part("engine: weights", dict.fromkeys(awake, merged * run.engine_element)),
        Part("engine: KV cache", dict.fromkeys(awake, run.engine_cache or 0), "rollout.kv_cache_gb"),
        Part("engine: workspace", dict.fromkeys(awake, ENGINE_WORKSPACE), "reckoned"),
    ]


def _update(run: RunSettings) -> list[Part]:
    passed = update_pass(
        run.model, run.microbatch, run.chunk_tokens, later=run.several_microbatches, in_place=run.ranks == 1
    )
    share = 0.0 if run.on_gpu else HOLES if run.model.adapters is None else ADAPTED_HOLES
    return [
        Part("activations", {UPDATE: passed.activations}, f"micro-batch of {run.microbatch.tokens:,} tokens"),
        Part("holes in the heap", {UPDATE: int(share * passed.heap)}, "freed, and kept by the C library"),
        Part("logits", {UPDATE: passed.logits}, f"chunk of {run.chunk_tokens:,} tokens; 0 where the peak is elsewhere"),
    ]


def _program(*, on_gpu: bool) -> Part:
    if on_gpu:
        return _always("CUDA", GPU_PROGRAM, "reckoned")
    return _always("Python and libraries", resident_bytes(), "this process now")


def resident_bytes() -> int:
    """Memory that this process has now."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # its peak, elsewhere


def device_memory(*, on_gpu: bool) -> int | None:
    """Bytes of the device at hand: the smallest GPU, or this machine's RAM; None where there is no GPU."""
    if not on_gpu:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return min((torch.cuda.get_device_properties(i).total_memory for i in gpus), default=None)
