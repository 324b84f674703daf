r"""Where a response keeps its final answer: the last `\boxed{...}`."""

import re

# Two backslashes are taken too: models write "\\boxed" when they imitate an escaped string.
# `\\.` swallows every other escape, so `\{`, `\}` and the second half of `\\` never count as braces.
_TOKEN = re.compile(r"(?P<box>\\{1,2}boxed\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}`, stripped; one pass, so time is linear in the text.

    "Last" is the complete box that begins last, so of nested boxes the innermost counts. A box that is never
    closed is no box.

    Returns:
        The content, or None if there is no complete box or the last one is empty.

    >>> last_boxed(r"first \boxed{1}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> last_boxed(r"\boxed{\{1, 2\}} and an unfinished \boxed{3")
    '\\{1, 2\\}'
    >>> last_boxed(r"\boxed{x = \boxed{5}}")
    '5'
    >>> last_boxed(r"the answer is 5") is None and last_boxed(r"\boxed{5} \boxed{ }") is None
    True
    """
    opened: list[int | None] = []  # content start of each open box, None for any other open brace
    best = (-1, -1)
    for token in _TOKEN.finditer(text):
        if token["box"]:
            opened.append(token.end())
        elif token["open"]:
            opened.append(None)
        elif token["close"] and opened:
            start = opened.pop()
            if start is not None:
                best = max(best, (start, token.start()))
    content = text[best[0] : best[1]].strip() if best[0] >= 0 else ""
    return content or None
