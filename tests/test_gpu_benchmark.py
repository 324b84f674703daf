"""`make gpu` where there is no GPU, and how it judges its steps."""

import sys

import gpu
import pytest
import torch


def test_without_a_gpu_it_says_so_at_once(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "run", lambda *_: pytest.fail("a step was run"))
    assert gpu.main() == 2
    assert capsys.readouterr().out.count("\n") == 1


def test_a_step_ends_well_fails_or_takes_too_long():
    assert gpu.run([sys.executable, "-c", "print('a'); print('b=1')"], 30) == (True, "b=1")
    assert gpu.run([sys.executable, "-c", "raise SystemExit('no memory')"], 30) == (False, "no memory")
    # What the step has started ends with it: its pipe would else be waited for.
    assert gpu.run(["sh", "-c", "sleep 600 & sleep 600"], 0.5) == (False, "not done in 0 s")


def test_the_plan_of_a_larger_model_has_to_be_right():
    assert gpu.judged("plan", True, "predicted=2 measured=2.1 ratio=0.952", cpu=False)[0]
    assert not gpu.judged("plan", True, "predicted=1 measured=2 ratio=0.500", cpu=False)[0]
    assert gpu.judged("plan", True, "predicted=1 measured=2 ratio=0.500", cpu=True)[0]
    assert gpu.judged("run_native", True, "predicted=1 measured=2 ratio=0.500", cpu=False)[0]
    assert not gpu.judged("plan", False, "", cpu=False)[0]


def test_all_steps_share_the_minutes_and_the_last_line_counts(monkeypatch, capsys):
    given = []

    def run(command, seconds):
        given.append(seconds)
        return len(given) != 2, "x=1"

    monkeypatch.setattr(sys, "argv", ["gpu.py", "--cpu", "--minutes", "0.5", "--only", "layouts,engines,run_hf"])
    monkeypatch.setattr(gpu, "run", run)
    assert gpu.main() == 1
    assert max(given) <= 30
    assert capsys.readouterr().out.splitlines()[-1] == "gpu=3 ok=2"


def test_every_step_is_a_command_of_this_folder():
    made = gpu.steps(cpu=False)
    assert {"layouts", "engines", "run_native", "run_hf", "plan", "rollout", "iteration", "update_memory"} <= set(made)
    for command, limit in made.values():
        assert (gpu.HERE / command[1].rpartition("/")[2]).is_file()
        assert limit <= 150
    assert all("--rehearse" in command or "trainer=cpu" in command for command, _ in gpu.steps(cpu=True).values())
