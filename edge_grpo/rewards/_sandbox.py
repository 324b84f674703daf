"""What a grading worker does before its first task: limits, imports, then a ban on side effects.

Scorers hand text that a model wrote to `eval` (sympy's parser and several of reasoning_gym's scorers do), so a
worker may use memory up to a limit and read files, and nothing else. An audit hook is no jail against a determined
attacker inside the interpreter; it stops what a policy can stumble upon.

Imported in the workers, so it must stay light: no torch.
"""

import ctypes
import importlib
import os
import signal
import sys
from typing import Any

_BANNED_MODULES = frozenset({"ctypes", "os", "pty", "shutil", "socket", "subprocess"})
_ALLOWED_EVENTS = frozenset({"os.listdir", "os.scandir"})  # what an import needs
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PR_SET_PDEATHSIG = 1


def enter_sandbox(memory_limit_gb: float, parent_pid: int, preload: tuple[str, ...]) -> None:
    """Bind this process to its parent's life, limit it, import `preload`, forbid side effects for good.

    Args:
        memory_limit_gb: address space in GiB (enforced on Linux only).
        parent_pid: the process to die with (Linux only).
        preload: modules to import before the first task, so that no task's time-out pays for them.
    """
    # The default action ends even a computation that never returns to the interpreter.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C reaches the whole terminal; the run ends its workers itself once it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        _die_with(parent_pid)
        _limit_memory(memory_limit_gb)
    # A BLAS thread per core would eat the address space on a large machine.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    sys.dont_write_bytecode = True
    for module in preload:
        importlib.import_module(module)
    sys.addaudithook(_forbid_side_effects)


def _die_with(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the call above
        os._exit(1)


def _limit_memory(memory_limit_gb: float) -> None:
    import resource  # absent on Windows

    limit = int(memory_limit_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _forbid_side_effects(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        flags = args[2]
        if isinstance(flags, int) and flags & _WRITE_FLAGS:
            raise PermissionError(f"a grading worker may not write: {args[0]!r}")
    elif event.partition(".")[0] in _BANNED_MODULES and event not in _ALLOWED_EVENTS:
        raise PermissionError(f"a grading worker may not call {event}")
