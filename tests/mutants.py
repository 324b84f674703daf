"""Small faults put into the code one by one, and the share of them that the tests notice: `make mutants`.

mutants.toml lists the faults: a file, a text that stands in it once, what takes its place, and the tests of which one
must fail. Each is put into a copy of the tree in a temporary folder and its tests are run there.

Why no kept tool: mutmut and cosmic-ray make their mutants with operators of their own (a number plus one, `<` for
`<=`) and can be told which of them to leave out; neither takes a list of edits, and the faults that matter here
(a detach, a mask, another denominator, the seed of another stage) are none of their operators'.

Every test session is a fork of this process, which has imported the libraries once: that is most of a session's time.
"""

import argparse
import contextlib
import hashlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "dist", "outputs", "multirun", "wandb", "lightning_logs")
ENOUGH = 0.95
PASSED, FAILED = 0, 1  # pytest's exit codes; the others say that it could not run the tests


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Args:
        name: what it does wrong.
        file: under the tree.
        old, new: a text that stands in the file exactly once, and what takes its place.
        tests: what pytest is given.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def fault(self, tree: Path) -> str | None:
        """Why this mutant cannot be made in the tree, or None."""
        path = tree / self.file
        count = path.read_text().count(self.old) if path.is_file() else 0
        if count != 1:
            return f"{self.name}: {self.file} has the old text {count} times, not once: {self.old!r}"
        missing = [test for test in self.tests if not _is_there(tree, test)]
        return f"{self.name}: there is no {missing[0]}" if missing else None

    def put_into(self, tree: Path) -> None:
        path = tree / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


def _is_there(tree: Path, test: str) -> bool:
    file, _, name = test.partition("::")
    path = tree / file
    return path.is_file() and (not name or f"def {name.partition('[')[0]}(" in path.read_text())


def read(path: Path) -> tuple[list[Mutant], list[str]]:
    """The mutants of a list, and the modules to import before any test."""
    content = tomllib.loads(path.read_text())
    mutants = [
        Mutant(mutant["name"], file["path"], mutant["old"], mutant["new"], tuple(mutant.get("tests") or file["tests"]))
        for file in content["file"]
        for mutant in file["mutant"]
    ]
    return mutants, content["import"]


def faults(mutants: Sequence[Mutant], tree: Path) -> list[str]:
    """What is wrong with the list, a line each: a name twice, a text that is not there once, tests that are missing."""
    names = [mutant.name for mutant in mutants]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"two mutants are called {name}" for name in twice] + [
        fault for mutant in mutants if (fault := mutant.fault(tree))
    ]


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` of them, by a hash of seed and name: a choice that a longer list changes little."""
    return sorted(mutants, key=lambda m: hashlib.sha256(f"{seed}/{m.name}".encode()).digest())[:count]


class Session:
    """One test session in a fork, in a copy of the tree of its own.

    Args:
        tree: what is copied.
        mutant: put into the copy; None runs the tests of the tree as it is.
        tests: what pytest is given.
    """

    def __init__(self, tree: Path, mutant: Mutant | None, tests: Sequence[str]) -> None:
        self.mutant, self.started = mutant, time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        copy = self.folder / "tree"
        shutil.copytree(tree, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if mutant is not None:
            mutant.put_into(copy)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run_tests(copy, self.folder / "output", tests)

    def ended(self, limit_s: float) -> str | None:
        """passed, failed, timeout, or what else it came to; None while it goes on."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return {PASSED: "passed", FAILED: "failed"}.get(code, f"exit code {code}")
        if self.seconds < limit_s:
            return None
        self.stop()
        return "timeout"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def stop(self) -> None:
        """End the session and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _run_tests(tree: Path, output: Path, tests: Sequence[str]) -> None:
    """The rest of a forked process: pytest on the tree, its output in a file."""
    code = 70
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1), os.dup2(file, 2)
        os.chdir(tree)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(tree), str(tree / "tests")])
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True  # two mutants of one second and one length would share their bytecode
        sys.path[:0] = [str(tree), str(tree / "tests")]
        import pytest

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def sessions(tree: Path, mutants: Sequence[Mutant], jobs: int, limit_s: float) -> Iterator[tuple[Session, str]]:
    """Each mutant's session and what it came to, as they end."""
    waiting, running = list(mutants), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop(0)
                running.append(Session(tree, mutant, mutant.tests))
            time.sleep(0.02)
            for session in list(running):
                if (result := session.ended(limit_s)) is not None:
                    running.remove(session)
                    yield session, result
                    session.remove()
    finally:
        for session in running:
            session.stop()
            session.remove()


def unmutated(tree: Path, mutants: Sequence[Mutant], limit_s: float) -> str | None:
    """The output of the mutants' tests on the tree as it is, where they do not pass."""
    session = Session(tree, None, sorted({test for mutant in mutants for test in mutant.tests}))
    try:
        while (result := session.ended(limit_s)) is None:
            time.sleep(0.02)
        return None if result == "passed" else f"{session.output()}\n{result}"
    finally:
        session.remove()


def run(tree: Path, mutants: Sequence[Mutant], jobs: int, limit_s: float) -> bool:
    """Run all, print a line for each and the sum; whether enough were killed."""
    # A passing session is as long as all its mutants' tests: a limit for one would be too short.
    if told := unmutated(tree, mutants, limit_s * len(mutants)):
        print(told, "the tests do not pass without a mutant", sep="\n")
        return False
    killed, spent = 0, 0.0
    for session, result in sessions(tree, mutants, jobs, limit_s):
        if result.startswith("exit code"):
            print(session.output(), f"{session.mutant.name}: pytest could not run its tests ({result})", sep="\n")
            return False
        word = {"passed": "SURVIVED", "failed": "killed"}.get(result, result)
        print(f"{word:8} {session.seconds:5.1f} s  {session.mutant.name}", flush=True)
        killed, spent = killed + (result != "passed"), spent + session.seconds
    share = killed / len(mutants)
    print(f"{spent:.0f} s in sessions of mutants, {jobs} at once")
    print(f"mutants={len(mutants)} killed={killed} share={share:.3f}")
    return share >= ENOUGH


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", type=Path, default=REPO / "tests" / "mutants.toml")
    parser.add_argument("--tree", type=Path, default=REPO)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="sessions at once")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a mutant; one that takes longer is killed")
    parser.add_argument("--sample", type=int, default=0, help="so many of them; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="mutants whose name holds this text")
    parser.add_argument("--check", action="store_true", help="only see whether every mutant can be made")
    args = parser.parse_args()
    mutants, imported = read(args.list)
    if wrong := faults(mutants, args.tree):
        print("\n".join(wrong))
        return 1
    if args.check:
        print(f"{len(mutants)} mutants can be made")
        return 0
    chosen = [mutant for mutant in mutants if args.only in mutant.name]
    if not chosen:
        print(f"no mutant is called {args.only}")
        return 1
    if args.sample:
        chosen = sample(chosen, args.sample, args.seed)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # some libraries read them when they are imported
    for name in imported:
        importlib.import_module(name)
    return 0 if run(args.tree, chosen, args.jobs, args.limit) else 1


if __name__ == "__main__":
    sys.exit(main())
