"""The command line as a person meets it: processes of their own, with their argv, and a small config tree."""

import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forks import Forks
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import edge_grpo
from edge_grpo.command_line import compose, resolvers
from edge_grpo.command_line import run as cli
from edge_grpo.command_line.compose import parse
from edge_grpo.command_line.shell_words import expanded_home, quoted_path

REPO = Path(__file__).resolve().parent.parent

FILES = {
    "conf/train.yaml": """
defaults:
  - _self_
  - advantage: vanilla
  - experiment: null
  - hydra: default
seed: 0
resume: {directory: null, allow_changes: false}
allowed_targets: [toy]
data: {path: problems.jsonl}
output_dir: ${hydra:runtime.output_dir}
""",
    "conf/broken.yaml": """
defaults: [_self_, {hydra: default}]
seed: ${sede}
""",
    "conf/advantage/vanilla.yaml": "{_target_: toy.Vanilla, clamp: 3.0, eps: 1e-4}",
    "conf/advantage/entropy_driven.yaml": "{_target_: toy.Vanilla, clamp: 5.0}",
    "conf/experiment/sweep.yaml": """
# @package _global_
hydra: {mode: MULTIRUN, sweeper: {params: {seed: "1,2"}}}
""",
    "conf/experiment/bad_sweep.yaml": """
# @package _global_
hydra: {mode: MULTIRUN, sweeper: {params: {sed: "1,2"}}}
""",
    "conf/experiment/bad_sweep_of_one.yaml": """
# @package _global_
hydra: {mode: MULTIRUN, sweeper: {params: {sed: "1"}}}
""",
    "conf/experiment/bad_option.yaml": """
# @package _global_
defaults: [{/advantage@second: vanila}]
""",
    "toy.py": """
class Vanilla:
    def __init__(self, clamp: float, eps: float = 1e-4) -> None:
        if clamp < 0:
            raise ValueError(f"clamp must not be negative, got {clamp}")
""",
    "train.py": """
import sys
from pathlib import Path

from edge_grpo.command_line import resolvers
from edge_grpo.command_line import run as cli
from edge_grpo.command_line.check import instantiate
from edge_grpo.errors import UserError

cli.config_dir = resolvers.config_dir = lambda: Path(__file__).parent / "conf"


def task(cfg):
    instantiate(cfg.advantage)
    print("ran", cfg.seed, cfg.advantage.clamp, cfg.data.path, cfg.output_dir)
    assert "torch" not in sys.modules
    if cfg.seed == 13:
        raise RuntimeError("boom")
    if cfg.seed == 15:
        raise KeyboardInterrupt
    if cfg.seed == 14:
        raise UserError("data.path: no such file")
    return float(cfg.seed)


cli.run(task, "train", check_directory=lambda folder, config: folder.mkdir(parents=True, exist_ok=True))
""",
}


LOADING = "loading ...\n"
CHECKING = re.compile(r"checking (\d+ jobs|a sweep) \.\.\.\n")
ENVIRONMENT = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin"}


def without_progress(stderr: str) -> str:
    return CHECKING.sub("", stderr, count=1).removeprefix(LOADING)


@pytest.fixture(scope="module")
def forks() -> Forks:
    """Processes that have what every command line imports, and no more."""
    return Forks(["edge_grpo.command_line.run"], ENVIRONMENT)


