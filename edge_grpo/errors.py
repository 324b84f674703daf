"""What is meant for the person at the keyboard."""

from collections.abc import Sequence

SHOWN = 10


class UserError(Exception):
    """Something only the user can mend; the message names the key, file or row and the way out.

    The command line prints it without a traceback.
    """


def message_of(error: BaseException) -> str:
    """What to tell of an error in one place: its class too, unless it is meant for the user.

    >>> message_of(UserError("mend it")), message_of(ValueError("broken"))
    ('mend it', 'ValueError: broken')
    """
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def first_lines(items: Sequence[object]) -> str:
    """The first texts of many, each on an indented line, and the number of the others.

    >>> print(first_lines(range(11)).replace("\\n", ""))
      0  1  2  3  4  5  6  7  8  9  ... and 1 more
    """
    more = [f"  ... and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return "\n".join([*(f"  {item}" for item in items[:SHOWN]), *more])


class Stopped(SystemExit):
    """A signal ended the run, and with it a sweep; what the run had done is on the disk.

    Args:
        signum: of the signal; the process exits with 128 + signum, as a shell reports it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
