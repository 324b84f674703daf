"""Compose what was typed before anything runs, and say in one line what is wrong with it."""

import argparse
import copy
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

from hydra._internal.hydra import Hydra
from hydra._internal.utils import (
    create_automatic_config_search_path,
    detect_calling_file_or_module_from_task_function,
)
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from edge_grpo.command_line.check import check_config, one_line, to_dict
from edge_grpo.command_line.other_names import ours_of
from edge_grpo.command_line.words import NULL
from edge_grpo.errors import UserError, nearest

# Options that a package of its own adds.
PLUGINS = {
    "hydra/sweeper/optuna": "edge-grpo[optuna]",
    "hydra/launcher/joblib": "edge-grpo[joblib]",
    "hydra/launcher/submitit_local": "edge-grpo[slurm]",
    "hydra/launcher/submitit_slurm": "edge-grpo[slurm]",
    "hydra/launcher/ray": "edge-grpo[ray]",
}
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
TELL_EVERY_S = 5.0

T = TypeVar("T")


class Checked(NamedTuple):
    """What a command line comes to.

    Attributes:
        folder: of the run or the sweep.
        jobs: of a sweep, None where its sweeper decides that; 1 for a run.
        sweep: whether it is one.
        side_by_side: whether its launcher runs jobs beside each other.
    """

    folder: str
    jobs: int | None
    sweep: bool
    side_by_side: bool


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def parse(overrides: list[str], loader: Any = None) -> list[Override]:
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    except OverrideParseException as error:
        key, equals, value = error.override.partition("=")
        hint = f"""quote special characters: '{key}="{value}"'""" if equals else "settings look like key=value"
        raise UserError(f"cannot read {error.override!r}; {hint}") from error


def check_command_line(
    args: argparse.Namespace,
    task: Callable[..., Any],
    conf: Path,
    config_name: str,
    injected: Mapping[str, frozenset[str]],
    check_directory: Callable[[Path, Mapping[str, Any]], None] | None = None,
) -> Checked | None:
    """Compose all that was typed; for a run, resolve it and hold it against the constructors and its directory too.

    Returns:
        None where nothing is run.
    """
    if args.help or args.hydra_help or args.shell_completion or args.info or args.experimental_rerun:
        return None
    if args.cfg and args.multirun:
        raise UserError("--cfg prints the config of one run: leave out --multirun")
    with _composer(args, task, conf, config_name) as composer:
        variants = _variants(composer, args)
        if args.cfg:
            return None
        for cfg in counted(variants, "values composed"):  # what is cheap comes before the first import of a target
            to_dict(_as_job(cfg))
        if "torch" not in sys.modules:  # which a constructor's module will most likely import, for seconds
            print("loading ...", file=sys.stderr, flush=True)
        for cfg in counted(variants, "values checked"):
            check_config(_as_job(cfg), injected)
        first = variants[0]
        if args.multirun or first.hydra.mode == RunMode.MULTIRUN:
            return _checked_sweep(first, args.overrides, composer)
        folder = str(first.hydra.run.dir)
        if check_directory is not None:
            check_directory(Path(folder), to_dict(_as_job(first, Path(folder))))
        return Checked(folder, jobs=1, sweep=False, side_by_side=False)


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, and where they take long a line every few seconds that says how many are done."""
    told = 0.0
    for done, item in enumerate(items):
        if done < 2:  # the first may import much, which says nothing of the others
            told = time.monotonic()
        elif time.monotonic() - told >= TELL_EVERY_S:
            told = time.monotonic()
            print(f"{done} of {len(items)} {what} ...", file=sys.stderr, flush=True)
        yield item


@contextmanager
def composing_each_choice() -> Iterator[None]:
    """Hydra composes every job of a sweep before the first begins: here, one of each choice of config groups.

    Every value has been composed by then, with the first of the others (`check_command_line`). What else could go wrong
    are groups that do not go together, or a group that has no setting of the name.
    """

    def validate(self: Any, batch: Sequence[Sequence[str]]) -> None:
        repository = self.hydra_context.config_loader.repository
        choices = {tuple(text for text in job if _is_group(text, repository)): job for job in reversed(batch)}
        for job in counted(list(choices.values()), "combinations composed"):
            whole(self, [job])

    whole = Sweeper.validate_batch_is_legal
    with patch.object(Sweeper, "validate_batch_is_legal", validate):
        yield


def _is_group(override: str, repository: Any) -> bool:
    return bool(repository.group_exists(key_of(override).partition("@")[0]))


def _checked_sweep(cfg: DictConfig, typed: list[str], composer: "_Composer") -> Checked:
    """Raises UserError where the launcher cannot start jobs here."""
    launcher = str(cfg.hydra.launcher._target_)
    if launcher.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher: there is no srun here; type this on a machine that submits to Slurm, or "
            "rehearse it with hydra/launcher=submitit_local"
        )
    jobs = _number_of_jobs(cfg, parse(typed, composer.loader))
    return Checked(str(cfg.hydra.sweep.dir), jobs, sweep=True, side_by_side=launcher != BASIC_LAUNCHER)


def _number_of_jobs(cfg: DictConfig, overrides: Sequence[Override]) -> int | None:
    """Of a sweep; None where its sweeper decides that."""
    if str(cfg.hydra.sweeper._target_) != BASIC_SWEEPER or cfg.hydra.sweeper.get("params"):
        return None
    swept = [override for override in overrides if override.is_sweep_override()]
    return math.prod(len(list(override.sweep_string_iterator())) for override in swept)


@contextmanager
def _composer(
    args: argparse.Namespace, task: Callable[..., Any], conf: Path, config_name: str
) -> Iterator["_Composer"]:
    """Compose as `hydra.main` will, with the same search path, and leave Hydra's globals as they were."""
    file, module = detect_calling_file_or_module_from_task_function(task)
    path = create_automatic_config_search_path(file, module, args.config_path or str(conf))
    if args.config_dir is not None:
        extra = Path(args.config_dir).resolve()
        if not extra.is_dir():
            raise UserError(f"--config-dir {args.config_dir}: no such directory")
        path.prepend(provider="command-line", path=f"file://{extra}", anchor=SearchPathQuery(provider="schema"))
    try:
        yield _Composer(Hydra.create_main_hydra2("check", path), args.config_name or config_name)
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


