"""Every token counts alike, as in GRPO."""

import torch
from torch import Tensor

from edge_grpo.token_filters.base import TokenFilterInputs


class KeepAllTokens:
    """Factor 1 everywhere."""

    reads_advantages = False

    def __call__(self, inputs: TokenFilterInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, T]"""
        return torch.ones_like(inputs.sampling_logprobs), {}
