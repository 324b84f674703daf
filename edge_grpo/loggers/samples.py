"""Sampled completions as a logger shows them: text with its provenance, as HTML and as plain text."""

import html
from collections.abc import Sequence

from edge_grpo.loggers.hooks import Row

# Dark text on pale grounds that stay apart for every kind of colour blindness.
_SHOWN = {
    "sampled": ("none", "sampled by the policy"),
    "injected": ("#ffd97d", "injected by the correction"),
    "reference": ("#a8d4ff", "from the reference solution"),
}


def as_html(pieces: Sequence[tuple[str, str]]) -> str:
    """The text of one response, coloured by who wrote it; what the model wrote is text and never markup.

    >>> as_html([("sampled", "1 < 2")]).count("1 &lt; 2")
    1
    """
    kinds = [kind for kind in _SHOWN if any(kind == written for written, _ in pieces)]
    legend = " ".join(_span(kind, _SHOWN[kind][1]) for kind in kinds)
    text = "".join(_span(kind, text) for kind, text in pieces)
    return (
        '<div style="font:13px/1.5 ui-monospace,monospace;color:#111;background:#fff;padding:4px">'
        f'<div style="font-size:11px;color:#555">{legend}</div>'
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{text}</div></div>'
    )


def _span(kind: str, text: str) -> str:
    ground, title = _SHOWN[kind]
    return f'<span title="{title}" style="background:{ground}">{html.escape(text)}</span>'


def as_page(rows: Sequence[Row]) -> str:
    """Rows of one step as a page that fetches nothing."""
    shown = "".join(
        f"<h2 style='font-size:14px'>{html.escape(headline(row))}</h2>"
        f"<p style='white-space:pre-wrap'>{html.escape(row['question'])}</p>{as_html(row['pieces'])}"
        for row in rows
    )
    return f'<!doctype html><meta charset="utf-8"><title>samples</title><body style="font:14px sans-serif">{shown}'


def headline(row: Row) -> str:
    """What a row is and what it earned.

    >>> headline({"id": "p7", "reward": 1.0, "correct": False, "branch": "reflect"})
    'p7: reward 1, wrong, reflect'
    """
    verdict = "right" if row["correct"] else "wrong"
    return f"{row['id']}: reward {row['reward']:g}, {verdict}{', ' + row['branch'] if row['branch'] else ''}"


def marked(pieces: Sequence[tuple[str, str]]) -> str:
    """The text of one response, in which what was not sampled is marked as [kind: text].

    >>> marked([("sampled", "it is 3"), ("injected", " Wait!")])
    'it is 3[injected:  Wait!]'
    """
    return "".join(text if kind == "sampled" else f"[{kind}: {text}]" for kind, text in pieces)


def as_markdown(row: Row) -> str:
    """One row as a heading and an indented block; see `marked`."""
    block = "\n".join(f"    {line}" for line in marked(row["pieces"]).splitlines())
    return f"**{headline(row)}**\n\n{block}\n"
