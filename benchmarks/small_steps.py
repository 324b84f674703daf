"""How far bfloat16 weights go by small steps, against AdamW in float32 from the same weights and gradients.

    python benchmarks/small_steps.py [--steps 1000] [--lr 1e-6] [--betas 0.9,0.95]

8,192 weights of standard deviation 0.02 and gradients with a drift of half their noise. `went` is the share of the
float32 way, taken along it; `off` the length of the difference over the length of that way. torchao's AdamW with
stochastic rounding is a row where it is installed (it compiles its step, which takes a minute).
"""

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from common import report
from torch import Tensor

from edge_grpo.algorithms.offloaded import OffloadedAdamW

N = 8192


def way(make: Callable[[list[Tensor]], Any], dtype: torch.dtype, steps: int) -> Tensor:
    """[N] float32: where the weights are after so many steps, less where they began."""
    draws = torch.Generator().manual_seed(0)
    start = (torch.randn(N, generator=draws) * 0.02).bfloat16()
    drift = torch.randn(N, generator=draws) / 2
    weight = torch.nn.Parameter(start.to(dtype, copy=True))
    optimizer = make([weight])
    torch.manual_seed(0)  # of stochastic rounding
    for _ in range(steps):
        weight.grad = ((drift + torch.randn(N, generator=draws)) / 1000).to(dtype)
        optimizer.step()
    return weight.detach().float() - start.float()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--lr", type=float, default=1e-6)
    options.add_argument("--betas", default="0.9,0.95")
    args = options.parse_args()
    betas = tuple(float(beta) for beta in args.betas.split(","))
    settings: dict[str, Any] = {"lr": args.lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0}

    def adamw(params: list[Tensor]) -> Any:
        return torch.optim.AdamW(params, **settings)

    ways: dict[str, Callable[[list[Tensor]], Any]] = {"adamw": adamw, "adamw_offload": OffloadedAdamW(**settings)}
    if find_spec("optimi"):
        from optimi import AdamW

        ways["adamw_kahan"] = lambda params: AdamW(params, **settings)  # whatever the second beta is
    if find_spec("torchao"):
        from torchao.optim import _AdamW

        ways["torchao, stochastic"] = lambda params: _AdamW(params, **settings, bf16_stochastic_round=True)
    whole = way(adamw, torch.float32, args.steps)
    rows, result = [], {}
    for name, make in ways.items():
        found = way(make, torch.bfloat16, args.steps)
        went, off = float(found @ whole / (whole @ whole)), float((found - whole).norm() / whole.norm())
        rows.append({"optimizer": name, "moved": float((found != 0).float().mean()), "went": went, "off": off})
        result[f"off_{name.partition(',')[0]}"] = off
    report("small_steps", rows, result, None)


if __name__ == "__main__":
    main()
