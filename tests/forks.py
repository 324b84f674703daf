"""Programs that begin with the libraries imported: forks of a server that imports them once.

For a test that needs a process of its own (argv, folder, environment, output, exit code) and not how Python starts one:
it saves the seconds of imports of `python -m edge_grpo.programs.train`. `Forks.start` and `Forks.run` stand for
`subprocess.Popen` and `subprocess.run`. What is about the start itself, or about which modules are imported, takes
`subprocess`.

The server runs this file. It has one thread and does nothing but fork: for every request a process that waits, and from
that the program, which leaves the server's code and ends as any interpreter does. The workers of pytest-xdist can share
one: the first that needs it starts it, and it ends with the last.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
# What these say is read when a library is imported, so the programs of a server have them alike.
READ_ONCE = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "PYTHONHASHSEED")
LONGEST = 100_000  # bytes of a request, which is one datagram


class Forks:
    """A server and its programs. It starts with the first of them and ends with this object.

    Args:
        preload: modules that the server imports.
        environment: the server's. A program has its own, in which `READ_ONCE` must be as here.
        shared: whether the workers of pytest-xdist share it, with whoever asks there for the same.
    """

    def __init__(self, preload: Sequence[str], environment: Mapping[str, str], *, shared: bool = False) -> None:
        self._preload = tuple(preload)
        self._environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
        self._shared = shared
        self._control: socket.socket | None = None

    def start(self, *argv: str, cwd: Path, env: Mapping[str, str], merged: bool = True) -> "Program":
        """`python ARGV`, where `argv` is `-m`, a module and its arguments, or a file and its arguments.

        Args:
            argv: what follows `python`.
            cwd: the folder that it starts in.
            env: all of its environment.
            merged: whether its errors go where its output goes.

        Raises:
            ValueError: a variable of `READ_ONCE` is not the server's.
        """
        if other := [name for name in READ_ONCE if env.get(name) != self._environment.get(name)]:
            raise ValueError(f"{other} must be the server's: its libraries have read them")
        self._control = self._control or self._started()
        request = json.dumps({"argv": argv, "cwd": str(cwd), "env": dict(env)}).encode()
        # Pipes that nobody reads could fill. `Program` keeps these files open.
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            files = [output.fileno(), (output if merged else errors).fileno(), there.fileno()]
            socket.send_fds(self._control, [request], files)
        return Program(here, output, errors)

    def run(self, *argv: str, cwd: Path, env: Mapping[str, str], timeout: float) -> "subprocess.CompletedProcess[str]":
        """Start it and wait for its end, for `timeout` seconds at most."""
        program = self.start(*argv, cwd=cwd, env=env, merged=False)
        try:
            output, errors = program.communicate(timeout)
        finally:
            program.kill()
        return subprocess.CompletedProcess(argv, program.wait(), output, errors)

    def _started(self) -> socket.socket:
        """What the server hears requests at. Its life is the other end: closed, if by this process's death, it ends."""
        session = os.environ.get("PYTEST_XDIST_TESTRUNUID") if self._shared else None
        if session is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            server = self._server(theirs)
        else:
            read_once = [self._environment.get(name) for name in READ_ONCE]
            place = f"\0forks-{session}-{zlib.crc32(repr((self._preload, read_once)).encode())}"
            server, listening = None, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                listening.bind(place)
            except OSError:  # another worker was first
                listening.close()
            else:
                listening.listen()
                server = self._server(listening)
            ours = _connected(place)
        weakref.finalize(self, _end, ours, server)
        return ours

    def _server(self, control: socket.socket) -> "subprocess.Popen[bytes]":
        with control:
            return subprocess.Popen(
                [sys.executable, __file__, str(control.fileno()), *self._preload],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[control.fileno()],
            )


def _connected(place: str) -> socket.socket:
    """At once: who was first may be between `bind` and `listen`."""
    deadline = time.monotonic() + 20
    while True:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.connect(place)
            return ours
        except ConnectionRefusedError:
            ours.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _end(control: socket.socket, server: "subprocess.Popen[bytes] | None") -> None:
    control.close()
    if server is not None:
        server.wait()


class Program:
    """A program that was started, with what the tests use of `subprocess.Popen`."""

    def __init__(self, waiting: socket.socket, output: Any, errors: Any) -> None:
        self._waiting, self._output, self._errors = waiting, output, errors
        self.pid = self._told()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or minus the number of the signal that ended it; None while it is at work."""
        try:
            return self.wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            self._waiting.settimeout(timeout)
            try:
                self.returncode = self._told()
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0) from None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All of its output and of its errors, once it has ended."""
        self.wait(timeout)
        return _read(self._output), _read(self._errors)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _told(self) -> int:
        if not (message := self._waiting.recv(64)):
            raise RuntimeError("the server of this program has ended; its errors are above")
        return int(message)


def _read(file: Any) -> str:
    file.seek(0)
    return file.read().decode()


# The server


def main() -> None:
    control, *preload = sys.argv[1:]
    own = sys.path[1:]  # without this file's folder
    sys.path[:] = [str(REPO), *own]
    for name in preload:
        importlib.import_module(name)
    if threads := _threads():
        raise RuntimeError(f"imports have started threads, which a fork would not have: {threads}")
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    _become(_served(socket.socket(fileno=int(control))), own)


def _threads() -> list[str]:
    """The names of threads besides this one (Linux); without jemalloc's, which it starts again in a fork."""
    folder = Path("/proc/self/task")
    others = [path for path in folder.glob("*") if path.name != str(os.getpid())]
    return [name for path in others if (name := (path / "comm").read_text().strip()) != "jemalloc_bg_thd"]


def _served(control: socket.socket) -> dict[str, Any]:
    """Fork a program for every request; returns in the program alone, with its request.

    Args:
        control: where requests come in, or where those who have any connect.
    """
    shared = control.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    sockets, waiting_processes = [control], set[int]()
    while True:
        asking = select.select(sockets, [], [])[0][0]
        if shared and asking is control:
            sockets += _accepted(control)
            continue
        message, files, _, _ = socket.recv_fds(asking, LONGEST, 3)
        if not message:
            asking.close()
            sockets.remove(asking)
            if sockets in ([], [control]):
                raise SystemExit
            continue
        waiting_processes -= {pid for pid in waiting_processes if os.waitpid(pid, os.WNOHANG)[0]}
        if not (pid := os.fork()):
            break
        waiting_processes.add(pid)
        for file in files:
            os.close(file)
    for own in sockets:
        own.close()
    output, errors, waiting = files
    if pid := os.fork():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program's to answer
        os.write(waiting, str(pid).encode())
        os.write(waiting, str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
        os._exit(0)
    os.close(waiting)
    for file, standard in ((output, 1), (errors, 2)):
        os.dup2(file, standard)
        os.close(file)
    return json.loads(message)


def _accepted(control: socket.socket) -> list[socket.socket]:
    """Who connects, unless it is another user of this machine."""
    asking, _ = control.accept()
    _, user, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if user == os.getuid():
        return [asking]
    asking.close()
    return []


def _become(request: dict[str, Any], own: list[str]) -> None:
    """Be the program of the request. `own`: where Python searches for modules whatever its environment says."""
    argv, environment = request["argv"], request["env"]
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(environment)
    is_module = argv[0] == "-m"
    first = os.getcwd() if is_module else str(Path(argv[0]).resolve().parent)
    searched = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*([] if environment.get("PYTHONSAFEPATH") else [first]), *searched, *own]
    importlib.invalidate_caches()
    if is_module:
        sys.argv[:] = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = argv
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
