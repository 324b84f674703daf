r"""What an answer is: its text to one of the `values`.

The whole text is read or none of it: an expression goes to math-verify's grammar (`latex2sympy2_extended`) only if
every command and letter of it is known here, and what that refuses is `Text`. Structure (lists, intervals, units,
names) is found here, because the grammar reads it as products or drops it.
"""

import re
from functools import lru_cache

import sympy
from sympy import Expr, Integer, Pow, Rational, Symbol

from edge_grpo.rewards.answers.expressions import SIMPLE, expression
from edge_grpo.rewards.answers.numbers import same_expression
from edge_grpo.rewards.answers.rules import MULTIPLIERS, NUMBER_WORDS, meaning_of_words, normalised
from edge_grpo.rewards.answers.splitting import closing, split, split_keeping
from edge_grpo.rewards.answers.units import CELSIUS, CURRENCY_SIGNS, DEGREE, FAHRENHEIT, ratio, unit_of
from edge_grpo.rewards.answers.values import (
    DOTS,
    Approximation,
    Based,
    Builder,
    Choice,
    Clock,
    Date,
    Equation,
    Named,
    Number,
    Percent,
    Quantity,
    Ratio,
    Reals,
    Relation,
    Residue,
    Sequence,
    Table,
    Text,
    Union,
    Value,
    both_signs,
)

_NAME = re.compile(
    r"(?:‹[^‹›]+›|\\(?!sqrt)[a-zA-Z]+\s*\{[A-Za-z\s]+\}|\\(?:angle|triangle|overline|Delta|alpha|beta|theta|lambda|omega|"
    r"mu|phi|rho|sigma|tau|delta|gamma)|\\(?:sin|cos|tan|cot)\s*(?:\\?[A-Za-z]+)|\|?[A-Za-z]+\|?|\\frac\s*\{d[a-z]?\}\{d[a-z]\}|"
    r"\\frac\s*\{\\partial\s*[a-z]?\}\{\\partial\s*[a-z]\})(?:[A-Z\s]*)"
    r"(?:_\{?\\?[\w\s,]+\}?)?'*(?:\^\{-1\})?(?:\s*\(\s*[\w\s,]+\s*\))?"
)
_MONTHS_TEXT = """
    january february march april may june july august september october november december
"""
_MONTHS = _MONTHS_TEXT.split()
_MONTH = re.compile(rf"(?i)\b({'|'.join(m[:3] + '(?:' + m[3:] + ')?' for m in _MONTHS)})\b\.?")
_OPS = {"<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!="}
_ANSWER = re.compile(
    r"(?i)^(?:‹?\s*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?\s*›?|答案[:是]?|‹?\s*(?:about|approximately|approx\.?|roughly)\s+›?|‹\s*(?:about|approximately|approx\.?|roughly)\s*›|约为?|大约|\\therefore|\\implies|=|\\approx|"
    r"\\Rightarrow|\\boxed)\s*(?=\S)"
)
_ENVIRONMENT = re.compile(
    r"(.*?)\\begin\{([a-z]*matrix|cases|array|aligned|align|gathered|dcases)\*?\}(.*)\\end\{\2\*?\}", re.DOTALL
)


@lru_cache(maxsize=4096)
def read(text: str) -> Value:
    r"""The value of an answer.

    >>> read(r"\{1, 2\}") == read(r"\left\{1,2\right\}"), type(read("3 \\mid n")).__name__
    (True, 'Text')
    """
    return _read(normalised(text))


def is_text(value: Value) -> bool:
    """Whether the answer, or a part of it, was not read as mathematics.

    >>> is_text(read("Paris")), is_text(read("(1, Paris)")), is_text(read("A")), is_text(read("(1, 2)"))
    (True, True, False, False)
    """
    if isinstance(value, Text):
        return value != DOTS
    parts = vars(value).values()
    inner = [v for part in parts for v in (part if isinstance(part, tuple) else (part,))]
    inner = [w for v in inner for w in (v if isinstance(v, tuple) else (v,))]
    return any(is_text(v) for v in inner if isinstance(v, Value))


