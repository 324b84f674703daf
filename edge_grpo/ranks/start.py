"""The other processes of a node, where no launcher has started them."""

import os
import subprocess
import sys
from collections.abc import Mapping

from lightning_fabric.plugins.environments.lightning import find_free_network_port

from edge_grpo.ranks.meeting import JOB
from edge_grpo.ranks.place import Place

Children = Mapping[int, "subprocess.Popen[bytes]"]


def alone_on_this_machine(world: int) -> Place:
    """The place of a process that starts all the others itself."""
    return Place("this program", 0, world, 0, 0, "127.0.0.1", find_free_network_port())


def start_others(place: Place, devices: int, world: int, job: int) -> Children:
    """Start the processes of this node besides this one, by rank; they do one job and end.

    Not Lightning's way, which types this process's command line again: that of a job inside a sweep or of another
    program's worker is not what its ranks shall do. They are told.

    Args:
        place: of this process.
        devices: processes of a node, with this one.
        world: of all nodes.
        job: its number.
    """
    first = place.node_rank * devices
    return {first + local: _start(place, first + local, local, world, job) for local in range(1, devices)}


def _start(place: Place, rank: int, local_rank: int, world: int, job: int) -> "subprocess.Popen[bytes]":
    of_others = ("TORCHELASTIC_", "SLURM_PROCID", "SLURM_LOCALID")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(of_others)}
    environment |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(local_rank),
        "GROUP_RANK": str(place.node_rank),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        JOB: str(job),
    }
    command = [sys.executable, "-m", "edge_grpo.programs.train"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
