"""Runs that are stopped, broken or changed, and what they go on with: real signals, files and processes."""

import json
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
import torch
from small_runs import (
    ENVIRONMENT,
    PROGRAMS,
    REPO,
    SHORT,
    SMALL_GRPO,
    command,
    command_from_scratch,
    equal_weights,
    metrics_rows,
    offline_history,
    run_small,
    weights,
)

from edge_grpo.advantages.base import RewardAdvantage
from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.callbacks.console import ConsoleProgress
from edge_grpo.callbacks.iteration_checkpoint import IterationCheckpoint
from edge_grpo.errors import Stopped, UserError
from edge_grpo.rollouts.native import NativeRollout
from edge_grpo.runs.checkpoints import checkpoints
from edge_grpo.runs.directory import alone_in
from edge_grpo.runs.settings import differences, refuse_changes

FOUR = ("experiment=edge_grpo", *SHORT, "trainer.max_iterations=4", "scheduler=linear", "optimizer.lr=0.01")
SELDOM = "checkpoint.every_n_iterations=100"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happens to."""
    return run_small(tmp_path_factory.mktemp("whole") / "run", *FOUR)


@pytest.fixture
def cut(tmp_path, monkeypatch):
    """A run that was stopped after two of its four iterations, with a checkpoint of each."""
    with monkeypatch.context() as patch:
        signal_once(patch, NativeRollout, "generate", 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            run_small(tmp_path, *FOUR)
    assert names(tmp_path) == ["iteration-000001", "iteration-000002"]
    return tmp_path


def names(folder):
    return [path.name for path in checkpoints(folder / "checkpoints")]


def assert_same(folder, whole):
    assert equal_weights(weights(folder), weights(whole))
    assert metrics_rows(folder, timed=False) == metrics_rows(whole, timed=False)
    files = [{path.name: path.read_bytes() for path in (f / "rollouts").iterdir()} for f in (folder, whole)]
    assert files[0] == files[1]


def signal_once(monkeypatch, owner, method, iteration, number):
    """Send this process a signal the first time `method` is called in an iteration."""
    original, sent = getattr(owner, method), []

    def wrapped(self, *args, **kwargs):
        if modules and modules[0].iteration == iteration and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    modules = []
    start = PolicyModule.on_train_epoch_start
    monkeypatch.setattr(PolicyModule, "on_train_epoch_start", lambda self: (modules.append(self), start(self))[1])
    monkeypatch.setattr(owner, method, wrapped)
    return sent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_rollout_saves_the_last_boundary_at_once(tmp_path, monkeypatch, whole, number):
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_once(patch, NativeRollout, "generate", 2, number)
        with pytest.raises(Stopped) as stopped:
            run_small(tmp_path, *FOUR, SELDOM)
    assert stopped.value.code == 128 + number
    assert names(tmp_path) == ["iteration-000002"]
    assert signal.getsignal(number) == handler
    run_small(tmp_path, *FOUR)
    assert_same(tmp_path, whole)


def test_wandb_holds_every_step_once_after_a_stop(tmp_path, monkeypatch):
    settings = (*FOUR, "logger=wandb", "callbacks.samples.every_n_iterations=1")
    with monkeypatch.context() as patch:
        signal_once(patch, NativeRollout, "generate", 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            run_small(tmp_path, *settings)
    run_small(tmp_path, *settings)
    recorded = metrics_rows(tmp_path)
    history = offline_history(tmp_path)
    assert [row.pop("iteration") for row in history] == [0, 1, 2, 3, 4]
    for name in ("samples", "samples_page"):
        assert [row.pop(name, "none") for row in history] == [None, None, None, None, "none"]
    numbers = [{k: float(v) for k, v in row.items() if v != "" and k != "step"} for row in recorded]
    assert history == numbers


def test_a_signal_after_the_optimiser_step_waits_for_the_boundary(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        signal_once(patch, PolicyModule, "step_scheduler", 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            run_small(tmp_path, *FOUR, SELDOM)
    assert names(tmp_path) == ["iteration-000003"]
    run_small(tmp_path, *FOUR)
    assert_same(tmp_path, whole)


def test_sigusr1_saves_and_goes_on(tmp_path, monkeypatch, whole):
    signal_once(monkeypatch, NativeRollout, "generate", 1, signal.SIGUSR1)
    run_small(tmp_path, *FOUR, SELDOM)
    assert names(tmp_path) == ["iteration-000001", "iteration-000004"]
    assert_same(tmp_path, whole)


def test_a_signal_in_the_first_rollout_has_nothing_to_save(tmp_path, monkeypatch, caplog):
    signal_once(monkeypatch, NativeRollout, "generate", 0, signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1", "hydra.run.dir='out/a'"])
    with pytest.raises(Stopped):
        run_small(tmp_path, *FOUR)
    assert names(tmp_path) == []
    told = "stopped by SIGTERM; no iteration was done yet; to begin again: edge-grpo-train seed=1 hydra.run.dir=out/a"
    assert told in caplog.messages


def test_an_error_costs_the_iteration_it_ends(tmp_path, monkeypatch, whole):
    def fails(self, *args):
        if self.iteration == 3:
            raise RuntimeError("out of luck")
        return original(self, *args)

    original = PolicyModule.score
    with monkeypatch.context() as patch:
        patch.setattr(PolicyModule, "score", fails)
        with pytest.raises(RuntimeError, match="out of luck"):
            run_small(tmp_path, *FOUR, SELDOM)
    assert names(tmp_path) == ["iteration-000003"]
    run_small(tmp_path, *FOUR)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("every", [0, 1])
def test_a_run_that_shall_end_at_its_checkpoint_is_evaluated_there_and_keeps_nothing_later(
    tmp_path, monkeypatch, every
):
    """Killed after the next iteration was logged, or stopped before it: nothing is left to do but the end."""
    settings = ("checkpoint.every_n_iterations=2", f"evaluation.every_n_iterations={every}")
    run_small(tmp_path / "whole", "trainer.max_iterations=2", *settings)

    def dies(self, trainer, module):
        if trainer.current_epoch == 2:  # it is logged, and evaluated where `every` is 1
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleProgress, "on_train_epoch_end", dies)
        with pytest.raises(RuntimeError, match="killed"):
            run_small(tmp_path / "cut", "trainer.max_iterations=4", *settings)
    assert names(tmp_path / "cut") == ["iteration-000002"]
    assert len(list((tmp_path / "cut" / "rollouts").iterdir())) == 3
    for name in ("bad_steps.jsonl", "bad_steps_rank1.jsonl"):
        (tmp_path / "cut" / name).write_text('{"step": 1}\n{"step": 2}\n')
    run_small(tmp_path / "cut", "trainer.max_iterations=2", *settings)
    for name in ("bad_steps.jsonl", "bad_steps_rank1.jsonl"):
        assert (tmp_path / "cut" / name).read_text() == '{"step": 1}\n'
        (tmp_path / "cut" / name).unlink()
    assert_same(tmp_path / "cut", tmp_path / "whole")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "cut")]
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"]
    assert summaries[1]["iterations"] == 2
    assert len(list((tmp_path / "cut" / "rollouts").iterdir())) == 2


def test_sigterm_ends_a_process_soon_with_143_and_says_how_to_go_on(tmp_path):
    settings = (*SMALL_GRPO, *FOUR, "trainer.max_iterations=100000", SELDOM)
    process = command_from_scratch(*settings, f"hydra.run.dir={tmp_path}/run")
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.csv").exists() or len(metrics_rows(tmp_path / "run")) < 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        start = time.monotonic()
        process.terminate()
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143, output
    assert time.monotonic() - start < 30
    assert f"stopped by SIGTERM; to go on: edge-grpo-train resume={tmp_path}/run\n" in output
    assert "Traceback" not in output
    assert len(names(tmp_path / "run")) == 1


@pytest.mark.parametrize("harm", ["truncated", "flipped", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(cut, caplog, whole, harm):
    newest = cut / "checkpoints" / "iteration-000002"
    content = (newest / "state.ckpt").read_bytes()
    if harm == "truncated":
        (newest / "state.ckpt").write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        (newest / "state.ckpt").write_bytes(content[:999] + bytes([content[999] ^ 1]) + content[1000:])
    else:
        (newest / "manifest.json").unlink()
    caplog.set_level("INFO")
    run_small(cut, *FOUR)
    told = [r.getMessage() for r in caplog.records if "is damaged" in r.getMessage()]
    assert len(told) == 1
    assert str(newest) in told[0]
    assert any("resuming from" in r.getMessage() and "iteration-000001" in r.getMessage() for r in caplog.records)
    assert_same(cut, whole)


def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(cut, whole):
    before = (cut / "metrics.csv").read_bytes()
    for path in checkpoints(cut / "checkpoints"):
        (path / "state.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint is damaged; resume=never starts over"):
        run_small(cut, *FOUR)
    assert (cut / "metrics.csv").read_bytes() == before
    assert len(names(cut)) == 2
    run_small(cut, *FOUR, "resume=never")
    assert_same(cut, whole)


def test_starting_over_touches_nothing_before_all_is_checked(cut):
    files = sorted(path for path in cut.rglob("*") if path.is_file() and path.name != ".lock")
    before = [path.read_bytes() for path in files]
    with pytest.raises(UserError, match=r"data\.max_prompt_tokens=1"):
        run_small(cut, *FOUR, "resume=never", "data.max_prompt_tokens=1")
    assert [path.read_bytes() for path in files] == before


def test_a_changed_setting_is_named_and_refused(tmp_path):
    run_small(tmp_path, *FOUR, "trainer.max_iterations=1", "scheduler=constant")
    config = (tmp_path / "config.yaml").read_bytes()
    changed = (*FOUR, "scheduler=constant", "optimizer.lr=0.5", "loss.epsilon_high=0.3")
    with pytest.raises(UserError) as refused:
        run_small(tmp_path, *changed)
    assert "  loss.epsilon_high: 0.2 -> 0.3\n  optimizer.lr: 0.01 -> 0.5\n" in str(refused.value)
    assert "resume.allow_changes=true" in str(refused.value)
    assert (tmp_path / "config.yaml").read_bytes() == config
    run_small(tmp_path, *changed, "resume.allow_changes=true")
    assert len(metrics_rows(tmp_path)) == 5


def test_settings_that_change_no_number_may_change():
    before = {"name": "a", "logger": {"csv": {"x": 1}}, "trainer": {"max_iterations": 4, "devices": 1}, "l": [1]}
    now = {"name": "b", "logger": {}, "trainer": {"max_iterations": 9, "devices": 1}, "l": [1]}
    assert set(differences(before, now)) == {"name", "logger.csv.x", "trainer.max_iterations"}
    assert set(differences(before, {**now, "l": [2]})) >= {"l.0"}


def test_only_what_matters_is_refused(tmp_path):
    before = {"seed": 1, "name": "a"}
    assert refuse_changes(tmp_path, before, {"seed": 1, "name": "b"}) == ""
    with pytest.raises(UserError, match="names: None -> c"):  # starts as a free one does
        refuse_changes(tmp_path, before, {"seed": 1, "name": "b", "names": "c"})
    with pytest.raises(UserError, match="seed: 1 -> 2"):
        refuse_changes(tmp_path, before, {"seed": 2, "name": "b"})
    assert refuse_changes(tmp_path, before, {"seed": 2, "name": "b"}, allow_changes=True) == "  seed: 1 -> 2"


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run_small(tmp_path, *FOUR, "trainer.max_iterations=1")
    with pytest.raises(UserError, match=r"of another model: model\.\S+ is \(.*\) there and \(.*\) here"):
        run_small(tmp_path, *FOUR, "model.hidden_size=48", "resume.allow_changes=true")


def test_two_runs_in_one_directory_the_second_refuses(tmp_path):
    with alone_in(tmp_path), pytest.raises(UserError, match=f"another run is at work there .process {os.getpid()} on"):
        run_small(tmp_path, *FOUR)
    assert not (tmp_path / "config.yaml").exists()


def test_a_directory_that_cannot_be_written_is_refused_at_the_command_line(tmp_path):
    (tmp_path / "file").write_text("")
    process = command(*SMALL_GRPO, f"hydra.run.dir={tmp_path}/file/run")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"error: paths.run_dir={tmp_path}/file/run: cannot write there" in output
    assert output.count("\n") == 1


# A kernel limit on the size of a file stands for a full disk: the checkpoint's state is the only file above it.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
from edge_grpo.programs.train import main
main()
"""


