"""Attempts to get out of a grading process, and what each could leave behind.

An attempt is a Python expression for `eval`, as a scorer evaluates an answer. Names in capitals are filled in by
`Surroundings`: FOLDER, CANARY (a file there that does not exist), KEPT and SECRET (files that do), VICTIM (a process),
PORT (a listening socket on this machine), ABSTRACT (a listening Unix socket) and SHARED (a name in shared memory). An
attempt has left a trace if any of these is not as it was before, if it returns the word of SECRET or "escaped", or if
the answer after it is not graded as it should be. The two memory bombs need 0.625 GiB.
"""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

WORD = "the word that nobody may read"
NEXT, NEXT_RESULT = "6 * 7", 42

_OPEN = "open('CANARY', 'w')"
_TOUCH = "['/bin/touch', 'CANARY']"
_SYSTEM = "system('touch CANARY')"
# For its own pipe of errors it gets files, because a confined process gets no pipe.
_FORK_EXEC = (
    "([b'/bin/touch', b'CANARY'], (b'/bin/touch',), False, (), None, None, -1, -1, -1, -1, -1, -1, "
    "__import__('os').open('/dev/null', 0), __import__('os').open('/dev/null', 0), "
    "True, False, -1, None, None, None, -1, None, False)"
)
_FLOOD = "[print(file=open(n, 'wb', closefd=False)) for n in range(3, 64)]"


@dataclass(frozen=True)
class Escape:
    """An attempt.

    Attributes:
        name: what is attempted.
        source: the expression.
        only: the layer of the kernel without which it succeeds, or None where the portable layers stop it too.
        is_controlled: whether it leaves a trace where nothing protects. False: it is aimed at the pool itself.
    """

    name: str
    source: str
    only: str | None = None
    is_controlled: bool = True


def _import(module: str, rest: str) -> str:
    return f"__import__('{module}').{rest}"


def _call(function: str, rest: str) -> str:
    return f"(lambda f: f{rest})({function})"