def _read(text: str) -> Value:
    is_word = re.fullmatch(r"\s*‹\s*[A-Za-z]{2,}\s*›[\s.]*", text) is not None
    text = _bare(text)
    meaning = meaning_of_words(text) if re.search(r"[^\W\d_]{2}|[一-鿿]", text) and "\\" not in text else None
    if meaning is not None:
        text, is_word = meaning, False
    if text in (r"\R", r"(-\infty,\infty)"):
        return Reals()
    if re.fullmatch(r"[.,:;!?()\s]*", text):
        return Text(text)
    if text in (r"\ldots", "..."):
        return DOTS
    for reader in (_choice, _clock_or_date, _table, _family, _list, _residue, _named, _relation, _sets, _bracketed,
                   _based, _repeating, _ratio, _quantity):  # fmt: skip
        value = reader(text)
        if value is not None:
            return value
    expr = None if is_word else expression(text)
    return _number(text, expr) if expr is not None else Text(_key(text))


def _number(text: str, expr: Expr) -> Number:
    grouped = re.fullmatch(r"\d{3}(?:,\d{3})+", text) is not None
    return Number(expr, decimal=re.search(r"\d\.\d|(?<!\d)\.\d", text) is not None, grouped=grouped)


def _bare(text: str) -> str:
    """Without outer braces, the words "the answer is", and the full stop."""
    for _ in range(10):
        before = text
        text = re.sub(r"(?:\\\\|[.,:;。,]|(?<!\\)\s)+$", "", text) if not text.endswith("...") else text
        text = re.sub(r"^(?:\\\\|[,;])+|^[\s]+", "", text)
        if re.fullmatch(r"‹[^‹›]*\d[^‹›]*›", text):
            text = text[1:-1].strip()
        text = _ANSWER.sub("", text)
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        text = re.sub(r"^‹([^‹›]*)›$", r"\1", text).strip() if not re.search(r"\d", text) or text[-1:] != "›" else text
        if text == before:
            return text
    return text


_CHOICE_ALONE = re.compile(r"(?:(?i:option|choice|answer|选项?)\s*:?\s*)?(?:\(([A-J])\)|([A-J]))\s*[.):]*")
_CHOICE_BEFORE = re.compile(r"(?:\(([A-J])\)\s*[.:=]?|([A-J])(?:[.:]\s|\)))\s*(\S.*)")
_CHOICE_BEHIND = re.compile(
    r"(.+?)\s*(?:(?:,|\\Rightarrow)\s*(?:‹\s*\(?([A-J])\)?\s*›|\(([A-J])\))|\\Rightarrow\s*([A-J])"
    r"|(?:(?<=[\d}›])|(?<=\\circ))\s*‹\s*\(([A-J])\)\s*›)"
)


def _choice(text: str) -> Value | None:
    words = text.replace("‹", "").replace("›", "").strip()
    if alone := _CHOICE_ALONE.fullmatch(words):
        return Choice(alone[1] or alone[2])
    if behind := _CHOICE_BEHIND.fullmatch(text):
        return Choice(next(letter for letter in behind.groups()[1:] if letter), _read(behind[1]))
    before = _CHOICE_BEFORE.fullmatch(words)
    if before and not re.match(r"[\^_+\-*/=]|\\(?:cdot|times|cup|cap)|\([A-J]\)", before[3]):
        return Choice(before[1] or before[2], _read(before[3]))
    return None


