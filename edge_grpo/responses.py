"""Responses put together from pieces."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edge_grpo.types import FinishReason, Provenance, Response


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
