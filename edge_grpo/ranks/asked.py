"""How many processes the trainer's settings ask for, held against those that a launcher has started."""

from typing import Any, NamedTuple

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import LightningEnvironment

from edge_grpo.errors import UserError
from edge_grpo.ranks.place import Place


class Asked(NamedTuple):
    """Processes of a node, and nodes."""

    devices: int
    nodes: int

    @property
    def world(self) -> int:
        """All processes."""
        return self.devices * self.nodes


def asked_of(settings: Any) -> Asked:
    """The trainer's settings, as Lightning reads them: "auto" is what it finds on this machine."""
    trainer = pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return Asked(int(trainer.num_devices), int(settings.num_nodes))


def check_started(asked: Asked, settings: Any, place: Place | None) -> None:
    """Refuse to begin with more or fewer processes than the settings ask for.

    Args:
        asked, settings: the same, as read and as typed.
        place: of this process; None where no launcher has started it.

    Raises:
        UserError: says what to start, or to set.
    """
    told = f"trainer.devices={settings.devices} ({asked.devices} here) and trainer.num_nodes={asked.nodes}"
    if place is None and asked.nodes > 1:
        raise UserError(
            f"{told}, but this process was started alone: start it with srun or torchrun, or on every node with "
            "NODE_RANK, MASTER_ADDR and MASTER_PORT"
        )
    if place is not None and place.world not in (None, asked.world):
        raise UserError(
            f"{told} make {asked.world} ranks, but {place.launcher} has started {place.world}: let it start "
            f"{asked.devices} on each of {asked.nodes} nodes, or set trainer.devices and trainer.num_nodes"
        )


def check_order(place: Place, rank: int, devices: int) -> None:
    """Refuse processes that are not counted node by node, as Lightning counts them.

    Raises:
        UserError: names the rank that it would have to be.
    """
    expected = place.node_rank * devices + place.local_rank
    if rank != expected:
        raise UserError(
            f"process {place.local_rank} of node {place.node_rank} is rank {rank} and not {expected}, with {devices} a "
            f"node: count ranks node by node (srun --distribution=block --ntasks-per-node={devices})"
        )