def _clock_or_date(text: str) -> Value | None:
    words = text.replace("‹", " ").replace("›", " ")
    words = re.sub(r"\s+", " ", words).strip()
    match = re.fullmatch(r"(\d{1,2})\s*:\s*(\d\d)(?:\s*:\s*(\d\d))?\s*(?:([aApP])\.?\s*[mM]\.?)?", words)
    if match and (match[4] or (int(match[1]) <= 24 and int(match[2]) < 60)):
        hour, half = int(match[1]), (match[4] or "").lower()
        return Clock((hour, int(match[2]), int(match[3] or 0)), half)
    match = re.fullmatch(r"(\d{1,2})\s*o'\s?clock()", words) or re.fullmatch(
        r"(\d{1,2})\s*([aApP])\.?\s*[mM]\.?", words
    )
    if match:
        return Clock((int(match[1]), 0, 0), match[2].lower())
    if re.fullmatch(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{2,4}|\d{4}/\d{1,2}/\d{1,2}", words):
        return Text(words)
    words = re.sub(r"(?i)\bsept\b", "Sep", words)
    found = _MONTH.search(words)
    if found and re.fullmatch(r"(?:[\d\s,thsrdn]|of)*", rest := words[: found.start()] + words[found.end() :]):
        numbers = re.findall(r"\d+", rest)
        if numbers:
            return Date(found[1][:3].lower(), tuple(sorted(numbers)))
    return None


def _table(text: str) -> Value | None:
    match = _ENVIRONMENT.fullmatch(text)
    if not match or r"\begin" in match[3]:
        return _vector(text)
    before, kind, body = match[1].strip(), match[2], match[3]
    body = re.sub(r"^\s*\{[lcr|\s]*\}", "", body) if kind == "array" else body
    lines = [line for line in re.split(r"\\\\(?:\s*\[[^\[\]]*\])?", body) if line.strip()]
    cells = [[cell.strip() for cell in line.split("&")] for line in lines]
    value: Value
    if kind in ("aligned", "align", "gathered") or (kind in ("cases", "dcases") and all(len(c) == 1 for c in cells)):
        value = Sequence("", tuple(_read("".join(row)) for row in cells), "")
    elif kind in ("cases", "dcases"):
        value = Table(tuple((_read(row[0]), *(_condition(c) for c in row[1:])) for row in cells), cases=True)
    elif kind in ("vmatrix", "Vmatrix"):
        return None
    else:
        if len(cells) == 1 and len(cells[0]) == 1 and kind == "array":
            return _read(cells[0][0]) if not before else Text(_key(text))
        value = Table(tuple(tuple(_read(cell) for cell in row) for row in cells))
    if not before:
        return value
    name = before.rstrip("=").strip()
    if before.endswith("=") and _NAME.fullmatch(name):
        return Named(_name(name), value)
    return Text(_key(text))


def _condition(text: str) -> Value:
    words = re.sub(r"‹\s*(?:if|for|when|where)\s*›|\b(?:if|for|when)\b|^,|,$", " ", text.strip())
    return _read(words.strip().lstrip(","))


def _vector(text: str) -> Value | None:
    match = re.fullmatch(r"\\langle(.*)\\rangle", text)
    if not match:
        return None
    return Sequence("<", tuple(_read(part) for part in split(match[1], ",")), ">")


_INTEGER = (r"(?:\(?\s*(?:‹?\s*(?:where|for|with)?\s*›?)?\s*([a-z])\s*(?:\\in\s*\\Z|‹?\s*(?:is|be)\s*(?:an\s*|any\s*)?"
            r"integer\s*›?|‹\s*is an integer\s*›|‹\s*integer\s*›)\s*\)?)")  # fmt: skip


_JOIN = "‹(?:or|and)›"


def _family(text: str) -> Value | None:
    """`..., k in Z`: a family over the integer k, which is renamed so that any letter does."""
    match = re.fullmatch(rf"(.+?)(?:,|;|\s|{_JOIN})\s*{_INTEGER}", text)
    if not match:
        return None
    inner = _read(match[1])
    return _renamed(inner, match[2])


def _renamed(value: Value, letter: str) -> Value:
    if isinstance(value, Number):
        return Number(value.expr.xreplace({Symbol(letter): Symbol("integer")}), value.decimal)
    if isinstance(value, Named):
        return Named(value.name, _renamed(value.value, letter))
    if isinstance(value, Sequence):
        return Sequence(value.left, tuple(_renamed(item, letter) for item in value.items), value.right)
    return value


def _list(text: str) -> Value | None:
    thousands = re.fullmatch(r"(?:\\\$|[€£¥₹])?\s*[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?:\s*(?:\\?%|[^\d,].*)?)?", text)
    if thousands and not re.search(rf"{_JOIN}|[,;]\s", text):
        return None
    grouped = r"-?\d{1,3}(?:,\d{3})*"
    if re.fullmatch(rf"{grouped}(?:(?:, |\s*{_JOIN}\s*){grouped})+", text):  # 1,000, 2,000
        text = re.sub(r",(?=\d)", "", text)
    text = re.sub(rf"(?<=\d),(?=\d{{3}}(?:\.\d|\b)[^,]*‹)(?![^‹]*{_JOIN})", "", text)
    parts = [part.strip() for part in split(text, rf"\s*(?:[,;]\s*)?{_JOIN}\s*|[,;]\s*|\\\\\s*")]
    if len(parts) > 1 and parts[-1] == "":
        parts.pop()
    if len(parts) == 1:
        amounts = re.findall(rf"{SIMPLE}\s*(?:[a-z]+|‹\s*[a-z]+\s*›)\s*", text)
        if len(amounts) > 1 and "".join(amounts) == text:  # 5 feet 6 inches
            return _compound(amounts)
        together = re.fullmatch(r"\(.*\)", text) and _juxtaposed(text)
        if together:
            return Sequence("", tuple(_read(part) for part in together), "")
        return None
    if any(not part for part in parts):
        return Text(_key(text))
    joined = re.search(_JOIN, text)
    amount = _compound(parts) if joined else None
    if amount is not None:
        return amount
    modulus = re.fullmatch(r"(.*?)‹mod›\s*(\w+)", parts[-1])
    if modulus and "‹mod›" not in "".join(parts[:-1]):
        return _residue(text)
    if not joined and "=" in parts[0] and not any(re.search(r"[=<>]|\\(?:le|ge|in|ne)\b", p) for p in parts[1:]):
        named = _named(text)  # x = 1, 2
        if named is not None:
            return named
    items = tuple(_read(part) for part in parts)
    if "‹or›" in text and all(isinstance(item, Relation) for item in items):
        return Union(items)
    if "‹or›" in text and "," not in text and len(set(parts)) > 1 and _all_the_same(items):  # 5/4 or 1.25
        return items[0]
    return Sequence("", _expanded(items), "")


def _all_the_same(items: tuple[Value, ...]) -> bool:
    numbers = [item.expr for item in items if isinstance(item, Number)]
    return len(numbers) == len(items) and all(same_expression(numbers[0], number) for number in numbers[1:])


def _juxtaposed(text: str) -> list[str] | None:
    """`(2, 3)(2, 7)` as two points."""
    parts, place = [], 0
    while place < len(text):
        if text[place] == " ":
            place += 1
            continue
        close = closing(text, place) if text[place] == "(" else -1
        if close < 0 or "," not in text[place:close]:
            return None
        parts.append(text[place : close + 1])
        place = close + 1
    return parts if len(parts) > 1 else None


def _compound(parts: list[str]) -> Value | None:
    """`5 dollars and 50 cents`: one amount of two units of the same kind."""
    values = [_read(part) for part in parts]
    if not all(isinstance(v, Quantity) for v in values):
        return None
    quantities = [v for v in values if isinstance(v, Quantity)]
    total, unit = Integer(0), quantities[0].unit
    for before, quantity in zip([None, *quantities], quantities, strict=False):
        factor = ratio(quantity.unit, unit)
        if factor is None or (before is not None and (ratio(quantity.unit, before.unit) or 1) >= 1):
            return None
        total += quantity.number.expr * factor
    return Quantity(Number(total), unit)


def _expanded(items: tuple[Value, ...]) -> tuple[Value, ...]:
    """Bare lists inside a list become part of it: two points that one text stands for."""
    flat: list[Value] = []
    for item in items:
        if isinstance(item, Sequence) and item.left == "" and not item.ordered:
            flat.extend(item.items)
        else:
            flat.append(item)
    return tuple(flat)


def _residue(text: str) -> Value | None:
    match = re.fullmatch(r"(.+?),?\s*‹mod›\s*(\w+)", text)
    if not match:
        return None
    inner = match[1].strip().strip("(").strip()
    name = re.fullmatch(r"(.+?)\\equiv(.+)", inner)
    if name and _NAME.fullmatch(name[1].strip()):
        return Named(_name(name[1]), Residue(_read(name[2]), match[2]))
    return Residue(_read(inner), match[2]) if r"\equiv" not in inner else Text(_key(text))


_LETTER = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|rho))"


