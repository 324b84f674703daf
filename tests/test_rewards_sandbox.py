"""What model-written text can do outside the process that evaluates it, with the kernel's layers and without."""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from escapes import ESCAPES, NEXT, WORD, Escape, Surroundings, Unprotected

from edge_grpo.rewards import _frames, _seccomp, pool
from edge_grpo.rewards.pool import KillablePool
from edge_grpo.rewards.reasoning_gym import _is_score

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches processes by Linux's means")

KERNEL = ("landlock", "seccomp")
LOADED = ("numpy", "ctypes", "socket", "subprocess", "multiprocessing")  # as by the scorers, among much else
CONTROLLED = [escape for escape in ESCAPES if escape.is_controlled]


def evaluate(workers: KillablePool, item: str) -> Any:
    return workers.map(eval, [item], lambda value: True)[0]


def in_a_process_of_its_own(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@lru_cache
def offered(change: str = "") -> list[str]:
    """The layers that this kernel offers, after a change of our code."""
    script = (
        "import json, platform\nfrom edge_grpo.rewards import _landlock\n"
        f"from edge_grpo.rewards._sandbox import Sandbox\n{change}\n"
        f"print(json.dumps(Sandbox.of_this_kernel({KERNEL!r}).layers))"
    )
    return json.loads(in_a_process_of_its_own(script))


def confined_by(layers: tuple[str, ...]) -> KillablePool:
    """A pool that makes use of these layers alone, besides limits and closed descriptors."""
    if not set(layers) <= {*offered(), "interpreter"}:
        pytest.skip(f"this kernel offers {offered()} alone")
    made = KillablePool(1, 5.0, 0.5, preload=LOADED)
    made._layers = layers
    assert evaluate(made, "1 + 1") == 2
    assert tuple(made._servers[0].layers) == layers
    return made


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Surroundings]:
    with Surroundings() as made:
        yield made
        time.sleep(0.3)  # for what an attempt might have left to happen later
        assert made.traces(None, 42) == []


# Each by itself: where both hold, one would hide a hole of the other.
@pytest.fixture(scope="module", params=[KERNEL, ("interpreter",)], ids=["kernel", "interpreter"])
def workers(request: pytest.FixtureRequest) -> Iterator[KillablePool]:
    made = confined_by(request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def workers_without_landlock() -> Iterator[KillablePool]:
    made = confined_by(("seccomp", "interpreter"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def unprotected() -> Iterator[Unprotected]:
    made = Unprotected()
    yield made
    made.close()


def traces_of(escape: Escape, workers: KillablePool, surroundings: Surroundings) -> list[str]:
    server, timeouts = workers._servers[0], workers.counts["timeout"]
    traces = surroundings.traces(evaluate(workers, surroundings.source(escape)), evaluate(workers, NEXT))
    assert workers._servers[0] is server
    assert workers.counts["timeout"] == timeouts
    return traces


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda escape: escape.name)
def test_an_escape_leaves_no_trace(workers: KillablePool, surroundings: Surroundings, escape: Escape) -> None:
    traces = traces_of(escape, workers, surroundings)
    # What is documented to need a layer of the kernel must need it, or the documentation is wrong.
    assert bool(traces) == (escape.only is not None and escape.only not in workers._layers), traces


@pytest.mark.parametrize("escape", [escape for escape in ESCAPES if escape.only], ids=lambda escape: escape.name)
def test_without_landlock_files_can_be_read(
    workers_without_landlock: KillablePool, surroundings: Surroundings, escape: Escape
) -> None:
    assert traces_of(escape, workers_without_landlock, surroundings)


@pytest.mark.parametrize("escape", CONTROLLED, ids=lambda escape: escape.name)
def test_an_escape_would_leave_a_trace(unprotected: Unprotected, surroundings: Surroundings, escape: Escape) -> None:
    try:
        assert surroundings.traces(*unprotected.run(surroundings.source(escape)), wait_s=5.0)
    finally:
        surroundings.restore()


def test_there_are_enough_escapes() -> None:
    assert len(ESCAPES) >= 40
    assert len(CONTROLLED) > 0.8 * len(ESCAPES)
    assert len({escape.name for escape in ESCAPES}) == len(ESCAPES)


def test_what_it_prints_goes_nowhere(workers: KillablePool, capfd: pytest.CaptureFixture[str]) -> None:
    source = f"[__import__('os').write(n, b'{WORD}') for n in (1, 2)] and print('{WORD}', flush=True)"
    assert evaluate(workers, source) is None
    assert capfd.readouterr() == ("", "")


def test_imports_that_a_scorer_does_late_go_on(workers: KillablePool) -> None:
    late = ["xml.dom.minidom", "wave", "statistics", "mpmath"]  # one of another package, one with compiled parts
    loaded = f"[name not in __import__('sys').modules and bool(__import__(name)) for name in {late}]"
    assert evaluate(workers, loaded) == [True] * 4


@pytest.mark.parametrize("source", ["__import__('gc').get_objects()", "(lambda: 1).__code__.replace(co_consts=())"])
def test_the_interpreter_refuses_what_leads_out_of_it(workers: KillablePool, source: str) -> None:
    assert evaluate(workers, f"{source} and 1") == (None if "interpreter" in workers._layers else 1)


def again(module: str) -> str:
    """Makes a module of its file once more; Python has those that were loaded before in a cache of its own."""
    return (
        f"(lambda m, f: m.ExtensionFileLoader({module!r}, f).create_module(m.ModuleSpec({module!r}, None, origin=f)))"
        f"(__import__('importlib.machinery').machinery, __import__('importlib.util').util.find_spec({module!r}).origin)"
    )


@pytest.mark.parametrize(
    "source",
    [
        again("_ctypes"),
        again("_socket"),
        # To what it shows; that would take root.
        "__import__('time').clock_settime(0, __import__('time').clock_gettime(0))",
    ],
    ids=["_ctypes again", "_socket again", "clock"],
)
def test_the_interpreter_gives_nothing_back(workers: KillablePool, source: str) -> None:
    if "interpreter" not in workers._layers and "clock" not in source:
        pytest.skip("the kernel's layers confine what these modules can do, not that they are there")
    assert evaluate(workers, f"({source}, 1)[1]") is None


def test_an_answer_cannot_reply_what_is_no_score() -> None:
    assert all(map(_is_score, (0.0, 0.5, 1.0)))
    assert not any(map(_is_score, (float("nan"), 2.0, -1.0, float("inf"), "1.0", None, [1.0], True)))


def test_without_its_confinement_a_process_evaluates_nothing(tmp_path: Path) -> None:
    task = pickle.dumps((eval, f"open({str(tmp_path / 'canary')!r}, 'w') and 1"))
    script = (
        "from edge_grpo.rewards._fork_server_main import _Children\n"
        "from edge_grpo.rewards._sandbox import Sandbox\n"
        f"print(_Children(Sandbox(('landlock',), 999), 5.0, 1, 4096).outcome({task!r})[0].decode())"
    )
    assert in_a_process_of_its_own(script) == _frames.CRASH.decode() + "\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("platform.machine = lambda: 'riscv64'", ["landlock"]),
        ("_landlock._CREATE_RULESET = 99999", ["seccomp"]),
        ("_landlock._RESTRICT_SELF = 99999; platform.machine = lambda: 'x'", []),
    ],
)
def test_a_layer_that_the_kernel_does_not_offer_is_left_out(change: str, left: list[str]) -> None:
    if offered() != list(KERNEL):
        pytest.skip(f"this kernel offers {offered()} alone")
    assert offered(change) == left


