"""AdamW whose state takes less of a GPU, by bitsandbytes, imported when it is used."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from edge_grpo.errors import UserError

# bitsandbytes' own: numbers that share a scale, and the smallest tensor whose moments are quantised.
_BLOCK, _LEAST = 256, 4096
_KINDS = {(8, False): "AdamW8bit", (8, True): "PagedAdamW8bit", (32, True): "PagedAdamW32bit"}


class QuantizedAdamW:
    """AdamW (1711.05101) with moments of 8 bits in blocks of 256 (2110.02861), or in memory that the GPU can evict.

    Called with parameters it makes the optimiser. Tensors of fewer than 4,096 numbers keep moments in float32. Paged
    state moves to RAM, page by page, while the card has no room for it (2305.14314). The 8-bit step ran on a CPU; paged
    state and every step on a GPU did not run here.

    Args:
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: coefficient of the decay, which is apart from the gradient.
        bits: of each moment, 8 or 32.
        paged: state moves to RAM while the card has no room for it; needs CUDA.

    Raises:
        UserError: 32 bits that are not paged, which are torch's own AdamW.
    """

    shards = False
    """its kernels know no parts of a tensor (`trainer.strategy=fsdp2`)"""

    def __init__(
        self, lr: float, betas: Sequence[float], eps: float, weight_decay: float, bits: Literal[8, 32], paged: bool
    ) -> None:
        if (bits, paged) not in _KINDS:
            raise UserError(f"optimizer.bits={bits} optimizer.paged={paged} is plain AdamW: set optimizer=adamw")
        self.settings = {"lr": lr, "betas": (betas[0], betas[1]), "eps": eps, "weight_decay": weight_decay}
        self.bits, self.paged = bits, paged

    def check(self) -> None:
        """Refuse what this machine does not have, before a model is loaded.

        Raises:
            UserError: no bitsandbytes, or no CUDA for paged state.
        """
        if find_spec("bitsandbytes") is None:
            raise UserError("an AdamW of 8 bits or paged needs bitsandbytes: pip install 'edge-grpo[quantized]'")
        if self.paged and not torch.cuda.is_available():
            raise UserError("optimizer.paged=true but torch sees no GPU: set optimizer=adamw or adamw_8bit")

    def __call__(self, params: Iterable[Tensor]) -> Any:
        """The optimiser of these parameters."""
        self.check()
        from bitsandbytes import optim

        return getattr(optim, _KINDS[self.bits, self.paged])(list(params), **self.settings)

    def state_bytes(self, params: Iterable[Tensor]) -> int:
        """What the two moments take; paged ones count whole, though they may leave the card."""
        sizes = [p.numel() for p in params]
        quantised = [n for n in sizes if self.bits == 8 and n >= _LEAST]
        whole = sum(sizes) - sum(quantised)
        return 8 * whole + sum(2 * n + 2 * 4 * -(-n // _BLOCK) for n in quantised)