ESCAPES = (
    # processes
    Escape("os.system", _import("os", _SYSTEM)),
    Escape("os.popen", _import("os", "popen('touch CANARY').read()")),
    Escape("subprocess", _import("subprocess", f"run({_TOUCH})")),
    Escape("subprocess, loaded", f"__import__('sys').modules['subprocess'].run({_TOUCH})"),
    Escape("subprocess, by subclass", f"[c for c in object.__subclasses__() if c.__name__ == 'Popen'][0]({_TOUCH})"),
    Escape("fork_exec", _import("_posixsubprocess", "fork_exec") + _FORK_EXEC),
    Escape("fork_exec of subprocess", _import("subprocess", "_fork_exec") + _FORK_EXEC),
    Escape(
        "fork_exec, by a class's globals",
        "[c for c in object.__subclasses__() if c.__name__ == 'Popen'][0].__init__.__globals__['_fork_exec']"
        + _FORK_EXEC,
    ),
    Escape(
        "fork_exec, by gc",
        "[o for o in __import__('gc').get_objects() if getattr(o, '__name__', 0) == 'fork_exec'][0]" + _FORK_EXEC,
    ),
    Escape(
        "fork_exec, loaded from its file under another name",
        "(lambda u, s: u.module_from_spec(u.spec_from_file_location('x._posixsubprocess', s.origin)))"
        "(__import__('importlib.util').util, __import__('importlib.util').util.find_spec('_posixsubprocess'))"
        ".fork_exec" + _FORK_EXEC,
    ),
    Escape("fork", _call(_import("os", "fork()"), f" or ({_OPEN}, {_import('os', '_exit(0)')})")),
    Escape("posix_spawn", _import("os", f"posix_spawn('/bin/touch', {_TOUCH}, {{}})")),
    Escape("exec", _import("os", f"execv('/bin/touch', {_TOUCH})")),
    Escape("pty", _import("pty", f"spawn({_TOUCH})")),
    Escape("multiprocessing", _import("multiprocessing", f"Process(target=open, args={_TOUCH}[1:] + ['w']).start()")),
    Escape("posix, by its loader", f"__import__('_frozen_importlib').BuiltinImporter.load_module('posix').{_SYSTEM}"),
    Escape(
        "posix, made anew",
        "__import__('_imp').create_builtin(__import__('importlib.machinery').machinery.ModuleSpec('posix', None))"
        ".mkfifo('CANARY')",
    ),
    Escape(
        "os, by a subclass's globals",
        "[c for c in object.__subclasses__() if c.__name__ == '_wrap_close'][0].__init__.__globals__['system']"
        "('touch CANARY')",
    ),
    Escape("os, by a frame", f"__import__('sys')._getframe().f_builtins['__import__']('os').{_SYSTEM}"),
    Escape("os, by importlib", f"__import__('importlib').import_module('os').{_SYSTEM}"),
    # foreign functions and other interpreters
    Escape("ctypes", _import("ctypes", "CDLL(None).system(b'touch CANARY')")),
    Escape(
        "_ctypes",
        _import(
            "_ctypes",
            "call_function(__import__('_ctypes').dlsym(__import__('_ctypes').dlopen(None, 2), 'system'), "
            "(b'touch CANARY',))",
        ),
    ),
    Escape(
        "ctypes, by loaded modules",
        "[m for m in list(__import__('sys').modules.values()) if 'CDLL' in vars(m)][0].CDLL(None)"
        ".system(b'touch CANARY')",
    ),
    Escape(
        "subinterpreter",
        "(lambda i: i.run_string(i.create(), \"open('CANARY', 'w')\"))(__import__('_xxsubinterpreters'))",
    ),
    # later, or elsewhere in the process
    Escape("thread", _call(_import("threading", "Thread(target=open, args=('CANARY', 'w'))"), ".start() or f.join()")),
    Escape("atexit", _import("atexit", "register(open, 'CANARY', 'w')") + f" and {_import('sys', 'exit()')}"),
    Escape(
        "result that opens a file", "type('X', (), {'__reduce__': lambda x: (open, ('CANARY', 'w'))})()", None, False
    ),
    Escape("eval of the next answer", "setattr(__import__('builtins'), 'eval', lambda text: 'escaped')"),
    Escape(
        "the hook's constants",
        f"setattr(__import__('edge_grpo.rewards._interpreter', None, None, ['x']), '_WRITE_FLAGS', 0) or {_OPEN}",
    ),
    Escape("the hook's builtins", f"setattr(__import__('builtins'), 'isinstance', lambda *x: False) or {_OPEN}"),
    Escape("a write to every descriptor", _FLOOD, None, False),
    Escape("a forged reply", "__import__('os').write(4, b'=\\x0a\\x00\\x00\\x00\"escaped\"')", None, False),
    # files
    Escape("open", _OPEN),
    Escape("FileIO", _import("_io", "FileIO('CANARY', 'w')")),
    Escape("os.open", _import("os", "open('CANARY', 64 | 1)")),
    Escape("pathlib", _import("pathlib", "Path('CANARY').touch()")),
    Escape("mkdir", _import("os", "mkdir('CANARY')")),
    Escape("mkfifo", _import("os", "mkfifo('CANARY')")),
    Escape("mknod", _import("os", "mknod('CANARY')")),
    Escape("symlink", _import("os", "symlink('/', 'CANARY')")),
    Escape("link", _import("os", "link('KEPT', 'CANARY')")),
    Escape("rename", _import("os", "rename('KEPT', 'CANARY')")),
    Escape("remove", _import("os", "remove('KEPT')")),
    Escape("truncate", _import("os", "truncate('KEPT', 0)")),
    Escape("chmod", _import("os", "chmod('KEPT', 0)")),
    Escape("utime", _import("os", "utime('KEPT', (1, 1))")),
    Escape("copy", _import("shutil", "copy('KEPT', 'CANARY')")),
    Escape("temporary file", _import("tempfile", "mkstemp(dir='FOLDER')")),
    Escape("sqlite", _import("sqlite3", "connect('CANARY').execute('create table x(y)')")),
    Escape("shared memory", _import("_posixshmem", "shm_open('/SHARED', 64 | 2, 0o600)")),
    Escape("/proc/self/mem", "open('/proc/self/mem', 'r+b') and 'escaped'"),
    Escape("/proc of another process", "open('/proc/VICTIM/mem', 'rb') and 'escaped'", "landlock"),
    Escape("reading a file", "open('SECRET').read()", "landlock"),
    Escape("the environment", _import("os", "environ['EDGE_GRPO_ESCAPES_WORD']")),
    Escape(
        "the environment of the parent",
        "WORD in open('/proc/VICTIM/environ').read() and WORD".replace("WORD", repr(WORD)),
        "landlock",
    ),
    # other processes
    Escape("kill", _import("os", "kill(VICTIM, 9)")),
    Escape("killpg", _import("os", "killpg(VICTIM, 9)")),
    Escape("kill by descriptor", _import("signal", "pidfd_send_signal(__import__('os').pidfd_open(VICTIM), 9)")),
    Escape("kill the parent", _import("os", "kill(__import__('os').getppid(), 9)"), None, False),
    Escape("stop the parent", _import("os", "kill(__import__('os').getppid(), 19)"), None, False),
    Escape("priority", _import("os", "setpriority(0, VICTIM, 19)")),
    Escape("limits", _import("resource", "prlimit(VICTIM, 7, (64, 64))")),
    # the network
    Escape("TCP", _import("socket", "create_connection(('127.0.0.1', PORT))")),
    Escape("_socket", _import("_socket", "socket().connect(('127.0.0.1', PORT))")),
    Escape("socket, loaded", "__import__('sys').modules['socket'].create_connection(('127.0.0.1', PORT))"),
    Escape("abstract socket", _import("socket", "socket(1).connect('\\0ABSTRACT')")),
    Escape("urllib", _import("urllib.request", "request.urlopen('http://127.0.0.1:PORT', timeout=0.2)")),
    # memory
    Escape("memory bomb", "bytearray(5 << 27) and 'escaped'"),
    Escape("memory bomb in pieces", "[bytearray(64 << 20) for _ in range(10)] and 'escaped'", None, False),
    Escape(
        "memory in a file",
        _call(_import("os", "memfd_create('x')"), " and __import__('os').write(f, b'x') and 'escaped'"),
    ),
)


