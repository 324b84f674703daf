"""The command that goes on with what was stopped, as one types it into a shell."""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

FOLDERS = ("hydra.run.dir=", "hydra.sweep.dir=")
# A path, or a folder's name, that Hydra reads as text without its quotes too: 2023 and 1e5 it would not.
PLAIN = re.compile(r"([^=]+=(?=[^=]*/)|hydra\.(?:run|sweep)\.dir=(?=.[A-Za-z_]))'([A-Za-z0-9_./-]+)'")


def again(overrides: Sequence[str] | None = None) -> str:
    """The program at work with these overrides; with those it has, and the folder that it has found, by default.

    Where the configs come from is said too. The process of a launcher (submitit, Ray) has been started with words of
    its own: what it does is read from Hydra.

    >>> again(["resume=out/a b", "hydra.run.dir='out/1'"]).partition(" ")[2]
    "'resume=out/a b' hydra.run.dir=out/1"
    >>> shlex.split(again(["model.revision='1e5'", "hydra.run.dir='mine'"]))[1:]
    ["model.revision='1e5'", 'hydra.run.dir=mine']
    """
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    started = Path(sys.argv[0])
    of_launcher = hydra is not None and not (started.stem.startswith("edge-grpo-") or started.parent.name == "programs")
    name = str(hydra.job.name) if hydra is not None and of_launcher else started.stem
    program = name if name.startswith("edge-grpo-") else f"edge-grpo-{name}"  # `python -m edge_grpo.programs.train`
    if overrides is None and not of_launcher:
        texts = _each_folder_once(sys.argv[1:])
    else:
        texts = [*_sources(hydra), *(_of_job(hydra) if overrides is None else overrides)]
    return shlex.join([program, *(PLAIN.sub(r"\1\2", text) for text in texts)])


def _sources(hydra: Any) -> Iterator[str]:
    """`--config-dir`, as it was typed or found."""
    for source in hydra.runtime.config_sources if hydra is not None else ():
        if source.provider == "command-line":
            yield from ("--config-dir", str(source.path))


def _of_job(hydra: Any) -> list[str]:
    return [*map(str, hydra.overrides.task), f"hydra.run.dir='{hydra.runtime.output_dir}'"]


def _each_folder_once(texts: Sequence[str]) -> list[str]:
    """The command line puts the folder that it has found behind the one that was typed.

    >>> _each_folder_once(["hydra.run.dir=a", "seed=1", "hydra.run.dir='a'"])
    ['seed=1', "hydra.run.dir='a'"]
    """
    last = {text.partition("=")[0]: i for i, text in enumerate(texts) if text.startswith(FOLDERS)}
    return [text for i, text in enumerate(texts) if last.get(text.partition("=")[0], i) == i]
