"""Whether two names may stand for the same thing."""

import re

_GENERIC = frozenset(("answer", "final answer", "result", "value", "solution", "total", "option", "choice"))


def names_agree(gold: str, answer: str) -> bool:
    """Symbols must be the same, except that a curve may be y or a function; words may name what a symbol stands for.

    >>> names_agree("x", "y"), names_agree("y", "f(x)"), names_agree("area", "S"), names_agree("k", "f(x)")
    (False, True, True, False)
    >>> names_agree("f(x)", "g(x)"), names_agree("f'(x)", "f(x)"), names_agree("total cost", "cost")
    (True, False, True)
    >>> names_agree("a_1", "a_2"), names_agree("|ab|", "ba"), names_agree("length", "width")
    (False, True, False)
    """
    if gold == answer or gold in _GENERIC or answer in _GENERIC:
        return True
    words = [re.fullmatch(r"[a-z ]{4,}|[一-鿿]+", name) is not None for name in (gold, answer)]
    if all(words):
        return set(gold.split()) <= set(answer.split()) or set(gold.split()) >= set(answer.split())
    if any(words):
        return True
    (base, place, order, at), (other_base, other_place, other_order, other_at) = (_parts(n) for n in (gold, answer))
    if order != other_order:
        return False
    if base != other_base:
        if "|" in base + other_base:
            return False
        curves = {name for name, argument in ((base, at), (other_base, other_at)) if not argument.isalpha()}
        plain = len(base) == 1 and len(other_base) == 1
        if at.islower() and other_at.islower():  # a function may be called g
            return plain and not (place or other_place)
        return curves == {"y"} if plain else not (place or other_place) and 1 in (len(base), len(other_base))
    same_place = place == other_place or not (place and other_place)
    same_argument = at == other_at or not (at and other_at) or (at.islower() and other_at.islower())
    return same_place and same_argument


def _parts(name: str) -> tuple[str, str, int, str]:
    """Letter(s), subscript, order of the derivative and argument of a symbol.

    >>> _parts("f''(x)"), _parts("a_{n}"), _parts(r"\\frac{dy}{dx}"), _parts("ba")
    (('f', '', 2, 'x'), ('a', 'n', 0, ''), ('y', '', 1, ''), ('ab', '', 0, ''))
    """
    text = re.sub(r"\\(?:overline|angle|triangle|vec|overrightarrow|hat)(?![a-zA-Z])|[{}\s]", "", name)
    text = re.sub(r"^\|([A-Za-z]{2,})\|$", r"\1", text)
    if match := re.fullmatch(r"\\frac(?:d|\\partial)([a-zA-Z]?)(?:d|\\partial)[a-zA-Z]", text):
        return (match[1] or "y", "", 1, "")
    match = re.fullmatch(r"(.+?)(?:_([^'(^]+))?('*)(\^-1)?(?:\((.*)\))?", text)
    if match is None:
        return (text, "", 0, "")
    base = "".join(sorted(match[1].lower())) if match[1].isalpha() and len(match[1]) == 2 else match[1]
    return (base + (match[4] or ""), match[2] or "", len(match[3]), match[5] or "")
