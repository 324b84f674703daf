"""The charts of the page, as Vega-Lite specifications: values under the pointer, arms switched by a click."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from edge_grpo.statistics.palette import Look

Spec = Mapping[str, Any]
HEIGHT = 320  # pixels
REACH = 200  # square pixels around a point in which its values show; Vega-Lite's `nearest` loses the names of arms
DIGITS = 5  # significant ones, of what a page holds


def over_training(
    panels: Mapping[tuple[str, str], pd.DataFrame], looks: Mapping[str, Look], unit: str, *, is_share: bool
) -> Spec:
    """Lines of arms; what they are drawn against is chosen, and which of the lines.

    Args:
        panels: line and axis -> columns of `over_seeds`.
        looks: arm -> look.
    """

    rows = [{"line": line, "axis": axis, **row} for (line, axis), frame in panels.items() for row in _records(frame)]
    choices = {
        "line": list(dict.fromkeys(line for line, _ in panels)),
        "axis": list(dict.fromkeys(a for _, a in panels)),
    }
    return _lines(rows, looks, unit, {"line": "of ", "axis": "against "}, choices, is_share=is_share)


def families(lines: pd.DataFrame, members: Mapping[str, Sequence[str]], looks: Mapping[str, Look], unit: str) -> Spec:
    """Lines against tokens, of one family at a time.

    Args:
        lines: columns of `over_seeds`.
        members: family -> its arms.
    """
    rows = [
        {"family": family, **row}
        for family, own in members.items()
        for row in _records(lines[lines["arm"].isin(list(own))])
    ]
    return _lines(rows, looks, unit, {"family": "stage "}, {"family": list(members)}, is_share=True)


def _lines(
    rows: Sequence[Mapping[str, Any]],
    looks: Mapping[str, Look],
    unit: str,
    names: Mapping[str, str],
    choices: Mapping[str, Sequence[str]],
    *,
    is_share: bool,
) -> Spec:
    """Lines with bands.

    Args:
        rows: as `_records` makes them, with what is chosen by menus.
        names: field that a menu chooses -> what stands before the menu.
        choices: field -> its values; of one there is no menu.
    """
    import altair as alt

    there = {row["arm"] for row in rows}
    arms = [arm for arm in looks if arm in there]
    legend = _legend("stroke")
    colour = alt.Color("arm:N", legend=legend, scale=alt.Scale(domain=arms, range=[looks[arm].colour for arm in arms]))
    dashes = [list(looks[arm].dash) or [1, 0] for arm in arms]
    dash = alt.StrokeDash("arm:N", legend=legend, scale=alt.Scale(domain=arms, range=dashes))
    on = alt.selection_point(name="on", fields=["arm"], bind="legend", toggle="true")
    near = alt.selection_point(name="near", fields=["arm", "x"], on="pointerover", empty=False)
    form = ".1%" if is_share else ".3~f"
    y = alt.Y("mean:Q", title=unit, axis=alt.Axis(format="%") if is_share else alt.Axis(), scale=alt.Scale(zero=False))
    x = alt.X("x:Q", title=None, axis=alt.Axis(format="~s"), scale=alt.Scale(nice=False, zero=False))
    parts = {"lowest seed": "low", "highest seed": "high", "seeds": "seeds"}
    tips = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("x:Q", title="at", format=",.4~r"),
        alt.Tooltip("mean:Q", format=form),
        *(alt.Tooltip(f"{f}:Q", title=t, format="d" if f == "seeds" else form) for t, f in parts.items()),
    ]
    base = alt.Chart().encode(x=x, color=colour)
    layers = [
        base.mark_area(opacity=0.15, line=False).encode(y=alt.Y("low:Q", title=unit), y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash).add_params(on),
        base.mark_point(filled=True, size=REACH)
        .encode(y=y, opacity=alt.condition(near, alt.value(1), alt.value(0)), tooltip=tips)
        .add_params(near),
    ]
    chart = alt.layer(*layers, data=alt.Data(values=list(rows)), width="container", height=HEIGHT)
    for field, options in choices.items():
        if len(options) > 1:
            menu = alt.binding_select(options=list(options), name=names[field])
            chart = chart.add_params(alt.param(name=f"chosen_{field}", value=options[0], bind=menu))
            chart = chart.transform_filter(f"datum.{field} == chosen_{field}")
    return _finished(chart.transform_filter(on), arms)


def collapse(shares: pd.DataFrame, arms: Sequence[str], kinds: Mapping[str, str], dead: str) -> Spec:
    """The stacked kinds of groups of the chosen arm, with the share without advantage.

    Args:
        shares: columns arm, step, one a kind, and `dead`.
        kinds: label -> colour.
    """
    import altair as alt

    kinds = {kind: colour for kind, colour in kinds.items() if (shares[kind] > 0).any()}  # of what has an area
    labels = [*kinds, *([dead] if shares[dead].notna().any() else [])]
    rows = [
        {"arm": row["arm"], "step": int(row["step"]), "groups": label, "share": _rounded(row[label])}
        for row in shares.to_dict("records")
        for label in labels
        if pd.notna(row[label])
    ]
    legend = _legend("square")
    colour = alt.Color(
        "groups:N", legend=legend, scale=alt.Scale(domain=labels, range=[*kinds.values(), "#000000"][: len(labels)])
    )
    form = alt.Axis(format="%")
    tips = [alt.Tooltip("step:Q", title="iteration"), alt.Tooltip("groups:N"), alt.Tooltip("share:Q", format=".1%")]
    base = alt.Chart().encode(x=alt.X("step:Q", title="iterations", scale=alt.Scale(nice=False)), color=colour)
    near = alt.selection_point(name="near", fields=["step", "groups"], on="pointerover", empty=False)
    is_dead = alt.datum.groups == dead
    layers = [
        base.transform_filter(~is_dead)
        .mark_area(opacity=0.75)
        .encode(y=alt.Y("share:Q", stack="zero", title="share of groups", axis=form, scale=alt.Scale(domain=[0, 1]))),
        base.transform_filter(is_dead).mark_line(strokeDash=[5, 3]).encode(y=alt.Y("share:Q", stack=None)),
        base.transform_filter(~is_dead)
        .mark_point(filled=True, size=REACH)
        .encode(
            y=alt.Y("share:Q", stack="zero"),
            opacity=alt.condition(near, alt.value(1), alt.value(0)),
            tooltip=tips,
        )
        .add_params(near),
    ]
    menu = alt.binding_select(options=list(arms), name="arm ")
    chart = alt.layer(*layers, data=alt.Data(values=rows), width="container", height=HEIGHT)
    chart = chart.add_params(alt.param(name="chosen_arm", value=arms[0], bind=menu))
    return _finished(chart.transform_filter("datum.arm == chosen_arm"), labels)


def differences(
    frame: pd.DataFrame, heads: Sequence[str], arms: Sequence[str], looks: Mapping[str, Look], baseline: str
) -> Spec:
    """A point with its interval for each arm, of the chosen column.

    Args:
        frame: columns column, arm, mean, low, high (shares), n.
        heads, arms: in their order.
    """
    import altair as alt

    rows = [
        {"column": row["column"], "arm": row["arm"], "pairs": int(row["n"])}
        | {key: _rounded(100 * row[key]) for key in ("mean", "low", "high") if pd.notna(row[key])}
        for row in frame.to_dict("records")
    ]
    scale = alt.Scale(domain=list(arms), range=[looks[arm].colour for arm in arms])
    title = f"minus {baseline}, percentage points"
    tips = [
        alt.Tooltip("arm:N"),
        *(alt.Tooltip(f"{key}:Q", format="+.1f") for key in ("mean", "low", "high")),
        alt.Tooltip("pairs:Q", title="pairs of seeds"),
    ]
    base = alt.Chart().encode(
        y=alt.Y("arm:N", sort=list(arms), title=None, axis=alt.Axis(labelLimit=240)),
        color=alt.Color("arm:N", legend=None, scale=scale),
    )
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color="#444").encode(x="zero:Q")
    whiskers = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    layers = [
        zero,
        *([whiskers] if any("low" in row for row in rows) else []),
        base.mark_point(filled=True, size=70).encode(x=alt.X("mean:Q", title=title), tooltip=tips),
    ]
    height = max(120, 18 * len(arms))
    chart = alt.layer(*layers, data=alt.Data(values=rows), width="container", height=height)
    if len(heads) > 1:
        menu = alt.binding_select(options=list(heads), name="of ")
        chart = chart.add_params(alt.param(name="chosen_column", value=heads[0], bind=menu))
        chart = chart.transform_filter("!isValid(datum.column) || datum.column == chosen_column")
    return _finished(chart)


def _legend(symbol: str) -> Any:
    """Below the chart; the page gives it as many columns as its width has room for."""
    import altair as alt

    line: dict[str, Any] = {"symbolStrokeWidth": 2, "symbolSize": 400} if symbol == "stroke" else {}
    return alt.Legend(
        orient="bottom", title=None, labelLimit=320, symbolLimit=0, symbolType=symbol, symbolOpacity=1, **line
    )


def _finished(chart: Any, labels: Sequence[str] = ()) -> Spec:
    """As JSON has it; white under the lines, whatever the page's colours.

    Args:
        labels: of the legend; `usermeta.legend_entry` is about the width of one, in pixels.
    """
    type_size: dict[str, Any] = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    chart = chart.configure(background="white").configure_view(stroke="#ddd")
    chart = chart.configure_axis(**type_size).configure_legend(labelFontSize=12)
    return {**chart.to_dict(validate=False), "usermeta": {"legend_entry": 45 + 7 * max(map(len, labels), default=0)}}


def _records(lines: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {"arm": row["arm"], "seeds": int(row["seeds"])}
        | {key: _rounded(row[key]) for key in ("x", "mean", "low", "high")}
        for row in lines.to_dict("records")
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
