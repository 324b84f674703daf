"""Which of a run's processes this one is, by what its launcher has put into the environment.

Imported by the command line, so it must stay light: no torch.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from edge_grpo.errors import UserError

INTERACTIVE = ("bash", "interactive")
"""names of Slurm jobs in which somebody types: what is started there was not started by srun"""


class Place(NamedTuple):
    """A process of a run, and where the first one is found.

    Args:
        launcher: what started the processes, for people.
        rank: among all processes; None for the first one of a later node that was started by hand, until it is told
            how many devices a node has.
        world: number of all; None where the launcher does not know it.
        local_rank: among those of this node.
        node_rank: of this node.
        address, port: where the first process listens.
    """

    launcher: str
    rank: int | None
    world: int | None
    local_rank: int
    node_rank: int
    address: str
    port: int

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides and writes for all."""
        return self.rank == 0


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place that a launcher gave this process; None where it was started alone.

    torchrun (and whatever else sets `RANK` and `WORLD_SIZE`), srun, and one process a node with `NODE_RANK`.

    Raises:
        UserError: a variable is missing or is no number.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _of_ranks(environment)
    if _is_srun(environment):
        return _of_slurm(environment)
    if "MASTER_ADDR" in environment and "NODE_RANK" in environment:
        return _of_nodes(environment)
    return None


def _of_ranks(environment: Mapping[str, str]) -> Place:
    node = "NODE_RANK" if "GROUP_RANK" not in environment else "GROUP_RANK"
    return Place(
        "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "the launcher",
        rank=_number(environment, "RANK"),
        world=_number(environment, "WORLD_SIZE"),
        local_rank=_number(environment, "LOCAL_RANK"),
        node_rank=_number(environment, node) if node in environment else 0,
        address=_text(environment, "MASTER_ADDR"),
        port=_number(environment, "MASTER_PORT"),
    )


def _is_srun(environment: Mapping[str, str]) -> bool:
    several = environment.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in environment
    return several and environment.get("SLURM_JOB_NAME") not in INTERACTIVE


def _of_slurm(environment: Mapping[str, str]) -> Place:
    """The first node's name and a port from the number of the job: the same on every task, as Lightning does it."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "127.0.0.1"
    port = 15000 + int(environment.get("SLURM_JOB_ID", "0")[-4:])
    return Place(
        "srun",
        rank=_number(environment, "SLURM_PROCID"),
        world=_number(environment, "SLURM_NTASKS"),
        local_rank=_number(environment, "SLURM_LOCALID"),
        node_rank=_number(environment, "SLURM_NODEID"),
        address=environment.get("MASTER_ADDR") or first_node(nodes),
        port=_number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else port,
    )


def _of_nodes(environment: Mapping[str, str]) -> Place:
    node = _number(environment, "NODE_RANK")
    return Place(
        "NODE_RANK",
        rank=None if node else 0,
        world=None,
        local_rank=0,
        node_rank=node,
        address=_text(environment, "MASTER_ADDR"),
        port=_number(environment, "MASTER_PORT"),
    )


def first_node(nodes: str) -> str:
    """The first host of Slurm's list.

    >>> first_node("gpu[07-09,12],cpu1"), first_node("a-1,a-2"), first_node("rack[3]-n[1-4]")
    ('gpu07', 'a-1', 'rack3-n1')
    """
    inside = re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes)
    return inside.split(",")[0].strip()


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _text(environment, name)
    if not text.isdecimal():
        raise UserError(f"{name}={text}: the launcher must give a number")
    return int(text)


def _text(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise UserError(
            f"{name} is not set, but RANK, SLURM_PROCID or NODE_RANK is: start every process with torchrun or srun, or "
            "one a node with NODE_RANK, MASTER_ADDR and MASTER_PORT"
        )
    return environment[name]
