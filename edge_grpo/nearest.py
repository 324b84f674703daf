"""What a misspelt name was probably meant to be."""

import difflib
from collections.abc import Iterable


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
