"""A seccomp filter: a process may make the system calls that a computation needs, and no others.

Everything that is not named here fails with EPERM: starting processes and threads, sockets, signals, writing to the
file system, shared memory, changing other processes. Files open for reading only. See seccomp(2).

Our own filter, because no library would do: pyseccomp's last release is from 2021 and needs libseccomp.so, seccompy is
months old, and sandlock starts the process itself. An allow-list needs no numbers beyond these.
"""

import ctypes
import os
import platform
import struct

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2

# Classic BPF: (code, jump if true, jump if false, k); jumps count the instructions that are skipped.
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _DENY = (_RETURN, 0, 0, 0x7FFF0000), (_RETURN, 0, 0, 0x00050000 | 1)  # SECCOMP_RET_ALLOW, _ERRNO | EPERM
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data; argument i stands at 16 + 8 * i

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: number on x86_64, on aarch64 (None: does not exist there)
_ALLOWED: dict[str, tuple[int, int | None]] = {
    **{"read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67)},
    **{"readv": (19, 65), "writev": (20, 66), "poll": (7, None), "ppoll": (271, 73), "select": (23, None)},
    **{"pselect6": (270, 72), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79)},
    **{"statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439)},
    **{"readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "getdents64": (217, 61)},
    **{"mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233)},
    **{"brk": (12, 214), "futex": (202, 98), "rseq": (334, 293), "sched_yield": (24, 124)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132)},
    **{"restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94), "getrandom": (318, 278)},
    **{"nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114)},
    **{"gettimeofday": (96, 169), "times": (100, 153), "getrusage": (98, 165), "sched_getaffinity": (204, 123)},
    **{"getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175)},
    **{"getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160), "sysinfo": (99, 179)},
}
_OPENAT, _FCNTL, _IOCTL = (257, 56), (72, 25), (16, 29)
_O_TMPFILE = 0o20000000
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _O_TMPFILE
_FCNTL_COMMANDS = (1, 2, 3)  # F_GETFD, F_SETFD, F_GETFL; F_SETOWN would send signals to other processes
_IOCTL_COMMANDS = (0x5401, 0x5451)  # TCGETS (isatty), FIOCLEX; TIOCSTI would type into a terminal


def apply(libc: ctypes.CDLL) -> None:
    """Put the filter in force for this process, for good.

    Raises:
        OSError: the kernel or the processor's architecture does not offer it.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(f"no seccomp filter for {machine}")
    program = b"".join(struct.pack("=HBBI", *step) for step in _program(machine))
    steps = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))  # struct sock_fprog
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _program(machine: str) -> list[tuple[int, int, int, int]]:
    column = list(_ARCHITECTURES).index(machine)
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_IF_EQUAL, 1, 0, _ARCHITECTURES[machine]), _DENY]
    steps.append((_LOAD, 0, 0, _NUMBER))
    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            steps += [(_JUMP_IF_EQUAL, 0, 1, number), _ALLOW]
    steps += [(_JUMP_IF_EQUAL, 0, 4, _OPENAT[column]), _argument(2), (_JUMP_IF_ANY_BIT, 0, 1, _WRITE_FLAGS)]
    steps += [_DENY, _ALLOW]
    steps += _only(_FCNTL[column], _FCNTL_COMMANDS)
    steps += _only(_IOCTL[column], _IOCTL_COMMANDS)
    return [*steps, _DENY]


def _only(number: int, commands: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """The call of that number is allowed if its second argument is one of the commands."""
    steps = [_argument(1)]
    for command in commands:
        steps += [(_JUMP_IF_EQUAL, 0, 1, command), _ALLOW]
    steps.append(_DENY)
    return [(_JUMP_IF_EQUAL, 0, len(steps), number), *steps]


def _argument(index: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, 16 + 8 * index)  # the low half, which is all that the kernel reads of these; little-endian
