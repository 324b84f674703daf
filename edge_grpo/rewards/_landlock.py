"""A Landlock ruleset: a process may read what Python imports from, and touch no other file, port or process.

See landlock(7). Our own calls, because the libraries for Python are pre-releases or months old, and sandlock needs
Linux 6.7.
"""

import ctypes
import os
import struct
import sys
import sysconfig
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same number on every architecture
_GET_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # number of rights by version; 16 from 5 on
_ALL_PORTS, _ALL_SCOPES = 0b11, 0b11  # TCP bind and connect (version 4); abstract sockets and signals (version 6)
_PR_SET_NO_NEW_PRIVS = 38

_SYSTEM_FILES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime")


def import_paths() -> list[str]:
    """What an import, the dynamic loader and the clock read."""
    folders = [*sys.path, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]
    folders += os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return [*filter(None, folders), *_SYSTEM_FILES, "/usr/share/zoneinfo", "/dev/null", "/dev/urandom"]


def create_ruleset(libc: ctypes.CDLL, readable: Iterable[str]) -> int:
    """A file descriptor of the ruleset that allows reading beneath the paths and nothing else.

    Args:
        libc: opened with `use_errno=True`.
        readable: files and folders; those that do not exist are left out.

    Raises:
        OSError: the kernel does not offer Landlock.
    """
    version = _checked(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION))
    handled = struct.pack(
        "=QQQ",
        (1 << _FILE_RIGHTS.get(version, 16)) - 1,
        _ALL_PORTS if version >= 4 else 0,
        _ALL_SCOPES if version >= 6 else 0,
    )
    ruleset = _checked(libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0))
    for path in dict.fromkeys(readable):
        if os.path.exists(path):
            rights = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
            target = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", rights, target)
            _checked(libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
            os.close(target)
    return ruleset


def restrict_self(libc: ctypes.CDLL, ruleset: int) -> None:
    """Put the ruleset in force for this process, for good.

    Raises:
        OSError: the kernel refuses.
    """
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
