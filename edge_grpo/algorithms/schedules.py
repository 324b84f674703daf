"""Learning-rate schedules that neither torch nor transformers has."""

from collections.abc import Mapping, Sequence

import torch
from torch.optim.lr_scheduler import LambdaLR


def phased_decay(optimizer: torch.optim.Optimizer, phases: Sequence[Mapping[str, float]]) -> LambdaLR:
    """Constant, then linear to 0, phase after phase.

    Args:
        phases: each {iterations, factor, decay}: the rate is `factor` x lr, and falls to 0 over the last `decay`
            share of the phase. The decay is what makes so small a model exact.

    >>> parameter = torch.nn.Parameter(torch.zeros(1))
    >>> scheduler = phased_decay(torch.optim.SGD([parameter], lr=1.0), [dict(iterations=4, factor=0.5, decay=0.5)])
    >>> [scheduler.lr_lambdas[0](i) for i in range(5)]
    [0.5, 0.5, 0.5, 0.25, 0.0]
    """

    def factor(iteration: int) -> float:
        for phase in phases:
            if iteration < phase["iterations"]:
                falling = phase["iterations"] * phase["decay"]
                left = (phase["iterations"] - iteration) / falling if falling else 1.0
                return phase["factor"] * min(1.0, left)
            iteration -= int(phase["iterations"])
        return 0.0

    return LambdaLR(optimizer, factor)
