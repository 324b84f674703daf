"""What is analyzed: the rollouts of a run, or the completions of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from edge_grpo.errors import UserError, first_lines
from edge_grpo.evaluation.completions import FILE as COMPLETIONS_FILE
from edge_grpo.evaluation.completions import read_completions
from edge_grpo.runs.rollout_files import FOLDER as ROLLOUTS
from edge_grpo.runs.rollout_files import read_rollouts, rollout_files

COMPLETIONS: Mapping[str, Any] = {
    "benchmark": str,
    "problem": str,
    "correct": bool,
    "finish_reason": str,
    "entropy": float,
    "reflection": object,
    "correct_before_reflection": "boolean",
    "forced_correct": "boolean",
}
"""columns of completions.parquet -> types to compute with; "boolean" has nulls"""
OF_EDA = {"eda/multiplier": "multiplier", "eda/clamped": "clamped"}
"""column of a run's rollouts -> ours, of those that only runs with advantage=entropy_driven have"""
MORE_SAMPLES = "evaluation.num_samples=8 evaluation.temperature=0.6"


@dataclass(frozen=True)
class Source:
    """One row a response.

    Args:
        path: the file, or the run's folder of files.
        kind: where the rows come from.
        frame: [N] rows as in the files, and `question` and `group`, numbers from 0 without gaps. A question is the
            unit that is resampled. A group holds the responses to one question from one policy: all of them in an
            evaluation, those of one iteration in a run.
        evaluations: folders of the run's evaluations.
    """

    path: Path
    kind: Literal["run", "evaluation"]
    frame: pd.DataFrame
    evaluations: tuple[Path, ...] = ()

    @property
    def questions(self) -> NDArray[np.intp]:
        """[N]"""
        return self.frame["question"].to_numpy()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().parent.name

    def hint(self, setting: str) -> str:
        """How to get what a run alone cannot tell."""
        if self.kind == "evaluation":
            return f"evaluate again with `edge-grpo-evaluate {setting}` and analyze that"
        if not self.evaluations:
            folder = self.path.parent
            return f"`edge-grpo-evaluate run={folder} {setting}`, then `edge-grpo-analyze source=<its folder>`"
        return f"analyze an evaluation of the run: `edge-grpo-analyze source={self.evaluations[0]}`"


def find_source(source: str) -> Path:
    """The completions.parquet or the run's rollouts that `source` names, or that are in the folder that it names.

    Raises:
        UserError: there is none.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"source={source}: does not exist; give the folder of a run or of an evaluation")
    if path.is_file():
        if path.suffix != ".parquet":
            raise UserError(f"source={source}: is neither a run's folder nor an evaluation's {COMPLETIONS_FILE}")
        return path
    for found in (path / ROLLOUTS, path):
        if found.name == ROLLOUTS and rollout_files(found.parent):
            return found
    if (path / COMPLETIONS_FILE).is_file():
        return path / COMPLETIONS_FILE
    below = sorted(
        found.parent
        for name in (ROLLOUTS, COMPLETIONS_FILE)
        for found in path.rglob(name)
        if found.is_file() or rollout_files(found.parent)
    )
    if below:
        raise UserError(f"source={source}: holds several to analyze, give one of them\n{first_lines(below)}")
    if (path / "config.yaml").is_file():
        raise UserError(
            f"source={source}: the run has no {ROLLOUTS}/. edge-grpo-train writes it in every iteration, unless "
            "callbacks.rollouts=null; supervised runs sample nothing. `edge-grpo-evaluate run=...` samples from it"
        )
    raise UserError(
        f"source={source}: holds neither {ROLLOUTS}/ nor {COMPLETIONS_FILE}; "
        "give the folder of a run or of an evaluation"
    )


def check_iterations(iterations: Any) -> None:
    """Raise a UserError for what is neither None nor [first, last]."""
    if iterations is None:
        return
    pair = isinstance(iterations, Sequence) and len(iterations) == 2 and all(type(step) is int for step in iterations)
    if not pair or iterations[0] > iterations[1]:
        raise UserError(f"iterations={iterations}: expected [first, last], two whole numbers in order")


def load_source(source: str, iterations: Sequence[int] | None) -> Source:
    """Read what `source` names.

    Args:
        source: folder of a run or of an evaluation, or what is read in it.
        iterations: [first, last] of a run that count; None for all.

    Raises:
        UserError: there is nothing to read, the rows are something else, or the run does not have these iterations.
    """
    path = find_source(source)
    check_iterations(iterations)
    if path.suffix == ".parquet":
        if iterations is not None:
            raise UserError("iterations is for runs, an evaluation has none: remove it")
        frame = read_completions(path, list(COMPLETIONS)).astype(dict(COMPLETIONS))
        return Source(path, "evaluation", _numbered(frame, ["benchmark", "problem"], ["benchmark", "problem"]))
    frame = read_rollouts(path.parent).rename(columns={**OF_EDA, "group": "place"})
    frame = frame.assign(**{name: np.nan for name in OF_EDA.values() if name not in frame})
    frame = _numbered(_window(path, frame, iterations), ["problem"], ["rank", "step", "place"])
    evaluations = tuple(sorted(file.parent for file in path.parent.glob(f"evaluation/*/{COMPLETIONS_FILE}")))
    return Source(path, "run", frame, evaluations)


def _numbered(frame: pd.DataFrame, question: list[str], group: list[str]) -> pd.DataFrame:
    frame = frame.reset_index(drop=True)
    return frame.assign(question=frame.groupby(question).ngroup(), group=frame.groupby(group).ngroup())


def _window(path: Path, frame: pd.DataFrame, iterations: Sequence[int] | None) -> pd.DataFrame:
    if iterations is None:
        return frame
    inside = frame[frame["step"].between(iterations[0], iterations[1])]
    if inside.empty:
        steps = frame["step"]
        raise UserError(f"iterations={list(iterations)}: {path} has {steps.min()} to {steps.max()}")
    return inside