def _named(text: str) -> Value | None:
    approximation = _approximation(text)
    if approximation is not None:
        return approximation
    parts = [part.strip() for part in split(text, r"=|\\approx|\\in(?![a-zA-Z])|:=")]
    if len(parts) < 2:
        return _curly_name(text)
    if any(not part for part in parts):
        return Text(_key(text))
    plain = [re.sub(r"^P\s*\([^()]*\)$", "", part) for part in parts[:-1]]  # P(X > 1) = 1/2
    if any(re.search(r"[<>]|\\(?:le|ge|ne|cup|equiv|to|Rightarrow|parallel|perp)(?![a-zA-Z])", part) for part in plain):
        return None if not re.search(r"=", text) else Text(_key(text))
    first, rest = parts[0], parts[1:]
    if len(rest) == 1:
        tuple_name = re.fullmatch(rf"\(\s*{_LETTER}(?:\s*,\s*{_LETTER})+\s*\)", first)
        if tuple_name:
            value = _read(rest[0])
            names = [name.strip() for name in first[1:-1].split(",")]
            if isinstance(value, Sequence) and value.left == "(" and len(value.items) == len(names):
                return Sequence("(", tuple(Named(n, v) for n, v in zip(names, value.items, strict=True)), ")")
            return Named(_name(first), value)
        if _is_name(first):
            return Named(_name(first), _read(rest[0]))
        if _is_name(rest[0]) and re.search(r"\d", first) and r"\in" not in text:
            return Named(_name(rest[0]), _read(first))
        if r"\in" in text:
            return Text(_key(text))
        left, right = expression(first), expression(rest[0])
        if left is not None and right is not None and not left.free_symbols | right.free_symbols:
            return _chain(parts, text)
        return Equation(left, right) if left is not None and right is not None else Text(_key(text))
    return _chain(parts, text)


