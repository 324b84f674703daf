"""The sweeps: what they call, that all of it composes, and what they do about failures. `make smoke` runs them."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from edge_grpo.advantages.entropy_driven import EntropyDriven
from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.command_line.compose import _values, check_command_line, parse
from edge_grpo.command_line.resolvers import config_dir
from edge_grpo.command_line.shell_words import null_of_agent
from edge_grpo.corrections.guided import GuidedCorrection
from edge_grpo.programs.train import INJECTED

SCRIPTS = sorted((Path(__file__).parent.parent / "multirun_scripts").glob("*.sh"))
SWEEPS = [path for path in SCRIPTS if path.name != "common.sh"]
COMMANDS = ("train", "evaluate", "report")
STUB = """#!/usr/bin/env bash
{ basename "$0"; printf '%s\\n' "$@"; echo; } >> calls
exit "$(cat "exit-of-$(basename "$0")" 2> /dev/null || echo 0)"
"""

Call = list[str]
Sweep = Callable[..., tuple[int, list[Call]]]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Runs a script with stand-ins for the commands: its exit code and what it called."""
    for command in COMMANDS:
        stub = tmp_path / "bin" / f"edge-grpo-{command}"
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(STUB)
        stub.chmod(0o755)

    def run(script: Path, *argv: str, **variables: str) -> tuple[int, list[Call]]:
        env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "MODEL": "model", **variables}
        done = subprocess.run(["bash", script, *argv], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.stderr == ""
        calls = (tmp_path / "calls").read_text().split("\n\n")[:-1]
        return done.returncode, [call.splitlines() for call in calls]

    return run


def script(name: str) -> Path:
    return next(path for path in SWEEPS if path.stem == name)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_bash_can_read_it(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert len(path.read_text().splitlines()) < 25


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_command_of_a_script_composes(
    path: Path, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (run := tmp_path / "runs" / "experiment=vanilla,seed=0").mkdir(parents=True)
    (run / "summary.json").touch()
    code, calls = sweep(path, SMOKE="1", FOLDER="runs")  # with all that a real one has, and more
    assert code == 0
    assert calls[0][:2] == ["edge-grpo-train", "-m"]
    for command, *argv in calls:
        entry = command.removeprefix("edge-grpo-")
        injected = INJECTED if entry == "train" else {}
        first = [text if text[0] == "-" or _is_group(text) else _values(parse([text])[0])[0] for text in argv]
        check_command_line(get_args_parser().parse_args(first), _task, config_dir(), entry, injected)


def _is_group(override: str) -> bool:
    """Its options differ in what they compose; the values of a key do not."""
    return (config_dir() / override.partition("=")[0]).is_dir()


def _swept(calls: list[Call], key: str) -> list[Any]:
    """The values of a key in the training command."""
    (override,) = (o for o in parse(calls[0][2:]) if o.key_or_group == key)
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def test_the_swept_values_are_ones_that_the_strategies_take(sweep: Sweep, tmp_path: Path) -> None:
    _, calls = sweep(script("ablation_gec_branches"))
    settings = OmegaConf.to_container(OmegaConf.load(config_dir() / "correction/guided.yaml"))
    assert isinstance(settings, dict)
    taken = [
        GuidedCorrection(**{k: v for k, v in settings.items() if k[0] != "_"} | {"probabilities": mixture})
        for mixture in _swept(calls, "correction.probabilities")
    ]
    # The paper's mixture, three branches alone, three pairs.
    used = [frozenset(b for b, p in one.probabilities.items() if p > 0) for one in taken]
    assert (len(used), len(set(used))) == (7, 7)
    assert taken[0].probabilities == settings["probabilities"]
    (tmp_path / "calls").unlink()
    _, calls = sweep(script("sweep_eda_clamp"))
    for clamp in _swept(calls, "advantage.clamp"):
        EntropyDriven(Vanilla(1e-4), clamp, True, "group", "response", "rollout")


def _task(cfg: object) -> None:
    """Stands for an entry point's task."""


def test_the_papers_table_trains_five_arms_and_evaluates_what_finished(sweep: Sweep, tmp_path: Path) -> None:
    arms = tmp_path / "multirun/paper_table_data=arithmetic_hard"
    for name in ("experiment=sft,seed=4", "experiment=vanilla,seed=4", "experiment=gec,seed=4"):
        (arms / name).mkdir(parents=True)
    for name in ("experiment=sft,seed=4", "experiment=vanilla,seed=4"):
        (arms / name / "summary.json").touch()
    code, (train, evaluate, report) = sweep(script("paper_table"), "data=arithmetic_hard", SEEDS="4")
    assert code == 0
    assert train == [
        "edge-grpo-train",
        "-m",
        "hydra.sweep.dir='multirun/paper_table_data=arithmetic_hard'",
        "experiment=sft,vanilla,force_r,force_r_eda,edge_grpo",
        "seed=4",
        "data=arithmetic_hard",
    ]
    assert evaluate[1:] == [
        "-m",
        "hydra.sweep.dir='multirun/paper_table_data=arithmetic_hard/evaluation'",
        "run='multirun/paper_table_data=arithmetic_hard/experiment=sft,seed=4','multirun/paper_table_data=arithmetic_hard/experiment=vanilla,seed=4'",
        "evaluation=arithmetic",
    ]
    assert report[:3] == [
        "edge-grpo-report",
        "runs='multirun/paper_table_data=arithmetic_hard'",
        "hydra.run.dir='multirun/paper_table_data=arithmetic_hard/report'",
    ]


def test_a_smoke_run_has_a_folder_of_its_own_and_what_is_typed_wins(sweep: Sweep) -> None:
    _, ((_, _, folder, *settings), *_) = sweep(script("sweep_eda_clamp"), "trainer.max_iterations=1", SMOKE="1")
    assert folder == "hydra.sweep.dir='multirun/sweep_eda_clamp_smoke_trainer.max_iterations=1'"
    assert settings[0] == "debug=smoke"
    assert settings[-2:] == ["seed=0", "trainer.max_iterations=1"]


def test_another_evaluation_may_have_settings(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/summary.json").touch()
    _, (_, evaluate, _) = sweep(script("paper_table"), FOLDER="runs", EVALUATION="paper paths.evaluation_suite=DIR")
    assert evaluate[3:] == ["run='runs/a'", "evaluation=paper", "paths.evaluation_suite=DIR"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_failed_jobs_do_not_stop_a_script_but_it_says_so(path: Path, sweep: Sweep, tmp_path: Path) -> None:
    _, well = sweep(path)
    (tmp_path / "calls").unlink()
    (tmp_path / "exit-of-edge-grpo-train").write_text("1")
    assert sweep(path) == (1, well)


@pytest.mark.parametrize("code", [2, 130, 143])
def test_a_wrong_setting_or_a_signal_stops_it_at_once(code: int, sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "exit-of-edge-grpo-train").write_text(str(code))
    stopped, calls = sweep(script("paper_table"))
    assert (stopped, [call[0] for call in calls]) == (code, ["edge-grpo-train"])


def test_wandbs_agent_can_start_every_run_of_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command line that the agent makes of the file, by its own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # takes seconds

    sweep = yaml.safe_load((SCRIPTS[0].parent / "wandb_sweep.yaml").read_text())
    varied = {key: of.get("values", [of.get("value")]) for key, of in sweep["parameters"].items()}
    assert varied["advantage.clamp"][0] is None
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp")
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    chosen = {"args": {key: {"value": values[0]} for key, values in varied.items()}}  # the clamp is null
    macros = {**create_sweep_command_args(chosen), "env": ["/usr/bin/env"]}
    parts = create_sweep_command(list(sweep["command"]))
    argv = [text for part in parts for text in (macros[part[2:-1]] if part.startswith("${") else [part])]
    assert argv[:2] == ["/usr/bin/env", "edge-grpo-train"]
    assert "advantage.clamp=None" in argv
    args = get_args_parser().parse_args([null_of_agent(text) for text in argv[2:]])
    checked = check_command_line(args, _task, config_dir(), "train", INJECTED)
    assert checked is not None
    assert (checked.folder, checked.jobs) == ("multirun/wandb/swp/run1", 1)


ARMS = {
    line.split()[0]: line.split()[1:]
    for line in (SCRIPTS[0].parent / "cures.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def test_the_cures_are_many_and_each_is_another(sweep: Sweep) -> None:
    code, (*train, report) = sweep(script("cures"), "optimizer.lr=1e-5", SEEDS="3,4", TOKENS="5000")
    assert code == 0
    assert {"vanilla", "eda", "gec", "edge_grpo", "sft"} < ARMS.keys()
    assert len(ARMS) >= 5 + 16 + 4
    assert len({tuple(own) for own in ARMS.values()}) == len(ARMS)
    folder = "hydra.sweep.dir='multirun/cures_optimizer.lr=1e-5'"
    assert [call[4] for call in train] == [f"name={arm}" for arm in ARMS]
    for (_, _, there, subdir, *settings), own in zip(train, ARMS.values(), strict=True):
        assert (there, subdir) == (folder, "hydra.sweep.subdir='${name},seed=${seed}'")
        assert settings[1:3] == ["trainer.max_generated_tokens=5000", "trainer.max_iterations=1000"]
        experiment = [] if any(text.startswith("experiment=") for text in own) else ["experiment=[cures,vanilla]"]
        assert settings[3:] == [*experiment, *own, "seed=3,4", "optimizer.lr=1e-5"]
    assert report[1] == "runs='multirun/cures_optimizer.lr=1e-5'"
    assert "baseline=vanilla" in report
    assert f"arms=[{','.join(ARMS)}]" in report


def test_some_of_the_cures_can_be_chosen(sweep: Sweep, tmp_path: Path) -> None:
    _, (*train, report) = sweep(script("cures"), ARMS="gec,eda_ngrpo", SMOKE="1")
    assert [call[call.index("debug=smoke") + 5 :][:2] for call in train] == [
        ["name=gec", "trainer.max_generated_tokens=150"],
        ["name=eda_ngrpo", "trainer.max_generated_tokens=150"],
    ]
    assert "arms=[gec,eda_ngrpo]" in report
    assert not any(text.startswith("trainer.max_iterations") for call in train for text in call)  # of debug=smoke
    done = subprocess.run(
        ["bash", script("cures")], env={"PATH": "/usr/bin:/bin", "ARMS": "gec,edge"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, f"ARMS: no edge in {script('cures').with_suffix('.txt')}\n")