def _as_job(cfg: DictConfig, folder: Path = Path()) -> DictConfig:
    """The config as a task in this folder gets it: without `hydra`, which `${hydra:...}` still reaches."""
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = str(folder.absolute())
        cfg.hydra.job.update(num=0, id="0")
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _variants(composer: "_Composer", args: argparse.Namespace) -> list[DictConfig]:
    """A config for every swept value, the other settings at their first."""
    overrides = parse(args.overrides, composer.loader)
    typed = len(overrides)
    cfg = composer.compose([_values(override)[0] for override in overrides])
    _refuse_unread(overrides, composer)
    swept = [override.input_line for override in overrides if override.is_sweep_override()]
    if args.multirun or cfg.hydra.mode == RunMode.MULTIRUN:
        keys = {override.key_or_group for override in overrides}
        params = {key: value for key, value in (cfg.hydra.sweeper.get("params") or {}).items() if key not in keys}
        overrides += parse([f"{key}={value}" for key, value in params.items()], composer.loader)
    elif swept:
        raise UserError(f"{swept[0]} holds several values: add --multirun to run each, or write one list as key=[a,b]")
    values = [_values(override) for override in overrides]
    first = [options[0] for options in values]
    base = cfg if len(first) == typed else composer.compose(first)
    others = [(i, option) for i, options in enumerate(values) for option in options[1:]]
    if others:
        jobs = _number_of_jobs(base, overrides)
        print(f"checking {'a sweep' if jobs is None else f'{jobs} jobs'} ...", file=sys.stderr, flush=True)
    return [base, *(composer.changed(base, first, i, option) for i, option in counted(others, "values composed"))]


def _refuse_unread(overrides: list[Override], composer: "_Composer") -> None:
    """Refuse `+key=value` at the top level: no constructor is behind it, so nothing would read it."""
    added = [o for o in overrides if o.type == OverrideType.ADD and "." not in o.key_or_group]
    groups = set(composer.app.list_all_config_groups()) if added else set()  # listing them takes a second
    for override in added:
        key = override.key_or_group
        if key not in groups:
            raise UserError(f"{override.input_line}: nothing reads a setting {key!r}; remove it")