class Surroundings:
    """What the attempts are aimed at, watched. A context manager."""

    def __enter__(self) -> "Surroundings":
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self._shared = f"escapes-{os.getpid()}"
        self._listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self._listeners[1].bind(f"\0{self._shared}")
        self._listeners[1].listen()
        for listener in self._listeners:
            listener.setblocking(False)
        self._victim: subprocess.Popen[bytes] | None = None
        os.environ["EDGE_GRPO_ESCAPES_WORD"] = WORD
        self.restore()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.environ.pop("EDGE_GRPO_ESCAPES_WORD")
        for listener in self._listeners:
            listener.close()
        self._end_victim()
        Path("/dev/shm", self._shared).unlink(missing_ok=True)
        self._temporary.cleanup()

    def restore(self) -> None:
        """Undo what attempts have changed."""
        for path in self.folder.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.folder / "kept").write_text("kept")
        (self.folder / "secret").write_text(WORD)
        Path("/dev/shm", self._shared).unlink(missing_ok=True)
        self._end_victim()
        self._victim = subprocess.Popen(["sleep", "600"], process_group=0)
        self._before = self._state()

    def source(self, escape: Escape) -> str:
        """The expression, aimed at these surroundings."""
        assert self._victim is not None
        names = {
            "FOLDER": self.folder,
            "CANARY": self.folder / "canary",
            "KEPT": self.folder / "kept",
            "SECRET": self.folder / "secret",
            "VICTIM": self._victim.pid,
            "PORT": self._listeners[0].getsockname()[1],
            "ABSTRACT": self._shared,
            "SHARED": self._shared,
        }
        source = escape.source
        for name, value in names.items():
            source = source.replace(name, str(value))
        return source

    def traces(self, result: object, after: object, wait_s: float = 0.0) -> list[str]:
        """What differs from `restore`'s state, given what the attempt and NEXT after it returned.

        Args:
            wait_s: seconds to wait for a trace.
        """
        deadline = time.monotonic() + wait_s
        found = [f"returned {result!r}"] if result in ("escaped", WORD) else []
        if after != NEXT_RESULT:
            found.append(f"the next answer became {after!r}")
        while True:
            state = self._state()
            changes = [
                f"{key}: {self._before.get(key)} -> {state.get(key)}"
                for key in {**self._before, **state}
                if self._before.get(key) != state.get(key)
            ]
            if found or changes or time.monotonic() > deadline:
                return found + changes
            time.sleep(0.01)

    def _state(self) -> dict[str, object]:
        assert self._victim is not None
        state: dict[str, object] = {"shared memory": Path("/dev/shm", self._shared).exists()}
        for path in self.folder.iterdir():
            status = path.lstat()
            state[path.name] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink)
        for listener in self._listeners:
            try:
                listener.accept()[0].close()
                state[f"connection to {listener.getsockname()}"] = True
            except BlockingIOError:
                pass
        state["victim"] = self._victim.poll()
        if self._victim.poll() is None:
            state["priority"] = os.getpriority(os.PRIO_PROCESS, self._victim.pid)
            state["limit"] = resource.prlimit(self._victim.pid, resource.RLIMIT_NOFILE)
        return state

    def _end_victim(self) -> None:
        if self._victim is not None:
            self._victim.kill()
            self._victim.communicate()


# What a scorer's process has loaded, and then an `eval` a line, each in a fork without any protection. The result
# comes back as a pool of the standard library would send it: pickled.
_UNPROTECTED = """
import ctypes, importlib.util, json, multiprocessing, os, pickle, signal, socket, subprocess, sys
import edge_grpo.rewards._interpreter
for line in sys.stdin:
    source, following = json.loads(line)
    reader, writer = os.pipe()
    if os.fork() == 0:
        result = pickle.loads(pickle.dumps(eval(source)))
        os.write(writer, json.dumps([result, eval(following)], default=str).encode())
        sys.exit()
    os.close(writer)
    os.wait()
    os.set_blocking(reader, False)
    try:
        reply = os.read(reader, 4096)
    except BlockingIOError:
        reply = b""
    print(reply.decode() or "[null, 42]", flush=True)
    os.close(reader)
"""


@dataclass
class Unprotected:
    """The control: runs an attempt where nothing protects. For the benchmark and the tests; nothing else can do it."""

    _process: subprocess.Popen[str] = field(
        default_factory=lambda: subprocess.Popen(
            [sys.executable, "-c", _UNPROTECTED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    )

    def run(self, source: str) -> list[Any]:
        """What the attempt and NEXT after it returned."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([source, NEXT]) + "\n")
        self._process.stdin.flush()
        line: list[Any] = json.loads(self._process.stdout.readline())
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