def _chain(parts: list[str], text: str) -> Value:
    """`x = 2 + 3 = 5` is 5 if it holds; `x = y = 2` names two values."""
    if len(set(parts)) == 1:  # 0 = 0 says nothing
        return Text(_key(text))
    names = []
    while len(parts) > 1 and _is_name(parts[0]):
        names.append(_name(parts.pop(0)))
    values = [_read(part) for part in parts]
    numbers = [v.expr for v in values if isinstance(v, Number)]
    if len(numbers) != len(values) or not all(same_expression(numbers[-1], n) for n in numbers[:-1]):
        return Text(_key(text))
    if len(names) > 1 and len(values) == 1:
        return Sequence("", tuple(Named(name, values[0]) for name in names), "")
    return Named(names[0], values[-1]) if names else values[-1]


def _is_name(text: str) -> bool:
    r"""
    >>> [_is_name(text) for text in ("x", "f(x)", "‹Area›", "AB", "2x", "5", "a_n", "f'(x)", "xy")]
    [True, True, True, True, False, False, True, True, False]
    """
    if re.fullmatch(r"[A-Za-z](?:\s*:\s*[A-Za-z])+|(?:P|E|\\det|\\arg|n)\s*\([^()]*\)|\\(?:det|arg)\s+[A-Za-z]", text):
        return True  # a:b, P(X = 5)
    return bool(_NAME.fullmatch(text)) and not re.fullmatch(r"[a-z]{2,}", text)


def _approximation(text: str) -> Value | None:
    r"""`4\pi \approx 12.57`: the number and its rounding, if it is one."""
    parts = [part.strip() for part in split(text, r"\\approx(?![a-zA-Z])")]
    if len(parts) != 2 or not all(parts) or _is_name(parts[0]) or not re.fullmatch(SIMPLE + r"\D*", parts[1]):
        return None
    exact, rounded = (_read(part) for part in parts)
    if isinstance(exact, Named):
        inner = _approximation(parts[0].partition("=")[2].strip() + r" \approx " + parts[1])
        return None if inner is None else Named(exact.name, inner)
    number = rounded.number if isinstance(rounded, Quantity) else rounded
    if not isinstance(exact, Number) or not isinstance(number, Number) or exact.expr.free_symbols:
        return None
    places = len((re.findall(r"\.(\d+)", parts[1]) or [""])[0])
    unit = Rational(1, 10**places)
    error = sympy.Abs(exact.expr).doit() - sympy.Abs(number.expr)
    error = error if error.is_Rational else error.evalf(30)
    if exact.expr.evalf(30) * number.expr < 0 or not (error.is_Number and -unit / 2 <= error < unit):  # or cut off
        return Text(_key(text))
    return Approximation(exact, rounded) if number.decimal or exact.decimal else exact