def test_a_full_disk_spares_the_last_checkpoint_and_the_run(cut, whole, tmp_path_factory):
    state = cut / "checkpoints" / "iteration-000002" / "state.ckpt"
    assert (whole / "model" / "model.safetensors").stat().st_size < 150_000 < state.stat().st_size
    folder = tmp_path_factory.mktemp("limited")  # `cut` is a run's own
    (folder / "limited.py").write_text(LIMITED)
    settings = [*SMALL_GRPO, *FOUR, f"hydra.run.dir={cut}"]
    done = PROGRAMS.run("limited.py", *settings, cwd=folder, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("could not be written") == 2  # iterations 3 and 4
    assert "iteration-000002 stays, the run goes on: make room in" in done.stdout
    assert names(cut) == ["iteration-000001", "iteration-000002"]
    assert_same(cut, whole)


class Noisy(torch.nn.Module, RewardAdvantage):
    """A strategy with a state and with draws from every global generator."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        noise = torch.rand(()) + np.random.rand() + random.random() + self.calls
        return (torch.arange(len(inputs.rewards)) - 1.5) * noise, {}


def test_global_generators_and_a_strategys_state_survive(tmp_path, monkeypatch):
    settings = [s for s in FOUR if "experiment" not in s]
    settings = ("experiment=gec", *settings, "~advantage", "+advantage._target_=test_resume.Noisy",
                "allowed_targets=[test_resume]")  # fmt: skip
    whole = run_small(tmp_path / "whole", *settings)
    with monkeypatch.context() as patch:
        signal_once(patch, PolicyModule, "optimise", 2, signal.SIGTERM)  # after the strategy's third call
        with pytest.raises(Stopped):
            run_small(tmp_path / "cut", *settings, SELDOM)
    torch.rand(7), np.random.rand(7), random.random()
    run_small(tmp_path / "cut", *settings)
    assert_same(tmp_path / "cut", whole)


def test_a_threshold_and_a_coefficient_go_on_where_they_were(tmp_path, monkeypatch):
    settings = (
        "trainer.max_iterations=4",
        "optimizer.lr=0.01",
        "correction=none",
        "advantage=entropy_driven",
        "advantage@advantage.base=avspo",
        "advantage.base.step=0.3",
        "loss=adaptive_entropy",
        "loss.target_entropy=9",
        "loss.step=0.01",
        "loss.max_coefficient=1",
        "token_filter=clip_cov",
        "data.problems_per_iteration=4",
        "algorithm.num_generations=3",
        "reward=python",
        f"reward.function={REPO}/tests/examples/my_strategies.py:even_checksum",
    )
    whole = run_small(tmp_path / "whole", *settings)
    with monkeypatch.context() as patch:
        signal_once(patch, PolicyModule, "optimise", 2, signal.SIGTERM)  # both were moved for the third iteration
        with pytest.raises(Stopped):
            run_small(tmp_path / "cut", *settings, SELDOM)
    run_small(tmp_path / "cut", *settings)
    assert_same(tmp_path / "cut", whole)
    rows = [row for row in metrics_rows(whole) if row["train/loss"]]
    coefficients = [float(row["train/adaptive_entropy/coefficient"]) for row in rows]
    assert coefficients == pytest.approx([0.0, 0.01, 0.02, 0.03])
    thresholds = [float(row["avspo/threshold"]) for row in rows]
    assert thresholds[0] == 0.5
    assert 0.5 not in thresholds[2:]  # a fresh threshold would be noticed


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_as_if_they_had_not(tmp_path):
    ddp = (*SMALL_GRPO, *FOUR, "trainer.max_iterations=40", "trainer.devices=2", "trainer.strategy=ddp")
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = command_from_scratch(*ddp, f"hydra.run.dir={cut}")
    try:
        while not (cut / "metrics.csv").exists() or len(metrics_rows(cut)) < 10:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.terminate()
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143, output
    assert len(names(cut)) == 2
    for settings in ([f"resume={cut}"], [*ddp, f"hydra.run.dir={whole}"]):
        process = command_from_scratch(*settings)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert_same(cut, whole)


@pytest.mark.parametrize("bad", [{"every_n_iterations": 0}, {"keep": 0}])
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(UserError, match="must be at least 1"):
        IterationCheckpoint(**({"folder": ".", "every_n_iterations": 1, "keep": 1} | bad))
