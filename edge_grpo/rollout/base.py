"""The rollout stage: token prefixes in, responses with their exact behaviour log-probs out."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.types import Response


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


class RolloutEngine(Protocol):
    """Continues token prefixes with the policy."""

    sampling: Sampling
    max_new_tokens: int

    def generate(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        sampling: Sampling,
        generator: torch.Generator,
    ) -> list[Response]:
        """One response a prefix, in order.

        Args:
            prefixes: n token sequences, none empty; equal ones may share work.
            budgets: n bounds on new tokens, each at least 1.
            sampling: how to draw.
            generator: a CPU generator; row i's draws depend on it and on i, not on the other rows.
        """
        ...


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


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverse CDF.

    Args:
        logits: [n, V].
        uniforms: [n] in [0, 1), one a row; unused when greedy.

    Returns:
        token ids [n] and their log-probs [n] (0 when greedy: the choice is certain).
    """
    if sampling.greedy:
        tokens = logits.argmax(-1)
        return tokens, torch.zeros(tokens.shape, device=logits.device, dtype=torch.float32)
    probabilities = token_distribution(logits, sampling)
    cdf = probabilities.cumsum(-1)
    total = cdf[:, -1:]
    # Strictly below the total, or rounding could pick a token beyond the last possible one.
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, target, right=True).squeeze(-1)
    return tokens, probabilities.gather(-1, tokens[:, None]).squeeze(-1).log()


def check_rows(policy: Policy, prefixes: Sequence[Sequence[int]], budgets: Sequence[int]) -> None:
    """Refuse what no engine can generate from, before any generation starts.

    Raises:
        UserError: an empty prefix, a budget below 1, or prefix + budget beyond the model's context.
    """
    limit = policy.context_length
    for row, (prefix, budget) in enumerate(zip(prefixes, budgets, strict=True)):
        if not prefix or budget < 1:
            raise UserError(
                f"row {row}: a prefix of {len(prefix)} tokens with a budget of {budget} cannot be continued"
            )
        if limit is not None and len(prefix) + budget > limit:
            raise UserError(
                f"row {row}: {len(prefix)} prompt tokens + {budget} new tokens exceed the model's context of {limit}: "
                "lower rollout.max_new_tokens, correction.reflection_tokens or data.max_prompt_tokens"
            )
