"""Rollout through vLLM in this process, beside the trainer: its weights are the policy's, proved before each call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy, eval_mode
from edge_grpo.policy.generation_settings import refuse_settings
from edge_grpo.policy.sharding import is_whole, take_apart
from edge_grpo.rollouts.base import Generators, Sampling, check_rows, check_sampling_settings, sampled_response
from edge_grpo.rollouts.isolation import seed_everything, untouched
from edge_grpo.rollouts.vllm_engine import Engine, Settings, check_installed
from edge_grpo.types.responses import Response


class VLLMRollout:
    """One engine a rank, started before any training, by all ranks together, and kept by the process.

    A row has a seed of its own on a GPU, so its draws do not depend on the others. vLLM on the CPU refuses seeds of
    rows: there a call has one, and the same call draws the same. Truncations apply in vLLM's order: temperature, min-p,
    top-k, top-p. Responses have no entropies. On a GPU the engine sleeps between calls (level 1: its weights wait in
    RAM). The GPU path was written by reading vLLM and has run nowhere yet.

    Args:
        max_new_tokens, temperature, top_p, top_k, min_p, stop_strings: see `SamplingEngine`.
        max_batch_rows: rows decoded at once; null for 256.
        max_model_len: tokens of prompt and response together; null for the model's context.
        kv_cache_gb: memory of the KV cache, GiB; on a GPU beside what training keeps there during a rollout.
        dtype: of the engine's weights; null for bfloat16 on a GPU and the policy's own on the CPU.
        enforce_eager: no compilation and no CUDA graphs: a faster start and slower decoding.

    Raises:
        UserError: vLLM is absent or of another version, or a value is out of range.
    """

    records_entropies = False
    own_weights = True

    def __init__(
        self,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        min_p: float,
        stop_strings: Sequence[str],
        max_batch_rows: int | None,
        max_model_len: int | None,
        kv_cache_gb: float,
        dtype: Literal["float32", "bfloat16"] | None,
        enforce_eager: bool,
    ) -> None:
        check_installed()
        check_sampling_settings(max_new_tokens, stop_strings, max_batch_rows)
        if not kv_cache_gb > 0 or (max_model_len is not None and max_model_len < 2):
            raise UserError(f"rollout.kv_cache_gb={kv_cache_gb} must be above 0 and max_model_len={max_model_len} >= 2")
        self.sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
        self.max_new_tokens, self.stop_strings, self.max_batch_rows = (
            max_new_tokens,
            tuple(stop_strings),
            max_batch_rows,
        )
        self.max_model_len, self.kv_cache_gb = max_model_len, kv_cache_gb
        self.dtype, self.enforce_eager = dtype, enforce_eager
        self._engine: Engine | None = None
        self._calls = self._proofs = 0

    def start(self, policy: Policy) -> None:
        """Start the engine, which a call does too: vLLM makes its process groups on all ranks at the same time.

        Raises:
            UserError: see `generate`.
        """
        with untouched(policy.model.device, eager=self.enforce_eager):
            self._start(policy).rest()

    def generate(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        sampling: Sampling,
        generator: Generators,
    ) -> list[Response]:
        """See `RolloutEngine.generate`.

        Raises:
            UserError: vLLM does not start, does not have the policy's weights, or computes something else than it.
        """
        if not prefixes:
            return []
        refuse_settings(policy.model)
        check_rows(policy, prefixes, budgets, self.max_model_len)
        seeds = _seeds(len(prefixes), generator)
        with untouched(policy.model.device, eager=self.enforce_eager):
            engine = self._engine or self._start(policy)
            engine.wake()
            self._calls += 1
            if is_whole(policy.model):
                engine.bring_up_to_date(policy)
            else:
                engine.still_follows(policy)
            self._proofs += 1
            responses = self._responses(engine, policy, prefixes, budgets, sampling, seeds)
            engine.rest()
        return responses

    @contextmanager
    def following(self, policy: Policy) -> Iterator[None]:
        """See `RolloutEngine`: the engine gets the weights once, and each call asks only whether they were written to.

        Raises:
            UserError: see `generate`.
        """
        with untouched(policy.model.device, eager=self.enforce_eager):
            engine = self._engine or self._start(policy)
            engine.wake()
            engine.bring_up_to_date(policy)
        try:
            yield
        finally:
            engine.rest()

    def take_metrics(self) -> dict[str, float]:
        """What `loggers/metrics.py` defines as `rollout/*`, since the last time; nothing before the first call."""
        if self._engine is None or not self._calls:
            return {}
        engine, current = self._engine, self._proofs / self._calls
        metrics = {"rollout/weight_sync_s": engine.sync_seconds, "rollout/weights_current": current}
        engine.sync_seconds, self._calls, self._proofs = 0.0, 0, 0
        return metrics

    def _start(self, policy: Policy) -> Engine:
        """The process's engine, once it has shown that it computes the policy."""
        device, context = policy.model.device, policy.context_length
        length = self.max_model_len or context
        if length is None:
            raise UserError("rollout.max_model_len=null, and the model sets no bound on its context: set one")
        own = str(policy.model.dtype).removeprefix("torch.")
        settings = Settings(
            dtype=self.dtype or ("bfloat16" if device.type == "cuda" else own),
            max_model_len=length if context is None else min(length, context),
            max_num_seqs=self.max_batch_rows or 256,
            kv_cache_bytes=int(self.kv_cache_gb * 2**30),
            enforce_eager=self.enforce_eager,
            sleeps=device.type == "cuda",
            device=None if device.type == "cpu" else device.index or 0,
        )
        engine = Engine.of(policy, settings)
        engine.wake()
        engine.bring_up_to_date(policy)
        try:
            self._check_logprobs(engine, policy)
        except RuntimeError as error:  # a kernel that does not know the model's shape, say
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"rollout=vllm: the engine does not run this model ({reason}): set rollout=native"
            ) from error
        engine.sync_seconds = 0.0
        self._engine = engine
        return engine

    def _check_logprobs(self, engine: Engine, policy: Policy) -> None:
        """Refuse an engine that gives a few sampled tokens other log-probs than the policy's own forward.

        Raises:
            UserError: with the numbers.
        """
        rows = [row for row in _PROMPTS if len(row) + _TOKENS <= engine.settings.max_model_len]
        budgets = [_TOKENS] * len(rows)
        theirs = self._responses(engine, policy, rows, budgets, Sampling(), list(range(len(rows))))
        differences = []
        with eval_mode(policy.model):
            for prompt, response in zip(rows, theirs, strict=True):
                ids = torch.tensor([[*prompt, *response.token_ids.tolist()]], device=policy.model.device)
                logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
                own = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).squeeze(1).cpu()
                differences.append((own - response.sampling_logprobs).abs())
        take_apart(policy.model)  # a checkpoint that is loaded next finds parts
        bound = _BOUNDS[engine.settings.dtype]
        mean = float(torch.cat(differences).mean()) if differences else 0.0
        if not mean <= bound:  # a NaN too
            raise UserError(
                f"rollout=vllm: engine and policy disagree: the log-probs of sampled tokens differ by {mean:.2g} nats "
                f"in the mean, and {bound:g} are allowed in {engine.settings.dtype}: set rollout=native for this model"
            )

    def _responses(
        self,
        engine: Engine,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        sampling: Sampling,
        seeds: Sequence[int],
    ) -> list[Response]:
        by_row = engine.settings.device is not None
        if not by_row:
            seed_everything(sum(seeds) % 2**62)
        outputs = engine.llm.generate(
            [{"prompt_token_ids": list(prefix)} for prefix in prefixes],
            [
                self._params(policy, budget, sampling, seed if by_row and not sampling.greedy else None)
                for budget, seed in zip(budgets, seeds, strict=True)
            ],
            use_tqdm=False,
        )
        return [_response(row, output.outputs[0], sampling) for row, output in enumerate(outputs)]

    def _params(self, policy: Policy, budget: int, sampling: Sampling, seed: int | None) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=budget,
            seed=seed,
            stop=list(self.stop_strings) or None,
            stop_token_ids=list(policy.eos_ids),
            detokenize=bool(self.stop_strings),
            skip_special_tokens=False,  # a stop string may hold one
            logprobs=0,  # of the token itself
        )


