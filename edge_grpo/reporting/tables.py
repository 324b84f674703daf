"""Estimates -> tables as people read them; how they are written is for `table_files.py` and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from edge_grpo.reporting.evaluations import AVERAGE
from edge_grpo.reporting.numbers import Arms, Column, Numbers
from edge_grpo.reporting.scores import AFTER, BEFORE, HELD_OUT, NOT_SHARES, lookup
from edge_grpo.statistics.bootstrap import Estimate, highest_coverage

SHARES_IN_TRAINING = frozenset({"groups without advantage"})
NOTHING = "-"


@dataclass(frozen=True)
class Cell:
    """One cell: what it says, and the interval of that, if it has one."""

    text: str
    interval: str = ""
    bold: bool = False

    @property
    def line(self) -> str:
        """Both on one line."""
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True)
class Table:
    """A table as it is shown, and the numbers behind it.

    Attributes:
        name: of its files.
        tidy: columns arm, benchmark, metric, mean, std, low, high, n, resampled; in the units of the metrics.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    tidy: pd.DataFrame


def percent(estimate: Estimate | None, *, signed: bool = False, bold: bool = False) -> Cell:
    """`mean ± std` and `[low, high]` in %, of what there is.

    >>> percent(Estimate(0.5, 0.48, 0.52, n=3, std=0.021)).line, percent(Estimate(0.5)).line, percent(None).line
    ('50.0 ± 2.1 [48.0, 52.0]', '50.0', '-')
    """
    return _cell(estimate, 100, 1, "+" if signed else "", bold)


def number(estimate: Estimate | None) -> Cell:
    """As `percent`, in its own unit, with about three significant places.

    >>> number(Estimate(25600)).line, number(Estimate(0.6614)).line
    ('25600', '0.661')
    """
    size = abs(estimate.value) if estimate else 0.0
    return _cell(estimate, 1, 0 if size >= 100 else 1 if size >= 10 else 3, "", bold=False)


def _cell(estimate: Estimate | None, scale: float, digits: int, sign: str, bold: bool) -> Cell:
    if estimate is None:
        return Cell(NOTHING)
    text = f"{scale * estimate.value:{sign}z.{digits}f}"
    if estimate.std is not None:
        text += f" ± {scale * estimate.std:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return Cell(text, bold=bold)
    interval = f"[{scale * estimate.low:{sign}z.{digits}f}, {scale * estimate.high:{sign}z.{digits}f}]"
    return Cell(text, interval, bold)


def tables_of(numbers: Numbers, arms: Arms, confidence: float) -> list[Table]:
    """The tables of a report, those without a column left out.

    Args:
        numbers: of the runs.
        arms: the rows.
        confidence: of the intervals, for the captions.
    """
    tables = [
        ranking_table(numbers, arms, confidence),
        main_table(numbers, arms, confidence),
        differences_table(numbers, arms, confidence),
        learning_table(numbers, arms, confidence),
        *([other_metrics_table(numbers, arms, confidence)] if numbers.is_evaluated else []),
    ]
    return [table for table in tables if table.rows and len(table.columns) > 2]


def main_table(numbers: Numbers, arms: Arms, confidence: float) -> Table:
    """One row an arm, Avg first and then every benchmark, as the paper's main table (2507.21848, Table 1)."""
    found = lookup(numbers.scores)
    rows = []
    for arm in arms.seeds:
        own = [found.get((arm, *column)) for column in numbers.columns]
        best = [_is_best(arm, column, found, arms) for column in numbers.columns]
        rows.append([Cell(arm), _seeds(own), *(percent(e, bold=b) for e, b in zip(own, best, strict=True))])
    caption = (
        f"Problems answered right, in %. {reading(numbers.scores, confidence)} Bold: the highest mean of a column, "
        f"where its interval and that of the baseline ({arms.baseline}) share no value."
    )
    heads = ["arm", "seeds", *(heading(column, numbers.problems) for column in numbers.columns)]
    return Table("table", "Accuracy", caption, heads, rows, numbers.scores)


def ranking_table(numbers: Numbers, arms: Arms, confidence: float) -> Table:
    """Arms by their mean in the first compared column, with the difference to the baseline and what they cost."""
    column = next(iter(numbers.compared), ("", ""))
    scores, differences, learning = map(lookup, (numbers.scores, numbers.differences, numbers.learning))
    found = {arm: scores[arm, *column] for arm in arms.seeds if (arm, *column) in scores}
    cost = [("", "tokens generated"), ("", "seconds")]
    rows = [
        [
            Cell(arm),
            Cell(str(found[arm].n)),
            percent(found[arm]),
            percent(differences.get((arm, *column)), signed=True),
            *(number(learning.get((arm, *what))) for what in cost),
        ]
        for arm in sorted(found, key=lambda arm: -found[arm].value)
    ]
    caption = (
        f"Highest mean first, in %; difference to {arms.baseline} in percentage points, seed by seed; tokens that all "
        f"sampling generated; seconds of training. {reading(numbers.scores, confidence)}"
    )
    heads = ["arm", "seeds", heading(column, numbers.problems), f"minus {arms.baseline}", *(what for _, what in cost)]
    keep = [pair == column for pair in zip(numbers.scores["benchmark"], numbers.scores["metric"], strict=True)]
    return Table("ranking", "Ranking", caption, heads, rows if len(rows) > 1 else [], numbers.scores[keep])


