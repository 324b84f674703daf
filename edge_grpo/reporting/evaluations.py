"""What edge-grpo-evaluate left in a run's folder: `evaluation/<name>/results.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_grpo.errors import UserError
from edge_grpo.statistics.bootstrap import Estimate

AVERAGE = "Avg"
"""the problem-weighted total of the sets in the average, the paper's first column"""
MEAN_OF_SETS = "mean of sets"
SAMPLING = ("num_samples", "temperature", "top_p", "max_new_tokens")


@dataclass(frozen=True)
class Evaluation:
    """One results.json.

    Attributes:
        name: of the evaluation; an evaluation of a checkpoint has the same name as that of the run's end.
        iteration: updates that the policy had had.
        num_samples: n, responses to a problem.
        settings: num_samples and sampling as text: scores of unequal settings are not comparable.
        confidence: of the intervals over problems.
        problems: benchmark -> number of problems; `AVERAGE` among them if there are several benchmarks.
        scores: (benchmark, metric) -> share in [0, 1], or tokens, with its interval over problems.
        written: when, in seconds.
    """

    name: str
    iteration: int
    num_samples: int
    settings: str
    confidence: float
    problems: Mapping[str, int]
    scores: Mapping[tuple[str, str], Estimate]
    written: float


def read_evaluations(run: Path) -> tuple[Evaluation, ...]:
    """The evaluations in a run's folder, earliest iteration first, then in the order in which they were written.

    Raises:
        UserError: a results.json that edge-grpo-evaluate did not write.
    """
    found = [_read(path) for path in run.glob("evaluation/*/results.json")]
    return tuple(sorted(found, key=lambda e: (e.iteration, e.written)))


def _read(path: Path) -> Evaluation:
    try:
        results = json.loads(path.read_text())
        parts = dict(results["benchmarks"])
        problems = {name: int(part["problems"]) for name, part in parts.items()}
        if len(parts) > 1:
            parts = {AVERAGE: results["total"], **parts, MEAN_OF_SETS: results["mean"]}
            problems = {AVERAGE: int(results["total"]["problems"]), **problems}
        scores = {
            (name, metric): Estimate(float(score["value"]), _end(score["low"]), _end(score["high"]))
            for name, part in parts.items()
            for metric, score in part["metrics"].items()
        }
        return Evaluation(
            name=str(results["name"]),
            iteration=int(results["iteration"]),
            num_samples=int(results["num_samples"]),
            settings=sampling_of({"num_samples": results["num_samples"], **results["sampling"]}),
            confidence=float(results["confidence"]),
            problems=problems,
            scores=scores,
            written=path.stat().st_mtime,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no results of edge-grpo-evaluate ({type(error).__name__}: {error}): "
            "evaluate again, or delete its folder"
        ) from error


def _end(value: float | None) -> float | None:
    """The end of an interval; None where there is none."""
    return None if value is None else float(value)


def sampling_of(settings: Mapping[str, object]) -> str:
    """The settings of `SAMPLING` as text: scores of unequal ones are not comparable."""
    return json.dumps({key: settings.get(key) for key in SAMPLING})


def comparable(evaluations: Sequence[Evaluation], shown: Evaluation) -> list[Evaluation]:
    """The evaluations with the name and settings of `shown`, the newest of each iteration."""
    same = [e for e in evaluations if (e.name, e.settings) == (shown.name, shown.settings)]
    return list({e.iteration: e for e in same}.values())
