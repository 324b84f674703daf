"""What is installed: of this package and of those that its numbers depend on."""

import importlib.metadata
import platform

import edge_grpo

PACKAGES = ("edge-grpo", "torch", "transformers", "pytorch-lightning", "hydra-core", "math-verify", "sympy", "wandb")


def versions() -> dict[str, str]:
    """Package -> version; nothing is imported for it."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def version_text() -> str:
    """A line a package, for `--version`.

    >>> version_text().splitlines()[0] == f"edge-grpo {edge_grpo.__version__}"
    True
    """
    others = [f"{name} {version}" for name, version in versions().items() if name != "edge-grpo"]
    return "\n".join([f"edge-grpo {edge_grpo.__version__}", f"python {platform.python_version()}", *others])
