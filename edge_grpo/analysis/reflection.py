"""How often reflection repairs a wrong response, and how often it breaks a right one: forced and spontaneous."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from edge_grpo.analysis.finding import Finding, Row, Table, Unit, show
from edge_grpo.analysis.source import Source
from edge_grpo.statistics.bootstrap import Bootstrap, Estimate, Floats, divide, unit_sums

TITLE = "Does reflection repair wrong responses?"
OF_RUN = """\
Forced: a wrong response that took the branch `reflect` of guided correction was continued behind the injected phrase
and graded again. The branch is drawn at random, so these stand for all wrong responses that correction is applied to.
The policy changes during the run: this is a mean over it."""
OF_EVALUATION = """\
Forced: every response, right or wrong, was continued behind the injected " Wait! Something is wrong here." and graded
again. What was cut by its budget also gains tokens to go on with, so it stands apart. Spontaneous: responses in which
the policy wrote a reflection marker by itself, with a boxed answer before it; that answer is held against the final
one. Repaired: share of the wrong that end right. Broken: share of the right that end wrong."""
MARKERS = (
    "Responses with a reflection marker against those without. A correlation, no effect: the policy may reflect where "
    "it is wrong already. Within question: mean over the questions that have both."
)
REPAIR_COLUMNS: dict[str, Unit] = {
    "reflection": "text",
    "over": "text",
    "wrong": "count",
    "repaired": "share",
    "right": "count",
    "broken": "share",
    "accuracy before": "share",
    "accuracy after": "share",
    "net change": "change",
}
MARKER_COLUMNS: dict[str, Unit] = {
    "responses with a marker": "count",
    "share": "share",
    "accuracy with": "share",
    "accuracy without": "share",
    "difference": "change",
    "difference within question": "change",
    "questions with both": "count",
}


def reflection(source: Source, bootstrap: Bootstrap) -> Finding:
    """Repaired and broken shares of the paper's section on reflection (2507.21848)."""
    return _of_run(source, bootstrap) if source.kind == "run" else _of_evaluation(source, bootstrap)


def _of_run(source: Source, bootstrap: Bootstrap) -> Finding:
    frame = source.frame
    taken = (frame["branch"] == "reflect") & ~frame["correct"]
    notes = [
        "What forced reflection does to right responses, and spontaneous reflection, are not available, because a run "
        "corrects wrong responses only and keeps no texts of all responses: " + source.hint("reflection=forced")
    ]
    if not taken.any():
        notes.insert(
            0,
            "Forced reflection is not available, because no response took the branch `reflect`: "
            "use correction=guided or forced_reflection",
        )
        return Finding("reflection", TITLE, OF_RUN, notes=notes)
    row = _repair_row("forced", "rollouts", taken, ~taken & False, frame["correct_after"], source, bootstrap)
    columns = {name: REPAIR_COLUMNS[name] for name in ("reflection", "over", "wrong", "repaired")}
    table = Table("Wrong responses that the policy was made to reflect on.", columns, [row])
    statements = [
        f"Forced reflection repairs {show(row['repaired'], 'share')} of {show(row['wrong'], 'count')} wrong responses."
    ]
    return Finding("reflection", TITLE, OF_RUN, statements, {"repairs": table}, notes)


def _of_evaluation(source: Source, bootstrap: Bootstrap) -> Finding:
    frame = source.frame
    rows, notes = list(_repair_rows(source, bootstrap)), []
    kinds = {row["reflection"] for row in rows}
    if "forced" not in kinds:
        notes.append(
            "Forced reflection is not available, because the evaluation did not inject the phrase: "
            + source.hint("reflection=forced")
        )
    if "spontaneous" not in kinds:
        notes.append(
            "Spontaneous repairs are not available, because no response holds a reflection marker with a boxed answer "
            "before it."
        )
    tables = {"repairs": Table("Repaired and broken responses.", REPAIR_COLUMNS, rows)} if rows else {}
    statements = [_sentence(row) for row in rows if row["over"] == "all"]
    marker = frame["reflection"].notna()
    if marker.any() and not marker.all():
        tables["markers"] = Table(
            MARKERS,
            MARKER_COLUMNS,
            [_marker_row(source, marker.to_numpy(), bootstrap)],
        )
    return Finding("reflection", TITLE, OF_EVALUATION, statements, tables, notes)