class App:
    """A program with its config tree in a folder of its own."""

    def __init__(self, folder: Path, forks: Forks) -> None:
        self.folder, self.forks = folder, forks
        for name, text in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        (folder / "conf/hydra").mkdir()
        shutil.copy(REPO / "conf/hydra/default.yaml", folder / "conf/hydra/default.yaml")

    def __call__(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.forks.run("train.py", *argv, cwd=self.folder, env={**ENVIRONMENT, **environment}, timeout=60)

    def from_scratch(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """The same in a process that imports everything itself."""
        return subprocess.run(
            [sys.executable, "train.py", *argv],
            cwd=self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def runs(self, *argv: str) -> list[str]:
        """What the jobs of a run that must succeed printed, without the output directory."""
        done = self(*argv)
        assert done.returncode == 0, done.stderr
        return [" ".join(line.split()[1:-1]) for line in done.stdout.splitlines() if line.startswith("ran")]


@pytest.fixture
def app(tmp_path: Path, forks: Forks) -> App:
    return App(tmp_path, forks)


REFUSED = {
    "misspelt key": (["advantage.clmp=3"], "there is no setting 'advantage.clmp'; did you mean advantage.clamp?"),
    "leaf alone": (["clamp=3"], "there is no setting 'clamp'; did you mean advantage.clamp?"),
    "nothing near": (["advantage.zzz=3"], "there is no setting 'advantage.zzz'; advantage has clamp, eps"),
    "unknown group": (["advntage=vanilla"], "there is no setting 'advntage'; did you mean advantage?"),
    "key that nothing reads": (["+sed=1"], "+sed=1: nothing reads a setting 'sed'; remove it"),
    "unknown top-level key": (["sed=1"], "there is no setting 'sed'; did you mean seed?"),
    "unknown option": (
        ["advantage=entropy_drivn"],
        "advantage has no option 'entropy_drivn'; did you mean entropy_driven? available: entropy_driven, vanilla",
    ),
    "unknown option in a file": (
        ["experiment=bad_option"],
        "In 'experiment/bad_option': advantage has no option 'vanila'; did you mean vanilla? "
        "available: entropy_driven, vanilla",
    ),
    "missing value": (["data.path=???"], "data.path not given: set data.path=..."),
    "unquoted =": (
        ["data.path=a=b"],
        """cannot read 'data.path=a=b'; quote special characters: 'data.path="a=b"'""",
    ),
    "no =": (["seed"], "cannot read 'seed'; settings look like key=value"),
    "-m between settings": (
        ["seed=1,2", "-m", "advantage.clamp=3"],
        "advantage.clamp=3 stands behind a flag and the settings before it: put flags such as -m first",
    ),
    "sweep without -m": (
        ["seed=1,2"],
        "seed=1,2 holds several values: add --multirun to run each, or write one list as key=[a,b]",
    ),
    "None for a group": (
        ["advantage=None"],
        "advantage has no option 'None'; null is written null, not None; available: entropy_driven, vanilla",
    ),
    "None that no constructor sees": (["seed=None"], "seed=None: null is written null, not None"),
    "wrong type": (["advantage.clamp=abc"], "advantage.clamp=abc: expected a number"),
    "added key that nothing reads": (
        ["+advantage.epss=1"],
        "advantage.epss: toy.Vanilla has no argument 'epss'; did you mean advantage.eps?",
    ),
    "constructor refuses": (["advantage.clamp=-1"], "advantage: clamp must not be negative, got -1"),
    "task refuses": (["seed=14"], "data.path: no such file"),
    "interpolation": (["-cn", "broken"], "seed: Interpolation key 'sede' not found"),
    "unknown config": (["-cn", "trian"], "there is no config 'trian'; did you mean train? available: broken, train"),
    "no config dir": (["-cd", "nope"], "--config-dir nope: no such directory"),
    "later value of a sweep": (["-m", "seed=1", "advantage.clamp=1,abc"], "advantage.clamp=abc: expected a number"),
    "later option of a sweep": (
        ["-m", "advantage=vanilla,x"],
        "advantage has no option 'x'; available: entropy_driven, vanilla",
    ),
    "glob without a match": (["-m", "advantage=glob(x*)"], "advantage=glob(x*) stands for no value at all"),
    "sweep of an experiment": (["experiment=bad_sweep"], "there is no setting 'sed'; did you mean seed?"),
    "of one value": (["experiment=bad_sweep_of_one"], "there is no setting 'sed'; did you mean seed?"),
    "--cfg of a sweep": (
        ["-m", "seed=1,2", "--cfg", "job"],
        "--cfg prints the config of one run: leave out --multirun",
    ),
    "resume nowhere": (["resume=nope"], "resume=nope: no run there (nope/.hydra/overrides.yaml does not exist)"),
    "resume in a sweep": (
        ["-m", "resume=a,b"],
        "resume=<dir> continues one run: name one directory, without --multirun",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_and_exit_code_2(app: App, case: str) -> None:
    argv, message = REFUSED[case]
    done = app(*argv)
    assert (done.returncode, without_progress(done.stderr)) == (2, f"error: {message}\n")


def test_the_version_is_ours_and_that_of_the_libraries(app: App) -> None:
    done = app("seed=1", "--version")
    lines = dict(line.split() for line in done.stdout.splitlines())
    assert (done.returncode, done.stderr) == (0, "")
    assert lines["edge-grpo"] == edge_grpo.__version__
    assert {"torch", "transformers", "pytorch-lightning", "hydra-core"} < lines.keys()
    assert not (app.folder / "outputs").exists()


def test_null_is_none_to_an_agent_alone(app: App) -> None:
    text = "advantage.clamp=None"
    assert without_progress(app(text).stderr) == "error: advantage.clamp=None: expected a number\n"
    typed = without_progress(app(text, WANDB_SWEEP_ID="a").stderr)
    assert typed == "error: advantage.clamp=null: expected a number\n"


@pytest.mark.parametrize("name", ["R&D", "it's", "a#b", "seed=1,x=2", "a b", "back\\slash"])
def test_a_path_of_any_name_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (read,) = parse([quoted_path(f"resume={folder}")])
    assert read.value() == str(folder)


def test_an_interrupt_before_there_is_anything_to_save_is_one_line(app: App) -> None:
    done = app("seed=15", "hydra.run.dir=mine")
    assert (done.returncode, without_progress(done.stderr)) == (
        130,
        "stopped; to start again: edge-grpo-train seed=15 hydra.run.dir=mine\n",
    )
    swept = app("-m", "seed=15,1", "hydra.sweep.dir=mine")
    assert (swept.returncode, "Traceback" in swept.stderr) == (130, False)


def test_a_refused_setting_leaves_no_directory_behind(app: App) -> None:
    done = app.from_scratch("advantage.clamp=abc")
    # what is said before an import that may take seconds
    assert (done.returncode, done.stderr) == (2, f"{LOADING}error: advantage.clamp=abc: expected a number\n")
    assert not (app.folder / "outputs").exists()


def test_a_run_writes_to_outputs_and_a_bug_keeps_its_traceback(app: App) -> None:
    done = app.from_scratch("advantage.clamp=1")
    assert (done.returncode, done.stdout.split()[1:4]) == (0, ["0", "1", "problems.jsonl"]), done.stderr
    assert len(list((app.folder / "outputs/train").iterdir())) == 1
    shutil.copy(app.folder / "conf/train.yaml", app.folder / "conf/other.yaml")
    app.runs("-cn", "other")  # the directory is the config's, whatever module the task is from
    assert len(list((app.folder / "outputs/other").iterdir())) == 1
    done = app("seed=13")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: boom" in done.stderr


def test_a_run_has_the_directory_that_was_checked(app: App) -> None:
    now = "${now:%Y-%m-%d_%H-%M-%S-%f}"
    app.runs(rf"hydra.run.dir='it\'s, {now}'", "-cn", "train")
    assert len(list(app.folder.glob("it's, *"))) == 1
    app.runs("-cn", "train")
    assert len(list((app.folder / "outputs/train").iterdir())) == 1


def test_the_config_that_is_checked_with_a_directory_is_that_of_a_task_in_it(app: App) -> None:
    script = app.folder / "train.py"
    script.write_text(script.read_text().replace("folder.mkdir(parents=True, exist_ok=True)", "print(config)"))
    checked, _, ran = app("hydra.run.dir=a/b").stdout.partition("\n")
    assert f"'output_dir': '{app.folder}/a/b'" in checked
    assert ran == f"ran 0 3.0 problems.jsonl {app.folder}/a/b\n"


def test_an_additional_config_dir_is_respected(app: App) -> None:
    extra = app.folder / "extra/advantage"
    extra.mkdir(parents=True)
    (extra / "mine.yaml").write_text("{_target_: toy.Vanilla, clamp: 9.0}")
    assert app.runs("-cd", "extra", "advantage=mine") == ["0 9.0 problems.jsonl"]


def test_a_sweep_outlives_a_failing_job_and_names_it(app: App) -> None:
    done = app("-m", "seed=1,13,2", "data.path=a/b")
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ran")] == ["1", "13", "2"]
    assert done.stderr.endswith("error: 1 of 3 jobs failed:\n  #1 seed=13 data.path=a/b: RuntimeError: boom\n")
    (sweep,) = (app.folder / "multirun/train").iterdir()
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert [name.rpartition("-")[0] for name in jobs] == [f"data.path=a-b,seed={seed}" for seed in (1, 13, 2)]
    assert "Traceback" in (sweep / jobs[1] / "train.log").read_text()


def test_a_sweep_says_at_once_how_many_jobs_it_checks(app: App) -> None:
    done = app("-m", "advantage=vanilla,entropy_driven", "seed=range(0,3)")
    assert done.returncode == 0
    assert done.stderr == f"checking 6 jobs ...\n{LOADING}"
    assert app("-m", "seed=1").stderr == LOADING


def test_a_check_that_takes_long_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 60.0, 64.0, 65.0, 66.0])  # the first item imported for a minute
    monkeypatch.setattr(compose.time, "monotonic", lambda: next(clock))
    assert list(compose.counted(list("abcd"), "values checked")) == list("abcd")
    assert capsys.readouterr().err == "3 of 4 values checked ...\n"


def test_a_sweep_composes_a_choice_of_groups_once(app: App) -> None:
    """Hydra would compose every job before the first begins."""
    (app.folder / "counting.py").write_text(
        "from hydra._internal.config_loader_impl import ConfigLoaderImpl\n"
        "whole, composed = ConfigLoaderImpl.load_sweep_config, []\n"
        "def counting(self, *given, **named):\n"
        "    composed.append(given)\n"
        "    return whole(self, *given, **named)\n"
        "ConfigLoaderImpl.load_sweep_config = counting\n"
        "import runpy\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
        "print(len(composed), 'composed')\n"
    )
    argv = ["-m", "advantage=vanilla,entropy_driven", "advantage.clamp=1,2", "seed=1,2,3"]
    done = app.forks.run("counting.py", *argv, cwd=app.folder, env=ENVIRONMENT, timeout=60)
    assert done.stdout.count("ran ") == 12, done.stderr
    assert done.stdout.endswith(f"{2 + 12} composed\n")  # before the first job, and each job itself


def test_a_sweep_in_the_folder_of_another_finds_its_jobs(app: App) -> None:
    for argv in (["seed=1,2"], ["seed=3,2"]):
        assert app("-m", *argv, "hydra.sweep.dir=sweep").returncode == 0
    jobs = sorted(path.name for path in (app.folder / "sweep").iterdir() if path.is_dir())
    assert jobs == ["seed=1", "seed=2", "seed=3"]


def test_no_two_jobs_share_a_folder() -> None:
    # a/b and a?b read the same in a file name, and so do two long texts that differ at their end.
    long = ",".join(["a=1"] * 100)
    typed = ["data.path=a/b", "data.path=a?b", f"{long},seed=1", f"{long},seed=2", "seed=1", ""]
    names = [resolvers.job_subdir(text) for text in typed]
    assert len(set(names)) == len(typed)
    assert [name.rpartition("-")[0] for name in names[:4]] == ["data.path=a-b"] * 2 + [long[:200]] * 2
    assert names[4:] == ["seed=1", "defaults"]
    assert [resolvers.job_subdir(text) for text in typed] == names


def test_a_sweeper_that_tolerates_failures_does_not_hide_them(app: App) -> None:
    # Four draws from two seeds: of the sampler's seed 0 they hold both.
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.max_failure_rate=1.0"]
    trials = ["hydra.sweeper.n_jobs=1", "hydra.sweeper.n_trials=4", "hydra.sweeper.direction=maximize"]
    done = app("-m", *sweeper, *trials, "seed=1,13")
    assert done.returncode == 1
    said, _, failed = done.stderr.rpartition(" of 4 jobs failed:\n")
    assert 0 < int(said.rpartition("error: ")[2]) == failed.count(" seed=13: RuntimeError: boom\n") < 4
    (results,) = app.folder.glob("multirun/train/*/optimization_results.yaml")
    assert OmegaConf.load(results).best_value == 1.0


def test_a_plugin_that_is_not_installed_is_named(app: App) -> None:
    # A package of that name in front of the real one has no plugins.
    (app.folder / "hydra_plugins").mkdir()
    (app.folder / "hydra_plugins/__init__.py").touch()
    done = app.from_scratch("-m", "hydra/sweeper=optuna", "seed=1,2")
    assert (done.returncode, done.stderr) == (
        2,
        "error: hydra/sweeper=optuna needs a package: pip install 'edge-grpo[optuna]'\n",
    )


def test_globs_ranges_and_an_experiments_own_sweep_run(app: App) -> None:
    assert app.runs("-m", "advantage=glob(*)", "seed=range(0,2)") == [
        f"{seed} {clamp} problems.jsonl" for clamp in ("5.0", "3.0") for seed in (0, 1)
    ]
    assert app.runs("experiment=sweep") == ["1 3.0 problems.jsonl", "2 3.0 problems.jsonl"]


def test_resume_replays_what_was_typed_and_typed_now_wins(app: App) -> None:
    first = app("seed=7", "advantage=entropy_driven", "data.path='a b'", "hydra.run.dir=run")
    assert first.returncode == 0, first.stderr
    assert app("resume=run").stderr == "error: resume=run: the run has saved no checkpoint (*.ckpt)\n"
    (app.folder / "run/summary.json").touch()  # a finished run says itself what is left
    assert app("resume=run").returncode == 0
    (app.folder / "run/summary.json").unlink()
    (app.folder / "run/last.ckpt").touch()
    again = app("resume=run")
    assert again.stdout == f"ran 7 5.0 a b {app.folder / 'run'}\n", again.stderr
    assert app("seed=8", "resume=run").stdout == f"ran 8 5.0 a b {app.folder / 'run'}\n"
    assert app("resume=run").stdout.startswith("ran 8 ")  # what the last continuation ran with
    # What was typed about resuming is not replayed.
    app("resume=run", "resume.allow_changes=true")
    app("resume=run")
    assert "allow_changes" not in (app.folder / "run/.hydra/overrides.yaml").read_text()


def test_a_sweeps_job_is_resumed_alone(app: App) -> None:
    app.runs("experiment=sweep")
    (job,) = app.folder.glob("multirun/train/*/*seed=2")
    (job / "last.ckpt").touch()
    assert app.runs(f"resume='{job}'") == ["2 3.0 problems.jsonl"]


def test_help_is_a_page_for_people(app: App) -> None:
    done = app.from_scratch("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        "edge-grpo-train -m experiment=vanilla,edge_grpo seed=0,1,2",
        "advantage: entropy_driven, vanilla\n",
        "outputs/train/<date>_<time>/",
        'eval "$(edge-grpo-train -sc install=bash)"',
    ):
        assert part in done.stdout
    assert "clamp:" not in done.stdout  # no dump of the config
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


def test_help_of_a_group_are_its_options(app: App) -> None:
    done = app("--help", "advantage")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "advantage: entropy_driven, vanilla")
    assert "advantage=OPTION --cfg job --package advantage" in done.stdout
    assert app("advantage=vanilla", "--cfg", "job", "--package", "advantage").stdout.splitlines()[-1] == "eps: 0.0001"
    done = app("--help", "advntage")
    told = "error: --help advntage: there is no group 'advntage'; did you mean advantage?\n"
    assert (done.returncode, done.stderr) == (2, told)
    assert "Groups and their options" in app("--help", "seed=1").stdout


def test_cfg_info_and_completion_answer_without_a_run(app: App) -> None:
    assert "clamp: 4" in app("--cfg", "job", "advantage.clamp=4", "data.path=???").stdout
    assert "clamp: 4" in app("--cfg", "job", "--resolve", "advantage.clamp=4", "output_dir=${hydra:job.name}").stdout
    assert "advantage/vanilla" in app("--info", "defaults").stdout
    assert "hydra_bash_completion" in app("-sc", "install=bash").stdout
    assert not (app.folder / "outputs").exists()


def test_the_task_can_be_sent_to_another_process() -> None:
    job = pickle.loads(pickle.dumps(cli._Job(_task, {})))
    assert job.task is _task


def _task(cfg: object) -> None:
    """Stands for an entry point's task."""


def test_config_dir_prefers_the_packed_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "PACKAGE", tmp_path / "edge_grpo")
    assert resolvers.config_dir() == tmp_path / "conf"
    (tmp_path / "edge_grpo/conf").mkdir(parents=True)
    assert resolvers.config_dir() == tmp_path / "edge_grpo/conf"


def test_a_path_that_exists_needs_no_quotes(tmp_path: Path) -> None:
    folder = tmp_path / "experiment=vanilla,seed=0"
    folder.mkdir()
    assert quoted_path(f"run={folder}") == f"run='{folder}'"
    assert quoted_path(f"data.path={folder}") == f"data.path='{folder}'"
    # What Hydra understands, what is quoted already, what is no path or not there, stays.
    for text in (
        f"run={tmp_path}",
        f"run='{folder}'",
        f"name={folder}",
        f"run={folder}x",
        f"run={folder},{folder}",
        "-m",
    ):
        assert quoted_path(text) == text


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded_home("data.path=~/a.jsonl") == f"data.path={tmp_path}/a.jsonl"
    assert expanded_home("runs=[~/a,~/b, ~]") == f"runs=[{tmp_path}/a,{tmp_path}/b, {tmp_path}]"
    assert expanded_home("hydra.run.dir=~") == f"hydra.run.dir={tmp_path}"
    for text in ("~data.path", "~data.path=~x", "name=a~/b", "name='~/b'", "-m", "--config-dir"):
        assert expanded_home(text) == text


def test_the_data_and_the_folder_of_a_run_may_lie_at_home(app: App) -> None:
    done = app("data.path=~/problems.jsonl", "hydra.run.dir=~/mine", HOME=str(app.folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == [f"{app.folder}/problems.jsonl", f"{app.folder}/mine"]
    assert (app.folder / "mine").is_dir()


@pytest.mark.parametrize(
    ("typed", "advantage", "correction", "name"),
    [
        ([], "entropy_driven", "guided", "edge_grpo"),
        (["advantage.clamp=4"], "entropy_driven", "guided", "edge_grpo"),
        (["advantage=ngrpo", "correction=none"], "ngrpo", "none", "ngrpo"),
        (["advantage=ngrpo"], "ngrpo", "guided", "ngrpo-guided"),
        (["correction=none"], "entropy_driven", "none", "entropy_driven"),
        (["experiment=edge_grpo", "advantage=ngrpo"], "ngrpo", "guided", "edge_grpo"),  # as it was asked for
        (["loss=dapo"], "entropy_driven", "guided", "edge_grpo-dapo"),
        (["loss.beta=0.1"], "entropy_driven", "guided", "edge_grpo"),
        (["advantage=vanilla", "correction=none", "loss=dapo"], "vanilla", "none", "vanilla-dapo"),
        (["~advantage", "~correction"], "None", "None", "edge_grpo"),
    ],
)
def test_a_run_is_not_called_after_a_method_that_it_does_not_run(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], advantage: str, correction: str, name: str
) -> None:
    hydra = {
        "overrides": {"task": typed},
        "runtime": {"choices": {"advantage": advantage, "correction": correction, "loss": "dapo"}},
    }
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))
    text = OmegaConf.load(REPO / "conf/experiment/edge_grpo.yaml").name
    assert text == name
