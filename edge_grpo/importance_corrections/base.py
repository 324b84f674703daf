"""The importance-correction stage: what a sampled token weighs where engine and trainer disagree about it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from edge_grpo.types.update import UpdateBatch

Level = Literal["token", "sequence", "geometric"]
"""Of a token its own ratio; of all sampled tokens of a response the product of their ratios; or the geometric mean."""


@dataclass(frozen=True)
class Mismatch:
    """How far the trainer is from the engine on the tokens of N rows.

    Args:
        log_ratio: [N, T] log w, w = pi / mu: the token's probability under the policy before the update, by the
            trainer, over that with which the engine drew it. Without gradient; 0 where not `known`.
        known: [N, T] bool, trained tokens that this iteration's policy sampled. What a correction wrote has no
            probability, and the ratio of an off-policy row is against its sampling log-probs already.
    """

    log_ratio: Tensor
    known: Tensor

    @classmethod
    def of(cls, batch: UpdateBatch, old_logprobs: Tensor) -> "Mismatch":
        """From the rows of a batch and [N, T] log-probs under the policy before the update."""
        known = batch.sampled_mask & batch.trained & ~batch.off_policy[:, None]
        log_ratio = old_logprobs.detach() - batch.sampling_logprobs.to(old_logprobs.dtype)
        return cls(torch.where(known, log_ratio, 0.0), known)

    def at(self, level: Level) -> Tensor:
        """[N, T] log w of the level; 0 where not `known`.

        >>> mismatch = Mismatch(torch.tensor([[0.5, 0.0, -1.5]]), torch.tensor([[True, False, True]]))
        >>> mismatch.at("sequence"), mismatch.at("geometric")
        (tensor([[-1.,  0., -1.]]), tensor([[-0.5000,  0.0000, -0.5000]]))
        """
        if level == "token":
            return self.log_ratio
        response = self.log_ratio.sum(1, keepdim=True)
        if level == "geometric":
            response = response / self.known.sum(1, keepdim=True).clamp(min=1)
        return torch.where(self.known, response, 0.0)


class Weighed(NamedTuple):
    """What tokens weigh.

    Args:
        weights: [N, T], at least 0; 1 where not `Mismatch.known`.
        capped: [N, T] bool, known tokens that do not weigh w, because it is out of bounds.
    """

    weights: Tensor
    capped: Tensor


class ImportanceCorrection(Protocol):
    """Importance-correction strategy.

    The advantage of a token is multiplied by its weight, so its part of the policy gradient is, whatever the loss, and
    what has no advantage is not: the KL term, a penalty, an entropy bonus, the denominators. The weights are constants,
    the same in all epochs of an update and for every cut of it: micro-batches hold whole rows.
    """

    corrects: bool
    """false says that every weight is 1, so that nothing is refused"""

    def __call__(self, mismatch: Mismatch) -> Weighed: ...
