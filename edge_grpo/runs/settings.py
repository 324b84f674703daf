"""Whether the settings of a run still are those that a checkpoint was written under.

Imported by the command line, so it must stay light: no torch.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_grpo.errors import UserError, first_lines
from edge_grpo.runs.checkpoints import read_manifest

log = logging.getLogger(__name__)

MAX_ITERATIONS, MAX_GENERATED_TOKENS = "trainer.max_iterations", "trainer.max_generated_tokens"
"""what ends a run; see runs/stopping.py"""
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
    "plan",
    MAX_ITERATIONS,
    MAX_GENERATED_TOKENS,
    "trainer.devices",  # their product is what counts: see `check_ranks`
    "trainer.num_nodes",
    "evaluation.every_n_iterations",
)
FREE_ENDINGS = (".workers", ".memory_limit_gb")
OF_THE_STATE = ("optimizer", "algorithm._target_")
"""what the state in a checkpoint belongs to, but for `HYPERPARAMETERS`"""
HYPERPARAMETERS = ("lr", "weight_decay", "betas", "eps")
"""what of an optimiser takes its new value beside the old state (`algorithms.schedules.take_settings`)"""
FROZEN = "frozen_weights"
"""in a checkpoint's manifest: `Policy.frozen_digest`"""
RANKS = "ranks"
"""in a checkpoint's manifest: the processes that trained it"""
_ASSET = re.compile(r"^.*/edge_grpo/assets/(.+)$")


def refuse_changes(
    source: Path, before: Mapping[str, Any], config: Mapping[str, Any], *, allow_changes: bool = False
) -> str:
    """Hold a config against an earlier one; the changes that may be, a line each.

    Args:
        source: what was written under the earlier one.
        before, config: resolved and plain.
        allow_changes: settings that change the result may differ.

    Raises:
        UserError: a setting differs that changes the result, or one that the checkpoint's state belongs to, which may
            not whatever is allowed.
    """
    changed = {key: pair for key, pair in differences(before, config).items() if not is_free(key)}
    if changed and not allow_changes:
        raise UserError(
            f"{source} was written under other settings, which would change the result:\n{changes(changed)}\n"
            "undo the change, or go on all the same with resume.allow_changes=true"
        )
    may = [f"optimizer.{name}" for name in HYPERPARAMETERS]
    kept = {key: pair for key, pair in changed.items() if is_free(key, OF_THE_STATE) and not is_free(key, may)}
    if kept:
        raise UserError(
            f"{source} holds the state of another {next(iter(kept)).partition('.')[0]}, which this one cannot go on "
            f"from:\n{changes(kept)}\nundo the change, or start over with resume=never"
        )
    ignored = any(is_free(key, ("model",)) for key in changed)
    return changes(changed) + ("\n  (the weights are the checkpoint's, not those of model)" if ignored else "")


def check_data(checkpoint: Path, digests: Mapping[str, str], config: Mapping[str, Any], *, allow_changes: bool) -> None:
    """Hold the loaded problems against those that the checkpoint was trained on.

    Args:
        checkpoint: its folder.
        digests: what is loaded -> SHA-256.
        config: the resolved config, plain.
        allow_changes: only warn.

    Raises:
        UserError: they are others, because a file behind the settings has changed.
    """
    before = read_manifest(checkpoint).get("problems", {})
    changed = [name for name, digest in digests.items() if before.get(name, digest) != digest]
    if not changed:
        return
    leaves = _leaves({name: config[name] for name in ("data", "evaluation")})
    found = [f"{key}={value}" for key, value in leaves if isinstance(value, str) and os.path.exists(value)]
    message = f"the {' and the '.join(changed)} are not those of {checkpoint}"
    message += f" (they come from {', '.join(found)})" if found else ""
    if not allow_changes:
        raise UserError(
            f"{message}: put the file back, or go on all the same with resume.allow_changes=true, or resume=never"
        )
    log.warning("%s: going on all the same", message)


def check_frozen(checkpoint: Path, digest: str | None, *, allow_changes: bool = False) -> None:
    """Hold the frozen weights, which no checkpoint has, against those that the checkpoint was trained on.

    Args:
        checkpoint: its folder.
        digest: `Policy.frozen_digest` of the model that is loaded.
        allow_changes: only warn.

    Raises:
        UserError: they are others, because the files behind `model` have changed.
    """
    before = read_manifest(checkpoint).get(FROZEN)
    if before == digest:
        return
    message = (
        f"the frozen weights are not those that {checkpoint} was trained on (SHA-256 {before} there, {digest} here): "
        "put the model back"
    )
    if not allow_changes:
        raise UserError(f"{message}, or set `model` as it was")
    log.warning("%s: going on all the same", message)


def check_ranks(checkpoint: Path, ranks: int, *, allow_changes: bool) -> None:
    """Hold the number of ranks against that of the checkpoint: each draws its own problems and numbers.

    Args:
        checkpoint: its folder.
        ranks: of now.
        allow_changes: only warn.

    Raises:
        UserError: they are more or fewer, whatever setting or machine made them so.
    """
    before = read_manifest(checkpoint).get(RANKS)
    if before == ranks:
        return
    message = f"{checkpoint} was trained by {before} ranks, and here are {ranks} (trainer.devices x trainer.num_nodes)"
    if not allow_changes:
        raise UserError(
            f"{message}, which would draw other problems and numbers: start {before}, or go on all the same with "
            "resume.allow_changes=true"
        )
    log.warning("%s: going on all the same", message)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both; null stands for a key that is absent.

    >>> differences({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}, "d": {}})
    {'a.c.1': (2, 3)}
    """
    old, new = dict(_leaves(portable(before))), dict(_leaves(portable(now)))
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and (a == a or b == b)}  # NaN is no change of NaN


def portable(node: Any) -> Any:
    """A plain config whose paths of the package's assets do not say in which checkout, which may have moved.

    >>> portable({"path": "/home/me/old/edge_grpo/assets/tiny_base", "files": ["data/mine.jsonl", 1]})
    {'path': '${asset:tiny_base}', 'files': ['data/mine.jsonl', 1]}
    """
    if isinstance(node, Mapping):
        return {key: portable(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [portable(child) for child in node]
    return _ASSET.sub(r"${asset:\1}", node) if isinstance(node, str) else node


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
