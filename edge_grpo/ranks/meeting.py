"""Where the processes of a run meet: a store that the first one keeps, or torchrun's own.

It is the store that `torch.distributed` meets at later, so it needs no address of its own.
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore

from edge_grpo.errors import UserError
from edge_grpo.ranks.place import Place

ARRIVAL_S = 600.0
"""how long the processes wait for each other at the beginning: some import from a slow disk"""
POLL_S = 0.05
JOB = "EDGE_GRPO_JOB"
"""variable of a process that another rank has started for one job: its number"""


class Meeting:
    """The store, as one process sees it. The first one calls the others to a job after the other.

    Args:
        place: of this process.

    Raises:
        UserError: the first process is not there within `ARRIVAL_S`, or its port is taken.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._server = self._host() if place.is_first and not _agents_store() else None
        self.store = self.connection()
        self._jobs = int(os.environ.get(JOB, "0"))
        self.followers: int | None = None if place.world is None else place.world - 1
        """processes that will say that they leave, once it is known"""

    def connection(self) -> Any:
        """A connection of one's own: one that waits would keep another thread waiting."""
        _await_server(self.place)
        store = TCPStore(
            self.place.address,
            self.place.port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=ARRIVAL_S),
        )
        return PrefixStore(f"edge_grpo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

    def call(self, job: Mapping[str, Any]) -> str:
        """Tell the others what to do next; the prefix of this job's keys."""
        self.store.set(f"job/{self._jobs}", json.dumps(job))
        self._jobs += 1
        return f"{self._jobs - 1}/"

    def end(self, *, failed: bool) -> None:
        """Tell the others that nothing more comes."""
        self.call({"failed": failed})

    @property
    def job(self) -> int:
        """The number of the next job."""
        return self._jobs

    def await_job(self) -> tuple[str, dict[str, Any]]:
        """The next job with the prefix of its keys; one that holds nothing but `failed` where nothing more comes.

        Raises:
            ConnectionError: the first process is gone.
        """
        while not self.has(f"job/{self._jobs}"):
            time.sleep(POLL_S)  # not the store's own wait, during which Python answers no signal
        job = json.loads(self.store.get(f"job/{self._jobs}"))
        self._jobs += 1
        return f"{self._jobs - 1}/", job

    def leave(self) -> None:
        """Say that this process needs the store no longer."""
        self.store.add("left", 1)

    def await_leaving(self, seconds: float) -> None:
        """Keep the store until the others have left it, or for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (self.followers is None or self.store.add("left", 0) < self.followers):
            time.sleep(POLL_S)

    def has(self, key: str) -> bool:
        """Whether the key is there.

        Raises:
            ConnectionError: the store is gone, and with it the first process.
        """
        try:
            return bool(self.store.check([key]))
        except RuntimeError as error:
            raise ConnectionError(str(error)) from error

    def _host(self) -> Any:
        try:
            return TCPStore(
                self.place.address,
                self.place.port,
                is_master=True,
                wait_for_workers=False,
                multi_tenant=True,  # torch.distributed's own in this process is the same
            )
        except RuntimeError as error:
            raise UserError(
                f"MASTER_ADDR={self.place.address} MASTER_PORT={self.place.port}: rank 0 cannot listen there "
                f"({str(error).splitlines()[0]}): set another MASTER_PORT, and MASTER_ADDR to this machine "
                f"({socket.gethostname()})"
            ) from error


def _await_server(place: Place) -> None:
    """Until the first process listens."""
    deadline = time.monotonic() + ARRIVAL_S
    while True:
        try:
            socket.create_connection((place.address, place.port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"the first process was not found at {place.address}:{place.port} within {ARRIVAL_S:.0f} s "
                    f"({error}): MASTER_ADDR and MASTER_PORT must name it on every node, and the port be open"
                ) from error
        time.sleep(0.2)


def _agents_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
