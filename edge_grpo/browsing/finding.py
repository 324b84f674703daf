"""Where there is something to read."""

from pathlib import Path
from typing import Literal

from edge_grpo.errors import UserError
from edge_grpo.evaluation.completions import FILE as COMPLETIONS
from edge_grpo.runs.rollout_files import FOLDER as ROLLOUTS
from edge_grpo.runs.rollout_files import rollout_files

Source = tuple[Literal["run", "evaluation"], Path]
"""what it is; the run's folder, or the file"""


def find(given: str) -> list[Source]:
    """What is at a path: a run, an evaluation, or all runs of a sweep (evaluations, where it holds no run).

    Raises:
        UserError: nothing.
    """
    path = Path(given)
    if not path.exists():
        raise UserError(f"{given}: does not exist; give the folder of a run, a sweep or an evaluation")
    if path.is_file():
        if path.suffix == ".parquet" and path.parent.name != ROLLOUTS:
            return [("evaluation", path)]
        if path.parent.name == ROLLOUTS and rollout_files(path.parent.parent):
            return [("run", path.parent.parent)]
        raise UserError(f"{given}: is no {COMPLETIONS}; give the folder of a run, a sweep or an evaluation")
    run = path.parent if path.name == ROLLOUTS else path
    if rollout_files(run):
        return [("run", run)]
    if (path / COMPLETIONS).is_file():
        return [("evaluation", path / COMPLETIONS)]
    runs = sorted(folder.parent for folder in path.rglob(ROLLOUTS) if rollout_files(folder.parent))
    evaluations = sorted(path.rglob(COMPLETIONS))
    found: list[Source] = [("run", run) for run in runs] or [("evaluation", file) for file in evaluations]
    if found:
        return found
    if (path / "config.yaml").is_file():
        raise UserError(
            f"{given}: the run has no {ROLLOUTS}/ yet. edge-grpo-train writes to it at the end of every iteration, "
            "unless callbacks.rollouts=null; supervised runs sample nothing"
        )
    raise UserError(
        f"{given}: holds no {ROLLOUTS}/ of a run and no {COMPLETIONS} of an evaluation; "
        "give the folder of a run, a sweep or an evaluation"
    )