def test_the_log_says_once_what_protects_and_what_does_not(caplog: pytest.LogCaptureFixture) -> None:
    pool._tell_layers.cache_clear()
    with caplog.at_level("INFO", logger="edge_grpo"):
        for layers in (KERNEL, ("seccomp",), ("landlock", "interpreter"), (), KERNEL, ()):
            pool._tell_layers(layers)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "WARNING", "WARNING"]
    assert "can read the files of this user" in caplog.messages[1]
    assert "no landlock and no seccomp" in caplog.messages[3]


# Numbers of asm-generic/unistd.h (aarch64) and unistd_64.h (x86_64) of calls that must never pass.
REFUSED = {
    "x86_64": {"socket": 41, "clone": 56, "fork": 57, "execve": 59, "kill": 62, "ptrace": 101, "prctl": 157, "open": 2,
               "tgkill": 234, "unlinkat": 263, "process_vm_writev": 311, "memfd_create": 319, "io_uring_setup": 425,
               "pidfd_send_signal": 424, "clone3": 435, "prlimit64": 302, "x32 read": 0x40000000},
    "aarch64": {"socket": 198, "clone": 220, "execve": 221, "kill": 129, "ptrace": 117, "prctl": 167, "mkdirat": 34,
                "tgkill": 131, "unlinkat": 35, "process_vm_writev": 271, "memfd_create": 279, "io_uring_setup": 425,
                "pidfd_send_signal": 424, "clone3": 435, "prlimit64": 261, "fchmodat": 53, "kexec_load": 104},
}  # fmt: skip


def verdict(machine: str, number: int, arguments: tuple[int, ...] = (0, 0, 0), architecture: int | None = None) -> bool:
    """Whether the filter lets the call pass, by running its program as the kernel does."""
    fields = {0: number, 4: architecture or _seccomp._ARCHITECTURES[machine]}
    fields |= {16 + 8 * index: value for index, value in enumerate(arguments)}
    program, at, loaded = _seccomp._program(machine), 0, 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        if code == 0x06:  # BPF_RET
            assert k in (0x7FFF0000, 0x00050001)  # ALLOW, or ERRNO with EPERM
            return k == 0x7FFF0000
        if code == 0x20:  # BPF_LD
            loaded = fields[k]
        else:  # BPF_JEQ, BPF_JSET
            at += if_true if (loaded == k if code == 0x15 else loaded & k) else if_false


@pytest.mark.parametrize(
    ("machine", "read", "openat", "fcntl", "ioctl"), [("x86_64", 0, 257, 72, 16), ("aarch64", 63, 56, 25, 29)]
)
def test_the_filter_lets_a_computation_pass_and_nothing_else(
    machine: str, read: int, openat: int, fcntl: int, ioctl: int
) -> None:
    assert verdict(machine, read)
    assert not verdict(machine, read, architecture=0x40000003)  # the same number called in 32-bit mode
    assert [name for name, number in REFUSED[machine].items() if verdict(machine, number)] == []
    assert verdict(machine, openat, (0, 0, 0o2000000))  # O_RDONLY | O_CLOEXEC
    # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND, O_TMPFILE
    for flag in (1, 2, 0o100, 0o1000, 0o2000, 0o20000000):
        assert not verdict(machine, openat, (0, 0, flag))
    assert [command for command in range(40) if verdict(machine, fcntl, (0, command, 0))] == [1, 2, 3]
    assert verdict(machine, ioctl, (0, 0x5401, 0))
    assert not verdict(machine, ioctl, (0, 0x5412, 0))  # TIOCSTI