def _name(text: str) -> str:
    """
    >>> _name("‹Total cost›"), _name("P(A)"), _name("A B")
    ('total cost', 'P(A)', 'AB')
    """
    return _key(text) if "‹" in text or re.fullmatch(r"[A-Za-z ]{4,}", text) else re.sub(r"\s+", "", text)


def _curly_name(text: str) -> Value | None:
    match = re.fullmatch(r"(‹[^‹›:]+:?\s*›|[A-Za-z][A-Za-z ]{2,20})(?:\s*:|(?<=:›)|(?<=: ›))\s*(\S.*)", text)
    if match and not re.fullmatch(r"[A-Z]{1,2}", match[1]):
        return Named(_name(match[1]), _read(match[2]))
    return None


def _relation(text: str) -> Value | None:
    parts = split_keeping(text, r"<|>|\\(?:le|ge|ne)(?![a-zA-Z])")
    if len(parts) < 2:
        return None
    items, ops = [part.strip() for part, _ in parts], [_OPS[op] for _, op in parts[:-1]]
    if any(not item for item in items):
        return Text(_key(text))
    values = tuple(_read(item) for item in items)
    if not all(isinstance(v, (Number, Choice, Quantity, Percent)) for v in values):
        return Text(_key(text))
    return Relation(values, tuple(ops))


def _sets(text: str) -> Value | None:
    parts = [part.strip() for part in split(text, r"\\cup(?![a-zA-Z])")]
    if len(parts) > 1:
        return Union(tuple(_read(part) for part in parts)) if all(parts) else Text(_key(text))
    parts = [part.strip() for part in split(text, r"\\setminus(?![a-zA-Z])")]
    if len(parts) == 2 and all(parts):
        return Union((_read(parts[0]), _read(parts[1])), minus=True)
    return None


def _bracketed(text: str) -> Value | None:
    if text.startswith("\\{") and text.endswith("\\}") and closing(text, 0) == len(text) - 1:
        inner = text[2:-2].strip()
        builder = re.fullmatch(r"([a-zA-Z])\s*(?:\\in\s*\\R\s*)?[|:](.+)", inner)
        if builder:
            return Builder(_read(builder[2]))
        return Sequence("{", _expanded(tuple(_read(part) for part in split(inner, rf",|;|{_JOIN}"))), "}")
    if (point := re.fullmatch(r"([ABD-MO-Z])'?\s*(\(.*,.*\))", text)) and closing(point[2], 0) == len(point[2]) - 1:
        return Named(point[1], _read(point[2]))
    match = re.fullmatch(r"([(\[\]])(.*)([)\]\[])", text, re.DOTALL)
    if not match:
        return None
    parts = [part.strip() for part in split(match[2], r",|;")]
    if len(parts) == 1:
        whole = text[0] in "([" and closing(text, 0) == len(text) - 1
        return _read(parts[0]) if whole and text[0] == "(" and parts[0] else None
    if any(not part for part in parts):
        return Text(_key(text))
    left, right = match[1], match[3]
    if left == "]" or right == "[":  # ]a, b[
        left, right = {"]": "("}.get(left, left), {"[": ")"}.get(right, right)
    items = tuple(_read(part) for part in parts)
    rows = [item.items for item in items if isinstance(item, Sequence) and (item.left, item.right) == ("[", "]")]
    if left == "[" and right == "]" and len(rows) == len(items) and len({len(row) for row in rows}) == 1:
        return Table(tuple(rows))  # [[1, 2], [3, 4]]
    signed = [(i, both) for i, item in enumerate(items) if isinstance(item, Number) and (both := both_signs(item))]
    if left == "(" and right == ")" and len(signed) == 1:  # (1, \pm 2) is two points
        place, both = signed[0]
        return Sequence("", tuple(Sequence("(", (*items[:place], n, *items[place + 1 :]), ")") for n in both), "")
    return Sequence(left, items, right)


