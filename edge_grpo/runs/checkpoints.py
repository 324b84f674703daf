"""Checkpoints on disk: written whole or not at all, and believed only where their checksums agree.

A checkpoint is a folder `iteration-<n>`, n updates done: `state.ckpt` (Lightning's, a file or a folder of shards) and
`manifest.json` with the size and SHA-256 of each file, the resolved config and what else the run says of itself. It
is written under another name, synced to the disk and renamed, so that a kill or a full disk leaves the one before it.

Imported by the command line, so it must stay light: no torch.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STATE, MANIFEST = "state.ckpt", "manifest.json"
_NAME = re.compile(r"iteration-\d+")


def write_checkpoint(folder: Path, iteration: int, save: Callable[[Path], None], about: Mapping[str, Any]) -> Path:
    """Write one checkpoint and return its folder.

    Args:
        folder: of all checkpoints.
        iteration: updates done.
        save: writes the state to the path that it gets.
        about: goes into the manifest, JSON.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    final = folder / checkpoint_name(iteration)
    temporary = state_path(folder, iteration).parent
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save(temporary / STATE)
        files = {str(path.relative_to(temporary)): _fingerprint(path) for path in _files(temporary)}
        manifest = {"iteration": iteration, "files": files, **about}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (*_files(temporary), temporary):
            _sync(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(folder)
    return final


def checkpoint_name(iteration: int) -> str:
    """
    >>> checkpoint_name(40)
    'iteration-000040'
    """
    return f"iteration-{iteration:06d}"


def iteration_of(checkpoint: Path) -> int:
    """Updates done.

    >>> iteration_of(Path("run/checkpoints/iteration-000040"))
    40
    """
    return int(checkpoint.name.partition("-")[2])


def state_path(folder: Path, iteration: int) -> Path:
    """Where the state of a checkpoint is written before the whole is renamed."""
    return folder / f".{checkpoint_name(iteration)}.tmp" / STATE


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints, damaged ones too, oldest first."""
    found = (path for path in folder.glob("iteration-*") if path.is_dir() and _NAME.fullmatch(path.name))
    return sorted(found, key=iteration_of)


def remove(paths: list[Path]) -> None:
    """Delete checkpoints; each is renamed first, so that a kill leaves no half of one."""
    for path in paths:
        leaving = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(leaving, ignore_errors=True)
        path.rename(leaving)
        shutil.rmtree(leaving)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint says of itself.

    Raises:
        ValueError: it has no manifest that can be read.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{MANIFEST} lists no files")
    return manifest


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the checkpoint's files, or None where every checksum agrees."""
    try:
        files = read_manifest(checkpoint)["files"]
    except ValueError as error:
        return str(error)
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes of {expected['bytes']}"
        if _fingerprint(path) != expected:
            return f"{name} has another SHA-256 than its manifest says"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    """Have the operating system put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
