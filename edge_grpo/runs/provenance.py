"""Where a run came from: code, packages, machine."""

import functools
import hashlib
import logging
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from edge_grpo.command_line.version import versions

log = logging.getLogger(__name__)


def run_info() -> dict[str, Any]:
    """Git commit (null outside a checkout and where there is no git), package versions, Python and machine."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "packages": versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def installed() -> dict[str, Any]:
    """What must be the same on every rank: package versions, Python, and a digest of this package's code."""
    return {"packages": versions(), "python": platform.python_version(), "edge_grpo's code": _code()}


@functools.cache  # read once: what this process runs stays what it is
def _code() -> str:
    root, code = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(f"{path.relative_to(root)};".encode() + path.read_bytes())
    return code.hexdigest()[:12]


def _git(*arguments: str) -> str | None:
    """Git's answer about the checkout that this package lies in; None for an installed package, or without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = _program()
    if git is None:
        return None
    answer = subprocess.run([git, *arguments], cwd=root, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


@functools.cache  # told once
def _program() -> str | None:
    found = shutil.which("git")
    if found is None:
        log.warning("no git on PATH: the commit of this checkout is not recorded")
    return found
