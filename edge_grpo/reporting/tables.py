"""Estimates -> tables as people read them; how they are written is for `table_files.py`, `latex.py` and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from edge_grpo.reporting.evaluations import AVERAGE
from edge_grpo.reporting.numbers import Arms, Column, Numbers
from edge_grpo.reporting.scores import AFTER, BEFORE, HELD_OUT, NOT_SHARES, PROBLEMS, SEEDS, WILSON, lookup
from edge_grpo.statistics.bootstrap import Estimate, highest_coverage

SHARES_IN_TRAINING = frozenset({"groups without advantage"})
NOTHING = "-"
MOST_LISTED = 8
OF_LEARNING = {
    "held-out before": "held-out accuracy before training in %",
    "held-out after": "held-out accuracy after training in %",
    "groups without advantage": "groups that teach nothing in the end, mean over iterations in %",
    **dict.fromkeys(
        ("entropy, first 5", "entropy, last 5"),
        "mean policy entropy of the first and last 5 iterations in nats per token",
    ),
    "advantage variance": "variance of the advantages, mean over iterations",
    "responses sampled": "responses sampled and tokens generated, reflections included",
    "tokens generated": "responses sampled and tokens generated, reflections included",
    "seconds": "seconds of training, evaluation excluded",
}
"""column -> what its numbers are"""
HIGHEST, SECOND = "Bold: the highest mean of a column", "underlined: the second"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: the mean, or words.
        spread: standard deviation over seeds, with its sign `±`; "" without one.
        interval: `[low, high]`; "" without one.
        value: what a column is sorted by; None for words.
        rank: 1 where it is the highest of its column, 2 for the second; 0 for all else.
    """

    text: str
    spread: str = ""
    interval: str = ""
    value: float | None = None
    rank: int = 0

    @property
    def line(self) -> str:
        """All of it on one line."""
        return " ".join(part for part in (self.text, self.spread, self.interval) if part)


@dataclass(frozen=True)
class Table:
    """A table as it is shown, and the numbers behind it.

    Attributes:
        name: of its files.
        what: sentences on what its numbers are; "" where `clauses` say it.
        tidy: columns arm, benchmark, metric, mean, std, low, high, n, resampled; in the units of the metrics.
        confidence: of the intervals.
        shown: the rows of `tidy` that are in the cells; None for all.
        clauses: column -> what its numbers are; several columns may share one.
    """

    name: str
    title: str
    what: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    tidy: pd.DataFrame
    confidence: float
    shown: pd.DataFrame | None = None
    clauses: Mapping[str, str] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """What the numbers are, how they came about, and what marks mean."""
        return self.caption_of(range(len(self.columns)), spread=True, interval=True)

    def caption_of(self, places: Sequence[int], *, spread: bool, interval: bool) -> str:
        """The caption of some of the columns, of cells that show the standard deviation and the interval or do not."""
        clauses = dict.fromkeys(
            self.clauses[name] for name in map(self.columns.__getitem__, places) if name in self.clauses
        )
        told = "; ".join(clauses)
        how = reading(
            self.tidy if self.shown is None else self.shown, self.confidence, spread=spread, interval=interval
        )
        ranks = {row[place].rank for row in self.rows for place in places}
        marks = "; ".join([HIGHEST, *([SECOND] if 2 in ranks else [])]) + "." if 1 in ranks else ""
        sentences = [self.what, f"{told[:1].upper()}{told[1:]}." if told else "", how, marks]
        return " ".join(sentence for sentence in sentences if sentence)


def percent(estimate: Estimate | None, *, signed: bool = False) -> Cell:
    """`mean`, `± std` and `[low, high]` in %, of what there is.

    >>> percent(Estimate(0.5, 0.48, 0.52, n=3, std=0.021)).line, percent(Estimate(0.5)).line, percent(None).line
    ('50.0 ± 2.1 [48.0, 52.0]', '50.0', '-')
    """
    return _cell(estimate, 100, 1, "+" if signed else "")


def number(estimate: Estimate | None) -> Cell:
    """As `percent`, in its own unit, with about three significant places; counts are whole.

    >>> number(Estimate(25600)).line, number(Estimate(0.6614)).line, number(Estimate(12.0)).line
    ('25600', '0.661', '12')
    """
    size = abs(estimate.value) if estimate else 0.0
    whole = estimate is not None and not estimate.std and float(estimate.value).is_integer()
    return _cell(estimate, 1, 0 if size >= 100 or whole else 1 if size >= 10 else 3, "")


