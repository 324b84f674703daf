"""What an interpreter loses before it evaluates text that a model wrote.

No jail: code that is written to break out of Python can find a way past this (an address and a pointer to a function
are enough). It stops what a policy can stumble upon where the kernel offers nothing better.
"""

import _imp
import importlib
import os
import posix
import sys
from collections.abc import Callable
from typing import Any

# Imports of these are refused, and those that are loaded are emptied: a walk over loaded modules finds nothing either.
BANNED_MODULES = frozenset(
    {"ctypes", "_ctypes", "_ctypes_test", "cffi", "_cffi_backend", "_testcapi", "_testinternalcapi"}
    | {"subprocess", "_posixsubprocess", "multiprocessing", "_multiprocessing", "_posixshmem", "pty", "resource"}
    | {"socket", "_socket", "ssl", "_ssl", "syslog", "fcntl", "termios", "mmap", "readline", "curses", "_curses"}
    | {"sqlite3", "_sqlite3", "dbm", "_dbm", "_gdbm", "_xxsubinterpreters", "_interpreters"}
)
# Functions of os that change something outside and raise no audit event.
_UNAUDITED = (
    *("mkfifo", "mknod", "nice", "setpriority", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "sync"),
    *("memfd_create", "eventfd", "openpty", "posix_openpt", "login_tty", "pidfd_open", "setns", "unshare", "chroot"),
    *("copy_file_range", "sendfile", "splice", "posix_fallocate", "setpgid", "setsid", "tcsetpgrp"),
)
_BANNED_EVENTS = frozenset(
    {"ctypes", "fcntl", "gc", "mmap", "os", "pty", "resource", "shutil", "socket", "sqlite3", "subprocess", "syslog"}
    | {"tempfile"}
)
_ALLOWED_EVENTS = frozenset({"os.listdir", "os.scandir"})  # what an import needs
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def disarm() -> None:
    """Take from this interpreter, for good, what it could reach outside with."""
    for name in _UNAUDITED:
        posix.__dict__.pop(name, None)
        os.__dict__.pop(name, None)
    for name in ("signal", "_signal"):
        importlib.import_module(name).__dict__.pop("pidfd_send_signal", None)
    for name in [name for name in sys.modules if name.partition(".")[0] in BANNED_MODULES]:
        sys.modules.pop(name).__dict__.clear()
    # It would make a fresh copy of a module that is built in, unseen by the audit hook; `preload` imported them all.
    del _imp.create_builtin
    sys.addaudithook(_audit_hook())


def _audit_hook() -> Callable[[str, tuple[Any, ...]], None]:
    """The hook. Its names are bound here, out of reach of code that changes modules or builtins."""
    banned_modules, banned_events, allowed_events = BANNED_MODULES, _BANNED_EVENTS, _ALLOWED_EVENTS
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
