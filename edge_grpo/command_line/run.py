"""The command line: settings are checked before anything heavy is imported, and failures are one line.

Every entry point is `run(task, config_name)`. Nothing here imports torch, so `--help`, shell completion and a
refused setting answer at once; entry points keep their own heavy imports inside the task.
"""

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import (
    get_args_parser,
)
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from edge_grpo.command_line.again import again
from edge_grpo.command_line.check import NOTHING_INJECTED, check_config
from edge_grpo.command_line.compose import (
    BASIC_LAUNCHER,
    Checked,
    check_command_line,
    composing_each_choice,
    key_of,
    parse,
)
from edge_grpo.command_line.jobs import Job, Jobs, JobState
from edge_grpo.command_line.resolvers import config_dir, option_list
from edge_grpo.command_line.resources import take_cores, take_gpus
from edge_grpo.command_line.shell_words import expanded_home, null_of_agent, quoted, quoted_path
from edge_grpo.command_line.version import version_text
from edge_grpo.errors import UserError, message_of, nearest

log = logging.getLogger(__name__)

Task = Callable[[DictConfig], float | None]
Check = Callable[[Path, Mapping[str, Any]], None]
AroundSweep = Callable[[Jobs, Checked], AbstractContextManager[None]]
RESUME_OPTIONS = ("auto", "never")


def help_of(groups: Sequence[str]) -> str:
    """What `--help GROUP ...` prints.

    Raises:
        UserError: there is no such group.

    >>> print(help_of(["reflection"]).splitlines()[0])
    reflection: forced
    """
    there = {
        str(path.relative_to(config_dir())) for path in config_dir().rglob("*") if path.is_dir() and path.name[0] != "_"
    }
    for name in groups:
        if name not in there:
            near = nearest(name, there)
            raise UserError(
                f"--help {name}: there is no group {name!r}; "
                + (f"did you mean {near}?" if near else f"there are {', '.join(sorted(there))}")
            )
    shown = f"{Path(sys.argv[0]).stem} {groups[0]}=OPTION --cfg job --package {groups[0].replace('/', '.')}"
    return f"{option_list(*groups)}\nthe settings of an option: {shown}"


def run(
    task: Task,
    config_name: str,
    injected: Mapping[str, frozenset[str]] = NOTHING_INJECTED,
    check_directory: Check | None = None,
    around_sweep: AroundSweep | None = None,
) -> None:
    """Run `task` under Hydra with the settings of `sys.argv`.

    Exits with 2 and one line `error: ...` where the user can mend it, and with 1 if jobs of a sweep failed.

    Args:
        task: called with the composed config of each job; what it returns is what a sweeper optimises.
        config_name: primary config in `config_dir()`.
        injected: see `check_config`.
        check_directory: called with the run directory of a single run and its plain config, before Hydra writes there.
        around_sweep: entered while the jobs of a sweep run.
    """
    job = _Job(task, injected)
    if "--version" in sys.argv[1:]:
        print(version_text())
        return
    sys.argv[1:] = [null_of_agent(quoted_path(expanded_home(text))) for text in sys.argv[1:]]
    try:
        parser = get_args_parser()
        args, rest = parser.parse_known_args()
        if any(text.startswith("-") for text in rest):
            parser.parse_args()  # says that it is unknown, and exits
        if rest:  # which it would call unknown too
            raise UserError(f"{rest[0]} stands behind a flag and the settings before it: put flags such as -m first")
        words = [text for text in args.overrides if "=" not in text and not text.startswith("~")]
        if args.help and words:
            print(help_of(words))
            return
        _replay_resumed(args)
        checked = check_command_line(args, job, config_dir(), config_name, injected, check_directory)
    except UserError as error:
        _exit(error)
    except KeyboardInterrupt:
        _interrupted(tell=True)
    around: AbstractContextManager[None] = nullcontext()
    if checked is not None:
        # Hydra composes anew, and `${now:}` would be another instant: a second folder beside the one that was checked.
        key = "hydra.sweep.dir" if checked.sweep else "hydra.run.dir"
        _type(args, [*args.overrides, f"{key}={quoted(checked.folder)}"])
        if checked.sweep:
            job.jobs = Jobs(Path(checked.folder))
            around = around_sweep(job.jobs, checked) if around_sweep is not None else around
    try:
        with around, composing_each_choice():
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(job)()
    except KeyboardInterrupt:  # a run that is at work answers itself, and a sweep has told
        _interrupted(tell=job.jobs is None)
    finally:
        failed = _tell_failed(job.jobs)
    if failed:  # a sweeper may be content with the jobs that did not
        raise SystemExit(1)