def _based(text: str) -> Value | None:
    match = re.fullmatch(r"\(?‹?([0-9A-F]+)›?\)?\s*_\s*\{?\s*(?:‹)?\s*([1-9]\d?|[a-z]+)\s*(?:›)?\s*\}?", text)
    if not match:
        return None
    base = str(NUMBER_WORDS.get(match[2], match[2]))
    is_name = match[1].isalpha() and (base != "16" or len(match[1]) < 2)  # A_2
    return Based(match[1].lstrip("0") or "0", base) if base.isdigit() and not is_name else None


def _repeating(text: str) -> Value | None:
    text = re.sub(r"(\.\d*?)(\d+?)\2{2,}\s*\\ldots$", r"\1\\overline{\2}", text)  # 0.333...
    plain = re.sub(r"\\dot\s*\{?(\d)\}?((?:\d*)\\dot\s*\{?(\d)\}?)?", _dots, text)
    match = re.fullmatch(
        r"([-+]?)\s*(\d*)\.(\d*)(?:\\overline\s*\{?(\d+)\}?|\((\d+)\))(?:\s*\\ldots)?(\s*\\?%)?", plain
    )
    if not match:
        return None
    before, period = match[3], match[4] or match[5]
    scale = 10 ** len(before)
    value = Rational(int((match[2] or "0") + before), scale) + Rational(int(period), scale * (10 ** len(period) - 1))
    number = Number(-value if match[1] == "-" else value)
    return Percent(number) if match[6] else number


def _dots(match: re.Match[str]) -> str:
    digits = re.sub(r"\\dot|[{}\s]", "", match[0])
    return rf"\overline{{{digits}}}"


def _ratio(text: str) -> Value | None:
    parts = [part.strip() for part in split(text, r":|‹\s*to\s*›|(?<=\d)\s+to\s+(?=\d)")]
    if len(parts) < 2:
        return None
    values = [_read(part) for part in parts] if all(parts) else []
    if len(values) != len(parts) or not all(isinstance(v, Number) for v in values):
        return Text(_key(text))
    return Ratio(tuple(v for v in values if isinstance(v, Number)))


def _quantity(text: str) -> Value | None:
    if match := re.fullmatch(r"(.+?)\s*(?:\\?%|‹?\s*(?i:percent|per cent|percentage|pct)\s*›?|‹\s*%\s*›)", text):
        inner = _read(match[1])
        return Percent(inner) if isinstance(inner, Number) else None
    sign = re.match(r"([-+]?)\s*(\\\$|[€£¥₹])\s*(?=-?[\d.\\])", text)
    if sign:
        rest = _read(sign[1] + text[sign.end() :])
        unit = CURRENCY_SIGNS[sign[2]]
        if isinstance(rest, Quantity) and ratio(rest.unit, unit) != 1:
            per = rest.unit if not ratio(rest.unit, unit) else None
            return Quantity(rest.number, unit * per) if per is not None and _is_rate(per) else Text(_key(text))
        number = rest.number if isinstance(rest, Quantity) else rest
        return Quantity(number, unit) if isinstance(number, Number) else None
    match = re.fullmatch(
        rf"({SIMPLE}|.+?)\s*(?:\^?\{{?\s*(?:st|nd|rd|th)\s*\}}?|\^?\s*\{{?\s*‹(?:st|nd|rd|th)›\s*\}}?)", text
    )
    if match and re.fullmatch(r"\d+", match[1]):
        return _read(match[1])
    match = re.fullmatch(rf"(.+?)\s*(?:‹)?\s*({'|'.join(MULTIPLIERS)})s?\s*(?:›)?\s*(.*)", text)
    if match and re.fullmatch(SIMPLE, match[1].strip()):
        inner = _read(f"{match[1]} {match[3]}".strip())
        factor = MULTIPLIERS[match[2]]
        if isinstance(inner, Quantity):
            return Quantity(Number(inner.number.expr * factor), inner.unit)
        return Number(inner.expr * factor) if isinstance(inner, Number) else Text(_key(text))
    return _with_unit(text)


