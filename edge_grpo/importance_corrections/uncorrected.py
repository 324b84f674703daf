"""Engine and trainer are taken for one policy, as in GRPO."""

import torch

from edge_grpo.importance_corrections.base import Mismatch, Weighed


class Uncorrected:
    """Weight 1 everywhere."""

    corrects = False

    def __call__(self, mismatch: Mismatch) -> Weighed:
        """See `ImportanceCorrection`."""
        return Weighed(torch.ones_like(mismatch.log_ratio), torch.zeros_like(mismatch.known))