def _cell(estimate: Estimate | None, scale: float, digits: int, sign: str) -> Cell:
    if estimate is None:
        return Cell(NOTHING)
    text = f"{scale * estimate.value:{sign}z.{digits}f}"
    spread = "" if estimate.std is None else f"± {scale * estimate.std:.{digits}f}"
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = _interval(scale * estimate.low, scale * estimate.high, digits, sign)
    return Cell(text, spread, interval, scale * estimate.value)


def _interval(low: float, high: float, digits: int, sign: str) -> str:
    """With as many digits as tell its ends apart, up to three more; "" where these do not.

    >>> _interval(0.0, 0.03, 1, ""), _interval(0.0, 1e-9, 1, "")
    ('[0.00, 0.03]', '')
    """
    for places in range(digits, digits + 4):
        ends = [f"{end:{sign}z.{places}f}" for end in (low, high)]
        if ends[0] != ends[1]:
            return f"[{', '.join(ends)}]"
    return ""


def marked(columns: Sequence[str], rows: Sequence[Sequence[Cell]], wanted: Sequence[str]) -> list[list[Cell]]:
    """The rows with the highest and the second of these columns marked, as far as the shown digits tell them apart.

    Several cells may share a rank. Where all cells say the same, or there is one row only, none is marked.

    >>> rows = [[Cell("a"), percent(Estimate(share))] for share in (0.5001, 0.4999, 0.09)]
    >>> [row[1].rank for row in marked(["arm", "Avg"], rows, ["Avg"])]
    [1, 1, 2]
    """
    found = [list(row) for row in rows]
    for place in (place for place, name in enumerate(columns) if name in wanted):
        values = [float(row[place].text) for row in rows if row[place].value is not None]
        shown = sorted(set(values), reverse=True)
        if len(shown) < 2:
            continue
        ranks = {shown[0]: 1, **({shown[1]: 2} if len(values) > 2 else {})}  # of two arms the second is no news
        for row in found:
            if row[place].value is not None:
                row[place] = replace(row[place], rank=ranks.get(float(row[place].text), 0))
    return found


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
        *([benchmarks_table(numbers, arms, confidence)] if numbers.beside else []),
        differences_table(numbers, arms, confidence),
        learning_table(numbers, arms, confidence),
        *([other_metrics_table(numbers, arms, confidence)] if len(numbers.benchmarks) else []),
    ]
    return [table for table in tables if table.rows and len(table.columns) > 2]


def main_table(numbers: Numbers, arms: Arms, confidence: float) -> Table:
    """One row an arm, Avg first and then every benchmark, as the paper's main table (2507.21848, Table 1)."""
    heads, rows, shown = _scores(numbers.scores, numbers.columns, numbers, arms)
    rows = marked(heads, rows, [heading(column, numbers.problems) for column in numbers.compared])
    return Table("table", "Accuracy", "Problems answered right, in %.", heads, rows, numbers.scores, confidence, shown)


def benchmarks_table(numbers: Numbers, arms: Arms, confidence: float) -> Table:
    """The scores on benchmarks where they do not compare the arms, with the runs that lack them."""
    heads, rows, shown = _scores(numbers.benchmarks, numbers.beside, numbers, arms)
    what = (
        "Problems answered right, in %. There is no benchmark on which every arm was evaluated, so nothing is compared."
    )
    if numbers.unevaluated:
        what += f" Without an evaluation of their end: {shortened(numbers.unevaluated)}."
    return Table("benchmarks", "Benchmarks", what, heads, rows, numbers.benchmarks, confidence, shown)


def _scores(
    estimates: pd.DataFrame, columns: Sequence[Column], numbers: Numbers, arms: Arms
) -> tuple[list[str], list[list[Cell]], pd.DataFrame]:
    """Heads, one row an arm, and the rows of `estimates` that are in it."""
    found = lookup(estimates)
    rows = []
    for arm in arms.seeds:
        own = [found.get((arm, *column)) for column in columns]
        rows.append([Cell(arm), _seeds(own), *map(percent, own)])
    heads = ["arm", "seeds", *(heading(column, numbers.problems) for column in columns)]
    pairs = zip(estimates["benchmark"], estimates["metric"], strict=True)
    return heads, rows, estimates[[pair in columns for pair in pairs]]


def shortened(names: Sequence[str]) -> str:
    """
    >>> shortened(["a", "b"]), shortened([*"abcdefghij"])
    ('a; b', 'a; b; c; d; e; f; g; h and 2 more')
    """
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return "; ".join(names[:MOST_LISTED]) + more


