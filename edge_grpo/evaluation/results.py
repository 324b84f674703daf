"""Graded completions -> scores with intervals: of each benchmark, their problem-weighted total and their plain mean."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from edge_grpo.errors import UserError
from edge_grpo.statistics.bootstrap import Bootstrap, Estimate, Floats
from edge_grpo.statistics.estimators import majority, pass_at_k
from edge_grpo.statistics.proportion import wilson


def problem_values(completions: pd.DataFrame) -> dict[str, Floats]:
    """metric -> [P] values of one benchmark's problems, the metrics of docs/metrics.md under `eval/<set>/`.

    Args:
        completions: rows of one benchmark, n a problem: see `completions.SCHEMA`.

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


def summarise(completions: pd.DataFrame, *, average: Sequence[str] | None, bootstrap: Bootstrap) -> dict[str, Any]:
    """The parts `benchmarks`, `total` and `mean` of results.json.

    Intervals are over problems, each benchmark resampled within itself: the sets are what they are, their problems are
    a sample. A share of 0 or 1 has Wilson's.

    Args:
        completions: see `completions.SCHEMA`; every problem has the same number of rows.
        average: benchmarks in total and mean; null for all.
        bootstrap: of the intervals.

    Raises:
        UserError: none of the benchmarks is averaged.
    """
    values = {str(name): problem_values(rows) for name, rows in completions.groupby("benchmark", sort=False)}
    matrices = {name: np.stack(list(of.values()), axis=1) for name, of in values.items()}  # [P, M]
    sizes = {name: len(matrix) for name, matrix in matrices.items()}
    averaged = [name for name in values if average is None or name in average]
    if not averaged:
        raise UserError(f"evaluation.average={list(average or ())}: the completions are of {', '.join(values)}")
    problems = sum(sizes[name] for name in averaged)

    def means(counts: Floats) -> Floats:
        """[R, problems of all benchmarks] -> the M means of each benchmark, then of total and mean, side by side."""
        parts = np.split(counts, np.cumsum(list(sizes.values()))[:-1], axis=1)
        own = {name: part @ matrices[name] / sizes[name] for name, part in zip(sizes, parts, strict=True)}
        total = np.sum([own[name] * sizes[name] for name in averaged], axis=0) / problems
        return np.concatenate([*own.values(), total, np.mean([own[name] for name in averaged], axis=0)], axis=1)

    found = iter(bootstrap.estimates(means, list(sizes.values())))
    metrics = [
        {metric: _with_width(next(found), metric, n, bootstrap.confidence).as_dict() for metric in values[averaged[0]]}
        for n in (*sizes.values(), problems, problems)
    ]
    return {
        "benchmarks": {name: {"problems": sizes[name], "metrics": metrics[i]} for i, name in enumerate(sizes)},
        "total": {"problems": problems, "benchmarks": averaged, "metrics": metrics[-2]},
        "mean": {"benchmarks": averaged, "metrics": metrics[-1]},
    }


def _with_width(estimate: Estimate, metric: str, problems: int, confidence: float) -> Estimate:
    """Of a share of 0 or 1 Wilson's interval over the problems: all draws are the same, and say nothing of the next.

    Of a single problem there is no other one, and problems that all have the same value say as little: no interval.
    """
    if estimate.low is None:
        return estimate
    if metric != "mean_length" and estimate.value in (0.0, 1.0):
        low, high = wilson(estimate.value, problems, confidence)
        return replace(estimate, low=low, high=high)
    return replace(estimate, low=None, high=None) if estimate.low == estimate.high else estimate


def _texts(column: pd.Series) -> list[str | None]:
    return [text if isinstance(text, str) else None for text in column]


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


def _percent(estimate: Mapping[str, float | None]) -> str:
    """
    >>> _percent({"value": 0.5, "low": 0.25, "high": 0.75}), _percent({"value": 0.5, "low": None, "high": None})
    ('50.0 % [25.0, 75.0]', '50.0 %')
    """
    parts = (estimate[name] for name in ("value", "low", "high"))
    value, *ends = (f"{100 * part:.1f}" for part in parts if part is not None)
    return f"{value} % [{', '.join(ends)}]" if ends else f"{value} %"
