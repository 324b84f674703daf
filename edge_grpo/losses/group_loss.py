"""What the losses of whole groups share: which rows are in a group, and how groups add up."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from edge_grpo.losses.base import LossInputs, UpdateSize
from edge_grpo.losses.token_loss import shaped, trained_mean


class GroupLoss(ABC):
    """The mean over groups of a loss of a group's rows, which a subclass defines.

    A group weighs as many rows as it has trained ones, so that with `algorithm.mask_truncated` a row leaves its group
    and the denominator. Each trained token counts once in a row's log-ratio, and its gradient as much as its weight.
    Off-policy rows that ask for it (`LossInputs.shaping`) are in no group: they add the mean of `shaped` over their
    tokens. There is no KL term.
    """

    beta: ClassVar[float] = 0.0
    reads_every_row: ClassVar[bool] = True
    needs_whole_groups: ClassVar[bool] = True

    @abstractmethod
    def of_group(self, log_ratios: Tensor, trained: Tensor, advantages: Tensor, correct: Tensor) -> Tensor:
        """The loss of one group, [].

        Args:
            log_ratios: [n, T] log rho with graph, 0 where not trained; n >= 1.
            trained: [n, T] bool.
            advantages: [n, T].
            correct: [n] bool.
        """

    def __call__(self, inputs: LossInputs, size: UpdateSize) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Loss`."""
        if inputs.group_ids is None or inputs.correct is None:
            raise ValueError(f"{type(self).__name__} reads LossInputs.group_ids and correct, of which one is None")
        trained = inputs.trained
        shaping = torch.zeros_like(trained[:, 0]) if inputs.shaping is None else inputs.shaping > 0
        log_ratios = inputs.logprobs - inputs.old_logprobs
        log_ratios = log_ratios.detach() + inputs.token_weights * (log_ratios - log_ratios.detach())
        log_ratios = torch.where(trained, log_ratios, 0.0)
        total = log_ratios.sum() * 0.0  # a graph where no row is trained
        in_group = trained.any(1) & ~shaping
        for group in inputs.group_ids[in_group].unique():
            rows = in_group & (inputs.group_ids == group)
            loss = self.of_group(log_ratios[rows], trained[rows], inputs.advantages[rows], inputs.correct[rows])
            total = total + rows.sum() * loss
        if shaping.any():
            total = total + trained_mean(shaped(inputs) * inputs.token_weights, trained)[shaping].sum()
        return total / max(size.rows, 1), {}
