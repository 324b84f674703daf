"""Sweeps whose jobs run beside each other: what they share, what each job gets, what the command says of them."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from test_cli import ENVIRONMENT, App, forks, without_progress  # noqa: F401

from edge_grpo.command_line import resources
from edge_grpo.command_line.again import again
from edge_grpo.command_line.compose import Checked, _composer
from edge_grpo.command_line.jobs import Job, Jobs
from edge_grpo.command_line.resolvers import config_dir
from edge_grpo.errors import Stopped
from edge_grpo.programs.sweep import arms, around_sweep, progress_line, show_arms, time_left

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
LOCAL = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, forks) -> App:  # noqa: F811
    return App(tmp_path_factory.mktemp("sweeps"), forks)


def finished(folder: Path, num: int, overrides: list[str], before: float, after: float) -> Job:
    folder.mkdir()
    accuracy = {"before": before, "after": after}
    (folder / "summary.json").write_text(json.dumps({"name": "mine", "accuracy": accuracy}))
    return Job(num, "finished", overrides, str(folder))


def test_jobs_side_by_side_are_all_named_if_they_fail_and_leave_the_terminal_alone(app: App) -> None:
    done = app.from_scratch(
        "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,13,14,2", "hydra.sweep.dir=s"
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "error: 2 of 4 jobs failed:\n  #1 seed=13: RuntimeError: boom\n  #2 seed=14: data.path: no such file\n"
    )
    assert " ERROR " not in done.stderr + done.stdout  # which is in the jobs' logs
    assert "Traceback" in (app.folder / "s/seed=13/train.log").read_text()
    assert sorted(path.name for path in (app.folder / "s").iterdir() if path.is_dir()) == [
        f"seed={seed}" for seed in (1, 13, 14, 2)
    ]


def test_two_commands_in_one_folder_do_not_mix_their_jobs(tmp_path: Path) -> None:
    ours, theirs = Jobs(tmp_path), Jobs(tmp_path)
    ours.say(Job(0, "failed", ["seed=13"], "", "boom"))
    theirs.say(Job(0, "finished", ["seed=2"], ""))
    theirs.forget()
    assert [job.error for job in ours.read()] == ["boom"]
    assert theirs.read() == []


def test_a_sweep_forgets_the_failures_of_one_before_it_in_its_folder(app: App) -> None:
    for argv, code in ((["seed=13,2"], 1), (["seed=3,2"], 0)):
        done = app("-m", *argv, "hydra.sweep.dir=again")
        assert (done.returncode, "jobs failed" in done.stderr) == (code, code == 1)


def test_a_launcher_that_is_not_installed_or_has_no_slurm_is_refused_before_anything_runs(app: App) -> None:
    done = app("-m", "hydra/launcher=submitit_slurm", "seed=1,2")
    assert done.returncode == 2
    assert without_progress(done.stderr).startswith("error: hydra/launcher: there is no srun here")
    assert "ran" not in done.stdout


def test_the_number_of_jobs_is_known_beforehand() -> None:
    jobs = [Job(0, "finished", [], ""), Job(1, "failed", [], ""), Job(2, "running", [], "")]
    assert progress_line(jobs, 6) == "sweep: 1 of 6 jobs finished, 1 running, 1 failed"
    assert time_left(jobs, 6, elapsed_s=60) == ", left 0:02:00"  # 2 of 6 ended in a minute
    assert time_left(jobs, None, 60) == time_left(jobs[2:], 6, 60) == ""


def test_arms_are_what_jobs_differ_in_besides_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["trainer=cpu"]
    jobs = Jobs(tmp_path)
    for num, (arm, seed, after) in enumerate([("a", 0, 0.5), ("a", 1, 0.7), ("b", 0, 0.25)]):
        overrides = [*common, f"experiment={arm}", f"seed={seed}"]
        jobs.say(finished(tmp_path / str(num), num, overrides, before=0.125, after=after))
    jobs.say(Job(3, "failed", [*common, "experiment=b", "seed=1"], str(tmp_path / "none"), "boom"))
    assert arms(jobs.read()) == {
        "experiment=a": {"finished": "2 runs", "held-out accuracy": "12.5 -> 60.0 ± 14.1 %"},
        "experiment=b": {"finished": "1 run", "held-out accuracy": "12.5 -> 25.0 %"},
    }
    show_arms(jobs)
    assert capsys.readouterr().out.splitlines()[-1] == f"compare: edge-grpo-report runs={tmp_path}"


def test_a_run_that_two_jobs_are_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs, arm = Jobs(tmp_path), ["experiment=a", "seed=3"]
    jobs.say(finished(tmp_path / "a", 0, arm, before=0.125, after=0.5))
    jobs.say(Job(1, "finished", arm, str(tmp_path / "a")))
    jobs.say(Job(2, "failed", arm, str(tmp_path / "a"), "another run is at work there"))
    jobs.say(finished(tmp_path / "b", 3, ["experiment=b", "seed=3"], before=0.125, after=0.25))
    show_arms(jobs)
    assert capsys.readouterr().out.splitlines() == [
        "experiment=a: 1 run, 12.5 -> 50.0 %",
        "experiment=b: 1 run, 12.5 -> 25.0 %",
        "#0 experiment=a seed=3, #1 experiment=a seed=3, #2 experiment=a seed=3 are the same run, "
        f"{tmp_path / 'a'}, and count once",
        f"compare: edge-grpo-report runs={tmp_path}",
    ]


def test_a_stopped_sweep_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["-m", "correction.probabilities={reflect:1}", "seed=0,1", "hydra.sweep.dir='multirun/arms'", "name='a b'"]
    monkeypatch.setattr(sys, "argv", ["/bin/edge-grpo-train", *typed])  # as the command line has completed it
    with pytest.raises(Stopped), around_sweep(Jobs(tmp_path), Checked("multirun/arms", 2, True, False)):
        raise Stopped(2)
    told = capsys.readouterr().out.removeprefix("to go on with the sweep: ").strip()
    expected = """edge-grpo-train -m 'correction.probabilities={reflect:1}' seed=0,1 hydra.sweep.dir=multirun/arms"""
    assert told.startswith(expected)
    plain = [text if text.startswith("name") else text.replace("'", "") for text in typed]
    assert shlex.split(told) == ["edge-grpo-train", *plain]


@pytest.mark.parametrize("started", ["/bin/edge-grpo-train", "/programs/train.py", "/submitit/_submit.py"])
def test_what_goes_on_with_a_run_knows_its_configs_and_its_program(
    monkeypatch: pytest.MonkeyPatch, started: str
) -> None:
    """A launcher's process has been started with words of its own."""
    sources = [{"provider": "main", "path": "/conf"}, {"provider": "command-line", "path": "/my conf"}]
    hydra = {
        "job": {"name": "train"},
        "runtime": {"config_sources": sources, "output_dir": "/multirun/seed=1"},
        "overrides": {"task": ["advantage=mine", "seed=1"]},
    }
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    typed = ["--config-dir", "/my conf", "advantage=mine", "seed=1"]
    monkeypatch.setattr(sys, "argv", [started, *([".submitit/7"] if "submitit" in started else typed)])
    begun = ["edge-grpo-train", "--config-dir", "/my conf"]
    assert shlex.split(again(["resume=/run"])) == [*begun, "resume=/run"]
    folder = ["hydra.run.dir='/multirun/seed=1'"] if "submitit" in started else []
    assert shlex.split(again()) == [*begun, "advantage=mine", "seed=1", *folder]


