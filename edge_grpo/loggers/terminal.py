"""The terminal: whether there is one, what may be written to it, and which log records go there."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.text import Text


def terminal() -> Console | None:
    """Standard output where it is a terminal that can be redrawn.

    None for a file, a pipe or TERM=dumb, and where NO_COLOR asks for plain text.
    """
    console = Console()
    redrawn = sys.stdout.isatty() and console.is_interactive and not os.environ.get("NO_COLOR")
    return console if redrawn else None


def printable(text: str, keep: str = "") -> str:
    r"""Text from a model, made safe for a terminal and a log file: no character of it moves the cursor.

    Control characters, those that turn the direction of writing round, and what standard output cannot encode become
    their escapes; those in `keep` stay.

    >>> print(printable("2 + 2 = 4\n\x1b[2J", keep="\n"))
    2 + 2 = 4
    \x1b[2J
    """
    safe = "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def shortened(text: str, characters: int, lines: int) -> str:
    r"""The beginning and the end of a text, and how much was left out between them.

    Args:
        text: any.
        characters, lines: that stay of a longer one; even, so that both ends get the same.

    >>> shortened("1234567890", characters=4, lines=2), shortened("a\nb\nc\nd", characters=40, lines=2)
    ('12[... 6 characters ...]90', 'a\n[... 2 lines ...]\nd')
    """
    return shortened_styled(Text(text), characters, lines).plain


def shortened_styled(text: Text, characters: int, lines: int) -> Text:
    """As `shortened`; what is left keeps its style."""
    rows = list(text.split("\n", allow_blank=True))
    if len(rows) > lines:
        rows[lines // 2 : -(lines // 2)] = [Text(f"[... {len(rows) - lines} lines ...]")]
        text = Text("\n").join(rows)
    if len(text) > characters:
        left_out = f"[... {len(text) - characters} characters ...]"
        text = Text.assemble(text[: characters // 2], left_out, text[-(characters // 2) :])
    return text


@contextmanager
def files_only(logger: logging.Logger) -> Iterator[None]:
    """Inside, what `logger` says goes to log files and not to the terminal, which shows it in another form."""

    def of_others(record: logging.LogRecord) -> bool:
        return record.name != logger.name

    handlers = _terminal_handlers()
    for handler in handlers:
        handler.addFilter(of_others)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(of_others)


@contextmanager
def shown(progress: Progress) -> Iterator[None]:
    """Inside, `progress` is on the terminal; what is printed or logged appears above it."""
    handlers = [(handler, handler.stream) for handler in _terminal_handlers()]
    stdout = sys.stdout
    try:
        progress.start()  # puts its own streams in the place of the standard ones
        progress.console.show_cursor(True)  # a kill could not bring back a cursor that rich has hidden
        for handler, stream in handlers:
            handler.setStream(sys.stdout if stream is stdout else sys.stderr)
        yield
    finally:
        for handler, stream in handlers:
            handler.setStream(stream)
        progress.stop()


def _terminal_handlers() -> list[logging.StreamHandler[Any]]:
    """The handlers of all log records that write to the standard streams."""
    handlers = logging.getLogger().handlers
    streams = (sys.stdout, sys.stderr)
    return [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream in streams]
