"""The processes that share a run: one of them decides, the others are told, and all end together."""

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edge_grpo.errors import Stopped, UserError, message_of
from edge_grpo.ranks.environment import GivenRanks
from edge_grpo.ranks.meeting import POLL_S, Meeting
from edge_grpo.ranks.start import Children
from edge_grpo.ranks.watch import GRACE_S, SILENCE_S, Watch

REPORT_S = 1800.0
"""how long a rank waits for what another finds while it loads; torch.distributed's own limit"""
LEAVE_S = 15.0
"""how long rank 0 waits for the others to end"""


class JobOver(Exception):
    """Another rank has ended the job, and rank 0 tells why."""


class Ranks:
    """A run's processes as one of them sees it; this class is of one that is alone.

    Args:
        rank, world: of this process, and how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def is_first(self) -> bool:
        """Whether this one decides, and writes into the run's folder."""
        return self.rank == 0

    @property
    def plugins(self) -> list[Any]:
        """For Lightning's trainer."""
        return []

    def agree(self, found: Mapping[str, Any]) -> None:
        """Go on once every process has got here with the same findings.

        Args:
            found: what -> what this process has of it, JSON.

        Raises:
            UserError: on rank 0, where another failed or has found something else.
            JobOver: on the others then.
        """

    @contextmanager
    def together(self) -> Iterator[None]:
        """The job: what ends it on one process ends it on all."""
        yield


class Several(Ranks):
    """See `Ranks`.

    Args:
        meeting: of this process.
        job: prefix of the job's keys.
        rank, world: as of `Ranks`.
        children, on_loss: see `Watch`.
    """

    def __init__(
        self,
        meeting: Meeting,
        job: str,
        rank: int,
        world: int,
        children: Children,
        on_loss: Callable[[str], None] = lambda message: None,
    ) -> None:
        super().__init__(rank, world)
        self._meeting, self._job = meeting, job
        self._watch = Watch(meeting, job, rank, world, children, on_loss)

    @property
    def plugins(self) -> list[Any]:
        """See `Ranks`."""
        place = self._meeting.place
        return [GivenRanks(self.rank, self.world, place.local_rank, place.node_rank, place.address, place.port)]

    def agree(self, found: Mapping[str, Any]) -> None:
        """See `Ranks`."""
        store, mine = self._meeting.store, json.dumps(found)
        if not self.is_first:
            store.set(f"{self._job}host/{self.rank}", socket.gethostname())
            store.set(f"{self._job}found/{self.rank}", mine)
            self._await(f"{self._job}agreed")
            return
        for rank in range(1, self.world):
            self._await(f"{self._job}found/{rank}")
            theirs = json.loads(store.get(f"{self._job}found/{rank}"))
            if other := differing(json.loads(mine), theirs):
                host = store.get(f"{self._job}host/{rank}").decode()
                raise UserError(f"rank {rank} on {host} is not as rank 0 on {socket.gethostname()}: {other}")
        store.set(f"{self._job}agreed", "")

    def _await(self, key: str) -> None:
        deadline = time.monotonic() + REPORT_S
        while not self._meeting.has(key):
            if self._watch.lost is not None:
                raise self._loss()
            if time.monotonic() > deadline:
                raise UserError(f"rank {self.rank} waited {REPORT_S:.0f} s for {key} of another rank")
            time.sleep(POLL_S)

    @property
    def is_told(self) -> bool:
        """Whether rank 0 tells why the job is over."""
        return self._watch.is_told

    def _loss(self) -> Exception:
        return UserError(self._watch.lost) if self.is_first else JobOver(self._watch.lost)

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `Ranks`."""
        self._watch.start()
        try:
            yield
            self._leave()
        except Stopped:  # all of them are
            self._leave()
            raise
        except BaseException as error:
            if _is_of_collectives(error) and self._is_lost_within(SILENCE_S + GRACE_S):
                self._end_job(str(self._watch.lost))
                raise self._loss() from error
            self._end_job(message_of(error))
            raise
        finally:
            self._watch.close()

    def _leave(self) -> None:
        """This process has done its part; rank 0 waits for the others."""
        self._meeting.store.set(f"{self._job}done/{self.rank}", "")
        if self.is_first:
            done = [f"{self._job}done/{rank}" for rank in range(self.world)]
            self._wait_until(lambda: all(map(self._meeting.has, done)), LEAVE_S)

    def _end_job(self, why: str) -> None:
        """Rank 0 tells the others to end; they tell rank 0 what has failed, and wait for its word."""
        self._watch.close()
        store = self._meeting.store
        if self.is_first:
            store.set(f"{self._job}stop", why)
        elif self._watch.lost is None:
            store.compare_set(f"{self._job}failed", "", f"rank {self.rank} on {socket.gethostname()}: {why}")

    def _is_lost_within(self, seconds: float) -> bool:
        return self._wait_until(lambda: self._watch.lost is not None, seconds)

    def _wait_until(self, is_so: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (answer := is_so()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return answer


def _is_of_collectives(error: BaseException) -> bool:
    """Whether it may come from another process's death."""
    told = str(error).lower()
    return isinstance(error, RuntimeError | ConnectionError) and any(
        word in told for word in ("gloo", "nccl", "connection", "peer", "socket", "broken pipe", "timed out")
    )


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What of another rank's findings is not as here, and how; empty where all is.

    >>> differing({"packages": {"a": 1, "b": 2}, "data": "x"}, {"packages": {"a": 1, "b": 3}, "data": "x"})
    'packages: b is 3, here 2'
    """
    parts = []
    for what, here in ours.items():
        there = theirs.get(what)
        if here == there:
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
            parts.append(f"{what}: " + ", ".join(f"{key} is {there.get(key)}, here {here.get(key)}" for key in keys))
        else:
            parts.append(f"{what} is {there}, here {here}")
    return "; ".join(parts)
