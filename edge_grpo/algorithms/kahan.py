"""AdamW for bfloat16 weights that loses no small step, by torch-optimi, imported when it is used."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from edge_grpo.errors import UserError

# The mean of squares is bfloat16 too, and moves by 1 - beta2 of itself: at 0.999 weights went 6 % too short a way in
# 1,000 steps and 24 % in 4,000 (benchmarks/small_steps.py).
_MOST_BETA2 = 0.99


class KahanAdamW:
    """AdamW (1711.05101) that adds to each bfloat16 weight what rounding took from its earlier steps (2010.06192).

    Called with parameters it makes the optimiser. The part of a weight that its type does not hold lies in a second
    bfloat16 number (Kahan summation); the moments are bfloat16 too. So a step is lost below about 2^-17 of the weight
    instead of 2^-9: at a rate of 1e-6 weights up to 0.13 move as in float32, and larger ones, such as those of norms,
    stay. Weights of float32 are moved as by AdamW. Nothing is drawn. There is no weight decay, which torch-optimi
    multiplies in without the sum, so that it would be rounded away.

    Args:
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square, the second at most 0.99.
        eps: added to the denominator.

    Raises:
        UserError: a second beta above 0.99, which stands still in bfloat16.
    """

    shards = False
    """its kernels were not tried on parts of a tensor (`trainer.strategy=fsdp2`)"""

    def __init__(self, lr: float, betas: Sequence[float], eps: float) -> None:
        if betas[1] > _MOST_BETA2:
            raise UserError(
                f"optimizer.betas={list(betas)}: in bfloat16 a mean of squares hardly moves beyond {_MOST_BETA2}: set "
                "the second at most so high, or optimizer=adamw_offload, whose moments are float32"
            )
        self.settings = {"lr": lr, "betas": (betas[0], betas[1]), "eps": eps, "weight_decay": 0.0}

    def check(self) -> None:
        """Refuse where the package is not installed, before a model is loaded.

        Raises:
            UserError: names the extra.
        """
        if find_spec("optimi") is None:
            raise UserError("optimizer=adamw_kahan needs torch-optimi: pip install 'edge-grpo[kahan]'")

    def __call__(self, params: Iterable[Tensor]) -> Any:
        """The optimiser of these parameters."""
        self.check()
        from optimi import AdamW

        return AdamW(list(params), **self.settings)

    def state_bytes(self, params: Iterable[Tensor]) -> int:
        """Two moments in the type of the weight, and what rounding took from a weight of two bytes."""
        return sum((3 if p.element_size() == 2 else 2) * p.numel() * p.element_size() for p in params)
