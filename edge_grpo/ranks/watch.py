"""A process that dies takes the others with it: they would wait for it in the next collective."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from edge_grpo.errors import UserError
from edge_grpo.ranks.meeting import ARRIVAL_S, Meeting

BEAT_S = 1.0
SILENCE_S = 15.0
"""so long without a sign of life is death: a thread of its own gives them, whatever else the process does"""
GRACE_S = 4.0
"""in which a process that knows can end by itself"""


class Watch(threading.Thread):
    """Signs of life during one job, and the end without them.

    Rank 0 watches all others, and they watch it. Where one is lost rank 0 says so and ends, and so do the others. A
    process that cannot end by itself, because it waits in a collective, is ended by this thread.

    Args:
        meeting: of this process.
        job: prefix of the job's keys.
        rank, world: of this process, and how many there are.
        children: the processes that this one has started, by rank.
        on_loss: called with what to tell before this process is ended from here.
    """

    def __init__(
        self,
        meeting: Meeting,
        job: str,
        rank: int,
        world: int,
        children: Mapping[int, "subprocess.Popen[bytes]"],
        on_loss: Callable[[str], None],
    ) -> None:
        super().__init__(name="ranks", daemon=True)
        self.rank, self.children, self.on_loss = rank, children, on_loss
        self.lost: str | None = None
        """what to tell of a process that is lost, or of the failure that another one tells"""
        self.is_told = False
        """whether rank 0 tells it"""
        self._meeting, self._job = meeting, job
        self._over = threading.Event()
        self._watched = set(range(1, world) if rank == 0 else range(1))
        self._beats: dict[int, bytes | None] = {}
        self._since = dict.fromkeys(self._watched, time.monotonic())

    def close(self) -> None:
        """This process ends the job by itself."""
        self._over.set()

    def run(self) -> None:
        """See the class."""
        store = None
        count = 0
        try:
            store = self._meeting.connection()
            while self.lost is None:
                store.set(f"{self._job}beat/{self.rank}", f"{count} {socket.gethostname()}")
                self.lost = self._failure(store) or self._lost_child(store) or self._silence(store)
                count += 1
                if self._over.wait(BEAT_S):
                    return
        except (RuntimeError, OSError, UserError) as error:  # of the connection
            gone = "rank 0" if self.rank else "the launcher's store"
            self.lost = self.lost or f"{gone} is gone ({str(error).splitlines()[0]})"
        if self.rank == 0 and store is not None:
            with suppress(RuntimeError):
                store.set(f"{self._job}stop", self.lost)
        if not self._over.wait(GRACE_S):
            self._end(self.lost)

    def _end(self, message: str) -> None:
        if not self.is_told:
            print(f"error: {message}", file=sys.stderr, flush=True)
        self.on_loss(message)
        for child in self.children.values():
            child.kill()
        os._exit(1)

    def _failure(self, store: Any) -> str | None:
        """What another process says that failed, or rank 0 of the end of all."""
        key = f"{self._job}{'failed' if self.rank == 0 else 'stop'}"
        if not store.check([key]):
            return None
        self.is_told = self.rank != 0
        return str(store.get(key).decode())

    def _lost_child(self, store: Any) -> str | None:
        for rank, child in self.children.items():
            code = child.poll()
            if code is not None and rank in self._watched and not self._is_done(store, rank):
                return (
                    f"{self._called(rank)} has ended {f'by signal {-code}' if code < 0 else f'with exit code {code}'}"
                )
        return None

    def _silence(self, store: Any) -> str | None:
        now = time.monotonic()
        for rank in sorted(self._watched):
            key = f"{self._job}beat/{rank}"
            beat = store.get(key) if store.check([key]) else None
            if beat != self._beats.get(rank):
                self._beats[rank], self._since[rank] = beat, now
            elif self._is_done(store, rank):
                self._watched.discard(rank)
            elif beat is None and now - self._since[rank] > ARRIVAL_S:
                return f"rank {rank} has not come within {ARRIVAL_S:.0f} s: is every process started, on every node?"
            elif beat is not None and now - self._since[rank] > SILENCE_S:
                return f"{self._called(rank)} has given no sign of life for {SILENCE_S:.0f} s"
        return None

    def _is_done(self, store: Any, rank: int) -> bool:
        return bool(store.check([f"{self._job}done/{rank}"]))

    def _called(self, rank: int) -> str:
        beat = self._beats.get(rank)
        return f"rank {rank}" + (f" on {beat.decode().partition(' ')[2]}" if beat else "")
