"""What the entropy-driven advantage (EDA) multiplies by, and which rows move the policy at all."""

import numpy as np

from edge_grpo.analysis.finding import Finding, Row, Table, Unit, show
from edge_grpo.analysis.source import Source
from edge_grpo.statistics.bootstrap import Bootstrap

TITLE = "How strongly does EDA multiply, and which rows have a gradient?"
MEASURED = """\
The multiplier 1 / P^ is the mean entropy of the group over the response's own, after the clamp. Rows of groups without
any advantage have none, for no pass is spent on them. Right and wrong are as after correction. The effective-gradient
fraction is the share of rows, and of response tokens, whose advantage is not 0; that of groups which did not enter the
update is 0."""
QUANTILES = {"5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
MULTIPLIER_COLUMNS: dict[str, Unit] = {
    "rows": "text",
    "number": "count",
    "mean": "number",
    **dict.fromkeys(QUANTILES, "number"),
    "clamped": "share",
}
GRADIENT_COLUMNS: dict[str, Unit] = {"over": "text", "number": "count", "with a gradient": "share"}


def multipliers(source: Source, bootstrap: Bootstrap) -> Finding:
    """Quantiles of 1 / P^ after the clamp (2507.21848, Eq. 6 and 7), and the effective-gradient fraction."""
    if source.kind == "evaluation":
        why = (
            "Multipliers and gradients are not available, because an evaluation trains nothing: analyze the run itself."
        )
        return Finding("multipliers", TITLE, MEASURED, notes=[why])
    gradient = _gradient(source, bootstrap)
    tables = {"gradient": Table("Effective-gradient fraction.", GRADIENT_COLUMNS, gradient)}
    statements = [
        f"{show(gradient[0]['with a gradient'], 'share')} of rows and "
        f"{show(gradient[1]['with a gradient'], 'share')} of response tokens have a gradient."
    ]
    if source.frame["multiplier"].isna().all():
        why = "Multipliers are not available, because no row has one: the run used no EDA, or every group collapsed."
        return Finding("multipliers", TITLE, MEASURED, statements, tables, [why])
    rows = _multipliers(source, bootstrap)
    tables = {"multipliers": Table("1 / P^ over rows.", MULTIPLIER_COLUMNS, rows), **tables}
    statements.insert(
        0,
        f"Multiplier: median {show(rows[0]['median'], 'number')}, 95 % quantile {show(rows[0]['95 %'], 'number')}, "
        f"at most {show(rows[0]['max'], 'number')}; clamped {show(rows[0]['clamped'], 'share')}.",
    )
    return Finding("multipliers", TITLE, MEASURED, statements, tables)


def _multipliers(source: Source, bootstrap: Bootstrap) -> list[Row]:
    frame = source.frame
    has, right = frame["multiplier"].notna(), frame["correct_after"]
    values, clamped = frame["multiplier"].fillna(0), frame["clamped"].fillna(0) > 0
    rows: list[Row] = []
    for name, part in (("all", has), ("right", has & right), ("wrong", has & ~right)):
        quantiles = {label: float(values[part].quantile(level)) for label, level in QUANTILES.items()}
        rows.append(
            {
                "rows": name,
                "number": int(part.sum()),
                "mean": bootstrap.ratio(values * part, part, source.questions),
                **quantiles,
                "clamped": bootstrap.ratio(clamped & part, part, source.questions),
            }
        )
    return rows


def _gradient(source: Source, bootstrap: Bootstrap) -> list[Row]:
    """Rows and tokens whose advantage is not 0."""
    frame = source.frame
    moves = (frame["advantage"].fillna(0) != 0).to_numpy()
    weights = {"rows": np.ones(len(frame)), "response tokens": frame["tokens_after"].to_numpy()}
    return [
        {
            "over": name,
            "number": int(weight.sum()),
            "with a gradient": bootstrap.ratio(weight * moves, weight, source.questions),
        }
        for name, weight in weights.items()
    ]
