"""Learning-rate schedules that neither torch nor transformers has, and where a schedule stands after a resume."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from edge_grpo.runs.settings import HYPERPARAMETERS


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


def take_settings(checkpoint: dict[str, Any], optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Put the settings of now into a checkpoint, in the place of those that it was written under.

    Moments stay. Learning rate, weight decay, betas and epsilon become those of `optimizer`, and the rate is where
    `scheduler` is after the iterations done: a schedule follows from the settings and the iteration, so nothing of its
    former state is needed. Where no setting has changed every number is what it was, bit for bit.

    Args:
        checkpoint: Lightning's, changed in place.
        optimizer: new, as the settings of now make it.
        scheduler: of `optimizer`, not stepped yet; each of its steps is an iteration.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*`lr_scheduler.step.+ before `optimizer.step.*")
        for _ in range(checkpoint["lr_schedulers"][0]["last_epoch"]):
            scheduler.step()
    # What else an optimiser has in its groups may be state (a count of steps); a schedule's notes are none of its own.
    kept = {"params", *optimizer.defaults} - {*HYPERPARAMETERS, "beta1", "beta2"}  # as torch-optimi calls betas
    for saved, ours in zip(checkpoint["optimizer_states"][0]["param_groups"], optimizer.param_groups, strict=True):
        saved |= {name: value for name, value in ours.items() if name not in kept}
    checkpoint["lr_schedulers"] = [scheduler.state_dict()]
