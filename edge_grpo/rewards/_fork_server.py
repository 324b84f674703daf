"""The pool's side of a fork server."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from edge_grpo.rewards import _frames

# All that a worker gets of the environment: no keys, and one BLAS thread, since one a core would eat the address
# space of a large machine. Hashes are fixed so that a verdict cannot depend on them.
_INHERITED = ("LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ")
_FIXED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


class NotTakenUpError(Exception):
    """The server died or hung before it took up the item."""


class ForkServer:
    """A process that forks those that grade. Not for several threads at once.

    Args:
        settings: `timeout_s`, `memory_limit_gb`, `preload`, `reply_bytes`, `layers` and `items_per_process` of
            `_fork_server_main`.
        start_s: seconds it may take to start.

    Attributes:
        layers: what confines the processes (see `Sandbox`).

    Raises:
        NotTakenUpError: it does not start.
    """

    def __init__(self, settings: dict[str, Any], start_s: float) -> None:
        self._timeout_s: float = settings["timeout_s"]
        # Not the parent's `__main__`: that is the training program, which would load torch into every worker.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edge_grpo.rewards._fork_server_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,  # no terminal to type into
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        try:
            setup = json.dumps({**settings, "parent_pid": os.getpid()}).encode()
            _frames.send(self._tasks, _frames.READY, setup, start_s)
            self.layers: Sequence[str] = json.loads(_frames.receive(self._replies, start_s)[1])
        except (OSError, EOFError) as error:  # a TimeoutError is an OSError
            self.kill()
            raise NotTakenUpError from error

    def run(self, function: Callable[[Any], Any], item: object, start_s: float) -> tuple[bytes, bytes]:
        """The kind of outcome (`_frames`) and, for VALUE, the JSON that a process which is not trusted replied.

        Args:
            function: of a module that the server can import.
            item: its argument.
            start_s: seconds until it must have taken up the item.

        Raises:
            NotTakenUpError: the server is gone, and the item was not begun.
        """
        task = pickle.dumps((function, item))
        try:
            _frames.send(self._tasks, _frames.TASK, task, start_s)
            _frames.receive(self._replies, start_s)
        except (OSError, EOFError) as error:
            self.kill()
            raise NotTakenUpError from error
        try:
            # The server ends an item that takes longer than the time-out: this limit is for a server that hangs.
            return _frames.receive(self._replies, start_s + self._timeout_s)
        except (OSError, EOFError):
            self.kill()
            return _frames.CRASH, b""

    def kill(self) -> None:
        """End it; its child dies with it."""
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**kept, **_FIXED, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
