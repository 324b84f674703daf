"""Whether the settings of a run still are those that a checkpoint was written under.

Imported by the command line, so it must stay light: no torch.
"""

import logging
import re
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
FIXED = ("optimizer._target_", "algorithm._target_")
"""settings that a checkpoint's state belongs to"""
_ASSET = re.compile(r".*/edge_grpo/assets/")


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
    refuse_changes(checkpoint, before, config, allow_changes=allow_changes)


def check_data(checkpoint: Path, fingerprints: Mapping[str, str], path: str, *, allow_changes: bool) -> None:
    """Hold the loaded problems against those that the checkpoint was trained on.

    Args:
        checkpoint: its folder.
        fingerprints: what is loaded -> SHA-256.
        path: the file that they come from; "" where there is none.
        allow_changes: only warn.

    Raises:
        UserError: a file behind the settings has changed.
    """
    before = read_manifest(checkpoint).get("data", {})
    changed = [name for name, digest in fingerprints.items() if before.get(name, digest) != digest]
    if not changed:
        return
    where = f"data.path={path}: " if path else ""
    message = f"{where}the {' and the '.join(changed)} are not those that {checkpoint} was trained with"
    if not allow_changes:
        raise UserError(
            f"{message}: put the file back, or go on all the same with resume.allow_changes=true, or resume=never"
        )
    log.warning("%s: going on all the same", message)


def refuse_changes(
    source: Path, before: Mapping[str, Any], config: Mapping[str, Any], *, allow_changes: bool = False
) -> None:
    """Hold a config against an earlier one.

    Args:
        source: what was written under the earlier one.
        before, config: resolved and plain.
        allow_changes: only warn.

    Raises:
        UserError: a setting differs that changes the result; one of `FIXED` whatever is allowed.
    """
    changed = {key: pair for key, pair in differences(before, config).items() if not is_free(key)}
    if not changed:
        return
    lines = changes(changed)
    if not allow_changes:
        raise UserError(
            f"{source} was written under other settings, which would change the result:\n{lines}\n"
            "undo the change, or go on all the same with resume.allow_changes=true"
        )
    if fixed := [key for key in changed if key in FIXED]:
        raise UserError(
            f"{source} holds the state of another {fixed[0].partition('.')[0]}, which this one cannot go on from:\n"
            f"{lines}\nundo the change, or start over with resume=never"
        )
    log.warning("going on under other settings than before:\n%s", lines)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both; null stands for a key that is absent.

    >>> differences({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}, "d": {}})
    {'a.c.1': (2, 3)}
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    pairs = {key: (_portable(old.get(key)), _portable(new.get(key))) for key in sorted(old.keys() | new.keys())}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and (a == a or b == b)}  # NaN is no change of NaN


def _portable(value: Any) -> Any:
    """A path of the package's assets without the checkout that it lies in, which may have moved.

    >>> _portable("/home/me/old/edge_grpo/assets/tiny_base"), _portable("data/mine.jsonl")
    ('asset:tiny_base', 'data/mine.jsonl')
    """
    return _ASSET.sub("asset:", value) if isinstance(value, str) else value


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