def _repair_rows(source: Source, bootstrap: Bootstrap) -> Iterator[Row]:
    """Forced and spontaneous, over all responses that have it and over the parts of them."""
    frame = source.frame
    kinds = (
        ("forced", frame["correct"].astype("boolean"), frame["forced_correct"]),
        ("spontaneous", frame["correct_before_reflection"], frame["correct"].astype("boolean")),
    )
    for kind, before, after in kinds:
        has = before.notna() & after.notna()
        ended = frame["finish_reason"] == "stop"
        parts = {"all": has, "ended by itself": has & ended, "cut by the budget": has & ~ended}
        names = sorted(frame["benchmark"].unique())
        if len(names) > 1:
            parts |= {name: has & (frame["benchmark"] == name) for name in names}
        for over, part in parts.items():
            if part.any():
                right = before.fillna(False).astype(bool)
                yield _repair_row(kind, over, part & ~right, part & right, after.fillna(False), source, bootstrap)


def _repair_row(
    kind: str,
    over: str,
    wrong: pd.Series,
    right: pd.Series,
    after: pd.Series,
    source: Source,
    bootstrap: Bootstrap,
) -> Row:
    """A row of the table.

    Args:
        wrong, right: [N] the rows that count, by what they were before reflection.
        after: [N] whether the row is right afterwards.
    """
    was_wrong, was_right, is_right = (column.to_numpy(dtype=bool) for column in (wrong, right, after))
    counts = was_wrong | was_right
    net = counts * (is_right.astype(float) - was_right)

    def share(part: NDArray[np.bool_], of: NDArray[np.bool_]) -> Estimate:
        return bootstrap.ratio(part, of, source.questions)

    return {
        "reflection": kind,
        "over": over,
        "wrong": int(was_wrong.sum()),
        "repaired": share(was_wrong & is_right, was_wrong),
        "right": int(was_right.sum()),
        "broken": share(was_right & ~is_right, was_right),
        "accuracy before": share(was_right, counts),
        "accuracy after": share(counts & is_right, counts),
        "net change": bootstrap.ratio(net, counts, source.questions),
    }


def _sentence(row: Row) -> str:
    parts = [
        f"{verb} {show(row[share], 'share')} of {show(row[of], 'count')} {of} responses"
        for verb, share, of in (("repairs", "repaired", "wrong"), ("breaks", "broken", "right"))
        if row[of]
    ]
    return (
        f"{str(row['reflection']).capitalize()} reflection {' and '.join(parts)}: accuracy changes by "
        f"{show(row['net change'], 'change')} points."
    )


def _marker_row(source: Source, marker: NDArray[np.bool_], bootstrap: Bootstrap) -> Row:
    """Accuracy with and without a marker, over all responses and within questions."""
    questions, right = source.questions, source.frame["correct"].to_numpy()
    parts = [unit_sums(part, questions) for part in (marker & right, marker, ~marker & right, ~marker)]

    def difference(weights: Floats) -> Floats:
        with_right, with_all, without_right, without_all = (weights @ part for part in parts)
        return divide(with_right, with_all) - divide(without_right, without_all)

    within = divide(parts[0], parts[1]) - divide(parts[2], parts[3])
    both = ~np.isnan(within)
    return {
        "responses with a marker": int(marker.sum()),
        "share": bootstrap.ratio(marker, np.ones_like(marker), questions),
        "accuracy with": bootstrap.ratio(marker & right, marker, questions),
        "accuracy without": bootstrap.ratio(~marker & right, ~marker, questions),
        "difference": bootstrap.estimate(difference, len(parts[0])),
        "difference within question": bootstrap.ratio(np.nan_to_num(within), both, np.arange(len(both))),
        "questions with both": int(both.sum()),
    }
