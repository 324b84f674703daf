"""In which numbers a policy computes outside a trainer: the names are Lightning's, and so is what they mean."""

from contextlib import AbstractContextManager, nullcontext

import torch

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy

# Not 16-mixed: its loss scaling hides a gradient that is not finite, and clipping would see scaled ones.
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
_WEIGHTS = {"bf16-true": torch.bfloat16, "64-true": torch.float64}


def check_precision(key: str, precision: str) -> None:
    """Refuse another one, by the name of its setting.

    Raises:
        UserError: names the ones there are.
    """
    if precision not in PRECISIONS:
        raise UserError(f"{key}={precision} is none of {', '.join(PRECISIONS)}")


def cast_weights(policy: Policy, precision: str) -> None:
    """Give the weights the type that the precision asks for; 32-true and bf16-mixed leave them as they were loaded."""
    if precision in _WEIGHTS:
        policy.model.to(_WEIGHTS[precision])


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Inside, matrix products are in bfloat16 where the precision is bf16-mixed."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