def ranking_table(numbers: Numbers, arms: Arms, confidence: float) -> Table:
    """Arms by their mean in the first compared column, with the difference to the baseline and what they cost."""
    column = next(iter(numbers.compared), ("", ""))
    scores, differences, learning = map(lookup, (numbers.scores, numbers.differences, numbers.learning))
    found = {arm: scores[arm, *column] for arm in arms.seeds if (arm, *column) in scores}
    cost = [("", "tokens generated"), ("", "seconds")]
    rows = [
        [
            Cell(arm),
            _seeds([found[arm]]),
            percent(found[arm]),
            percent(differences.get((arm, *column)), signed=True),
            *(number(learning.get((arm, *what))) for what in cost),
        ]
        for arm in sorted(found, key=lambda arm: -found[arm].value)
    ]
    clauses = {
        heading(column, numbers.problems): "highest mean first, in %",
        f"minus {arms.baseline}": f"difference to {arms.baseline} in percentage points, seed by seed",
        "tokens generated": "tokens that all sampling generated",
        "seconds": "seconds of training",
    }
    heads = ["arm", "seeds", heading(column, numbers.problems), f"minus {arms.baseline}", *(what for _, what in cost)]
    keep = [pair == column for pair in zip(numbers.scores["benchmark"], numbers.scores["metric"], strict=True)]
    rows = marked(heads, rows, [heading(column, numbers.problems)]) if len(rows) > 1 else []
    return Table("ranking", "Ranking", "", heads, rows, numbers.scores[keep], confidence, clauses=clauses)


def heading(column: Column, problems: Mapping[str, int]) -> str:
    """
    >>> heading(("AIME24", "avg@2"), {"AIME24": 30}), heading(("held_out", "after"), {})
    ('AIME24 (30)', 'held-out after')
    """
    benchmark, metric = column
    if benchmark == HELD_OUT and metric in (BEFORE, AFTER):
        return f"held-out {metric}"
    return f"{benchmark} ({problems[benchmark]})" if benchmark in problems else benchmark


def _seeds(estimates: Sequence[Estimate | None]) -> Cell:
    """The number of seeds behind the row's cells, or its range."""
    counts = sorted({0 if estimate is None else estimate.n for estimate in estimates}) or [0]
    text = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return Cell(text, value=float(counts[-1]))


def reading(estimates: pd.DataFrame, confidence: float, *, spread: bool = True, interval: bool = True) -> str:
    """Sentences: what the parts of a cell are, and how far the intervals can be trusted.

    Args:
        spread, interval: whether cells show the standard deviation, and the interval.
    """
    over = set(estimates["resampled"])
    several = (estimates["n"] > 1).any()
    level = f"{100 * confidence:g} % percentile bootstrap interval"
    if not several:
        sentences = ["One seed." if not interval or WILSON in over else "One seed: no intervals."]
        if interval and PROBLEMS in over:
            sentences = [f"Mean [{level} over problems] of one seed."]
    else:
        parts = [" ± standard deviation" if spread else "", " over seeds"]
        sentences = [f"Mean{''.join(parts)}{f' [{level} over seeds]' if interval and SEEDS in over else ''}."]
    if interval and SEEDS in over:
        sizes = sorted(set(estimates.loc[estimates["resampled"] == SEEDS, "n"]))
        covered = {n: highest_coverage(n) for n in sizes}
        coarse = [f"{100 * share:.0f} % of the time with {n}" for n, share in covered.items() if share < confidence]
        if coarse:
            sentences.append(f"Of few seeds such an interval covers the true value at most {', '.join(coarse)}.")
    if interval and several and PROBLEMS in over:
        sentences.append("Of an arm with one seed, the interval is over problems.")
    if interval and WILSON in over:
        sentences.append("Of a share of 0 or 100 % the interval is Wilson's over problems.")
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
    heads = ["arm", "seeds", *(heading(c, {}) if c[0] else c[1] for c in columns)]
    rows = marked(heads, rows, [heading((HELD_OUT, AFTER), {})])
    return Table("learning", "Learning", "", heads, rows, estimates, confidence, clauses=OF_LEARNING)


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
    what = f"Difference to {arms.baseline} in percentage points, seed by seed over the seeds that both arms have."
    heads = ["arm", "pairs of seeds", *(heading(column, problems) for column in columns)]
    rows = marked(heads, rows, heads[2:])
    return Table("differences", f"Differences to {arms.baseline}", what, heads, rows, estimates, confidence)


def other_metrics_table(numbers: Numbers, arms: Arms, confidence: float) -> Table:
    """pass@k, maj@n, lengths and what could not be graded, over all problems."""
    estimates = numbers.benchmarks
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
    what = f"{'All problems' if shown == AVERAGE else shown}: shares in %, lengths in tokens."
    heads = ["arm", "seeds", *metrics]
    rows = marked(heads, rows, [metric for metric in metrics if metric.startswith(("pass@", "maj@"))])
    return Table("metrics", "Other metrics", what, heads, rows, of_shown, confidence)
