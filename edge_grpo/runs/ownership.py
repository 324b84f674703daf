"""Whose directory it is: a program writes into a new folder or its own, and never over files of somebody else.

A folder with other files, a README say, may be used as long as none of them has a name that the program writes.

Imported by the command line, so it must stay light: no torch.
"""

import re
from collections.abc import Collection
from pathlib import Path

from edge_grpo.errors import UserError
from edge_grpo.runs.status import FILE as STATUS
from edge_grpo.runs.status import read_status

CONFIG, SUMMARY = "config.yaml", "summary.json"
FILES_OF_A_RUN = (
    *("metrics.csv", "rollouts/iteration-*", "bad_steps*.jsonl", "bad_rows.txt"),
    *("failed_references.jsonl", SUMMARY),
)
WRITTEN = (
    *FILES_OF_A_RUN,
    *(
        CONFIG,
        STATUS,
        "rank-*.log",
        "training.png",
        "model",
        "model.tmp",
        "checkpoints",
        "evaluation",
        "tensorboard",
        "run_id",
    ),
)
"""what a run writes into its folder or deletes there, besides Hydra's and W&B's"""


def check_ours(folder: Path) -> None:
    """Refuse a folder with files of somebody else's that a run would overwrite or delete.

    A run's own folder has a `status.json` and a `config.yaml` as a run writes them. The status comes first, so a kill
    may have left it alone.

    Raises:
        UserError: names the files.
    """
    has_status = read_status(folder).state != "unknown"
    if has_status and _is_config(folder / CONFIG):
        return
    foreign = [name for name in found(folder, WRITTEN) if not (has_status and name == STATUS)]
    foreign += _foreign_record(folder)
    if foreign:
        raise UserError(
            f"paths.run_dir={folder}: no run of edge-grpo-train or edge-grpo-sft ({STATUS} and {CONFIG} of one are not "
            f"there), but it holds {', '.join(foreign)}, which a run would overwrite: choose another folder "
            "(hydra.run.dir)"
        )


def check_results_ours(folder: Path, program: str, written: Collection[str]) -> None:
    """Refuse a folder with files that a program besides training would overwrite, unless it has written there before.

    Args:
        folder: where the program is to write.
        program: its name without `edge-grpo-`, which Hydra's record of an earlier call has.
        written: patterns of what it writes.

    Raises:
        UserError: names the files.
    """
    record = _hydras_record(folder)
    if _is_of_ours(record) and f"config_name: {program}\n" in record:
        return
    foreign = found(folder, written) + _foreign_record(folder)
    if foreign:
        raise UserError(
            f"paths.run_dir={folder}: edge-grpo-{program} has not written there before, but it holds "
            f"{', '.join(foreign)}, which it would overwrite: choose another folder (hydra.run.dir)"
        )


def empty(folder: Path) -> None:
    """Delete the files of an earlier run, but for its checkpoints and evaluations."""
    for path in (path for pattern in FILES_OF_A_RUN for path in folder.glob(pattern)):
        path.unlink()


def found(folder: Path, patterns: Collection[str]) -> list[str]:
    """What of these patterns there is in a folder, by name."""
    return sorted({path.relative_to(folder).parts[0] for pattern in patterns for path in folder.glob(pattern)})


def _is_config(path: Path) -> bool:
    """Whether it is a training run's: as text, for a large config is slow to parse."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return all(re.search(rf"^{key}:", text, re.MULTILINE) for key in ("algorithm", "trainer", "resume"))


def _foreign_record(folder: Path) -> list[str]:
    """Hydra's folder, where it is of a program of somebody else's."""
    record = _hydras_record(folder)
    return [".hydra"] if record and not _is_of_ours(record) else []


def _hydras_record(folder: Path) -> str:
    """What Hydra recorded of a call in the folder; nothing where there was none, or a kill came before it wrote."""
    record = folder / ".hydra" / "hydra.yaml"
    return record.read_text(encoding="utf-8", errors="replace") if record.is_file() else ""


def _is_of_ours(record: str) -> bool:
    return "app_name: edge-grpo-" in record
