"""Graded completions -> scores with intervals: of each benchmark, their problem-weighted total and their plain mean."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from edge_grpo.errors import UserError
from edge_grpo.seeding import stage_seed
from edge_grpo.statistics.estimators import Estimate, Floats, bootstrap_means, interval, majority, pass_at_k

Scores = dict[str, Estimate]


def problem_values(completions: pd.DataFrame) -> dict[str, Floats]:
    """metric -> [P] values of one benchmark's problems, the metrics of docs/metrics.md under `eval/<set>/`.

    Args:
        completions: rows of one benchmark, n a problem: see `completions.COLUMNS`.

    >>> frame = pd.DataFrame({"problem": ["a", "a"], "correct": [True, False], "answer": ["1", "2"],
    ...     "tokens": [3, 5], "finish_reason": ["stop", "length"], "unparsed": [False, False]})
    >>> {name: float(values[0]) for name, values in problem_values(frame).items()}  # the votes are tied
    {'avg@2': 0.5, 'pass@2': 1.0, 'maj@2': 0.5, 'mean_length': 4.0, 'clipped_ratio': 0.5, 'unparsed_rate': 0.0}
    """
    groups = [group for _, group in completions.groupby("problem", sort=False)]
    (n,) = {len(group) for group in groups}
    right = [int(group["correct"].sum()) for group in groups]
    values = {f"avg@{n}": np.array(right) / n}
    values |= {f"pass@{k}": np.array([pass_at_k(n, c, k) for c in right]) for k in range(2, n + 1)}
    if n > 1:
        votes = [majority(_texts(group["answer"]), list(group["correct"])) for group in groups]
        values[f"maj@{n}"] = np.array(votes)
    means = {
        "mean_length": completions["tokens"],
        "clipped_ratio": completions["finish_reason"] == "length",
        "unparsed_rate": completions["unparsed"],
    }
    for name, column in means.items():
        values[name] = column.groupby(completions["problem"], sort=False).mean().to_numpy(dtype=np.float64)
    return values


def summarise(
    completions: pd.DataFrame, *, average: Sequence[str] | None, confidence: float, resamples: int, seed: int
) -> dict[str, Any]:
    """The parts `benchmarks`, `total` and `mean` of results.json.

    Intervals are percentile bootstrap intervals over problems, each benchmark resampled within itself: the sets are
    what they are, their problems are a sample. Degenerate case: where all problems of a set score alike its interval
    has no width, which says nothing about the next problem.

    Args:
        completions: see `completions.COLUMNS`; every problem has the same number of rows.
        average: benchmarks in total and mean; null for all.
        confidence: of the intervals, in (0, 1).
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        UserError: none of the benchmarks is averaged.
    """
    values = {str(name): problem_values(rows) for name, rows in completions.groupby("benchmark", sort=False)}
    draws = {
        name: bootstrap_means(of, resamples, np.random.default_rng(stage_seed(seed, f"bootstrap/{name}")))
        for name, of in values.items()
    }
    sizes = {name: len(next(iter(of.values()))) for name, of in values.items()}
    averaged = [name for name in values if average is None or name in average]
    if not averaged:
        raise UserError(f"evaluation.average={list(average or ())}: the completions are of {', '.join(values)}")
    weights = {name: sizes[name] / sum(sizes[other] for other in averaged) for name in averaged}
    equal = {name: 1 / len(averaged) for name in averaged}
    own = {name: _scores({name: 1.0}, values, draws, confidence) for name in values}
    return {
        "benchmarks": {name: {"problems": sizes[name], "metrics": _plain(scores)} for name, scores in own.items()},
        "total": {
            "problems": sum(sizes[name] for name in averaged),
            "benchmarks": averaged,
            "metrics": _plain(_scores(weights, values, draws, confidence)),
        },
        "mean": {"benchmarks": averaged, "metrics": _plain(_scores(equal, values, draws, confidence))},
    }


def _texts(column: pd.Series) -> list[str | None]:
    return [text if isinstance(text, str) else None for text in column]


def _scores(
    weights: Mapping[str, float],
    values: Mapping[str, Mapping[str, Floats]],
    draws: Mapping[str, Mapping[str, Floats]],
    confidence: float,
) -> Scores:
    """Weighted sums over benchmarks of the means, and of their draws."""
    metrics = values[next(iter(weights))]
    value = {m: sum(w * float(values[name][m].mean()) for name, w in weights.items()) for m in metrics}
    spread = {m: np.sum([w * draws[name][m] for name, w in weights.items()], axis=0) for m in metrics}
    return {metric: Estimate(value[metric], *interval(spread[metric], confidence)) for metric in metrics}


def _plain(scores: Scores) -> dict[str, dict[str, float]]:
    return {metric: asdict(estimate) for metric, estimate in scores.items()}


def reflection_line(completions: pd.DataFrame) -> str | None:
    """What forced reflections did, over all benchmarks; None where there are none."""
    rows = completions[completions["forced_correct"].notna()]
    if rows.empty:
        return None
    after, right = rows["forced_correct"].astype(bool), rows["correct"]
    repaired, broken = int((~right & after).sum()), int((right & ~after).sum())
    return (
        f"forced reflection: {repaired} of {int((~right).sum())} wrong responses repaired, "
        f"{broken} of {int(right.sum())} right ones broken"
    )


def results_markdown(results: Mapping[str, Any]) -> str:
    """The table of results.json: shares in %, with their intervals; lengths in tokens."""
    parts = {**results["benchmarks"]}
    if len(results["total"]["benchmarks"]) > 1:
        parts["total"] = results["total"]
        parts["mean of sets"] = {"problems": len(results["mean"]["benchmarks"]), **results["mean"]}
    n = results["num_samples"]
    metrics = [f"avg@{n}", *([f"pass@{n}", f"maj@{n}"] if n > 1 else [])]
    head = ["set", "problems", *metrics, "tokens", "cut by budget", "unparsed"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, part in parts.items():
        scores = part["metrics"]
        problems = f"{part['problems']} sets" if name == "mean of sets" else part["problems"]
        cells = [name, problems, *(_percent(scores[m]) for m in metrics), f"{scores['mean_length']['value']:.0f}"]
        cells += [f"{100 * scores[m]['value']:.1f} %" for m in ("clipped_ratio", "unparsed_rate")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _percent(estimate: Mapping[str, float]) -> str:
    """
    >>> _percent({"value": 0.5, "low": 0.25, "high": 0.75})
    '50.0 % [25.0, 75.0]'
    """
    low, high = (100 * estimate[end] for end in ("low", "high"))
    return f"{100 * estimate['value']:.1f} % [{low:.1f}, {high:.1f}]"
