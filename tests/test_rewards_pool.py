"""The pool that grades untrusted text. `eval` stands in for a scorer that evaluates what a model wrote."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import edge_grpo
from edge_grpo.errors import UserError
from edge_grpo.rewards import _frames
from edge_grpo.rewards._fork_server import NotTakenUpError
from edge_grpo.rewards.pool import KillablePool

PID = "__import__('os').getpid()"
WORKER = "__import__('os').getppid()"
KILLED = "__import__('os')._exit(9)"


def evaluate(pool: KillablePool, items: list[str]) -> list[Any]:
    return pool.map(eval, items, lambda value: True)


@pytest.fixture(scope="module")
def pool() -> Iterator[KillablePool]:
    pool = KillablePool(workers=2, timeout_s=1.0, memory_limit_gb=1.0)
    yield pool
    pool.close()


def lost(pool: KillablePool, item: str) -> dict[str, int]:
    """What the pool counts for an item that must come back as None."""
    before = dict(pool.counts)
    assert evaluate(pool, [item]) == [None]
    return {name: pool.counts[name] - before[name] for name in before}


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool], limit_s: float = 10.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_frame_that_nobody_takes_is_given_up() -> None:
    reader, writer = os.pipe()
    with pytest.raises(TimeoutError):
        _frames.send(writer, _frames.TASK, bytes(200_000), within_s=0.1)  # more than a pipe holds
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        _frames.send(writer, _frames.TASK, bytes(200_000), within_s=0.1)
    os.close(writer)


def test_order_is_kept_though_the_first_item_is_the_slowest(pool: KillablePool) -> None:
    assert evaluate(pool, ["__import__('time').sleep(0.3) or 1", "2", "3", "4"]) == [1, 2, 3, 4]


def test_ranks_of_a_node_share_the_workers(pool: KillablePool, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = f"(__import__('time').sleep(0.2), {WORKER})[1]"
    assert len(set(evaluate(pool, [slow] * 2))) == 2
    monkeypatch.setattr(KillablePool, "sharers", 4)
    assert len(set(evaluate(pool, [slow] * 2))) == 1


def test_no_items_start_no_worker() -> None:
    assert evaluate(KillablePool(1, 1.0, 1.0), []) == []


def test_workers_do_not_import_torch(pool: KillablePool) -> None:
    assert evaluate(pool, ["'torch' in __import__('sys').modules"]) == [False]


def test_a_hang_inside_c_code_is_killed_in_time_and_spares_its_neighbour(pool: KillablePool) -> None:
    start, before = time.perf_counter(), pool.counts["timeout"]
    assert evaluate(pool, ["sum(range(10**15))", "1 + 1"]) == [None, 2]
    assert time.perf_counter() - start < 3.0
    assert pool.counts["timeout"] == before + 1


@pytest.mark.parametrize("item", ["1 / 0", "bytearray(8 << 30)", "__import__('sys').exit()"])
def test_exceptions_and_exhausted_memory_are_errors(pool: KillablePool, item: str) -> None:
    assert lost(pool, item) == {"timeout": 0, "error": 1, "crash": 0}


@pytest.mark.parametrize("item", ["__import__('os')._exit(3)", "__import__('os').abort()", KILLED])
def test_a_worker_that_dies_is_a_crash_and_is_replaced(pool: KillablePool, item: str) -> None:
    assert lost(pool, item) == {"timeout": 0, "error": 0, "crash": 1}
    assert evaluate(pool, ["1 + 1"]) == [2]


@pytest.mark.parametrize("item", ["object()", "'x' * 5000", "'forged'", "[" * 90 + "]" * 90])
def test_a_value_that_is_no_result_is_an_error(pool: KillablePool, item: str) -> None:
    before = pool.counts["error"]
    assert pool.map(eval, [item, "2"], lambda value: isinstance(value, int)) == [None, 2]
    assert pool.counts["error"] == before + 1
    assert lost(pool, "[1] * 3000") == {"timeout": 0, "error": 1, "crash": 0}  # more than 4096 bytes of JSON


def test_a_process_does_as_many_items_as_it_may() -> None:
    pool = KillablePool(workers=1, timeout_s=5.0, memory_limit_gb=1.0, items_per_process=2)
    first, second, third, fourth = evaluate(pool, [PID, "1 / 0", PID, PID])
    assert second is None
    assert first != third == fourth
    pool.close()


def test_items_that_kill_their_worker_leave_the_order_and_the_others(pool: KillablePool) -> None:
    items = [KILLED if row % 10 == 5 else str(row) for row in range(30)]
    assert evaluate(pool, items) == [None if row % 10 == 5 else row for row in range(30)]


@pytest.mark.parametrize("killed", [PID, WORKER])
def test_a_worker_or_its_process_killed_from_outside_costs_the_item_it_held(killed: str) -> None:
    pool = KillablePool(workers=2, timeout_s=20.0, memory_limit_gb=1.0, items_per_process=100)
    pids = evaluate(pool, [f"__import__('time').sleep(0.5) or {killed}"] * 2)
    items = [f"__import__('time').sleep(0.3) or {row}" for row in range(8)]
    with ThreadPoolExecutor(1) as caller:
        results = caller.submit(evaluate, pool, items)
        time.sleep(0.7)
        assert pids[0] is not None
        os.kill(pids[0], signal.SIGKILL)
        taken = results.result()
    assert taken.count(None) == 1
    assert [value for value in taken if value is not None] == [row for row in range(8) if taken[row] is not None]
    assert pool.counts == {"timeout": 0, "error": 0, "crash": 1}
    pool.close()


def test_calls_from_several_threads_each_get_their_own_results(pool: KillablePool) -> None:
    with ThreadPoolExecutor(4) as callers:
        calls = [[str(10 * caller + row) for row in range(10)] for caller in range(8)]
        assert list(callers.map(lambda items: evaluate(pool, items), calls)) == [
            [int(item) for item in items] for items in calls
        ]


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
def test_workers_that_do_not_start_again_lose_the_items_and_raise_nothing(caplog: pytest.LogCaptureFixture) -> None:
    pool = KillablePool(workers=1, timeout_s=5.0, memory_limit_gb=1.0, preload=("sympy",))
    assert evaluate(pool, ["1 + 1"]) == [2]
    pool.close()
    pool.memory_limit_gb = 0.01
    assert evaluate(pool, ["1", "2", "3"]) == [None, None, None]
    assert pool.counts == {"timeout": 0, "error": 0, "crash": 3}
    assert [record.levelname for record in caplog.records if record.name == "edge_grpo.rewards.pool"] == ["ERROR"]
    assert "3 of 3 items" in caplog.text
    pool.memory_limit_gb = 1.0
    assert evaluate(pool, ["1 + 1"]) == [2]
    pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_that_are_stopped_while_idle_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = KillablePool(workers=1, timeout_s=0.5, memory_limit_gb=1.0)
    (pid,) = evaluate(pool, [WORKER])
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr("edge_grpo.rewards.pool._START_S", 3.0)
    assert evaluate(pool, ["1" + 200_000 * " ", "2"]) == [1, 2]  # more than a pipe holds
    assert pool.counts == {"timeout": 0, "error": 0, "crash": 0}
    assert not is_running(pid)
    pool.close()


def test_workers_survive_the_thread_that_started_them_and_are_replaced_when_killed() -> None:
    pool = KillablePool(workers=1, timeout_s=5.0, memory_limit_gb=1.0)
    with ThreadPoolExecutor(1) as short_lived:
        (first,) = short_lived.submit(evaluate, pool, [WORKER]).result()
    assert first is not None
    assert evaluate(pool, [WORKER]) == [first]

    os.kill(first, signal.SIGKILL)
    (second,) = evaluate(pool, [WORKER])
    assert second is not None
    assert second != first
    assert pool.counts == {"timeout": 0, "error": 0, "crash": 0}  # no item was lost

    pool.close()
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("starts_late", [False, True])
def test_a_call_that_is_given_up_leaves_no_worker(monkeypatch: pytest.MonkeyPatch, starts_late: bool) -> None:
    class FakeServer:
        """The first gives the call up. The second is killed before it takes up its item, or starts after that kill."""

        made: list["FakeServer"] = []  # noqa: RUF012
        layers = ("landlock", "seccomp", "interpreter")

        def __init__(self, *settings: object) -> None:
            self.killed = threading.Event()
            self.made.append(self)
            if starts_late and self is not self.made[0]:
                assert self.made[0].killed.wait(10.0)

        def run(self, *arguments: object) -> tuple[bytes, bytes]:
            if self is self.made[0]:
                assert wait_until(lambda: len(self.made) > 1)
                raise MemoryError
            if starts_late:
                return _frames.CRASH, b""
            assert self.killed.wait(10.0)
            raise NotTakenUpError

        def kill(self) -> None:
            self.killed.set()

    monkeypatch.setattr("edge_grpo.rewards.pool.ForkServer", FakeServer)
    with pytest.raises(MemoryError):
        KillablePool(workers=2, timeout_s=5.0, memory_limit_gb=1.0).map(abs, range(10), bool)
    assert [server.killed.is_set() for server in FakeServer.made] == [True, True]


# Without a `__main__` guard: a worker that ran its parent's script again would print a second line.
SCRIPT = f"""
import os, signal, threading, time
from edge_grpo.rewards.pool import KillablePool
def anything(value): return True
pool = KillablePool(1, 60.0, 1.0, items_per_process=100)
print(*pool.map(eval, [{PID!r}, {WORKER!r}], anything), flush=True)
threading.Thread(target=pool.map, args=(eval, ["sum(range(10**15))"], anything), daemon=True).start()
time.sleep(0.5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_workers_skip_the_parents_script_and_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(edge_grpo.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False, env=environment
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 5.0
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_too_little_memory_to_start_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"memory_limit_gb=0\.01"):
        evaluate(KillablePool(1, 1.0, 0.01, preload=("sympy",)), ["1"])


@pytest.mark.parametrize("arguments", [(0, 1.0, 1.0, 1), (1, 0.0, 1.0, 1), (1, 1.0, -1.0, 1), (1, 1.0, 1.0, 0)])
def test_numbers_must_be_positive(arguments: tuple[int, float, float, int]) -> None:
    with pytest.raises(UserError, match="must be positive"):
        KillablePool(*arguments)
