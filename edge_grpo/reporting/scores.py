"""Runs -> tidy numbers: one row an arm, benchmark and metric, aggregated over seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from edge_grpo.reporting.evaluations import AVERAGE, MEAN_OF_SETS, Evaluation
from edge_grpo.reporting.runs import Run
from edge_grpo.statistics.bootstrap import Bootstrap, Estimate
from edge_grpo.statistics.proportion import wilson

HELD_OUT = "held_out"
BEFORE, AFTER = "before", "after"
KEYS = ["arm", "benchmark", "metric"]
NOT_SHARES = ("mean_length",)
SEEDS, PROBLEMS, WILSON = "seeds", "problems", "problems (Wilson)"
"""what an interval is over; `WILSON` where every problem is wrong, or every one right"""


@dataclass(frozen=True)
class Member:
    """A run in the tables: its arm, and the evaluation of it that is shown."""

    arm: str
    run: Run
    evaluation: Evaluation | None

    @property
    def seed(self) -> int:
        return int(self.run.seed or 0)


def chosen(run: Run, name: str | None) -> Evaluation | None:
    """The evaluation of the run's end that the tables show: the last one, of that name if given; None without any.

    Evaluations of checkpoints are not shown, nor those of the former end of a run that was trained further.
    """
    wanted = [e for e in run.evaluations if e.iteration == run.iterations and name in (None, e.name)]
    return wanted[-1] if wanted else None


def held_out(run: Run) -> pd.Series:
    """step -> held-out avg@n, in [0, 1]."""
    return run.column(next((name for name in run.logged if name.startswith(f"eval/{HELD_OUT}/avg@")), ""))


def evaluated(members: Sequence[Member]) -> pd.DataFrame:
    """The scores of edge-grpo-evaluate: columns arm, seed, benchmark, metric, value, low, high, problems, confidence.

    `problems` is the number behind a share (None for what is no share), `confidence` that of low and high.
    `avg@<n>` becomes `avg@n` if runs were evaluated with different n: its expectation does not depend on n.
    """
    counts = {member.evaluation.num_samples for member in members if member.evaluation}
    rows = []
    for member in members:
        if member.evaluation is None:
            continue
        own = f"avg@{member.evaluation.num_samples}"
        for (benchmark, metric), score in member.evaluation.scores.items():
            rows.append(
                {
                    "arm": member.arm,
                    "seed": member.seed,
                    "benchmark": benchmark,
                    "metric": "avg@n" if metric == own and len(counts) > 1 else metric,
                    **score.as_dict(),
                    "problems": None if metric in NOT_SHARES else member.evaluation.problems.get(benchmark),
                    "confidence": member.evaluation.confidence,
                }
            )
    return pd.DataFrame(rows)


def accuracy_in_training(members: Sequence[Member]) -> pd.DataFrame:
    """Held-out accuracy before and after training, as `evaluated`, without intervals."""
    rows = []
    for member in members:
        curve = held_out(member.run)
        values = {BEFORE: curve.get(0), AFTER: curve.iloc[-1] if len(curve) and curve.index[-1] > 0 else None}
        own = {"arm": member.arm, "seed": member.seed, "benchmark": HELD_OUT}
        own["problems"] = _held_out_problems(member.run)
        rows += [{**own, "metric": when, "value": value} for when, value in values.items() if value is not None]
    return pd.DataFrame(rows)


def _held_out_problems(run: Run) -> int | None:
    """How many were evaluated; None where the settings do not say."""
    count, limit = (run.settings.get(key) for key in ("data.held_out_count", "evaluation.limit"))
    return count if count is None or limit is None else min(count, limit)


def learning(members: Sequence[Member]) -> pd.DataFrame:
    """What training was like, as `evaluated`, without intervals; the metrics are the keys of `_learning`."""
    rows = []
    for member in members:
        for metric, value in _learning(member.run).items():
            if pd.notna(value):
                rows.append({"arm": member.arm, "seed": member.seed, "benchmark": "", "metric": metric, "value": value})
    return pd.DataFrame(rows)


def _learning(run: Run) -> dict[str, float]:
    """NaN where the run did not log it."""
    entropy = run.column("train/entropy")
    return {
        "groups without advantage": run.column("collapse/no_advantage").mean(),
        "entropy, first 5": entropy.head(5).mean(),
        "entropy, last 5": entropy.tail(5).mean(),
        "advantage variance": run.column("train/advantage_var").mean(),
        "responses sampled": run.column("train/num_rollouts").max(),
        "tokens generated": run.column("train/num_generated_tokens").max(),
        "iterations": float(run.iterations) if run.iterations else float("nan"),
        "seconds": run.column("timing_s/total").sum(min_count=1),
    }


def aggregated(values: pd.DataFrame, bootstrap: Bootstrap) -> pd.DataFrame:
    """Over seeds: columns arm, benchmark, metric, mean, std, low, high, n, resampled.

    An arm of one seed has the interval of its evaluation, over problems, if there is one. No interval is of no width:
    of a share that is 0 or 1 of a known number of problems it is Wilson's over these problems, which is wide enough
    for several seeds of the same problems too; anything else has none.
    """
    return _frame((key, *_estimate(group, bootstrap)) for key, group in _groups(values))


def differences(values: pd.DataFrame, baseline: str, bootstrap: Bootstrap) -> pd.DataFrame:
    """Arm minus baseline over the seeds that both have, as `aggregated`; arms without a common seed are absent."""
    of_seed = {key: dict(zip(group["seed"], group["value"], strict=True)) for key, group in _groups(values)}
    found: list[tuple[tuple[str, ...], Estimate, str]] = []
    for (arm, *what), own in of_seed.items():
        difference = None if arm == baseline else paired(own, of_seed.get((baseline, *what), {}), bootstrap)
        if difference is not None:
            found.append(((arm, *what), *_with_width(difference, SEEDS)))
    return _frame(iter(found))


def paired(values: Mapping[int, float], baseline: Mapping[int, float], bootstrap: Bootstrap) -> Estimate | None:
    """Mean of the differences, seed by seed (seed -> value); None if there is no common seed."""
    common = [seed for seed in values if seed in baseline]
    return bootstrap.mean([values[seed] - baseline[seed] for seed in common]) if common else None


def _groups(values: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    for key, group in values.groupby(KEYS, sort=False) if len(values) else ():
        yield tuple(map(str, key)), group


def _estimate(group: pd.DataFrame, bootstrap: Bootstrap) -> tuple[Estimate, str]:
    """With what its interval is over, "" without one."""
    single = len(group) == 1 and "low" in group and pd.notna(group["low"].iloc[0])
    if single:
        only = group.iloc[0]
        found, over, confidence = Estimate(only["value"], only["low"], only["high"]), PROBLEMS, only["confidence"]
    else:
        found, over, confidence = bootstrap.mean(group["value"]), SEEDS, bootstrap.confidence
    problems = pd.to_numeric(group["problems"]).min() if "problems" in group else float("nan")
    if found.value not in (0.0, 1.0) or pd.isna(problems):
        return _with_width(found, over)
    low, high = wilson(found.value, int(problems), confidence)
    return replace(found, low=low, high=high), WILSON


def _has_width(estimate: Estimate) -> bool:
    return estimate.low is not None and estimate.high is not None and estimate.low < estimate.high


def _with_width(estimate: Estimate, over: str) -> tuple[Estimate, str]:
    """An interval of no width says nothing of the next unit: it is none."""
    return (estimate, over) if _has_width(estimate) else (replace(estimate, low=None, high=None), "")


def _frame(estimates: Iterator[tuple[tuple[str, ...], Estimate, str]]) -> pd.DataFrame:
    rows = [[*key, e.value, e.std, e.low, e.high, e.n, over] for key, e, over in estimates]
    return pd.DataFrame(rows, columns=[*KEYS, "mean", "std", "low", "high", "n", "resampled"])


def lookup(estimates: pd.DataFrame) -> Mapping[tuple[str, str, str], Estimate]:
    """(arm, benchmark, metric) -> estimate."""
    plain = estimates.astype(object).where(estimates.notna(), None)
    return {
        (row["arm"], row["benchmark"], row["metric"]): Estimate(
            row["mean"], row["low"], row["high"], n=row["n"], std=row["std"]
        )
        for row in plain.to_dict("records")
    }


def shown_columns(values: pd.DataFrame, arms: int) -> list[tuple[str, str]]:
    """(benchmark, metric) of the main table: avg@n of every set, or held-out accuracy before and after.

    Columns in which all of the arms have a value come first, as the first one is that in which they are compared.
    """
    pairs = list(dict.fromkeys(zip(values["benchmark"], values["metric"], strict=True))) if len(values) else []
    averages = [(b, m) for b, m in pairs if m.startswith("avg@") and b != MEAN_OF_SETS]
    # An arm evaluated on one set alone has no total.
    averages.sort(key=lambda pair: (not has_all_arms(values, pair, arms), pair[0] != AVERAGE))
    return averages or [pair for pair in pairs if pair[0] == HELD_OUT]


def has_all_arms(values: pd.DataFrame, column: tuple[str, str], arms: int) -> bool:
    """Whether so many arms have a value there."""
    benchmark, metric = column
    return values.loc[(values["benchmark"] == benchmark) & (values["metric"] == metric), "arm"].nunique() == arms
