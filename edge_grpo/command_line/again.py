"""The command that goes on with what was stopped, as one types it into a shell."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

PLAIN = re.compile(r"([^=]+=)'([A-Za-z0-9_./-]+)'")


def again(overrides: Sequence[str] | None = None) -> str:
    """The program at work with these overrides; with those it has, and the folder that it has found, by default.

    >>> again(["resume=out/a b", "hydra.run.dir='out/1'"]).partition(" ")[2]
    "'resume=out/a b' hydra.run.dir=out/1"
    """
    name = Path(sys.argv[0]).stem  # `python -m edge_grpo.programs.train` is edge-grpo-train
    program = name if name.startswith("edge-grpo-") else f"edge-grpo-{name}"
    texts = sys.argv[1:] if overrides is None else overrides
    return shlex.join([program, *(PLAIN.sub(r"\1\2", text) for text in texts)])
