"""Sampled completions as a logger shows them: text with its provenance, as HTML and as plain text."""

import html
import itertools
from collections.abc import Iterable, Sequence

from edge_grpo.loggers.hooks import Row

# Dark text on pale grounds that stay apart for every kind of colour blindness.
_SHOWN = {
    "sampled": ("none", "sampled by the policy"),
    "injected": ("#ffd97d", "injected by the correction"),
    "reference": ("#a8d4ff", "from the reference solution"),
}


def as_page(rows: Sequence[Row]) -> str:
    """Rows of one step as a page that fetches nothing: their texts by problem, coloured by who wrote them.

    What a model wrote is text and never markup.

    >>> row = {"id": "p", "question": "1 < 2?", "gold": "yes", "reward": 1.0, "correct": True, "branch": ""}
    >>> as_page([row | {"pieces": [["sampled", "<b>"]]}]).count("&lt;")
    2
    """
    kinds = [kind for kind in _SHOWN if any(kind == written for row in rows for written, _ in row["pieces"])]
    legend = " ".join(_span(kind, _SHOWN[kind][1]) for kind in kinds)
    problems = itertools.groupby(rows, key=lambda row: (row["id"], row["question"], row["gold"]))
    shown = "".join(_problem(*about, of) for about, of in problems)
    style = (
        "body{font:14px/1.5 sans-serif;color:#111;background:#fff;margin:8px} h2{font-size:15px;white-space:pre-wrap}"
        "pre{font:13px/1.5 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 12px}"
    )
    head = f'<!doctype html><meta charset="utf-8"><title>samples</title><style>{style}</style>'
    return f"{head}<body><small>{legend}</small>{shown}"


def _problem(problem: str, question: str, gold: str, rows: Iterable[Row]) -> str:
    texts = "".join(
        f"<b>{html.escape(headline(row))}</b><pre>{''.join(_span(*piece) for piece in row['pieces'])}</pre>"
        for row in rows
    )
    return f"<h2>{html.escape(question)}</h2><p>{html.escape(problem)}, gold {html.escape(gold)}</p>{texts}"


def _span(kind: str, text: str) -> str:
    ground, title = _SHOWN[kind]
    return f'<span title="{title}" style="background:{ground}">{html.escape(text)}</span>'


def headline(row: Row) -> str:
    """What a row earned.

    >>> headline({"reward": 1.0, "correct": False, "branch": "reflect"})
    'reward 1, wrong, reflect'
    """
    verdict = "right" if row["correct"] else "wrong"
    return f"reward {row['reward']:g}, {verdict}{', ' + row['branch'] if row['branch'] else ''}"


def marked(pieces: Sequence[tuple[str, str]]) -> str:
    """The text of one response, in which what was not sampled is marked as [kind: text].

    >>> marked([("sampled", "it is 3"), ("injected", " Wait!")])
    'it is 3[injected:  Wait!]'
    """
    return "".join(text if kind == "sampled" else f"[{kind}: {text}]" for kind, text in pieces)


def as_markdown(row: Row) -> str:
    """One row as a heading and an indented block; see `marked`."""
    block = "\n".join(f"    {line}" for line in marked(row["pieces"]).splitlines())
    return f"**{row['id']}: {headline(row)}**\n\n{block}\n"
