"""What a grading process gives up before it sees text that a model wrote.

Scorers hand such text to `eval` (sympy's parser and several of reasoning_gym's scorers do). Two layers are the
kernel's, where it offers them, and hold whatever the text makes the interpreter do: `_seccomp` (no process, thread,
socket, signal or write) and `_landlock` (no file but what an import reads). The others hold everywhere: limits, no
descriptor of another process, and a Python that has lost the means. Those last are no jail against code that is written
to break out of the interpreter; they stop what a policy can stumble upon.

Imported in the workers, so it must stay light: no torch.
"""

import ctypes
import importlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_grpo.rewards import _interpreter, _landlock, _seccomp
from edge_grpo.rewards._load import module_of

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the parent dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the call above
        os._exit(1)


def limit_memory(memory_limit_gb: float) -> None:
    """Limit the address space to that many GiB, for this process and its children (Linux only)."""
    if sys.platform == "linux":
        limit = int(memory_limit_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def preload(modules: Sequence[str]) -> None:
    """Import modules (or files) and call their `warm_up`, where they have one, so that no item's time-out pays for it.

    Modules that are built in are imported too: a confined process cannot do it any more.
    """
    for name in modules:
        getattr(module_of(name), "warm_up", lambda: None)()
    for name in sys.builtin_module_names:
        if name not in _interpreter.BANNED_MODULES:
            importlib.import_module(name)


@dataclass(frozen=True)
class Sandbox:
    """The layers that confine a process: limits and closed descriptors always, and those named here.

    Attributes:
        layers: of "landlock", "seccomp" (found out by trying) and "interpreter" those that hold.
        ruleset: descriptor of the Landlock ruleset, or None.
    """

    layers: tuple[str, ...]
    ruleset: int | None

    @classmethod
    def of_this_kernel(cls, wanted: Sequence[str]) -> "Sandbox":
        """Those of the wanted layers that a child process can put in force. Call it where there is one thread."""
        libc = ctypes.CDLL(None, use_errno=True)
        layers, ruleset = [], None
        if "landlock" in wanted and sys.platform == "linux":
            try:
                ruleset = _landlock.create_ruleset(libc, _landlock.import_paths())
            except OSError:
                ruleset = None
            if ruleset is not None and _holds(lambda: _landlock.restrict_self(libc, ruleset)):
                layers.append("landlock")
        if "seccomp" in wanted and sys.platform == "linux" and _holds(lambda: _seccomp.apply(libc)):
            layers.append("seccomp")
        if "interpreter" in wanted:
            layers.append("interpreter")
        return cls(tuple(layers), ruleset if "landlock" in layers else None)

    def enter(self, pipes: set[int]) -> None:
        """Give up everything but computing, reading and these pipes, for good.

        Raises:
            OSError: a layer cannot be put in force. The caller must not go on.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        _close_others(pipes if self.ruleset is None else {*pipes, self.ruleset})
        for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(limit, (0, 0))
        if self.ruleset is not None:
            _landlock.restrict_self(libc, self.ruleset)
            os.close(self.ruleset)
        if "seccomp" in self.layers:
            _seccomp.apply(libc)
        del libc
        if "interpreter" in self.layers:
            _interpreter.disarm()


def _holds(apply: Callable[[], None]) -> bool:
    """Whether a child process puts the layer in force and lives."""
    pid = os.fork()
    if pid == 0:
        try:
            apply()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _close_others(kept: set[int]) -> None:
    """Close all descriptors but these; standard input, output and error lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_536))
