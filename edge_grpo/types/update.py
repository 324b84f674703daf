"""What an update is made of: rows as tensors, and one optimiser step."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """One optimiser step.

    Args:
        loss: sum of the micro-batch losses on this rank.
        grad_norm: global norm before clipping.
        bad: indices of the micro-batches on this rank whose loss or gradient is not finite; None if the step was
            taken. An empty tuple: skipped for another rank's sake.
    """

    loss: float
    grad_norm: float
    bad: tuple[int, ...] | None = None


@dataclass(frozen=True)
class UpdateBatch:
    """Rows as tensors: prompt and response back to back, padded on the right.

    Right padding needs neither position ids nor a causal model that knows about it, and a response never
    loses a token to a longer neighbour's prompt.

    Args:
        tokens: [N, W] int64, prompt then response then padding.
        prompt_lengths: [N] int64.
        response_lengths: [N] int64.
        token_weights: [N, T] float32, loss weight by provenance; 0 outside the response.
        sampled_mask: [N, T] bool, tokens that the policy itself sampled.
        row_ids: [N] int64, the row's index in its `Rollout`.
        problem_ids: [N] int64, the row's group.
        prompt_keys: [N] int64; rows with the same key have the same prompt, which a packed forward computes once.
        sampling_logprobs: [N, T] float32, see `Response`; 0 outside the response.
        off_policy: [N] bool, see `Response`.
        shaping: [N] float32, see `Response`.
        fixed_advantages: [N] float32, see `Response.advantage`; NaN where the strategy decides.
        pad_id: fills `tokens`.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    token_weights: Tensor
    sampled_mask: Tensor
    row_ids: Tensor
    problem_ids: Tensor
    prompt_keys: Tensor
    sampling_logprobs: Tensor
    off_policy: Tensor
    shaping: Tensor
    fixed_advantages: Tensor
    pad_id: int

    def __post_init__(self) -> None:
        n, width = self.tokens.shape
        of_rows = (self.prompt_lengths, self.response_lengths, self.row_ids, self.problem_ids, self.prompt_keys)
        shapes = [tuple(x.shape) for x in (*of_rows, self.off_policy, self.shaping, self.fixed_advantages)]
        of_tokens = {tuple(x.shape) for x in (self.token_weights, self.sampled_mask, self.sampling_logprobs)}
        if any(shape != (n,) for shape in shapes) or len(of_tokens) != 1:
            raise ValueError(f"batch of {n} rows with values of rows {shapes}, of tokens {sorted(of_tokens)}")
        if self.token_weights.shape[0] != n or (n and int((self.prompt_lengths + self.response_lengths).max()) > width):
            raise ValueError(f"rows do not fit {tuple(self.tokens.shape)}")

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def completion_mask(self) -> Tensor:
        """[N, T] bool, true on response tokens (EOS included)."""
        t = torch.arange(self.token_weights.shape[1], device=self.tokens.device)
        return t[None, :] < self.response_lengths[:, None]

    @property
    def trained(self) -> Tensor:
        """[N, T] bool, the tokens that the loss is over."""
        return self.completion_mask & (self.token_weights > 0)

    @property
    def attention_mask(self) -> Tensor:
        """[N, W] int64, 1 on prompt and response."""
        w = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (w[None, :] < (self.prompt_lengths + self.response_lengths)[:, None]).long()

    @property
    def predicting_positions(self) -> Tensor:
        """[N, T] int64: the position in `tokens` whose hidden state predicts response token t."""
        t = torch.arange(self.token_weights.shape[1], device=self.tokens.device)
        return self.prompt_lengths[:, None] - 1 + t[None, :]

    @property
    def response_tokens(self) -> Tensor:
        """[N, T] int64, padded with `pad_id`."""
        position = (self.predicting_positions + 1).clamp(max=self.tokens.shape[1] - 1)
        return torch.where(self.completion_mask, self.tokens.gather(1, position), self.pad_id)

    def with_own_advantages(self, advantages: Tensor) -> Tensor:
        """[N, 1] or [N, T] advantages of a strategy -> [N, T], where rows that bring their own have that."""
        own = self.fixed_advantages[:, None].to(advantages.dtype)
        return torch.where(own.isnan(), advantages, own).expand(self.token_weights.shape)

    def select(self, rows: Tensor) -> "UpdateBatch":
        """The given rows [M], with padding cut to the longest of them."""
        prompts, responses = self.prompt_lengths[rows], self.response_lengths[rows]
        width, length = int((prompts + responses).max()), int(responses.max())
        return UpdateBatch(
            tokens=self.tokens[rows, :width],
            prompt_lengths=prompts,
            response_lengths=responses,
            token_weights=self.token_weights[rows, :length],
            sampled_mask=self.sampled_mask[rows, :length],
            row_ids=self.row_ids[rows],
            problem_ids=self.problem_ids[rows],
            prompt_keys=self.prompt_keys[rows],
            sampling_logprobs=self.sampling_logprobs[rows, :length],
            off_policy=self.off_policy[rows],
            shaping=self.shaping[rows],
            fixed_advantages=self.fixed_advantages[rows],
            pad_id=self.pad_id,
        )
