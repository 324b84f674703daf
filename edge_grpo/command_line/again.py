"""The command that goes on with what was stopped, as one types it into a shell."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDERS = ("hydra.run.dir=", "hydra.sweep.dir=")
# A path, or a folder's name, that Hydra reads as text without its quotes too: 2023 and 1e5 it would not.
PLAIN = re.compile(r"([^=]+=(?=[^=]*/)|hydra\.(?:run|sweep)\.dir=(?=.[A-Za-z_]))'([A-Za-z0-9_./-]+)'")


def again(overrides: Sequence[str] | None = None) -> str:
    """The program at work with these overrides; with those it has, and the folder that it has found, by default.

    >>> again(["resume=out/a b", "hydra.run.dir='out/1'"]).partition(" ")[2]
    "'resume=out/a b' hydra.run.dir=out/1"
    >>> shlex.split(again(["model.revision='1e5'", "hydra.run.dir='mine'"]))[1:]
    ["model.revision='1e5'", 'hydra.run.dir=mine']
    """
    name = Path(sys.argv[0]).stem  # `python -m edge_grpo.programs.train` is edge-grpo-train
    program = name if name.startswith("edge-grpo-") else f"edge-grpo-{name}"
    texts = _each_folder_once(sys.argv[1:]) if overrides is None else overrides
    return shlex.join([program, *(PLAIN.sub(r"\1\2", text) for text in texts)])


def _each_folder_once(texts: Sequence[str]) -> list[str]:
    """The command line puts the folder that it has found behind the one that was typed.

    >>> _each_folder_once(["hydra.run.dir=a", "seed=1", "hydra.run.dir='a'"])
    ['seed=1', "hydra.run.dir='a'"]
    """
    last = {text.partition("=")[0]: i for i, text in enumerate(texts) if text.startswith(FOLDERS)}
    return [text for i, text in enumerate(texts) if last.get(text.partition("=")[0], i) == i]
