"""The functions that configs call (`${job_subdir:...}`), and where configs and the package's files lie."""

import hashlib
import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from edge_grpo.command_line.compose import key_of
from edge_grpo.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
STAGES = ("allocation", "group_filter", "loss", "token_filter", "importance_correction")
"""config groups that an arm's name tells of where one was typed"""
LONGEST_NAME = 200  # characters of a folder; file systems hold 255


def config_dir() -> Path:
    """The config tree: packed into the wheel, or the clone's `conf`."""
    packed = PACKAGE / "conf"
    return packed if packed.is_dir() else PACKAGE.parent / "conf"


def asset(name: str) -> str:
    """Absolute path of a file that the package brings along (`${asset:name}`)."""
    path = PACKAGE / "assets" / name
    if not path.exists():
        raise UserError(f"edge_grpo has no asset {name}")
    return str(path)


def run_dir(resumed: str | None, fresh: str) -> str:
    """The directory to resume in, or a fresh one (`${run_dir:${resume.directory},...}`)."""
    return fresh if resumed in (None, "", "None") else str(resumed)


def job_subdir(overrides: str) -> str:
    """A sweep job's folder name: what was typed, as far as a file name can hold it (`${job_subdir:...}`).

    The same settings have the same folder, so a sweep that is repeated in its folder finds what it has done. A name
    that is not all of what was typed ends in a hash of that, so that no two jobs share a folder.

    >>> job_subdir("advantage.clamp=4,seed=1"), job_subdir("data.path=a/b.jsonl,seed=1")
    ('advantage.clamp=4,seed=1', 'data.path=a-b.jsonl,seed=1-c945eaef')
    """
    name = re.sub(r"[^A-Za-z0-9_=.,-]+", "-", overrides)[:LONGEST_NAME]
    if name != overrides:
        name = f"{name}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return name or "defaults"


def evaluation_dir(run: str | None, name: str, fresh: str) -> str:
    """Where an evaluation goes (`${evaluation_dir:${run},${name},...}`): under the run that it is of, else `fresh`.

    >>> evaluation_dir(None, "paper", "outputs/1"), evaluation_dir("/runs/a", "paper", "")
    ('outputs/1', '/runs/a/evaluation/paper')
    >>> evaluation_dir("/runs/a/checkpoints/iteration-000020", "paper", "")
    '/runs/a/evaluation/paper-iteration-000020'
    """
    if run in (None, "", "None"):
        return fresh
    folder = Path(str(run)).absolute()  # absolute: Hydra puts a job's folder under the sweep's otherwise
    if folder.parent.name == "checkpoints":
        return str(folder.parent.parent / "evaluation" / f"{name}-{folder.name}")
    return str(folder / "evaluation" / name)


def typed(*keys: str) -> bool:
    """Whether one of these settings or groups, or something below it, was typed for the job at work."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    found = [key_of(str(override)).partition("@")[0] for override in overrides]
    return any(name == key or name.startswith(f"{key}.") for name in found for key in keys)


def arm_name(name: str, advantage: str, correction: str) -> str:
    """The name of the default experiment, unless its strategies were exchanged without a word of an experiment.

    `advantage=ngrpo correction=none` is called ngrpo, `advantage=ngrpo` alone ngrpo-guided, and `loss=dapo` alone what
    the experiment is called, with -dapo.

    Args:
        name: of the experiment.
        advantage, correction: its options.
    """
    if not typed("advantage", "correction", *STAGES) or typed("experiment", "name"):
        return name
    choices, overrides = HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task
    chosen = [str(choices.get("advantage")), str(choices.get("correction"))]
    if chosen == [advantage, correction]:
        chosen = [name]
    chosen += [
        str(choices[stage]) for stage in STAGES if stage in map(key_of, map(str, overrides)) and stage in choices
    ]
    return "-".join(option for option in chosen if option not in ("none", "None")) or name


def option_list(*groups: str) -> str:
    """Config groups with their options, a line each (`${option_list:model,...}`), for --help.

    >>> option_list("reflection")
    'reflection: forced'
    """
    names = {group: sorted(path.stem for path in (config_dir() / group).glob("*.yaml")) for group in groups}
    return "\n".join(f"{group}: {', '.join(options)}" for group, options in names.items())


for _resolver in (asset, run_dir, job_subdir, evaluation_dir, arm_name, option_list):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
