"""What each cure of advantage collapse revived, and which corrections go with which advantages."""

from collections.abc import Mapping, Sequence

import pandas as pd

from edge_grpo.reporting.numbers import Arms, Column, Numbers
from edge_grpo.reporting.scores import Member, aggregated, lookup
from edge_grpo.reporting.stages import STAGES
from edge_grpo.reporting.tables import NOTHING, Cell, Table, heading, percent
from edge_grpo.statistics.bootstrap import Bootstrap

REVIVAL = {
    "collapse/acr": "collapsed",
    "collapse/expected_live": "live, expected",
    "collapse/observed_live": "live, observed",
    "collapse/revived_by_allocation": "by allocation",
    "collapse/revived_by_correction": "by correction",
    "collapse/revived_by_advantage": "by advantage",
    "collapse/revived_by_replay": "by replay",
    "collapse/created_by_correction": "made uniform",
    "train/effective_rows": "rows with advantage",
    "train/effective_rows_per_generated": "of generated rows",
}
"""logged name -> column"""
LIVE = (
    "live: groups with right and wrong responses, expected from what was sampled of the same problems before "
    "(1 - p^G - (1-p)^G), and observed"
)
REVIVED = "revived, of the groups to train on: by correction or replay, equal rewards as sampled and unequal ones after"
ROWS = "rows with an advantage, of the rows of the update and of all responses that were generated"
CLAUSES = {
    "collapsed": "collapsed: groups whose rewards are all equal, of all that were drawn",
    "live, expected": LIVE,
    "live, observed": LIVE,
    "by allocation": "by allocation, groups with unequal rewards that uniform sampling would not have had",
    "by correction": REVIVED,
    "by advantage": "by advantage, groups of equal rewards whose advantages are not all 0",
    "by replay": REVIVED,
    "made uniform": "made uniform: groups to which correction gave equal rewards",
    "rows with advantage": ROWS,
    "of generated rows": ROWS,
}
"""column -> what its numbers are"""


def revival_table(members: Sequence[Member], arms: Arms, bootstrap: Bootstrap) -> Table | None:
    """One row an arm; None where no run logged anything of it."""
    rows = [
        {"arm": member.arm, "seed": member.seed, "benchmark": "", "metric": label, "value": values.mean()}
        for member in members
        for name, label in REVIVAL.items()
        if len(values := member.run.column(name))
    ]
    if not rows:
        return None
    estimates = aggregated(pd.DataFrame(rows), bootstrap)
    found = lookup(estimates)
    shown = [label for label in REVIVAL.values() if any((arm, "", label) in found for arm in arms.seeds)]
    cells = [[Cell(arm), *(percent(found.get((arm, "", label))) for label in shown)] for arm in arms.seeds]
    what = "Means over iterations, in %."
    heads, confidence = ["arm", *shown], bootstrap.confidence
    return Table("revival", "What was revived", what, heads, cells, estimates, confidence, clauses=CLAUSES)


def matrix_table(
    numbers: Numbers, options: Mapping[str, Mapping[str, str]], arms: Arms, confidence: float
) -> Table | None:
    """Advantage x correction, of the arms that are the baseline at every other stage; None without two of each."""
    column: Column = next(iter(numbers.compared), ("", ""))
    found, base = lookup(numbers.scores), options.get(arms.baseline, {})
    fixed = [stage for stage in STAGES if stage not in ("correction", "advantage")]
    cells: dict[tuple[str, str], list[Cell]] = {}
    for arm in arms.seeds:
        own = options.get(arm)
        if own and (arm, *column) in found and all(own[stage] == base.get(stage) for stage in fixed):
            cells.setdefault((own["advantage"], own["correction"]), []).append(percent(found[arm, *column]))
    advantages, corrections = ([*dict.fromkeys(key[i] for key in cells)] for i in (0, 1))
    if min(len(advantages), len(corrections)) < 2:
        return None
    rows = [
        [Cell(advantage), *(_joined(cells.get((advantage, c), [Cell(NOTHING)])) for c in corrections)]
        for advantage in advantages
    ]
    what = (
        f"{heading(column, numbers.problems)} in %, of arms that differ from {arms.baseline} in these two stages only."
    )
    tidy = numbers.scores[
        [pair == column for pair in zip(numbers.scores["benchmark"], numbers.scores["metric"], strict=True)]
    ]
    return Table("matrix", "Advantage and correction", what, ["advantage", *corrections], rows, tidy, confidence)


def _joined(cells: Sequence[Cell]) -> Cell:
    """Of several arms in one place, the means."""
    return cells[0] if len(cells) == 1 else Cell("; ".join(cell.text for cell in cells))
