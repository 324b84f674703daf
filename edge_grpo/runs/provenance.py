"""Where a run came from: code, packages, machine."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("edge-grpo", "torch", "transformers", "pytorch-lightning", "hydra-core", "math-verify", "wandb")


def run_info() -> dict[str, Any]:
    """Git commit (null outside a checkout), package versions, Python and machine."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _git(*arguments: str) -> str | None:
    """Git's answer about the checkout that this package lies in; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
