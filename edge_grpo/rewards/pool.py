"""Worker processes that can be killed: the only place where text that a model wrote is evaluated."""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

from edge_grpo.errors import UserError
from edge_grpo.rewards._sandbox import enter_sandbox
from edge_grpo.rewards._spawn import BareSpawnContext

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_POLL_S = 0.5
_START_S = 120.0  # what a worker may take to start, or to be replaced, on a busy machine
_TASKS_A_WORKER = 2000  # then a fresh one: sympy's caches must not grow into the memory limit


class KillablePool:
    """Runs a function over items in worker processes, each item with a hard time-out.

    Workers start with the first `map`, by spawn (never a fork of a process with torch's threads), import only
    `preload` and the function's own module, and die with this process. One that hangs or dies is replaced. Once
    workers have started, nothing that happens to them raises: the items are lost and counted. May be called from
    several threads; the calls take turns.

    Args:
        workers: number of processes.
        timeout_s: seconds an item may take, counted from when a worker takes it up.
        memory_limit_gb: address space of a worker in GiB (Linux).
        preload: modules that a worker imports before its first item.

    Attributes:
        counts: items lost so far: `timeout`, `error` (the function raised), `crash` (the worker process died).

    Raises:
        UserError: a number that is not positive.
    """

    def __init__(self, workers: int, timeout_s: float, memory_limit_gb: float, preload: tuple[str, ...] = ()) -> None:
        for name, value in (("workers", workers), ("timeout_s", timeout_s), ("memory_limit_gb", memory_limit_gb)):
            if value <= 0:
                raise UserError(f"{name} must be positive, got {value}")
        self.workers = workers
        self.timeout_s = timeout_s
        self.memory_limit_gb = memory_limit_gb
        self.preload = preload
        self.counts = {"timeout": 0, "error": 0, "crash": 0}
        self._has_started = False
        self._pool: ProcessPool | None = None
        self._finalizer: weakref.finalize | None = None
        self._lock = threading.Lock()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result | None]:
        """`function` of each item in order; None where it timed out, raised or took its worker down (counted).

        Args:
            function: a module-level function of a module that is light to import.
            items: picklable.

        Raises:
            UserError: the very first workers cannot start.
        """
        results: list[Result | None] = [None] * len(items)
        pending = list(range(len(items)))
        with self._lock:
            for _ in range(_ATTEMPTS):
                if pending:
                    pending = self._attempt(function, items, pending, results)
            self.counts["crash"] += len(pending)
        if pending:
            log.error(
                "grading workers died or hung %d times in a row while they held no item: %d of %d items are lost; "
                "is something killing them, or is the machine out of memory?",
                _ATTEMPTS,
                len(pending),
                len(items),
            )
        return results

    def close(self) -> None:
        """Kill the workers. The next `map` starts new ones."""
        with self._lock:
            self._stop()

    def _attempt(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        rows: list[int],
        results: list[Result | None],
    ) -> list[int]:
        """Fill `results` at `rows`; return the rows that no worker took up because the pool broke."""
        pool = self._running_pool()
        if pool is None:
            return rows
        futures: list[Future[Result]] = []
        for row in rows:
            try:
                futures.append(pool.schedule(function, args=(items[row],), timeout=self.timeout_s))
            except RuntimeError:  # the pool broke meanwhile: this row and the later ones go to the next attempt
                break
        lost = rows[len(futures) :]
        for row, future in zip(rows, futures, strict=False):
            # The rows before this one are done, so a worker takes it up as soon as one is free or replaced.
            error = _outcome(pool, future, within_s=2 * self.timeout_s + _START_S)
            if error is None:
                results[row] = future.result()
            elif isinstance(error, BrokenProcessPool):
                self._stop()
                lost.append(row)
            else:
                self.counts[_kind(error)] += 1
        return lost

    def _running_pool(self) -> ProcessPool | None:
        """The pool with live workers; None if workers that started once do not start again."""
        if self._pool is not None and self._pool.active:
            return self._pool
        self._stop()
        pool = ProcessPool(
            max_workers=self.workers,
            max_tasks=_TASKS_A_WORKER,
            initializer=enter_sandbox,
            initargs=(self.memory_limit_gb, os.getpid(), self.preload),
            context=BareSpawnContext(),
        )
        # Linux sends the parent-death signal when the *thread* that started the child ends, and the caller's
        # thread may be short-lived; this one lives as long as the pool.
        launcher = ThreadPoolExecutor(1, thread_name_prefix="grading-launcher")
        launcher.submit(lambda: pool.active).result()
        self._pool = pool
        self._finalizer = weakref.finalize(self, _stop, pool, launcher)
        if _outcome(pool, pool.schedule(os.getpid), within_s=_START_S) is None:
            self._has_started = True
            return pool
        self._stop()
        if self._has_started:
            return None
        raise UserError(
            f"grading workers do not start with memory_limit_gb={self.memory_limit_gb}; their own message is above"
        )

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._pool = self._finalizer = None


def _stop(pool: ProcessPool, launcher: ThreadPoolExecutor) -> None:
    pool.stop()
    pool.join()
    launcher.shutdown()


def _outcome(pool: ProcessPool, future: "Future[Result]", within_s: float) -> BaseException | None:
    """Wait for the future's exception, or None.

    BrokenProcessPool where none comes: a broken pool never resolves the items it had still queued, and one whose
    worker was killed while it held the lock of the pipe hands out no items and ends none.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            return future.exception(timeout=_POLL_S if pool.active else 0)
        except TimeoutError:
            if not pool.active or time.monotonic() > deadline:
                return BrokenProcessPool("the pool broke before this item began")


def _kind(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return "crash" if isinstance(error, ProcessExpired) else "error"
