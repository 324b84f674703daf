"""The program of a fork server: it imports what grading needs and forks the processes that grade.

A process that has seen what a model wrote is trusted with nothing. It ends after `items_per_process` items, and its
reply is at most `reply_bytes` of JSON, read with a deadline. This program looks at no item.
"""

import gc
import json
import os
import pickle
import signal
import sys
from typing import Any, NoReturn

from edge_grpo.rewards import _frames
from edge_grpo.rewards._sandbox import Sandbox, die_with_parent, limit_memory, preload


def main() -> None:
    """Serve the parent at standard input and output until it hangs up."""
    # What an import prints must not get between the frames.
    tasks, replies = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    settings = json.loads(_frames.receive(tasks)[1])
    die_with_parent(settings["parent_pid"])
    limit_memory(settings["memory_limit_gb"])
    preload(settings["preload"])
    sandbox = Sandbox.of_this_kernel(settings["layers"])
    # Frozen objects keep their pages shared: no collection in a child writes to them.
    gc.collect()
    gc.freeze()
    children = _Children(sandbox, settings["timeout_s"], settings["items_per_process"], settings["reply_bytes"])
    _frames.send(replies, _frames.READY, json.dumps(sandbox.layers).encode())
    while True:
        try:
            _, task = _frames.receive(tasks)
        except EOFError:
            return
        _frames.send(replies, _frames.TAKEN)
        _frames.send(replies, *children.outcome(task))


class _Children:
    """One child at a time, forked when it is needed."""

    def __init__(self, sandbox: Sandbox, timeout_s: float, items_per_process: int, reply_bytes: int) -> None:
        self._sandbox = sandbox
        self._timeout_s = timeout_s
        self._items_per_process = items_per_process
        self._reply_bytes = reply_bytes
        self._pid: int | None = None
        self._tasks = self._replies = -1
        self._items = 0

    def outcome(self, task: bytes) -> tuple[bytes, bytes]:
        """What became of the task: VALUE with the JSON that the child replied, ERROR, CRASH or TIMEOUT."""
        try:
            if self._pid is None or os.waitpid(self._pid, os.WNOHANG)[0] != 0:
                self._fork()
            self._items += 1
            _frames.send(self._tasks, _frames.TASK, task)
            kind, reply = _frames.receive(self._replies, self._timeout_s, self._reply_bytes)
        except TimeoutError:
            kind, reply = _frames.TIMEOUT, b""
        except _frames.TooLongError:
            kind, reply = _frames.ERROR, b""
        except (OSError, EOFError):
            kind, reply = _frames.CRASH, b""
        else:
            if self._items < self._items_per_process and kind in (_frames.VALUE, _frames.ERROR):
                return kind, reply
        self._end()
        return (kind, reply) if kind in (_frames.VALUE, _frames.TIMEOUT, _frames.CRASH) else (_frames.ERROR, b"")

    def _fork(self) -> None:
        self._end()
        theirs, self._tasks = os.pipe()
        self._replies, writer = os.pipe()
        server = os.getpid()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                _grade_and_exit(theirs, writer, server, self._sandbox)
        finally:
            os.close(theirs)
            os.close(writer)

    def _end(self) -> None:
        for descriptor in (self._tasks, self._replies):
            if descriptor >= 0:
                os.close(descriptor)
        if self._pid is not None:
            try:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
            except (ProcessLookupError, ChildProcessError):  # it ended between two items
                pass
        self._pid, self._tasks, self._replies, self._items = None, -1, -1, 0


def _grade_and_exit(tasks: int, replies: int, server: int, sandbox: Sandbox) -> NoReturn:
    """Confine this process, and answer tasks until the server kills it."""
    try:
        die_with_parent(server)
        sandbox.enter({tasks, replies})
    except BaseException as error:
        os.write(2, f"a grading process cannot be confined: {error!r}\n".encode())
        os._exit(1)
    try:
        while True:
            _, task = _frames.receive(tasks)
            _frames.send(replies, *_graded(task))
    finally:
        os._exit(0)


def _graded(task: bytes) -> tuple[bytes, bytes]:
    try:
        # From the pool, which is trusted; nothing is unpickled on the way back.
        function, item = pickle.loads(task)
        value: Any = function(item)
        return _frames.VALUE, json.dumps(value).encode()
    except BaseException:  # also what ends an interpreter, such as SystemExit
        return _frames.ERROR, b""


if __name__ == "__main__":
    # Ctrl-C reaches the whole terminal; the run ends its workers itself once it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.dont_write_bytecode = True
    main()