# The check at the start: a few sampled tokens behind these prompts.
_PROMPTS = ((1, 5, 3), (2, 7), (4, 6, 1, 3))
_TOKENS = 8
# nats, of the mean difference. Measured: 6e-7 in float32, 0.004 in bfloat16 against float32.
_BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}


def _response(row: int, out: Any, sampling: Sampling) -> Response:
    if out.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended row {row} with {out.finish_reason!r}")
    ids = torch.tensor(list(out.token_ids), dtype=torch.long)
    return sampled_response(ids, _logprobs(out, sampling), None, stopped=out.finish_reason == "stop")


def _logprobs(out: Any, sampling: Sampling) -> Tensor:
    """[L] float32; 0 when greedy, as every engine of this project has it."""
    if sampling.greedy:
        return torch.zeros(len(out.token_ids), dtype=torch.float32)
    values = [step[token].logprob for step, token in zip(out.logprobs, out.token_ids, strict=True)]
    return torch.tensor(values, dtype=torch.float32)


def _seeds(rows: int, generator: Generators) -> list[int]:
    """One a row, below 2^62."""
    if isinstance(generator, torch.Generator):
        return torch.randint(2**62, (rows,), generator=generator).tolist()
    if len(generator) != rows:
        raise ValueError(f"{len(generator)} generators for {rows} rows")
    return [int(torch.randint(2**62, (1,), generator=one)) for one in generator]