def _values(override: Override) -> list[str]:
    """The override once for each of its values; of a range and an interval, which are numbers, the ends."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    value = override.value()
    if isinstance(value, IntervalSweep):
        texts = [str(value.start), str(value.end)]
    else:
        texts = list(override.sweep_string_iterator())
        texts = texts[:: max(1, len(texts) - 1)] if override.is_range_sweep() else texts
    if not texts:
        raise UserError(f"{override.input_line} stands for no value at all")
    return [f"{override.get_key_element()}={text}" for text in texts]


class _Composer:
    """Hydra's composition with errors that name what was meant."""

    def __init__(self, app: Hydra, config_name: str) -> None:
        self.app = app
        self.loader: Any = app.config_loader
        self.config_name = config_name

    def compose(self, overrides: list[str]) -> DictConfig:
        """The config, `hydra` included; raises UserError."""
        try:
            return self._compose(overrides)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            raise UserError(self._explain(error, overrides)) from error

    def changed(self, cfg: DictConfig, overrides: list[str], place: int, text: str) -> DictConfig:
        """The config with another override in this place; raises UserError.

        A plain value changes nothing else, and a copy takes a tenth of the time of a composition. A mapping is merged
        over the one before it, and of a key that is typed twice the later one holds: both are composed.
        """
        plain = parse([text], self.loader)
        simple = plain[0].type == OverrideType.CHANGE and not isinstance(plain[0].value(), dict)
        once = [key_of(other) for other in overrides].count(key_of(text)) == 1
        if simple and once and not _is_group(text, self.loader.repository):
            copied = copy.deepcopy(cfg)
            try:
                self.loader._apply_overrides_to_config(plain, copied)
                return copied
            except (HydraException, OmegaConfBaseException):
                pass  # composed as a whole, it is explained
        return self.compose([*overrides[:place], text, *overrides[place + 1 :]])

    def _compose(self, overrides: list[str]) -> DictConfig:
        return self.app.compose_config(self.config_name, overrides, RunMode.RUN, with_log_configuration=False)

    def _explain(self, error: Exception, overrides: list[str]) -> str:
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            return self._explain_option(error, error.missing_cfg_file)
        groups = set(self.app.list_all_config_groups())
        parsed = parse(overrides)
        chosen = [str(o.input_line) for o in parsed if o.key_or_group in groups]
        try:
            base = OmegaConf.to_container(self._compose(chosen), resolve=False)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError):
            return one_line(error)  # the choice of groups itself is at fault, as the error says
        keys = set(_dotted(base)) | groups
        for override in parsed:
            if override.type == OverrideType.CHANGE and override.key_or_group not in keys:
                return _explain_key(override.key_or_group, keys)
        return one_line(error)

    def _explain_option(self, error: Exception, missing: str) -> str:
        group, _, option = missing.rpartition("/")
        if missing in PLUGINS:
            return f"{group}={option} needs a package: pip install '{PLUGINS[missing]}'"
        listed = self.loader.get_group_options(group, ObjectType.CONFIG)
        options = [name for name in listed if not name.startswith("_")]  # Hydra keeps a dummy of its own
        parent = re.match(r"In '(.+?)': ", str(error))
        prefix = parent.group(0) if parent and parent.group(1) != self.config_name else ""
        near = nearest(option, options)
        hint = f"{NULL}; " if option == "None" else f"did you mean {near}? " if near else ""
        what = f"{group} has no option {option!r}" if group else f"there is no config {option!r}"
        return f"{prefix}{what}; {hint}available: {', '.join(options) or 'none'}"


def _explain_key(key: str, keys: set[str]) -> str:
    ours = {name for name in keys if name.startswith("hydra") == key.startswith("hydra")}
    if "trainer" in keys and (other := ours_of(key, keys)):
        return f"there is no setting {key!r}; did you mean {other}?"
    near = nearest(key, (name for name in ours if not key.startswith(f"{name}.")))
    parent, _, leaf = key.rpartition(".")
    if not near and parent not in ours:
        near = nearest(leaf, (name for name in ours if name.rpartition(".")[2] == leaf))
    if near:
        return f"there is no setting {key!r}; did you mean {near}?"
    siblings = sorted(name.rpartition(".")[2] for name in ours if name.rpartition(".")[0] == parent)
    return f"there is no setting {key!r}" + (
        f"; {parent or 'the config'} has {', '.join(n for n in siblings if n[0] != '_')}" if siblings else ""
    )


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a nested container, dotted."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in items:
        yield f"{prefix}{name}"
        yield from _dotted(child, f"{prefix}{name}.")