def _is_rate(unit: Expr) -> bool:
    return isinstance(unit, Pow) and unit.args[1] == -1


_POWER = r"\s*\\times\s*10\s*\^\s*\{-?\d+\}"
_BARE_UNIT = re.compile(
    rf"((?:{SIMPLE}(?:{_POWER})?|\\frac\{{\d+\}}\{{\d+\}}|\d+\s*/\s*\d+|\d+\s+\d+\s*/\s*\d+)"
    r"(?:\s*\\frac\{\d+\}\{\d+\})?)\s*([A-Za-z¢一-鿿(][^\d\\]*(?:\^\s*\{?\s*\d\s*\}?)?)"
)


def _with_unit(text: str) -> Value | None:
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])", text) and r"\circ" in text:
        expr = expression(re.sub(r"(\d+(?:\.\d+)?)\s*\^\s*\\circ", r"{\\frac{\1\\cdot\\pi}{180}}", text))
        return Text(_key(text)) if expr is None else _number(text, expr)
    if minutes := re.fullmatch(r"(\d+)\s*\^\s*\\circ\s*(\d+)\s*'", text):  # 45 degrees 30'
        return Quantity(Number(int(minutes[1]) + Rational(int(minutes[2]), 60)), DEGREE)
    match = re.fullmatch(r"(.*?)\s*\^\s*\\circ\s*(?:(?:\\circ)?\s*‹?\s*([CF]?)\s*›?)", text)
    if match and match[1]:
        number = _read(match[1])
        unit = {"C": CELSIUS, "F": FAHRENHEIT}.get(match[2], DEGREE)
        return Quantity(number, unit) if isinstance(number, Number) else Text(_key(text))
    match = re.fullmatch(
        r"([^‹›]*?[^‹›\s])\s*((?:/\s*)?‹[^‹›]*›(?:\s*(?:\^\s*\{?\s*-?\d\s*\}?|/|\\cdot|‹[^‹›]*›))*)", text
    )
    if match:
        unit = unit_of(match[2].replace("‹", "").replace("›", ""), in_text=True)
        return _of_unit(match[1], unit, None)
    match = _BARE_UNIT.fullmatch(text)
    if not match:
        return None
    spaced = text[match.end(1) : match.end(1) + 1] == " " or not match[2][0].isascii()
    unit = unit_of(match[2], in_text=False)
    short = re.fullmatch(r"[A-Za-z]{1,2}\W*.*", match[2]) and not re.fullmatch(r"[A-Za-z]{3,}.*", match[2])
    if unit is None or (short and not spaced and len(match[2]) == 1):
        return None
    expr = expression(text) if short else None
    return _of_unit(match[1], unit, None if expr is None else _number(text, expr))


def _of_unit(amount: str, unit: Expr | None, otherwise: Number | None) -> Value | None:
    if unit is None:
        return None
    number = _read(amount)
    if isinstance(number, Named) and isinstance(number.value, Number):
        return Named(number.name, Quantity(number.value, unit))
    if isinstance(number, Sequence) and number.left == "":
        return None
    if unit == 1:
        return number
    if isinstance(number, Quantity):  # $5 per hour
        return Quantity(number.number, number.unit * unit) if _is_rate(unit) else None
    return Quantity(number, unit, otherwise) if isinstance(number, Number) else None


def _key(text: str) -> str:
    r"""The text without what does not count in it.

    >>> _key("‹ Monday ›"), _key("3 | n"), _key("1 2"), _key(r"x \to y")
    ('monday', '3|n', '1 2', 'x \\to y')
    """
    text = text.replace("‹", "").replace("›", "").strip()
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" (?![\w\\])|(?<![\w]) ", "", text)
    letters = re.sub(r"[^\w]|_", "", text)
    if not letters.isalpha() or len(letters) < 2 or "\\" in text:
        return text
    return re.sub(r"^(?:an?|the) (?=\w\w)", "", text.lower().strip(" .,;!"))
