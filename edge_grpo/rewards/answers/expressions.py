"""Expressions: LaTeX to SymPy by math-verify's grammar, if every command and letter of the text is known."""

import re
from functools import lru_cache

import sympy
from sympy import Expr, Symbol

from edge_grpo.rewards.answers.grammar import sympy_of
from edge_grpo.rewards.answers.values import PLUS_MINUS

_FUNCTIONS_TEXT = """
    sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min gcd lcm
"""
_FUNCTIONS = frozenset(_FUNCTIONS_TEXT.split())
_GREEK_TEXT = """
    alpha beta delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega Gamma Delta
    Theta Lambda Xi Pi Sigma Phi Psi Omega gamma
"""
_GREEK = frozenset(_GREEK_TEXT.split())
_COMMANDS_TEXT = """
    frac sqrt cdot times div binom pi infty lfloor rfloor lceil rceil int sum prod lim to overline dx
"""
_COMMANDS = _FUNCTIONS | _GREEK | frozenset(_COMMANDS_TEXT.split())
_TOKEN = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]+|\d+|.", re.DOTALL)
_NO_PRODUCTS_TEXT = """
    is it no or on so to up we an as at be by do go he if in me my of us am pm al et ok
"""
_NO_PRODUCTS = frozenset(_NO_PRODUCTS_TEXT.split())
SIMPLE = r"[-+]?\s*(?:\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"


def expression(text: str) -> Expr | None:
    r"""The SymPy expression of the whole text; None if any of it is unknown.

    >>> expression(r"\frac{1}{2}x + 0.5"), expression("3 | n"), expression("DCBA"), expression("1 2")
    (x/2 + 1/2, None, None, None)
    """
    text = _mixed(text.strip())
    if len(re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", text)) == 1:
        text = re.sub(r"\\(pm|mp)(?![a-zA-Z])\s*", lambda m: ("+" if m[1] == "pm" else "-") + r"P_{pm}\cdot ", text)
    text = re.sub(r"(?<=\d)[ ,](?=\d{3}(?!\d))", "", text) if re.fullmatch(SIMPLE + r".*", text) else text
    return _parsed(text) if _is_known(text.replace("P_{pm}", "P")) else None


_MIXED = re.compile(
    r"(?<![\d.}])(\d+)(?:\s+(\d+)\s*/\s*(\d+)|\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\})(?!\s*[\d/^])"
)


def _mixed(text: str) -> str:
    r"""Mixed numbers as sums; `2\frac{3}{2}` is none.

    >>> _mixed("1 1/4"), _mixed(r"-2\frac{1}{2}"), _mixed(r"2\frac{3}{2}")
    ('(1+\\frac{1}{4})', '-(2+\\frac{1}{2})', '2\\frac{3}{2}')
    """

    def as_sum(match: re.Match[str]) -> str:
        over, under = (match[2], match[3]) if match[2] else (match[4], match[5])
        return rf"({match[1]}+\frac{{{over}}}{{{under}}})" if int(over) < int(under) else match[0]

    return _MIXED.sub(as_sum, text)


def _is_known(text: str) -> bool:
    if re.search(r"\d\s+\d|\d*\.\d*\.|[^\d]\.(?!\d)|\^[^{\s]\^|'|(?<![\d}])\.\D|!\s*!|\^\d+\s*\^", text):
        return False
    if re.search(r"\d\s*\^\s*\{\s*\d+\s*\^\s*\{\s*\d+\s*\^", text):
        return False  # a tower that nobody can evaluate
    if re.search(
        r"/\s*(?:\d+|[a-zA-Z]|\\[a-zA-Z]+(?:\{[^{}]*\})*|\{[^{}]*\})\s*(?:[a-zA-Z(]|\\(?!cdot|times|div|rfloor|rceil))",
        text,
    ):
        return False  # 1/2x: half of x or one over 2x?
    tokens = _TOKEN.findall(re.sub(r"(\\(?:sum|prod)\s*_\s*\{\s*[a-z])\s*=", r"\1+", text))
    place = 0
    for token in tokens:
        before, place = text[:place], place + len(token)
        if token.startswith("\\") and len(token) > 1:
            if token[1:] not in _COMMANDS:
                return False
        elif token.isalpha():
            if not token.isascii() or not _is_product(token, before, text[place:]):
                return False
        elif not (token.isdigit() and token.isascii()) and token not in "+-/^_(){}!|. ":
            return False if token not in "[]," else _is_index(text)
    return text.count("|") % 2 == 0


def _is_index(text: str) -> bool:
    """Whether the brackets and commas are those of a root's index or a function's arguments."""
    rest = re.sub(r"\\sqrt\s*\[[^\[\]]*\]|\\(?:max|min|gcd|lcm)\s*\([^()]*\)", "", text)
    return not re.search(r"[\[\],]", rest)


def _is_product(letters: str, before: str, after: str) -> bool:
    """Whether letters without a space are variables side by side, not a word.

    >>> _is_product("xy", "", ""), _is_product("is", "5 ", " 3"), _is_product("at", "e^{", "}")
    (True, False, True)
    >>> _is_product("abc", "3", ""), _is_product("abc", "", ""), _is_product("cat", "", " 2")
    (True, False, False)
    """
    if len(letters) == 1 or letters in ("dx", "dy", "dt"):
        return True
    joined = bool(re.search(r"(?:[{}^_(+*/-]\s*|\d)$", before) or re.match(r"\s*[{}^_)+*/-]", after))
    if len(letters) == 2:
        return joined or (letters not in _NO_PRODUCTS and (letters.islower() or letters.isupper()))
    return len(letters) == 3 and joined and not re.match(r"\s*[\dA-Za-z]", after)


_DECIMAL = re.compile(r"(?<!\d)(\d*)\.(\d+)(?!\d)")


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Expr | None:
    text = re.sub(r"(?<=\d)\.(?!\d)", "", text)
    text = re.sub(r"\^\s*(\d*\.\d+)", r"^{\1}", text)
    text = _DECIMAL.sub(lambda m: rf"\frac{{{int((m[1] or '0') + m[2])}}}{{{10 ** len(m[2])}}}", text)
    text = re.sub(r"\\gamma(?![a-zA-Z])", r"\\Upsilon ", text)  # else the gamma function
    text = re.sub(r"(?<![a-zA-Z\\])I(?![a-zA-Z])", "I_{0}", text)  # else the imaginary unit
    text = re.sub(r"(?<![a-zA-Z\\])E(?=\s*_)", r"\\Xi ", text)  # else a power of ten
    try:
        value = sympy_of(text)
    except Exception:
        return None
    if not isinstance(value, Expr) or value.has(sympy.nan):
        return None
    return _plain(value)


def _plain(value: Expr) -> Expr:
    """Symbols by name alone, i as the imaginary unit, applied unknown functions as symbols."""
    special = {"i": sympy.I, "P_{pm}": PLUS_MINUS}
    names = {s: special.get(s.name, Symbol(s.name)) for s in value.free_symbols}
    value = value.xreplace(names)
    unknown = {f: Symbol(f"{f}") for f in value.atoms(sympy.core.function.AppliedUndef)}
    return value.xreplace(unknown)
