"""Whether the settings of a run still are those that a checkpoint was written under.

Imported by the command line, so it must stay light: no torch.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_grpo.errors import UserError, first_lines
from edge_grpo.runs.checkpoints import read_manifest

log = logging.getLogger(__name__)

# Settings that change what is shown or kept of a run, how long it lasts or how fast it is, and no number of it. A
# schedule that depends on the number of iterations says so under scheduler.
FREE = (
    "name",
    "resume",
    "paths",
    "logger",
    "callbacks",
    "checkpoint",
    "allowed_targets",
    "trainer.max_iterations",
    "evaluation.every_n_iterations",
)
FREE_ENDINGS = (".workers", ".memory_limit_gb")


def check_settings(checkpoint: Path, config: Mapping[str, Any], *, allow_changes: bool) -> None:
    """Hold a config against the one the checkpoint was written under.

    Args:
        checkpoint: its folder; a damaged one says nothing.
        config: the resolved config, plain.
        allow_changes: only warn.

    Raises:
        UserError: a setting differs that changes the result.
    """
    try:
        before = read_manifest(checkpoint).get("config", {})
    except ValueError:
        return
    changed = {key: pair for key, pair in differences(before, config).items() if not is_free(key)}
    if not changed:
        return
    lines = changes(changed)
    if not allow_changes:
        raise UserError(
            f"{checkpoint} was written under other settings, which would change the result:\n{lines}\n"
            "undo the change, or go on all the same with resume.allow_changes=true"
        )
    log.warning("going on under other settings than before:\n%s", lines)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both; null stands for a key that is absent.

    >>> differences({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}, "d": {}})
    {'a.c.1': (2, 3)}
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and (a == a or b == b)}  # NaN is no change of NaN


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        items: Any = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    else:
        yield key, node
        return
    for name, child in items:
        yield from _leaves(child, f"{key}.{name}" if key else str(name))


def changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The first of the changed settings, one an indented line."""
    return first_lines([f"{key}: {old} -> {new}" for key, (old, new) in changed.items()])


def is_free(key: str, free: Iterable[str] = FREE) -> bool:
    """Whether a dotted key is one of `free`, below one of them, or one of `FREE_ENDINGS`.

    >>> is_free("logger.csv.folder"), is_free("loss.beta"), is_free("loss.beta", ("loss",))
    (True, False, True)
    """
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in free) or key.endswith(FREE_ENDINGS)
