"""Responses: who wrote which token, and how a response is put together from pieces."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

FinishReason = Literal["stop", "length"]


class Provenance(IntEnum):
    """Who wrote a response token."""

    SAMPLED = 0
    """drawn from the policy"""
    INJECTED = 1
    """a phrase that a correction appended"""
    REFERENCE = 2
    """the data set's reference solution"""


@dataclass(frozen=True)
class Response:
    """One response, with the EOS that the policy wrote (or the token that completed a stop string), if any.

    Args:
        token_ids: [L] int64.
        sampling_logprobs: [L] float32, log-probability under the distribution that was really sampled from
            (temperature and truncation included); 0 for injected and reference tokens, which were put there
            with probability one.
        entropies: [L] float32, nats, full-vocabulary entropy of the policy at the rollout temperature where the
            token was sampled, before truncation; 0 for injected and reference tokens, for which none was computed.
            None where the engine tells none of its tokens (`RolloutEngine.records_entropies`).
        provenance: [L] int8, values of `Provenance`.
        finish_reason: "stop" if an EOS or a stop string ended it, "length" if the budget did.
        prompt_ids: the prompt that it is trained under, where that is not its problem's (a hint in the user turn) or
            not the one that it was drawn under; None: both are its problem's.
        off_policy: whether something else than the policy of this iteration under this prompt wrote it. The importance
            ratio of its tokens is then taken against `sampling_logprobs`.
        shaping: gamma of the ratio rho / (rho + gamma) that the tokens of an off-policy response weigh, without a
            clip (LUFFY, 2504.14945); 0 leaves them to the loss.
        advantage: of all its tokens, whatever the rewards: with 1 the policy gradient is that of supervised
            fine-tuning, with 0 the response leaves the loss and its denominators. None leaves it to the strategy.
    """

    token_ids: Tensor
    sampling_logprobs: Tensor
    entropies: Tensor | None
    provenance: Tensor
    finish_reason: FinishReason
    prompt_ids: tuple[int, ...] | None = None
    off_policy: bool = False
    shaping: float = 0.0
    advantage: float | None = None

    def __post_init__(self) -> None:
        tensors = (self.token_ids, self.sampling_logprobs, self.entropies, self.provenance)
        shapes = {tuple(x.shape) for x in tensors if x is not None}
        if len(shapes) != 1 or self.token_ids.ndim != 1:
            raise ValueError(f"a response's tensors must share one shape [L], got {sorted(shapes)}")

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    @property
    def as_sampled(self) -> bool:
        """Whether the policy of this iteration wrote all of it under its problem's prompt, and nobody changed it."""
        own = bool((self.provenance == Provenance.SAMPLED).all())
        return own and self.prompt_ids is None and self.advantage is None and not self.off_policy


def written_response(token_ids: Tensor, provenance: Provenance, finish_reason: FinishReason) -> Response:
    """[L] tokens that were put there and not sampled, so without sampling log-probs or entropies."""
    nothing = torch.zeros(token_ids.shape, dtype=torch.float32)
    return Response(
        token_ids, nothing, nothing, torch.full_like(token_ids, provenance, dtype=torch.int8), finish_reason
    )


def without_eos(response: Response, eos_ids: Sequence[int]) -> Response:
    """The response without its final EOS, if it has one."""
    if not len(response) or int(response.token_ids[-1]) not in eos_ids:
        return replace(response, finish_reason="length")
    return replace(
        response,
        token_ids=response.token_ids[:-1],
        sampling_logprobs=response.sampling_logprobs[:-1],
        entropies=None if response.entropies is None else response.entropies[:-1],
        provenance=response.provenance[:-1],
        finish_reason="length",
    )


def append(response: Response, token_ids: Sequence[int]) -> Response:
    """The response with injected tokens behind it."""
    return join(
        response, written_response(torch.tensor(list(token_ids), dtype=torch.long), Provenance.INJECTED, "stop")
    )


def reference_response(token_ids: Sequence[int]) -> Response:
    """A response made of reference tokens."""
    return written_response(torch.tensor(list(token_ids), dtype=torch.long), Provenance.REFERENCE, "stop")


def join(first: Response, second: Response) -> Response:
    """Two pieces of one response; it ends as the second piece ends, and is trained as the first.

    It has entropies where both pieces have.
    """
    both = None if first.entropies is None or second.entropies is None else (first.entropies, second.entropies)
    return replace(
        first,
        token_ids=torch.cat([first.token_ids, second.token_ids]),
        sampling_logprobs=torch.cat([first.sampling_logprobs, second.sampling_logprobs]),
        entropies=None if both is None else torch.cat(both),
        provenance=torch.cat([first.provenance, second.provenance]),
        finish_reason=second.finish_reason,
    )
