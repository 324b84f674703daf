"""What is meant for the person at the keyboard."""

import difflib
from collections.abc import Iterable, Sequence

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


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The candidate that `name` was probably meant to be, or "" if none is near.

    A leaf typed without its group names the group's key; a wrong leaf in a right group is sought in that group only.

    >>> nearest("clamp", ["advantage.clamp"]), nearest("advantage.clmp", ["advantage.clamp", "loss.clip"])
    ('advantage.clamp', 'advantage.clamp')
    >>> nearest("advntage.clamp", ["advantage.clamp"]), nearest("advantage.zzz", ["advantage.eps"])
    ('advantage.clamp', '')
    """
    names = sorted(candidates)
    parent, _, leaf = name.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in names if other.rpartition(".")[0] == parent}
    near = difflib.get_close_matches(leaf, siblings, n=1)
    same_leaf = [other for other in names if other.rpartition(".")[2] == name]
    if near and not same_leaf:
        return siblings[near[0]]
    if parent and siblings:
        return ""
    return next(iter(same_leaf or difflib.get_close_matches(name, names, n=1)), "")


class Stopped(SystemExit):
    """A signal ended the run, and with it a sweep; what the run had done is on the disk.

    Args:
        signum: of the signal; the process exits with 128 + signum, as a shell reports it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
