"""AdamW whose state lies in RAM and whose step runs on the CPU, so that a GPU holds weights and gradients alone.

torchao's CPUOffloadOptimizer takes a gradient to RAM while the backward pass makes it, which is before clipping and
before a step that is not finite is skipped; it needs CUDA to be built. So this is our own, on torch's AdamW kernel.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from edge_grpo.errors import UserError
from edge_grpo.policy.memory import device_memory


class OffloadedAdamW:
    """AdamW (1711.05101) on float32 copies of the weights in RAM, with their moments (ZeRO-Offload, 2101.06840).

    Called with parameters it makes the optimiser. Every step takes each gradient to RAM, moves the copy there and
    brings it back, rounded to the weight's type: a bfloat16 weight moves as a float32 one. The step's numbers are those
    of torch's fused AdamW on float32 weights. From and to a GPU tensors go through pinned places, two each way, so that
    one is on its way while another is used; that did not run here.

    Args:
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: coefficient of the decay, which is apart from the gradient.
    """

    shards = False
    """it takes whole tensors to RAM (`trainer.strategy=fsdp2` keeps parts)"""

    def __init__(self, lr: float, betas: Sequence[float], eps: float, weight_decay: float) -> None:
        self.settings: dict[str, Any] = {
            "lr": lr,
            "betas": (betas[0], betas[1]),
            "eps": eps,
            "weight_decay": weight_decay,
        }

    def __call__(self, params: Iterable[Tensor]) -> "HostAdamW":
        """The optimiser of these parameters.

        Raises:
            UserError: this machine has less RAM than it takes.
        """
        made = list(params)
        needed, there = self.host_bytes(made), device_memory(torch.device("cpu"))
        if needed > there:
            raise UserError(
                f"optimizer=adamw_offload takes {needed / 1e9:.1f} GB of RAM and here are {there / 1e9:.1f}: set "
                "optimizer=adamw_8bit, or model.lora.r=16"
            )
        return HostAdamW(made, **self.settings)

    def state_bytes(self, params: Iterable[Tensor]) -> int:
        """A copy of each weight and two moments: what a checkpoint holds."""
        return sum(3 * p.numel() * max(p.element_size(), 4) for p in params)

    def host_bytes(self, params: Iterable[Tensor]) -> int:
        """The same, the four places that the largest parameter sets the size of, and its gradient in float32: what RAM
        holds in a GPU's stead."""
        made = list(params)
        largest = max(made, key=lambda p: p.numel() * p.element_size(), default=None)
        if largest is None:
            return 0
        return self.state_bytes(made) + 4 * _place_bytes(largest) + largest.numel() * max(largest.element_size(), 4)


class HostAdamW(torch.optim.Optimizer):
    """See `OffloadedAdamW`. A parameter's state is made at its first step.

    It is not in `state`, which Lightning moves to the GPU, and which torch rounds to the parameter's type when it is
    loaded.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._host: dict[Tensor, dict[str, Tensor]] = {}
        size = max(p.numel() * p.element_size() for p in self._params())
        self._coming, self._going = _Places(size), _Places(size)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for i, ((p, group), gradient) in enumerate(zip(moved, self._in_ram([p for p, _ in moved]), strict=True)):
            state = self._state_of(p)
            adamw(
                [state["master"]],
                [gradient],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )
            place = self._going.arrived(i, p)
            place.copy_(state["master"])  # rounded here, so that no float32 is on the GPU
            p.copy_(place, non_blocking=p.is_cuda)
            self._going.sent(i, p)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the copy of each weight (`master`) beside its moments."""
        return {
            **super().state_dict(),
            "state": {i: dict(self._host[p]) for i, p in enumerate(self._params()) if p in self._host},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        super().load_state_dict({**state_dict, "state": {}})
        params = self._params()
        self._host = {
            params[i]: {name: value.to("cpu", copy=True) for name, value in kept.items()}
            for i, kept in state_dict["state"].items()
        }

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        if p not in self._host:
            dtype = _wide(p)
            self._host[p] = {
                "step": torch.zeros((), dtype=torch.float32),
                "master": p.detach().to("cpu", dtype, copy=True),
                "exp_avg": torch.zeros(p.shape, dtype=dtype),
                "exp_avg_sq": torch.zeros(p.shape, dtype=dtype),
            }
        return self._host[p]

    def _in_ram(self, params: Sequence[Tensor]) -> Iterator[Tensor]:
        """The gradient of each parameter, float32; the next is on its way while the caller uses one."""
        if params:
            self._send(params, 0)
        for i, p in enumerate(params):
            if i + 1 < len(params):  # into the other place
                self._send(params, i + 1)
            yield self._coming.arrived(i, p).to(_wide(p))

    def _send(self, params: Sequence[Tensor], i: int) -> None:
        p = params[i]
        assert p.grad is not None
        self._coming.arrived(i, p).copy_(p.grad, non_blocking=p.is_cuda)
        self._coming.sent(i, p)


class _Places:
    """Two places in RAM, pinned for a GPU, that tensors pass through by turns.

    Args:
        size: bytes of the largest of them.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._bytes: list[Tensor] = []
        self._done: list[Any] = [None, None]

    def sent(self, i: int, p: Tensor) -> None:
        """A copy from or to the place has been asked for."""
        if p.is_cuda:
            self._done[i % 2] = torch.cuda.Event()
            self._done[i % 2].record()

    def arrived(self, i: int, p: Tensor) -> Tensor:
        """The i-th tensor's place as one like `p`, once the last copy from or to it that was asked for is done."""
        if not self._bytes:
            self._bytes = [torch.empty(self._size, dtype=torch.uint8, pin_memory=p.is_cuda) for _ in range(2)]
        if self._done[i % 2] is not None:
            self._done[i % 2].synchronize()
        return self._bytes[i % 2][: p.numel() * p.element_size()].view(p.dtype).view(p.shape)


def _place_bytes(p: Tensor) -> int:
    """Of a place for this tensor: torch pins powers of two."""
    return 1 << max(p.numel() * p.element_size() - 1, 0).bit_length()


def _wide(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)
