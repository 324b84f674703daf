"""In which numbers a policy computes outside a trainer: the names are Lightning's, and so is what they mean."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.policy.four_bit import compute_in

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
    """Give the weights the type that the precision asks for; 32-true and bf16-mixed leave them as they were loaded.

    Weights of 4 bits stay so.
    """
    compute_in(policy.model, precision)
    if precision in _WEIGHTS:
        policy.model.to(_WEIGHTS[precision])


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Inside, matrix products are in bfloat16 where the precision is bf16-mixed."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()


@contextmanager
def weights_cast_once(device: torch.device) -> Iterator[None]:
    """Inside, and under autocast, a float32 weight is cast at its first product; that copy serves all others.

    Lightning's autocast keeps no copy, because an optimiser step would leave an old one behind: nothing may change the
    weights inside. The copies are gone afterwards.
    """
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, torch.get_autocast_dtype(device.type), cache_enabled=True):
        try:
            yield
        finally:
            torch.clear_autocast_cache()
