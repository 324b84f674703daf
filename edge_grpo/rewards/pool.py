"""Processes that can be killed: the only place where text that a model wrote is evaluated."""

import json
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

from edge_grpo.errors import UserError
from edge_grpo.rewards import _frames
from edge_grpo.rewards._fork_server import ForkServer, NotTakenUpError

Item = TypeVar("Item")

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_START_S = 120.0  # what a worker may take to start, or to take up an item, on a busy machine
_KERNEL_LAYERS = ("landlock", "seccomp")
_LOST = {_frames.TIMEOUT: "timeout", _frames.ERROR: "error", _frames.CRASH: "crash"}


class KillablePool:
    """Runs a function over items in sandboxed processes, each item with a hard time-out.

    A worker is a fork server: it imports `preload` and forks the processes that do the items. Workers start with the
    first `map`, share nothing with this process but two pipes, and die with it. One that dies or hangs is replaced.
    Once workers have started, nothing that happens to them raises: the items are lost and counted. May be called from
    several threads; the calls take turns.

    Args:
        workers: number of items at once; ranks of a node (`sharers`) share it, and each has at least one.
        timeout_s: seconds an item may take, counted from when a worker takes it up.
        memory_limit_gb: address space of a process in GiB (Linux).
        items_per_process: items that a process does before it ends. With 1, what an item does to the interpreter
            concerns no other item, which items that Python evaluates need; a fork costs about 10 ms.
        preload: modules (or files that end in `.py`) that a worker imports before its first item; it calls their
            `warm_up`, if they have one.
        reply_bytes: the longest reply that is read, in bytes of JSON; a longer one is an error.

    Attributes:
        counts: items lost so far: `timeout`, `error` (the function raised, or its result is none), `crash` (the
            process died).

    Raises:
        UserError: a number that is not positive.
    """

    sharers = 1
    """processes of this node with pools like this one; a run of several ranks sets it before any pool starts"""

    def __init__(
        self,
        workers: int,
        timeout_s: float,
        memory_limit_gb: float,
        items_per_process: int = 1,
        preload: tuple[str, ...] = (),
        reply_bytes: int = 4096,
    ) -> None:
        numbers = {"workers": workers, "timeout_s": timeout_s, "memory_limit_gb": memory_limit_gb}
        for name, value in {**numbers, "items_per_process": items_per_process, "reply_bytes": reply_bytes}.items():
            if value <= 0:
                raise UserError(f"{name} must be positive, got {value}")
        self.workers = workers
        self.timeout_s = timeout_s
        self.memory_limit_gb = memory_limit_gb
        self.items_per_process = items_per_process
        self.preload = preload
        self.reply_bytes = reply_bytes
        self.counts = {"timeout": 0, "error": 0, "crash": 0}
        self._layers = (*_KERNEL_LAYERS, "interpreter")  # of which a worker uses those that its kernel offers
        self._has_started = False
        self._servers: list[ForkServer | None] = [None] * workers
        self._threads: ThreadPoolExecutor | None = None
        self._finalizer: weakref.finalize | None = None
        self._lock = threading.Lock()

    def map(
        self, function: Callable[[Item], Any], items: Sequence[Item], is_result: Callable[[Any], bool]
    ) -> list[Any | None]:
        """`function` of each item in order; None where it timed out, raised or took its process down (counted).

        Args:
            function: a module-level function of a module that is light to import. Its result must be JSON.
            items: picklable.
            is_result: whether a value is one that the function can return. It is asked here, of every value: a process
                that an item took over can reply whatever it likes.

        Raises:
            UserError: the very first workers cannot start.
        """
        outcomes: list[tuple[bytes, bytes]] = [(_frames.CRASH, b"")] * len(items)
        rows = deque(range(len(items)))
        with self._lock:
            if items:
                self._serve_all(rows, function, items, outcomes)
        if rows:
            log.error(
                "grading workers died or hung %d times in a row while they held no item: %d of %d items are lost; "
                "is something killing them, or is the machine out of memory?",
                _ATTEMPTS,
                len(rows),
                len(items),
            )
        return [self._value(kind, reply, is_result) for kind, reply in outcomes]

    def close(self) -> None:
        """Kill the workers. The next `map` starts new ones."""
        with self._lock:
            self._stop()

    def _serve_all(
        self,
        rows: deque[int],
        function: Callable[[Item], Any],
        items: Sequence[Item],
        outcomes: list[tuple[bytes, bytes]],
    ) -> None:
        """Fill `outcomes` at `rows`; leave there the rows that no worker took up."""
        if self._threads is None:
            # Linux sends the parent-death signal when the *thread* that started the child ends, and the caller's
            # thread may be short-lived; these live as long as the workers.
            self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="grading")
            self._finalizer = weakref.finalize(self, _stop, self._servers, self._threads)
        at_once = max(self.workers // self.sharers, 1)
        jobs = [
            self._threads.submit(self._serve, slot, rows, function, items, outcomes)
            for slot in range(min(at_once, len(items)))
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:  # a signal of the run, or workers that do not start
            rows.clear()
            self._stop()
            raise

    def _serve(
        self,
        slot: int,
        rows: deque[int],
        function: Callable[[Item], Any],
        items: Sequence[Item],
        outcomes: list[tuple[bytes, bytes]],
    ) -> None:
        """Take rows and have the worker of this slot do them, until none is left or it died too often in a row."""
        failures = 0
        while failures < _ATTEMPTS and self._threads is not None:  # None: the call is being given up
            try:
                row = rows.popleft()
            except IndexError:
                return
            try:
                outcomes[row] = self._running(slot).run(function, items[row], _START_S)
                failures = 0
            except NotTakenUpError:
                self._servers[slot] = None
                rows.appendleft(row)
                failures += 1

    def _running(self, slot: int) -> ForkServer:
        """The worker of this slot.

        Raises:
            NotTakenUpError: it does not start.
            UserError: no worker ever started.
        """
        server = self._servers[slot]
        if server is None:
            settings = {
                "timeout_s": self.timeout_s,
                "memory_limit_gb": self.memory_limit_gb,
                "items_per_process": self.items_per_process,
                "preload": self.preload,
                "reply_bytes": self.reply_bytes,
                "layers": self._layers,
            }
            try:
                server = ForkServer(settings, _START_S)
            except NotTakenUpError as error:
                if self._has_started:
                    raise
                raise UserError(
                    f"grading workers do not start with memory_limit_gb={self.memory_limit_gb}; "
                    "their own message is above"
                ) from error
            self._servers[slot] = server
            self._has_started = True
            _tell_layers(tuple(server.layers))
        return server

    def _value(self, kind: bytes, reply: bytes, is_result: Callable[[Any], bool]) -> Any | None:
        if kind == _frames.VALUE:
            try:
                value = json.loads(reply)
                if is_result(value):
                    return value
            except (ValueError, RecursionError):
                pass
            kind = _frames.ERROR
        self.counts[_LOST[kind]] += 1
        return None

    def _stop(self) -> None:
        finalizer, self._finalizer, self._threads = self._finalizer, None, None
        if finalizer is not None:
            finalizer()


def _stop(servers: list[ForkServer | None], threads: ThreadPoolExecutor) -> None:
    _kill(servers)
    threads.shutdown()
    _kill(servers)  # those that a thread was starting meanwhile


def _kill(servers: list[ForkServer | None]) -> None:
    for slot, server in enumerate(servers):
        if server is not None:
            server.kill()
            servers[slot] = None


@cache
def _tell_layers(layers: tuple[str, ...]) -> None:
    """Log once what confines the processes that evaluate answers."""
    found = [layer for layer in _KERNEL_LAYERS if layer in layers]
    missing = [layer for layer in _KERNEL_LAYERS if layer not in layers]
    if not missing:
        log.info("answers are graded in processes that the kernel confines (%s)", " and ".join(found))
        return
    log.warning(
        "answers are graded in processes that the kernel confines by %s; this kernel offers no %s, so %s",
        "".join(found) or "nothing",
        " and no ".join(missing),
        "they can read the files of this user"
        if missing == ["landlock"]
        else "code that is written to break out of Python can; grade answers that Python evaluates "
        "(reward=reasoning_gym) on a machine that has it",
    )
