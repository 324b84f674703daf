"""A program that is forked from a server behaves as one that `python` starts."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from forks import Forks, _threads

TOLD = """
import __main__, colorsys, json, os, sys
import beside  # a module of the folder
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), beside.NAME, __main__.__name__, __name__]))
print("an error", file=sys.stderr)
atexit = __import__("atexit").register(print, "the end")
how = sys.argv[1]
if how == "raises":
    raise KeyError("lost")
if how == "killed":
    os.kill(os.getpid(), 15)
if how == "waits":
    __import__("time").sleep(60)
sys.exit(int(how) if how.isdigit() else how or None)
"""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "A": "b", "LC_CTYPE": "C.UTF-8"}


@pytest.fixture(scope="module")
def forks():
    return Forks(["colorsys"], ENVIRONMENT)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "told.py").write_text(TOLD)
    (tmp_path / "beside.py").write_text("NAME = __name__")
    return tmp_path


@pytest.mark.parametrize("argv", [("told.py",), ("-m", "told")], ids=["file", "module"])
@pytest.mark.parametrize("how", ["", "0", "3", "a reason", "raises", "killed"])
def test_it_ends_and_says_what_a_process_of_python_does(forks, folder, argv, how):
    forked = forks.run(*argv, how, "x=[1,2]", cwd=folder, env=ENVIRONMENT, timeout=20)
    argv = [sys.executable, *argv, how, "x=[1,2]"]
    real = subprocess.run(argv, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=20)
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    # A traceback begins with the server's own lines.
    assert [forked.stderr.splitlines()[i] for i in (0, -1)] == [real.stderr.splitlines()[i] for i in (0, -1)]
    if how != "raises":
        assert forked.stderr == real.stderr


def test_one_that_is_at_work_can_be_waited_for_and_ended(forks, folder):
    program = forks.start("told.py", "waits", cwd=folder, env=ENVIRONMENT)
    assert program.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        program.communicate(timeout=0.01)
    program.terminate()
    assert program.wait(20) == program.poll() == -signal.SIGTERM
    program.kill()  # nothing is left to kill
    assert program.returncode == -signal.SIGTERM


def test_its_errors_may_go_where_its_output_goes(forks, folder):
    program = forks.start("told.py", "", cwd=folder, env=ENVIRONMENT)
    output, errors = program.communicate(20)
    assert ("an error" in output, errors) == (True, "")


@pytest.mark.parametrize(("safe", "code"), [("", 0), ("1", 1)])
def test_a_module_is_not_searched_in_a_folder_that_is_not_safe(forks, folder, safe, code):
    (folder / "module.py").write_text("import beside")
    environment = {**ENVIRONMENT, "PYTHONSAFEPATH": safe, "PYTHONPATH": str(folder / "lib")}
    (folder / "lib").mkdir()
    (folder / "lib/module.py").write_text("import beside")
    assert forks.run("-m", "module", cwd=folder, env=environment, timeout=20).returncode == code


def test_the_server_has_the_modules_and_a_program_keeps_none_for_the_next(forks, tmp_path):
    (tmp_path / "a.py").write_text("import sys\nassert 'colorsys' in sys.modules\nimport sched as _\n")
    (tmp_path / "b.py").write_text("import sys\nassert 'sched' not in sys.modules\n")
    for name in ("a.py", "b.py"):
        assert forks.run(name, cwd=tmp_path, env=ENVIRONMENT, timeout=20).returncode == 0


def test_workers_share_a_server_which_ends_with_the_last(monkeypatch, tmp_path):
    (tmp_path / "server.py").write_text(
        "import os\nprint(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1])\n"
    )

    def server_of(forks):
        return int(forks.run("server.py", cwd=tmp_path, env=ENVIRONMENT, timeout=20).stdout)

    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", f"{tmp_path}")
    first, second = (Forks(["colorsys"], ENVIRONMENT, shared=True) for _ in range(2))
    others = [Forks(["sched"], ENVIRONMENT, shared=True), Forks(["colorsys"], ENVIRONMENT)]
    shared = server_of(first)
    assert server_of(second) == shared
    assert shared not in map(server_of, others)
    other_session = f"{tmp_path}-2"
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", other_session)
    assert server_of(Forks(["colorsys"], ENVIRONMENT, shared=True)) != shared
    del second
    assert server_of(first) == shared
    del first  # waits for the server
    assert not Path(f"/proc/{shared}").exists()


def test_what_libraries_have_read_cannot_be_another_programs(forks, tmp_path):
    with pytest.raises(ValueError, match="OMP_NUM_THREADS"):
        forks.run("a.py", cwd=tmp_path, env={**ENVIRONMENT, "OMP_NUM_THREADS": "2"}, timeout=20)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted by Linux's means")
def test_a_thread_is_seen():
    before, end = _threads(), threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert len(_threads()) == len(before) + 1
    finally:
        end.set()
        thread.join()