def _tell_failed(jobs: Jobs | None) -> bool:
    """Name all jobs of the sweep that failed."""
    begun = []
    if jobs is not None:
        begun = jobs.read()
        jobs.forget()
    failed = [f"{job.title}: {job.error}" for job in begun if job.state == "failed"]
    if failed:
        print(f"error: {len(failed)} of {len(begun)} jobs failed:", *failed, sep="\n  ", file=sys.stderr)
    return bool(failed)


def _exit(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from error


def _interrupted(*, tell: bool) -> NoReturn:
    if tell:
        print(f"stopped; to start again: {again()}", file=sys.stderr)
    raise SystemExit(130) from None


class JobFailed(CompactHydraException):
    """A sweep's job failed; its traceback is in its log, so Hydra shall print the message only."""


class _Job:
    """The task as Hydra calls it: config checked first, failures told briefly (alone) or recorded (in a sweep).

    An object, not a closure, so that a launcher that pickles it imports this module, and with it the resolvers.
    """

    def __init__(self, task: Task, injected: Mapping[str, frozenset[str]]) -> None:
        functools.update_wrapper(self, task)  # Hydra names the job after `__wrapped__`
        self.task = task
        self.injected = injected
        self.jobs: Jobs | None = None  # of a sweep

    def __call__(self, cfg: DictConfig) -> float | None:
        if self.jobs is not None:
            return self._job_of_sweep(cfg)
        try:
            return self._run(cfg)
        except UserError as error:
            _exit(error)

    def _run(self, cfg: DictConfig) -> float | None:
        check_config(cfg, self.injected)  # again: a sweep's combinations were not all tried beforehand
        return self.task(cfg)

    def _job_of_sweep(self, cfg: DictConfig) -> float | None:
        launcher = HydraConfig.get().launcher
        if str(launcher._target_) != BASIC_LAUNCHER:
            _leave_terminal()
            take_cores(launcher)
            take_gpus(launcher, _devices(cfg))
        self._say("running")
        try:
            value = self._run(cfg)
        except Exception as error:
            message = message_of(error)
            log.error("%s", message, exc_info=None if isinstance(error, UserError) else error)
            raise JobFailed(f"{self._say('failed', message).title}: {message}") from error
        self._say("finished")
        return value

    def _say(self, state: JobState, error: str | None = None) -> Job:
        hydra = HydraConfig.get()
        overrides = [str(text) for text in hydra.overrides.task]
        job = Job(hydra.job.num, state, overrides, str(Path(hydra.runtime.output_dir).absolute()), error)
        assert self.jobs is not None
        self.jobs.say(job)
        return job


def _devices(cfg: DictConfig) -> int:
    """Devices that the job asks for; 0 where it takes what there is."""
    devices = OmegaConf.select(cfg, "trainer.devices", default=1)
    return devices if isinstance(devices, int) and devices > 0 else 0


def _leave_terminal() -> None:
    """A job beside others writes to the log in its folder alone."""
    os.environ["TERM"] = "dumb"
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler]:
        root.removeHandler(handler)


def _replay_resumed(args: argparse.Namespace) -> None:
    """Put the overrides of the run in `resume=<dir>` before those typed now, which win.

    What was typed about resuming is of that time and is not put there.
    """
    typed = {key_of(text): text for text in args.overrides}
    text = typed.get("resume") or typed.get("resume.directory")
    if text is None:
        return
    resume = parse([text])[0]
    value = str(resume.value())
    if value in (*RESUME_OPTIONS, "None"):
        return
    if args.multirun or resume.is_sweep_override():
        raise UserError("resume=<dir> continues one run: name one directory, without --multirun")
    folder = Path(value)
    record = folder / ".hydra" / "overrides.yaml"
    if not record.is_file():
        raise UserError(f"resume={value}: no run there ({record} does not exist)")
    finished = (folder / "summary.json").exists()  # which needs none
    if not finished and next(folder.rglob("*.ckpt"), None) is None:
        raise UserError(f"resume={value}: the run has saved no checkpoint (*.ckpt)")
    saved = [str(text) for text in OmegaConf.load(record)]
    saved = [text for text in saved if key_of(text) not in typed and key_of(text).partition(".")[0] != "resume"]
    # A job of a sweep is continued alone, even if its experiment asks for a sweep.
    now = [f"resume.directory={o.partition('=')[2]}" if o == text else o for o in args.overrides]
    _type(args, [*saved, "hydra.mode=RUN", *now])


def _type(args: argparse.Namespace, overrides: list[str]) -> None:
    """Put these in the place of the overrides that were typed."""
    position = sys.argv.index(args.overrides[0], 1) if args.overrides else len(sys.argv)
    sys.argv[position : position + len(args.overrides)] = overrides
    args.overrides[:] = overrides
