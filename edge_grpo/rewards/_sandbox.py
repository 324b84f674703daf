"""What a grading process gives up before it sees text that a model wrote.

Scorers hand such text to `eval` (sympy's parser and several of reasoning_gym's scorers do). Two layers are the
kernel's, where it offers them, and hold whatever the text makes the interpreter do: `_seccomp` (no process, thread,
socket, signal or write) and `_landlock` (no file but what an import reads). The others hold everywhere: limits, no
descriptor of another process, and a Python that has lost the means. Those last are no jail against code that is written
to break out of the interpreter; they stop what a policy can stumble upon.

Imported in the workers, so it must stay light: no torch.
"""

import _imp
import ctypes
import importlib
import os
import posix
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edge_grpo.rewards import _landlock, _seccomp

_PR_SET_PDEATHSIG = 1

# Imports of these are refused, and those that are loaded are emptied: a walk over loaded modules finds nothing either.
_BANNED_MODULES = frozenset(
    "_ctypes _ctypes_test ctypes cffi _cffi_backend _posixsubprocess subprocess pty _socket socket ssl _ssl "
    "multiprocessing _multiprocessing _posixshmem mmap fcntl termios resource sqlite3 _sqlite3 dbm _dbm _gdbm "
    "readline curses _curses syslog _testcapi _testinternalcapi _xxsubinterpreters _interpreters".split()
)
# Python raises no audit event for these, so they are taken away.
_UNAUDITED = (
    "mkfifo mknod nice setpriority sched_setaffinity sched_setparam sched_setscheduler memfd_create eventfd openpty "
    "posix_openpt login_tty pidfd_open setns unshare chroot copy_file_range sendfile splice sync posix_fallocate "
    "setpgid setsid tcsetpgrp"
).split()
_BANNED_EVENTS = frozenset(
    "ctypes fcntl gc mmap os pty resource shutil socket sqlite3 subprocess syslog tempfile".split()
)
_ALLOWED_EVENTS = frozenset({"os.listdir", "os.scandir"})  # what an import needs
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


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
    """Import the modules and call their `warm_up`, where they have one, so that no item's time-out pays for it.

    Modules that are built in are imported too: a confined process cannot do it any more.
    """
    for name in modules:
        getattr(importlib.import_module(name), "warm_up", lambda: None)()
    for name in sys.builtin_module_names:
        if name not in _BANNED_MODULES:
            importlib.import_module(name)


@dataclass(frozen=True)
class Sandbox:
    """The layers that the kernel offers, found out by trying, and those that need nothing of it.

    Attributes:
        layers: of "landlock" and "seccomp" those that hold.
        ruleset: descriptor of the Landlock ruleset, or None.
    """

    layers: tuple[str, ...]
    ruleset: int | None

    @classmethod
    def of_this_kernel(cls, wanted: Sequence[str]) -> "Sandbox":
        """Those of the wanted layers that a child process could put in force. Call it where there is one thread."""
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
        _remove_means()
        sys.addaudithook(_guard())


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


def _remove_means() -> None:
    """Take from the interpreter what it could reach outside with."""
    for name in _UNAUDITED:
        posix.__dict__.pop(name, None)
        os.__dict__.pop(name, None)
    importlib.import_module("signal").__dict__.pop("pidfd_send_signal", None)
    importlib.import_module("_signal").__dict__.pop("pidfd_send_signal", None)
    for name in [name for name in sys.modules if name.partition(".")[0] in _BANNED_MODULES]:
        sys.modules.pop(name).__dict__.clear()
    # It would make a fresh copy of a module that is built in, unseen by the audit hook; `preload` imported them all.
    del _imp.create_builtin


def _guard() -> Callable[[str, tuple[Any, ...]], None]:
    """The audit hook. Its names are bound here, out of reach of code that changes modules or builtins."""
    banned_modules, banned_events, allowed_events = _BANNED_MODULES | {"posix"}, _BANNED_EVENTS, _ALLOWED_EVENTS
    write_flags, is_instance, integer, text = _WRITE_FLAGS, isinstance, int, str
    permission_error, import_error = PermissionError, ImportError

    def forbid(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            flags = args[2]
            if is_instance(flags, integer) and flags & write_flags:
                raise permission_error("a grading process may not write")
        elif event == "import":
            parts = text(args[0]).split(".")
            if parts[0] in banned_modules or parts[-1] in banned_modules:
                raise import_error(f"a grading process may not import {args[0]}")
        elif event == "code.__new__" or (event.partition(".")[0] in banned_events and event not in allowed_events):
            raise permission_error(f"a grading process may not call {event}")

    return forbid