def test_a_killed_or_unfinished_job_has_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = Jobs(tmp_path)
    jobs.say(Job(0, "running", [], str(tmp_path / "none")))
    for num, state in enumerate(("running", "failed"), start=1):  # made longer in the folder where it had finished
        job = finished(tmp_path / str(num), num, [], before=0.1, after=0.9)
        jobs.say(job._replace(state=state))
    show_arms(jobs)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        ({"_target_": JOBLIB, "n_jobs": 2}, 4),
        ({"_target_": JOBLIB, "n_jobs": -1}, 1),
        ({"_target_": JOBLIB, "n_jobs": 16}, 1),
        ({"_target_": LOCAL, "cpus_per_task": None}, 1),
        ({"_target_": SLURM, "cpus_per_task": 8}, 6),  # OMP_NUM_THREADS=6 is not exceeded
        ({"_target_": SLURM, "cpus_per_task": None}, None),
        ({"_target_": RAY, "ray": {"remote": {"num_cpus": 3}}}, 3),
    ],
)
def test_each_job_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, launcher, threads) -> None:
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert resources.take_cores(OmegaConf.create(launcher)) == threads
    assert resources.os.environ["OMP_NUM_THREADS"] == str(threads or 6)


TAKE = """
import sys
from omegaconf import OmegaConf
from edge_grpo.command_line.resources import take_gpus
launcher = OmegaConf.create({"_target_": sys.argv[1]})
print(*(gpu for count in sys.argv[2:] for gpu in take_gpus(launcher, int(count))), flush=True)
sys.stdin.read()
"""


def test_jobs_on_one_machine_spread_over_its_gpus(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": "2,5,7", "TMPDIR": str(tmp_path)}
    jobs: list[subprocess.Popen[str]] = []

    def start(target: str, *counts: int) -> str:
        argv = [sys.executable, "-c", TAKE, target, *map(str, counts or (1,))]
        job = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        jobs.append(job)
        assert job.stdout is not None
        return job.stdout.readline().strip()

    try:
        assert [start(JOBLIB), start(JOBLIB, 2, 1), start(LOCAL)] == ["2", "5 7", "2"]  # the next job keeps them
        jobs[1].communicate("")  # its GPUs are free again, and have fewer jobs than the other
        assert [start(JOBLIB), start(JOBLIB, 2)] == ["5", "7 5"]
        assert [start(SLURM), start(JOBLIB, 3), start(JOBLIB, 0)] == ["", "", ""]  # given by Slurm; all there are
    finally:
        for job in jobs:
            job.kill()


def test_one_visible_gpu_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert resources.take_gpus(OmegaConf.create({"_target_": JOBLIB}), 1) == []
    assert resources.os.environ["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize(
    ("first", "place", "text"),
    [
        (["seed=1"], 0, "seed=2"),
        (["correction.probabilities={reflect: 1, answer: 0}"], 0, "correction.probabilities={solution: 1}"),
        (["seed=1", "seed=3"], 0, "seed=2"),  # the later one holds
        (["loss=dapo", "loss.beta=0"], 1, "loss.beta=0.1"),
        (["+trainer.note=a", "name=a"], 1, "name=${seed}"),
    ],
)
def test_the_config_that_is_checked_is_the_jobs(first, place, text):
    args = get_args_parser().parse_args(first)

    def settings(cfg):
        return OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))

    with _composer(args, lambda cfg: None, config_dir(), "train") as composer:
        found = composer.changed(composer.compose(first), first, place, text)
        assert settings(found) == settings(composer.compose([*first[:place], text, *first[place + 1 :]]))
