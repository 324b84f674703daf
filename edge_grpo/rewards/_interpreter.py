"""What an interpreter loses before it evaluates text that a model wrote.

No jail: code that is written to break out of Python can find a way past this (an address and a pointer to a function
are enough). It stops what a policy can stumble upon where the kernel offers nothing better.
"""

import _imp
import importlib
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

# Imports of these are refused, and those that are loaded are emptied: a walk over loaded modules finds nothing either.
BANNED_MODULES = frozenset(
    {"ctypes", "_ctypes", "_ctypes_test", "cffi", "_cffi_backend", "_testcapi", "_testinternalcapi"}
    | {"subprocess", "_posixsubprocess", "multiprocessing", "_multiprocessing", "_posixshmem", "pty", "resource"}
    | {"socket", "_socket", "ssl", "_ssl", "syslog", "fcntl", "termios", "mmap", "readline", "curses", "_curses"}
    | {"sqlite3", "_sqlite3", "dbm", "_dbm", "_gdbm", "_xxsubinterpreters", "_interpreters"}
)
# Functions that change something outside and raise no audit event.
_UNAUDITED_OF_OS = (
    *("mkfifo", "mknod", "nice", "setpriority", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "sync"),
    *("memfd_create", "eventfd", "openpty", "posix_openpt", "login_tty", "pidfd_open", "setns", "unshare", "chroot"),
    *("copy_file_range", "sendfile", "splice", "posix_fallocate", "setpgid", "setsid", "tcsetpgrp"),
)
_UNAUDITED = {
    **{"os": _UNAUDITED_OF_OS, "posix": _UNAUDITED_OF_OS, "time": ("clock_settime", "clock_settime_ns")},
    **{"signal": ("pidfd_send_signal",), "_signal": ("pidfd_send_signal",)},
}
_BANNED_EVENTS = frozenset(
    {"ctypes", "fcntl", "gc", "mmap", "os", "pty", "resource", "shutil", "socket", "sqlite3", "subprocess", "syslog"}
    | {"tempfile"}
)
_ALLOWED_EVENTS = frozenset({"os.listdir", "os.scandir"})  # what an import needs
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def disarm() -> None:
    """Take from this interpreter, for good, what it could reach outside with."""
    for module, functions in _UNAUDITED.items():
        for name in functions:
            importlib.import_module(module).__dict__.pop(name, None)
    for name in [name for name in sys.modules if name.partition(".")[0] in BANNED_MODULES]:
        sys.modules.pop(name).__dict__.clear()
    # Both give back a module that was loaded before, filled anew and unseen by the audit hook. `preload` imported all
    # that are built in; extensions are still loaded from their files.
    del _imp.create_builtin
    _imp.create_dynamic = _create_dynamic(_imp.create_dynamic)
    sys.addaudithook(_audit_hook())


def _create_dynamic(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_imp.create_dynamic`, which makes a module of an extension's file, without the banned modules."""
    banned_modules, text, module_spec, import_error = BANNED_MODULES, str, ModuleSpec, ImportError

    def create_dynamic(spec: ModuleSpec, file: object = None) -> Any:
        name = text(spec.name)
        if name in banned_modules:
            raise import_error(f"a grading process may not import {name}")
        # A spec of our own: theirs could have another name when it is read again.
        return original(module_spec(name, None, origin=text(spec.origin)))

    return create_dynamic


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
