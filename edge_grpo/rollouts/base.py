"""The rollout stage: token prefixes in, responses with their exact sampling log-probs out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import StopStringCriteria

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy, eval_mode
from edge_grpo.policy.finite import finite_logits
from edge_grpo.policy.generation_settings import refuse_settings
from edge_grpo.policy.kv_cache import cache_bytes, token_bytes
from edge_grpo.policy.memory import GIB, device_memory, out_of_memory
from edge_grpo.types.responses import FinishReason, Provenance, Response


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    Args:
        temperature: logits are divided by it; 0 is greedy.
        top_p: nucleus, the smallest set of tokens with this mass; 1 is off.
        top_k: the k likeliest tokens; 0 is off.
        min_p: tokens with at least this share of the likeliest token's probability; 0 is off.

    Raises:
        UserError: a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        bounds = {"temperature": (0, float("inf")), "top_p": (0, 1), "top_k": (0, float("inf")), "min_p": (0, 1)}
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), bounds[field.name]
            if not low <= value <= high or (field.name == "top_p" and value == 0):
                raise UserError(f"{field.name}={value} is out of range [{low}, {high}]")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def truncating(self) -> tuple[str, ...]:
        """Which of the settings take tokens out of the distribution."""
        acts = {"top_p": self.top_p < 1, "top_k": self.top_k > 0, "min_p": self.min_p > 0}
        return tuple(name for name, does in acts.items() if does)

    @property
    def truncates(self) -> bool:
        return bool(self.truncating)


Generators = torch.Generator | Sequence[torch.Generator]


class RolloutEngine(Protocol):
    """Continues token prefixes with the policy.

    Optional: `records_entropies`, false where its responses have none; `max_model_len`, where it takes less than the
    model's context; `own_weights`, true where it holds the model a second time; the methods `start`, called with
    the policy on all ranks at once before any work, `following`, a context that all ranks enter together and in which
    `generate` takes a policy that is sharded, and `take_metrics`, what it tells of itself since the last time, by
    logged name.
    """

    sampling: Sampling
    max_new_tokens: int

    def generate(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        sampling: Sampling,
        generator: Generators,
    ) -> list[Response]:
        """One response a prefix, in order.

        Args:
            prefixes: n token sequences, none empty; equal ones may share work.
            budgets: n bounds on new tokens, each at least 1.
            sampling: how to draw.
            generator: a CPU generator, row i's draws depend on it and on i, not on the other rows; or one a row, and
                they depend on the row's alone.
        """
        ...


@dataclass(frozen=True)
class Rows:
    """What one call of an engine has to continue.

    Args:
        prefixes, budgets, sampling: see `RolloutEngine.generate`.
        uniforms: [n, longest budget], the draws of every row.
    """

    prefixes: Sequence[Sequence[int]]
    budgets: Sequence[int]
    uniforms: Tensor
    sampling: Sampling


class SamplingEngine(ABC):
    """What the engines of this project share: settings, checks and seeds.

    A row's uniforms are drawn for its whole budget before decoding starts, so its tokens depend on the seed and its
    own index; other rows can change them only through floating-point rounding of a batched matmul.

    Args:
        max_new_tokens: budget of a fresh response, in tokens.
        temperature, top_p, top_k, min_p: see `Sampling`.
        stop_strings: a response ends with the token that completes one of them, as it does with an EOS token.
        max_batch_rows: rows decoded at once; null for as many as `kv_cache_gb` holds.
        kv_cache_gb: bound on the memory of the KV cache, GiB: rows decoded at once, each as long as the longest of the
            call may become; one row always is. null for a quarter of the device's memory.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        min_p: float,
        stop_strings: Sequence[str],
        max_batch_rows: int | None,
        kv_cache_gb: float | None = None,
    ) -> None:
        check_sampling_settings(max_new_tokens, stop_strings, max_batch_rows)
        if kv_cache_gb is not None and not kv_cache_gb > 0:
            raise UserError(f"rollout.kv_cache_gb={kv_cache_gb} must be above 0")
        self.sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
        self.max_new_tokens = max_new_tokens
        self.stop_strings = tuple(stop_strings)
        self.max_batch_rows, self.kv_cache_gb = max_batch_rows, kv_cache_gb

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        sampling: Sampling,
        generator: Generators,
    ) -> list[Response]:
        """See `RolloutEngine.generate`."""
        if not prefixes:
            return []
        refuse_settings(policy.model)
        check_rows(policy, prefixes, budgets)
        uniforms = _uniforms(len(prefixes), max(budgets), generator)
        settings = ("rollout.kv_cache_gb", "rollout.max_batch_rows", "rollout.max_new_tokens")
        with eval_mode(policy.model), out_of_memory(*settings), finite_logits(policy.model):
            return self._decode(policy, Rows(prefixes, budgets, uniforms, sampling))

    def _places(self, model: Any, rows: Rows) -> int:
        """How many of the rows may be decoded at once, at least 1."""
        fewest = min(len(rows.prefixes), self.max_batch_rows or len(rows.prefixes))
        if fewest == 1:
            return 1
        longest = max(len(prefix) + budget for prefix, budget in zip(rows.prefixes, rows.budgets, strict=True))
        given = self.kv_cache_gb
        bound = cache_bytes(device_memory(model.device)) if given is None else int(given * GIB)
        return max(min(fewest, bound // (longest * token_bytes(model))), 1)

    @abstractmethod
    def _decode(self, policy: Policy, rows: Rows) -> list[Response]:
        """The rows' responses, in order."""


def check_sampling_settings(max_new_tokens: int, stop_strings: Sequence[str], max_batch_rows: int | None) -> None:
    """Refuse settings that no engine can work with.

    Raises:
        UserError: names the setting.
    """
    if max_new_tokens < 1 or (max_batch_rows is not None and max_batch_rows < 1):
        raise UserError(f"rollout needs max_new_tokens={max_new_tokens} and max_batch_rows={max_batch_rows} >= 1")
    if any(not stop for stop in stop_strings):
        raise UserError("rollout.stop_strings holds an empty string, which would end every response at once")


def _uniforms(rows: int, width: int, generator: Generators) -> Tensor:
    """[rows, width] draws in [0, 1)."""
    if isinstance(generator, torch.Generator):
        return torch.rand(rows, width, generator=generator, dtype=torch.float32)
    each = [torch.rand(width, generator=one, dtype=torch.float32) for one in generator]
    if len(each) != rows:
        raise ValueError(f"{len(each)} generators for {rows} rows")
    return torch.stack(each)


class Ends:
    """Which tokens end their response: an EOS, or one that completes a stop string.

    Args:
        policy: whose EOS ids and tokenizer are used.
        stop_strings: may be empty.
    """

    def __init__(self, policy: Policy, stop_strings: Sequence[str]) -> None:
        self.eos = torch.tensor(policy.eos_ids)
        self.pad_id = policy.pad_id
        self.criteria = StopStringCriteria(policy.tokenizer, list(stop_strings)) if stop_strings else None

    def __call__(self, tokens: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
        """Whether the newest token ends its row.

        Args:
            tokens: [N, T], the responses so far.
            rows: [n] of them, with `counts` [n] >= 1 tokens each.

        Returns:
            [n] bool.
        """
        self.eos = self.eos.to(tokens.device)
        ended = torch.isin(tokens[rows, counts - 1], self.eos)
        if self.criteria is None:
            return ended
        reach = torch.arange(-self.criteria.maximum_token_len, 0, device=tokens.device)
        position = counts[:, None] + reach
        tail = torch.where(position >= 0, tokens[rows[:, None], position.clamp(min=0)], self.pad_id)
        return ended | self.criteria(tail, None)


def sampled_response(tokens: Tensor, logprobs: Tensor, entropies: Tensor | None, *, stopped: bool) -> Response:
    """A response of sampled tokens; the tensors are [L] and are copied."""
    reason: FinishReason = "stop" if stopped else "length"
    provenance = torch.full(tokens.shape, Provenance.SAMPLED, dtype=torch.int8)
    recorded = None if entropies is None else entropies.clone()
    return Response(tokens.clone(), logprobs.clone(), recorded, provenance, reason)


def token_distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """[n, V] logits -> [n, V] probabilities that are really sampled from (not greedy), rows summing to 1.

    The truncations apply in transformers' order: temperature, top-k, top-p, min-p.
    """
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, mass_before >= sampling.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.min_p > 0:
        keep = probabilities >= sampling.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = torch.where(keep, probabilities, 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


_BLOCK = 1 << 18


class Drawn(NamedTuple):
    """One token a row.

    Args:
        tokens: [n] int64.
        logprobs: [n] float32, under the distribution that was really sampled from; 0 when greedy.
        entropies: [n] float32, nats, of the full distribution at the temperature, before truncation; 0 when greedy.
        top: [n] the largest logit; where it is not finite, the rest means nothing (`check_finite`).
    """

    tokens: Tensor
    logprobs: Tensor
    entropies: Tensor
    top: Tensor


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Drawn:
    """Draw one token a row by inverse CDF, which costs one uniform a row. Does not wait for a GPU.

    Args:
        logits: [n, V].
        uniforms: [n] in [0, 1); unused when greedy.
    """
    if sampling.greedy:
        top, tokens = logits.max(-1)
        certain = torch.zeros(tokens.shape, device=logits.device, dtype=torch.float32)
        return Drawn(tokens, certain, certain, top)
    # On the CPU a block of rows is worked on in its cache; on a GPU one launch does all.
    rows = len(logits) if logits.is_cuda else max(_BLOCK // logits.shape[-1], 1)
    blocks = [_draw(*block, sampling) for block in zip(logits.split(rows), uniforms.split(rows), strict=True)]
    return Drawn(*map(torch.cat, zip(*blocks, strict=True)))


def _draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Drawn:
    scores = logits.float() / sampling.temperature
    top = scores.amax(-1, keepdim=True)
    scores -= top
    weights = scores.exp()
    total = weights.sum(-1)
    entropies = total.log() - torch.linalg.vecdot(weights, scores) / total
    if sampling.truncates:
        weights = token_distribution(logits, sampling)
    cdf = weights.cumsum(-1)
    # Strictly below the last entry, or rounding could pick a token beyond the last possible one.
    last = cdf[:, -1:]
    target = torch.minimum(uniforms[:, None] * last, torch.nextafter(last, torch.zeros_like(last)))
    # Of a row of NaN it finds none.
    tokens = torch.searchsorted(cdf, target, right=True).clamp_(max=cdf.shape[-1] - 1)
    logprobs = weights.gather(-1, tokens).squeeze(-1).log()
    logprobs = logprobs if sampling.truncates else logprobs - total.log()
    return Drawn(tokens.squeeze(-1), logprobs, entropies, top.squeeze(-1))


def context_bound(policy: Policy, max_model_len: int | None) -> tuple[int | None, str]:
    """Longest prompt + response in tokens that model and engine take, None without a bound; and whose bound it is."""
    own = policy.context_length
    if max_model_len is not None and (own is None or max_model_len < own):
        return max_model_len, "rollout.max_model_len"
    return own, "the model's context"


def engine_metrics(engine: RolloutEngine) -> dict[str, float]:
    """What the engine tells of itself, by logged name; most tell nothing."""
    take = getattr(engine, "take_metrics", None)
    return {} if take is None else take()


def check_rows(
    policy: Policy, prefixes: Sequence[Sequence[int]], budgets: Sequence[int], max_model_len: int | None = None
) -> None:
    """Refuse what no engine can generate from, before any generation starts.

    Raises:
        UserError: an empty prefix, a budget below 1, or prefix + budget beyond the model's context or the engine's.
    """
    limit, whose = context_bound(policy, max_model_len)
    for row, (prefix, budget) in enumerate(zip(prefixes, budgets, strict=True)):
        if not prefix or budget < 1:
            raise UserError(
                f"row {row}: a prefix of {len(prefix)} tokens with a budget of {budget} cannot be continued"
            )
        if limit is not None and len(prefix) + budget > limit:
            raise UserError(
                f"row {row}: {len(prefix)} prompt tokens + {budget} new tokens exceed {whose} of {limit}: "
                "lower rollout.max_new_tokens, correction.reflection_tokens or data.max_prompt_tokens"
            )
