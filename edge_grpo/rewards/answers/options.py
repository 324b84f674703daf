r"""The options of a multiple-choice question: the letter and the option's text are the same answer."""

import re
from functools import lru_cache

_MARK = re.compile(
    r"(?:\\(?:textbf|text|mathrm|mathbf|rm)\s*\{\s*)?(?:\(([A-J])\)|(?:(?<=\n)|^|(?<=\s))([A-J])[.)](?=[\s\\$}]))\s*\}?[:.]?"
    r"(?:\\[ ~,;!]|\\q?quad|~)*",
    re.MULTILINE,
)
_LETTER = re.compile(r"(?:\\(?:textbf|text|mathrm|mathbf|rm)\s*\{\s*)?\(?([A-J])\)?[.:]?\s*\}?\.?")
_FEWEST = 3


@lru_cache(maxsize=4096)
def options(question: str) -> dict[str, str]:
    r"""Letter -> text of the options that the question lists; empty if there are fewer than three.

    >>> options(r"Which? $\textbf{(A)}\ 10 \qquad \textbf{(B)}\ 20 \qquad \textbf{(C)}\ 30$")
    {'A': '10', 'B': '20', 'C': '30'}
    >>> options("Pick one.\nA. red\nB. green\nC. blue\nD. black")["C"], options("Points A. and B.")
    ('blue', {})
    """
    marks = list(_MARK.finditer(question))
    for first in range(len(marks) - 1, -1, -1):
        letters = [mark[1] or mark[2] for mark in marks[first:]]
        if (
            letters[0] == "A"
            and letters == [chr(ord("A") + i) for i in range(len(letters))]
            and len(letters) >= _FEWEST
        ):
            ends = [*(mark.start() for mark in marks[first + 1 :]), len(question)]
            texts = [question[mark.end() : end] for mark, end in zip(marks[first:], ends, strict=True)]
            return {letter: _bare(text) for letter, text in zip(letters, texts, strict=True)}
    return {}


def with_options(question: str, golds: tuple[str, ...]) -> tuple[str, ...]:
    """The gold answers; beside a letter the option's text, beside an option's text its letter.

    >>> with_options("A. red\\nB. green\\nC. blue", ("B",)), with_options("A. red\\nB. green\\nC. blue", ("blue",))
    (('B', 'green'), ('blue', 'C'))
    >>> with_options("How many?", ("B",))
    ('B',)
    """
    found = options(question)
    if not found:
        return golds
    more = []
    for gold in golds:
        letter = _LETTER.fullmatch(gold.strip())
        same = [key for key, text in found.items() if _plain(text) == _plain(gold)]
        if letter and found.get(letter[1]):
            more.append(found[letter[1]])
        elif len(same) == 1:
            more.append(same[0])
    return tuple(dict.fromkeys((*golds, *more)))


def _bare(text: str) -> str:
    text = re.sub(r"(?<!\\)\$", "", text.split("\n\n")[0])
    return re.sub(r"(?:\\q?quad|\\[ ,;]|[\s,;])+$", "", text.strip())


def _plain(text: str) -> str:
    return re.sub(r"[\s$]", "", text)
