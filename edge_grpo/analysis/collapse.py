"""How many groups have collapsed before correction, after it, and because of it."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from edge_grpo.analysis.finding import Finding, Row, Table, Unit, show
from edge_grpo.analysis.source import MORE_SAMPLES, Source
from edge_grpo.statistics.bootstrap import Bootstrap

TITLE = "How many groups collapse?"
KINDS = ("all wrong", "mixed", "all right")
UNIFORM = "equal rewards"
BEFORE_AND_AFTER: dict[str, Unit] = {"groups": "text", "before": "share", "after": "share", "change": "change"}
BY_CORRECTION: dict[str, Unit] = {
    "change": "text",
    "groups": "count",
    "of all": "share",
    "of those that could": "share",
}
BY_CORRECTION_CAPTION = (
    "What correction did. Those that could be revived had equal rewards before; those that could be made uniform had "
    "unequal ones."
)
MEASURED = """\
A group holds the {sizes} responses to one question {where}. In a group that is all wrong or all right, every response
has the same accuracy reward, so none has an advantage."""
CORRECTED = f"""\
`{UNIFORM}` counts the groups whose whole rewards are equal: a format reward can tell wrong responses apart.
Correction revives a group whose rewards were equal before and are not after; it creates a collapse where they were
unequal before and are equal after."""


def group_kinds(source: Source) -> pd.DataFrame:
    """One row a group.

    Returns:
        Columns question, before (of KINDS), and, of a run, step, after, equal_before and equal_after (all rewards
        equal, so no advantage); of an evaluation, benchmark.
    """
    groups = source.frame.groupby("group")
    found = pd.DataFrame({"question": groups["question"].first(), "before": _kind(groups["correct"])})
    if source.kind == "evaluation":
        return found.assign(benchmark=groups["benchmark"].first())
    return found.assign(
        step=groups["step"].first(),
        after=_kind(groups["correct_after"]),
        equal_before=groups["reward"].nunique() == 1,
        equal_after=groups["reward_after"].nunique() == 1,
    )


def collapse(source: Source, bootstrap: Bootstrap) -> Finding:
    """Shares of groups by how many of their responses are right (2507.21848, advantage collapse)."""
    groups = group_kinds(source)
    sizes = source.frame.groupby("group").size()
    smallest, largest = sizes.min(), sizes.max()
    measured = MEASURED.format(
        where="in one iteration" if source.kind == "run" else "in the evaluation",
        sizes=f"{smallest}" if smallest == largest else f"{smallest} to {largest}",
    )
    if largest == 1:
        why = "Groups are not available, because there is one response to a question: " + source.hint(MORE_SAMPLES)
        return Finding("collapse", TITLE, measured, notes=[why])
    if source.kind == "evaluation":
        return _of_evaluation(groups, measured, bootstrap)
    return _of_run(source, groups, f"{measured} {CORRECTED}", bootstrap)


def _of_run(source: Source, groups: pd.DataFrame, measured: str, bootstrap: Bootstrap) -> Finding:
    shares, changes = list(_before_and_after(groups, bootstrap)), list(_by_correction(groups, bootstrap))
    tables = {
        "groups": Table(f"{len(groups):,} groups, as sampled and after correction.", BEFORE_AND_AFTER, shares),
        "correction": Table(BY_CORRECTION_CAPTION, BY_CORRECTION, changes),
        "transitions": _transitions(groups),
    }
    equal, (revived, created, _) = shares[-1], changes
    statements = [
        f"Groups with {UNIFORM}: {show(equal['before'], 'share')} as sampled, {show(equal['after'], 'share')} after "
        "correction.",
        f"Correction revives {show(revived['of all'], 'share')} of all groups and makes "
        f"{show(created['of all'], 'share')} uniform itself.",
    ]
    notes = [] if source.frame["branch"].any() else ["No response was corrected: after is before."]
    return Finding("collapse", TITLE, measured, statements, tables, notes)


def _by_correction(groups: pd.DataFrame, bootstrap: Bootstrap) -> Iterator[Row]:
    everything, by_question = np.ones(len(groups)), groups["question"].to_numpy()
    before, after = groups["equal_before"], groups["equal_after"]
    parts = {
        "revived by correction": (before & ~after, before),
        "created by correction": (~before & after, ~before),
        "created, all right": (~before & after & (groups["after"] == "all right"), ~before),
    }
    for name, (part, could) in parts.items():
        yield {
            "change": name,
            "groups": int(part.sum()),
            "of all": bootstrap.ratio(part, everything, by_question),
            "of those that could": bootstrap.ratio(part, could, by_question),
        }


def _before_and_after(groups: pd.DataFrame, bootstrap: Bootstrap) -> Iterator[Row]:
    everything, by_question = np.ones(len(groups)), groups["question"].to_numpy()
    pairs = {kind: (groups["before"] == kind, groups["after"] == kind) for kind in KINDS}
    for name, (before, after) in (pairs | {UNIFORM: (groups["equal_before"], groups["equal_after"])}).items():
        yield {
            "groups": name,
            "before": bootstrap.ratio(before, everything, by_question),
            "after": bootstrap.ratio(after, everything, by_question),
            "change": bootstrap.ratio(after.astype(float) - before, everything, by_question),
        }


def _transitions(groups: pd.DataFrame) -> Table:
    counts = pd.crosstab(groups["before"], groups["after"]).reindex(index=KINDS, columns=KINDS, fill_value=0)
    columns: dict[str, Unit] = {"before": "text", **{f"{kind} after": "count" for kind in KINDS}}
    rows: list[Row] = [
        {"before": kind, **{f"{after} after": int(counts[after][kind]) for after in KINDS}} for kind in KINDS
    ]
    return Table("Groups by what they were before and are after.", columns, rows)


def _of_evaluation(groups: pd.DataFrame, measured: str, bootstrap: Bootstrap) -> Finding:
    names = sorted(groups["benchmark"].unique())
    parts = {name: groups["benchmark"] == name for name in names}
    if len(names) > 1:
        parts = {"all": groups["benchmark"].notna()} | parts
    by_question = groups["question"].to_numpy()
    rows: list[Row] = [
        {
            "benchmark": name,
            "groups": int(part.sum()),
            **{kind: bootstrap.ratio(part & (groups["before"] == kind), part, by_question) for kind in KINDS},
        }
        for name, part in parts.items()
    ]
    columns: dict[str, Unit] = {"benchmark": "text", "groups": "count", **dict.fromkeys(KINDS, "share")}
    statements = [
        f"{show(rows[0]['all wrong'], 'share')} of groups are all wrong, "
        f"{show(rows[0]['all right'], 'share')} all right."
    ]
    notes = [
        "Groups after correction are not available, because an evaluation corrects nothing: analyze the run itself."
    ]
    return Finding("collapse", TITLE, measured, statements, {"groups": Table("Groups.", columns, rows)}, notes)


def _kind(right: "pd.api.typing.SeriesGroupBy") -> pd.Series:
    """all wrong, mixed or all right."""
    share = right.mean()
    return pd.Series(np.select([share == 0, share == 1], [KINDS[0], KINDS[2]], KINDS[1]), index=share.index)
