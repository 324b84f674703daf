r"""Where a response keeps its final answer: the last `\boxed{...}`."""

import re
from typing import NamedTuple

# Two backslashes are taken too: models write "\\boxed" when they imitate an escaped string.
# `\\.` swallows every other escape, so `\{`, `\}` and the second half of `\\` never count as braces.
_TOKEN = re.compile(
    r"(?P<box>\\{1,2}boxed\s*\{)|(?P<bare>\\{1,2}boxed\s+(?P<number>[-+]?\d[\d.,/]*(?<![.,]))(?!\w))"
    r"|\\.|(?P<open>\{)|(?P<close>\})",
    re.DOTALL,
)
_BETWEEN = re.compile(
    r"(?:\s|\$|\\[()\[\],;! ]|\\q?quad|&|[,;、]|(?<![a-z])(?:and|or)(?![a-z])|[或和]|\\text\{\s*(?:and|or)\s*\}"
    r"|(?<![a-zA-Z\\])[a-zA-Z](?:_\{?\w\}?)?\s*=)*",
    re.IGNORECASE,
)
_RELATION = re.compile(
    r"(?<![\w\\^_{}+\-*/.])([a-zA-Z])\s*(\\(?:geq?|leq?|geqslant|leqslant|neq?)(?![a-zA-Z])|[<>≤≥≠])\s*$"
)


_MINUS = re.compile(r"(?:[=$(:{,]|\\[(\[]|\\approx)[ {]*-\s*$|^-$")


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}`, stripped; one pass, so time is linear in the text.

    "Last" is the complete box that begins last, so of nested boxes the innermost counts. A box that is never
    closed is no box. A number needs no braces: `\boxed 5`.

    Returns:
        The content, or None if there is no complete box or the last one is empty.

    >>> last_boxed(r"first \boxed{1}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> last_boxed(r"\boxed{\{1, 2\}} and an unfinished \boxed{3")
    '\\{1, 2\\}'
    >>> last_boxed(r"\boxed{x = \boxed{5}}"), last_boxed(r"so \boxed 12.")
    ('5', '12')
    >>> last_boxed(r"the answer is 5") is None and last_boxed(r"\boxed{5} \boxed{ }") is None
    True
    """
    boxes = _boxes(text)
    return (_content(text, boxes[-1]) or None) if boxes else None


def final_answers(text: str) -> tuple[str, ...]:
    r"""The readings of a response's final answer, any of which may be right; empty if there is none.

    The last box, with the boxes directly before it where nothing but a comma, "and" or a name stands between them:
    these are one list, of which the last box alone is only a part. Besides, the last box behind a comparison that
    stands outside of it.

    >>> final_answers(r"$x = \boxed{1}$, $y = \boxed{2}$")
    ('1 , 2',)
    >>> final_answers(r"so $n \geq \boxed{13}$")
    ('13', 'n\\geq 13')
    >>> final_answers(r"$x = -\boxed{3}$")
    ('-3',)
    >>> final_answers(r"\boxed{3} is wrong, it is \boxed{5}"), final_answers("5")
    (('5',), ())
    """
    boxes = _boxes(text)
    if not boxes or not _content(text, boxes[-1]):
        return ()
    first = len(boxes) - 1
    while first and _is_one_list(text[boxes[first - 1].end : boxes[first].begin]):
        first -= 1
    contents = [_content(text, box) for box in boxes[first:]]
    if len(set(contents)) > 1:
        return (" , ".join(contents),)
    answer = contents[-1]
    if len(contents) > 1:  # the same one several times
        return (answer, " , ".join(contents))
    before = text[max(0, boxes[-1].begin - 40) : boxes[-1].begin]
    if _MINUS.search(before):  # outside of the box
        return (f"-{answer}" if re.fullmatch(r"[\d.,]+|\\[dt]?frac\{\d+\}\{\d+\}", answer) else f"-({answer})",)
    relation = _RELATION.search(before)
    return (answer, f"{relation[1]}{relation[2]} {answer}") if relation else (answer,)


class _Box(NamedTuple):
    """Places in the text: of the whole box and of its content."""

    begin: int
    end: int
    start: int
    stop: int


def _boxes(text: str) -> list[_Box]:
    """Complete boxes by their beginning."""
    opened: list[tuple[int, int] | None] = []  # begin and content's start of each open box, None for any other brace
    boxes = []
    for token in _TOKEN.finditer(text):
        if token["box"]:
            opened.append((token.start(), token.end()))
        elif token["bare"]:
            boxes.append(_Box(token.start(), token.end(), token.start("number"), token.end("number")))
        elif token["open"]:
            opened.append(None)
        elif token["close"] and opened and (box := opened.pop()) is not None:
            boxes.append(_Box(box[0], token.end(), box[1], token.start()))
    return sorted(boxes)


def _content(text: str, box: _Box) -> str:
    return text[box.start : box.stop].strip()


def _is_one_list(between: str) -> bool:
    """Whether two boxes with this between them are items of one list; nested boxes have nothing between them."""
    return bool(between.strip(" $\n")) and "\n\n" not in between and bool(_BETWEEN.fullmatch(between))
