"""The list of mutants can be made from this tree, and its runner tells killed from survived."""

import subprocess
import sys

import pytest
from mutants import Mutant, faults, read, sample
from small_runs import REPO

LIST = """
import = []

[[file]]
path = "code.py"
tests = ["test_code.py::test_sum"]

[[file.mutant]]
name = "minus"
old = "a + b"
new = "a - b"

[[file.mutant]]
name = "the other way round"
old = "a + b"
new = "b + a"

[[file.mutant]]
name = "never ends"
old = "return a"
new = "__import__('time').sleep(60)"
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "code.py").write_text("def total(a, b):\n    return a + b\n")
    (tmp_path / "test_code.py").write_text("from code import total\n\ndef test_sum():\n    assert total(2, 1) == 3\n")
    (tmp_path / "list.toml").write_text(LIST)
    return tmp_path


def run(tree, *options):
    argv = [sys.executable, str(REPO / "tests" / "mutants.py"), f"--list={tree}/list.toml", f"--tree={tree}", *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_every_mutant_of_the_project_can_be_made():
    mutants, _ = read(REPO / "tests" / "mutants.toml")
    assert faults(mutants, REPO) == []
    assert len(mutants) >= 60


def test_killed_survived_and_timed_out_are_counted_and_the_tree_stays_as_it_is(tree):
    before = (tree / "code.py").read_bytes()
    done = run(tree, "--jobs=3", "--limit=10")
    assert done.returncode == 1  # two of three are less than 0.95
    *lines, _, last = done.stdout.splitlines()
    assert last == "mutants=3 killed=2 share=0.667"
    told = {line.split(" s  ")[1]: line.split()[0] for line in lines}
    assert told == {"minus": "killed", "the other way round": "SURVIVED", "never ends": "timeout"}
    assert (tree / "code.py").read_bytes() == before
    assert run(tree, "--only=minus").returncode == 0


def test_tests_that_fail_without_a_mutant_kill_nothing(tree):
    (tree / "test_code.py").write_text("def test_sum():\n    assert False\n")
    done = run(tree)
    assert done.returncode == 1
    assert done.stdout.endswith("the tests do not pass without a mutant\n")


def test_a_list_that_does_not_fit_the_tree_is_refused(tree):
    (tree / "code.py").write_text("def total(a, b):\n    return (a + b) + 0 * (a + b)\n")
    done = run(tree, "--check")
    assert done.returncode == 1
    assert "minus: code.py has the old text 2 times, not once: 'a + b'" in done.stdout
    assert "never ends: code.py has the old text 0 times, not once: 'return a'" in done.stdout


def test_a_test_that_is_not_there_is_told_and_names_are_used_once(tree):
    one = Mutant("m", "code.py", "a + b", "a - b", ("test_code.py::test_sum",))
    assert faults([one, one], tree) == ["two mutants are called m"]
    assert faults([Mutant("m", "code.py", "a + b", "a - b", ("test_code.py::gone",))], tree) == [
        "m: there is no test_code.py::gone"
    ]


def test_a_sample_follows_its_seed_and_hardly_moves_with_the_list():
    mutants = [Mutant(str(i), "f", "a", "b", ()) for i in range(40)]
    chosen = {m.name for m in sample(mutants, 10, seed=0)}
    assert (
        chosen == {m.name for m in sample(mutants[::-1], 10, seed=0)} != {m.name for m in sample(mutants, 10, seed=1)}
    )
    assert len(chosen & {m.name for m in sample([*mutants, Mutant("new", "f", "a", "b", ())], 10, seed=0)}) >= 9
