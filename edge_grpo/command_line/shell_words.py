"""What shells, agents and people type that Hydra's grammar reads otherwise, in its writing."""

import os
import re
from pathlib import Path

PATHS = ("run", "resume", "directory", "from_file", "source", "runs", "report", "path", "held_out_path")
"""last parts of the settings that are paths, which a shell completes without quotes"""


def expanded_home(override: str) -> str:
    """`key=~/path`, or a list of such, with the home folder written out.

    A shell expands `~` at the beginning of a word only, and Hydra's grammar has no value that begins with it.
    """
    key, equals, value = override.partition("=")
    return key + equals + re.sub(r"(?<![^,\[\s])~(?=[/,\]]|$)", lambda _: os.path.expanduser("~"), value)


def quoted_path(override: str) -> str:
    """`key=path` in quotes where Hydra would read the path as something else: jobs' folders hold `=` and `,`.

    Only a path that exists is meant by it; whatever else holds such characters is left to Hydra.
    """
    key, equals, value = override.partition("=")
    plain = re.fullmatch(r"[A-Za-z0-9_./+-]*", value)
    if not equals or plain or key.rpartition(".")[2] not in PATHS or not Path(value).exists():
        return override
    return f"{key}={quoted(value)}"


def null_of_agent(override: str) -> str:
    """`key=None`, as W&B's agent writes the null of a sweep's parameters, in Hydra's writing."""
    key, _, value = override.partition("=")
    return f"{key}=null" if value == "None" and os.environ.get("WANDB_SWEEP_ID") else override


def quoted(text: str) -> str:
    """As a value in Hydra's grammar, where a backslash counts before a quote only.

    >>> print(quoted("runs/seed=1"), quoted("it's"))
    'runs/seed=1' 'it\\'s'
    """
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"