def heading(column: Column, problems: Mapping[str, int]) -> str:
    """
    >>> heading(("AIME24", "avg@2"), {"AIME24": 30}), heading(("held_out", "after"), {})
    ('AIME24 (30)', 'held-out after')
    """
    benchmark, metric = column
    if benchmark == HELD_OUT and metric in (BEFORE, AFTER):
        return f"held-out {metric}"
    return f"{benchmark} ({problems[benchmark]})" if benchmark in problems else benchmark


def _is_best(arm: str, column: Column, found: Mapping[tuple[str, str, str], Estimate], arms: Arms) -> bool:
    own, baseline = found.get((arm, *column)), found.get((arms.baseline, *column))
    others = [found[other, *column].value for other in arms.seeds if (other, *column) in found]
    if own is None or baseline is None or own.value < max(others):
        return False
    return own.overlaps(baseline) is False


def _seeds(estimates: Sequence[Estimate | None]) -> Cell:
    """The number of seeds behind the row's cells, or its range."""
    counts = sorted({0 if estimate is None else estimate.n for estimate in estimates}) or [0]
    return Cell(str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}")


def reading(estimates: pd.DataFrame, confidence: float) -> str:
    """Sentences: what the parts of a cell are, and how far the intervals can be trusted."""
    over = set(estimates["resampled"])
    level = f"{100 * confidence:g} % percentile bootstrap interval"
    if "seeds" not in over:
        return f"Mean [{level} over problems] of one seed." if "problems" in over else "One seed: no intervals."
    sentences = [f"Mean ± standard deviation over seeds [{level} over seeds]."]
    sizes = sorted(set(estimates.loc[estimates["resampled"] == "seeds", "n"]))
    covered = {n: highest_coverage(n) for n in sizes}
    coarse = [f"{100 * share:.0f} % of the time with {n}" for n, share in covered.items() if share < confidence]
    if coarse:
        sentences.append(f"Of few seeds such an interval covers the true value at most {', '.join(coarse)}.")
    if "problems" in over:
        sentences.append("Of an arm with one seed, the interval is over problems.")
    return " ".join(sentences)


def learning_table(numbers: Numbers, arms: Arms, confidence: float) -> Table:
    """Held-out accuracy and what training was like, one row an arm."""
    estimates = numbers.learning
    found = lookup(estimates)
    columns = list(dict.fromkeys(zip(estimates["benchmark"], estimates["metric"], strict=True)))
    rows = []
    for arm in arms.seeds:
        own = {column: found.get((arm, *column)) for column in columns}
        cells = [_learning_cell(column, estimate) for column, estimate in own.items()]
        rows.append([Cell(arm), _seeds(list(own.values())), *cells])
    caption = (
        "Held-out accuracy before and after training and groups without advantage (after correction, mean over "
        "iterations) in %; mean policy entropy of the first and last 5 iterations in nats per token; variance of the "
        "advantages, mean over iterations; responses sampled and tokens generated, "
        "reflections included; seconds of training, evaluation "
        f"excluded. {reading(estimates, confidence)}"
    )
    heads = ["arm", "seeds", *(heading(c, {}) if c[0] else c[1] for c in columns)]
    return Table("learning", "Learning", caption, heads, rows, estimates)


def _learning_cell(column: Column, estimate: Estimate | None) -> Cell:
    share = column[0] == HELD_OUT or column[1] in SHARES_IN_TRAINING
    return percent(estimate) if share else number(estimate)


def differences_table(numbers: Numbers, arms: Arms, confidence: float) -> Table:
    """Every arm minus the baseline, paired by seed."""
    estimates, columns, problems = numbers.differences, numbers.compared, numbers.problems
    found = lookup(estimates)
    rows = []
    for arm in arms.seeds:
        own = [found.get((arm, *column)) for column in columns]
        if arm != arms.baseline:
            rows.append([Cell(arm), _seeds(own), *(percent(e, signed=True) for e in own)])
    caption = (
        f"Difference to {arms.baseline} in percentage points, seed by seed over the seeds that both arms have. "
        f"{reading(estimates, confidence)}"
    )
    heads = ["arm", "pairs of seeds", *(heading(column, problems) for column in columns)]
    return Table("differences", f"Differences to {arms.baseline}", caption, heads, rows, estimates)


def other_metrics_table(numbers: Numbers, arms: Arms, confidence: float) -> Table:
    """pass@k, maj@n, lengths and what could not be graded, over all problems."""
    estimates = numbers.scores
    benchmarks = list(dict.fromkeys(estimates["benchmark"]))
    shown = AVERAGE if AVERAGE in benchmarks else benchmarks[0]
    of_shown = estimates[estimates["benchmark"] == shown]
    metrics = [m for m in dict.fromkeys(of_shown["metric"]) if not m.startswith("avg@")]
    found = lookup(of_shown)
    rows = []
    for arm in arms.seeds:
        own = {metric: found.get((arm, shown, metric)) for metric in metrics}
        cells = [number(e) if metric in NOT_SHARES else percent(e) for metric, e in own.items()]
        rows.append([Cell(arm), _seeds(list(own.values())), *cells])
    caption = (
        f"{'All problems' if shown == AVERAGE else shown}: shares in %, lengths in tokens. "
        f"{reading(of_shown, confidence)}"
    )
    return Table("metrics", "Other metrics", caption, ["arm", "seeds", *metrics], rows, of_shown)
