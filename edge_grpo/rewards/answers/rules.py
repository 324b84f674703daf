r"""How people and models write the same answer: from its text to one plain form of LaTeX.

A rule is one line: a pattern, what it becomes, and an example `before -> after` that a test and the doctest below
run. Rules change the writing and never the value; what an answer *is* (a list, an interval, a time) is decided in
`reading`. Words end up between `‹` and `›`, so that they are never taken for products of letters.

>>> [rule.example for rule in RULES if not rule.holds()]
[]
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Rule:
    """One way of writing, `pattern`, and the form that stands for it.

    Args:
        pattern: regular expression.
        becomes: replacement, as of `re.sub`.
        example: a text that the rule changes, and what this rule alone makes of it, as `before -> after`.
    """

    pattern: str
    becomes: str
    example: str

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def apply(self, text: str) -> str:
        """The text with every match replaced."""
        return self._compiled.sub(self.becomes, text)

    def holds(self) -> bool:
        """Whether the example is true."""
        before, after = self.example.split(" -> ")
        return self.apply(before) == after != before


_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_ENCLOSED = "①-⓿"  # names of statements: ①③ is not 13

CHARACTERS = {
    **dict.fromkeys("−–—‐‑‒﹣", "-"), "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "∗": "*",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≦": r"\le ", "≧": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\R ", "ℤ": r"\Z ", "ℕ": r"\N ", "°": r"^\circ ", "º": r"^\circ ",
    "…": r"\ldots ", "⋯": r"\ldots ", "∣": "|", "│": "|", "△": r"\triangle ", "∠": r"\angle ", "′": "'", "″": "''",
    "、": ",", "。": ".", "「": "", "」": "", "“": '"', "”": '"', "‘": "'", "’": "'", "∨": r"\lor ", "∧": r"\land ",
    "⁄": "/", "∕": "/", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ", "μ": r"\mu ", "ρ": r"\rho ",
    "σ": r"\sigma ", "τ": r"\tau ", "Δ": r"\Delta ", "Σ": r"\Sigma ", "Ω": r"\Omega ", "Γ": r"\Gamma ", "Φ": r"\Phi ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ",
}  # fmt: skip
"""one character and its LaTeX"""

# Commands that only say how their argument looks. \text and its kin are words, see below.
_LOOKS = frozenset(
    ("mathbf", "boldsymbol", "bm", "mathit", "mathsf", "mathnormal", "pmb", "bold", "underline", "emph", "bf",
     "mathcal", "mathop", "ensuremath", "smash", "displaystyle", "boxed", "fbox", "it", "rm", "cal")
)  # fmt: skip
_WORDS = frozenset(
    ("text", "textbf", "textit", "textrm", "textnormal", "textsf", "texttt", "mbox", "hbox", "mathrm", "operatorname",
     "operatorname*", "textup", "mathtt")
)  # fmt: skip
_OPERATORS = frozenset(
    ("arcsin", "arccos", "arctan", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "log", "ln", "lg",
     "exp", "gcd", "max", "min", "lcm")
)  # fmt: skip

RULES = (
    # Thousands and decimals
    Rule(r"(?<=\d)\{,\}(?=\d)", ",", r"1{,}234 -> 1,234"),
    Rule(r"(?<=\d)\s*(?:\\!\s*,|,\s*\\!)\s*(?:\\!\s*)?(?=\d{3}(?!\d))", ",", r"10,\!080 -> 10,080"),
    Rule(r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))", ",", r"10\,000 -> 10,000"),
    Rule(r"\{\s*:\s*\}|\\colon(?![a-zA-Z])", ":", r"3{:}45 -> 3:45"),
    Rule(r"\\text\s*\{\s*([.,;:])\s*\}", r"\1", r"42\text{.} -> 42."),
    # Space
    Rule(r"\\(?:quad|qquad|thinspace|enspace|space|medspace|thickspace|newline)(?![a-zA-Z])", " ", r"\quad5 ->  5"),
    Rule(r"(?<!\\)\\[,;:!> ]|(?<!\\)~(?!=)|&nbsp;|\\[hv]space\*?\{[^{}]*\}", " ", r"5\;6 -> 5 6"),
    Rule(r"\\(?:displaystyle|textstyle|scriptstyle|large|Large|LARGE|huge|small|normalsize|limits|nolimits|"
         r"centering|strut|noindent)(?![a-zA-Z])", " ", r"\large 5 ->   5"),
    Rule(r"\\(?:left|right|middle)\s*\.", " ", r"\left. 5 ->   5"),
    Rule(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])", " ", r"\left(1\right) ->  (1 )"),
    Rule(r"\\(?:[hv]?phantom|label|tag)\{[^{}]*\}", "", r"5\phantom{0} -> 5"),
    Rule(r"\\(?:textcolor|color)\s*\{[a-zA-Z]+\}", "", r"\color{red}{5} -> {5}"),
    Rule(r"\\(?:checkmark|blacksquare|qedsymbol|qed)\s*$", "", r"42\blacksquare -> 42"),
    Rule(r"\{\s*([^{}]*?)\s*\\over(?![a-zA-Z])\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}", r"{3 \over 4} -> \frac{3}{4}"),
    Rule(r"(?<=[\dA-F])\s*(?:\\text\s*\{\s*\(?\s*(?:in )?base\s+(\w+)\s*\)?\s*\}|\(?(?:in )?base\s+(\w+)\)?)\s*$",
         r"_{\1\2}", r"1101\text{ (base 2)} -> 1101_{2}"),
    Rule(r"(?<![\w\\])(\d+|[a-z])\s*(?:\\text\s*\{\s*choose\s*\}|choose)\s*(\d+|[a-z])(?!\w)", r"\\binom{\1}{\2}",
         r"10 \text{ choose } 3 -> \binom{10}{3}"),
    Rule(r"^\s*\\text\s*\{\s*(Rs\.?)\s*\}", r"\1 ", r"\text{Rs. }450 -> Rs. 450"),
    Rule(r"(?<=\d)\s*\\text\s*\{\s*(?:in )?base\s*\}\s*(\d+)", r"_{\1}", r"12\text{ base }5 -> 12_{5}"),
    # Delimiters
    Rule(r"\\[()\[\]]|(?<!\\)\$", " ", r"\(5\) ->  5 "),
    Rule(r"\\(?:text)?dollar(?![a-zA-Z])", r"\\$ ", r"\textdollar 5 -> \$  5"),
    Rule(r"\\(?:Longr|longr|R|r)ightarrow(?![a-zA-Z])|\\implies(?![a-zA-Z])", r"\\Rightarrow ",
         r"\implies 5 -> \Rightarrow  5"),
    Rule(r"\\(?:lbrace|\{)", r"\\{", r"\lbrace 1 -> \{ 1"),
    Rule(r"\\(?:rbrace|\})", r"\\}", r"1 \rbrace -> 1 \}"),
    Rule(r"\\(?:lvert|rvert|vert)(?![a-zA-Z])", "|", r"\lvert x\rvert -> | x|"),
    Rule(r"\\lbrack(?![a-zA-Z])", "[", r"\lbrack 1 -> [ 1"),
    Rule(r"\\rbrack(?![a-zA-Z])", "]", r"1\rbrack -> 1]"),
    Rule(r"\*\*([^*]+)\*\*", r"\1", r"**5** -> 5"),
    Rule(r"`|(?<!\w)\"|\"(?!\w)", "", r"`5` -> 5"),
    Rule(r"^\s*([*_])([^*_]+)\1\s*$", r"\2", r"*5* -> 5"),
    Rule(r"(?:US|U\.S\.)\s*(?=\\\$)", "", r"US\$5 -> \$5"),
    Rule(r"^\s*(?:Rs\.?|INR)\s*(?=\d)", "₹", r"Rs. 500 -> ₹500"),
    Rule(r"[\[(]\s*(\\begin\{array\}.*\\end\{array\})\s*[\])]", r"\1",
         r"[\begin{array}{c}1\end{array}] -> \begin{array}{c}1\end{array}"),
    Rule(r"(?<!\\)\\\s*$", "", "5\\ -> 5"),
    # Other names of one command
    Rule(r"\\(?:[dtcs]|nice|flat)frac(?![a-zA-Z])", r"\\frac", r"\dfrac{1}{2} -> \frac{1}{2}"),
    Rule(r"\\[dt]binom(?![a-zA-Z])", r"\\binom", r"\dbinom{5}{2} -> \binom{5}{2}"),
    Rule(r"\\(?:leqslant|leqq|leq)(?![a-zA-Z])", r"\\le", r"x\leqslant 2 -> x\le 2"),
    Rule(r"\\(?:geqslant|geqq|geq)(?![a-zA-Z])", r"\\ge", r"x\geq 2 -> x\ge 2"),
    Rule(r"\\lt(?![a-zA-Z])", "<", r"x \lt 2 -> x < 2"),
    Rule(r"\\gt(?![a-zA-Z])", ">", r"x \gt 2 -> x > 2"),
    Rule(r"\\(?:neq|not\s*=)(?![a-zA-Z])", r"\\ne ", r"x\neq 2 -> x\ne  2"),
    Rule(r"<=", r"\\le ", r"x <= 2 -> x \le  2"),
    Rule(r">=", r"\\ge ", r"x >= 2 -> x \ge  2"),
    Rule(r"!=(?=\s*-?[\w\\])", r"\\ne ", r"x != 0 -> x \ne  0"),
    Rule(r"~=|\\(?:sim|simeq|cong|thickapprox|doteq)(?![a-zA-Z])", r"\\approx ", r"\sim 3 -> \approx  3"),
    Rule(r"\\(?:varnothing|O|oldemptyset)(?![a-zA-Z])", r"\\emptyset", r"\varnothing -> \emptyset"),
    Rule(r"\\\{\s*\\\}|(?<![\\\w])\{\s*\}(?=\s*$)", r"\\emptyset", r"\{ \} -> \emptyset"),
    Rule(r"\\(?:mathbb|Bbb|mathbf|bf)\s*\{?\s*R\s*\}?", r"\\R ", r"\mathbb{R} -> \R "),
    Rule(r"\\(?:mathbb|Bbb|mathbf)\s*\{?\s*Z\s*\}?", r"\\Z ", r"\mathbb{Z} -> \Z "),
    Rule(r"\\(?:mathbb|Bbb|mathbf)\s*\{?\s*N\s*\}?", r"\\N ", r"\mathbb N -> \N "),
    Rule(r"\\(?:cdots|dots|dotsc|dotsb|ldots)(?![a-zA-Z])|\.{3,}", r"\\ldots ", r"1, \dots -> 1, \ldots "),
    Rule(r"\\(?:vee|lor)(?![a-zA-Z])", r"\\lor ", r"5\vee 6 -> 5\lor  6"),
    Rule(r"\\tg(?![a-zA-Z])", r"\\tan", r"\tg x -> \tan x"),
    Rule(r"\\ctg(?![a-zA-Z])", r"\\cot", r"\ctg x -> \cot x"),
    Rule(r"\\lg(?![a-zA-Z])", r"\\log_{10} ", r"\lg 2 -> \log_{10}  2"),
    Rule(r"\\var(epsilon|theta|phi|rho|sigma|pi)(?![a-zA-Z])", r"\\\1", r"\varphi -> \phi"),
    Rule(r"\\(?:mid|vert)(?![a-zA-Z])|\\\|", r"|", r"3 \mid n -> 3 | n"),
    Rule(r"\\degree(?:s)?(?![a-zA-Z])", r"^\\circ ", r"90\degree -> 90^\circ "),
    Rule(r"\^\s*\{\s*\\circ\s*\}|(?<!\^)\\circ(?=\s*$)", r"^\\circ ", r"90^{\circ} -> 90^\circ "),
    Rule(r"\^\s*\{?\s*\\prime\s*\}?", "'", r"f^{\prime} -> f'"),
    Rule(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", r"\frac13 -> \frac{1}{3}"),
    Rule(r"\\frac\s*(\w)\s*\{", r"\\frac{\1}{", r"\frac9{19} -> \frac{9}{19}"),
    Rule(r"\\frac\s*(\{(?:[^{}]|\{[^{}]*\})*\})\s*([\da-zA-Z])", r"\\frac\1{\2}", r"\frac{270}7 -> \frac{270}{7}"),
    Rule(r"\\frac\s*([\da-zA-Z])\s*([\da-zA-Z])", r"\\frac{\1}{\2}", r"\frac ab -> \frac{a}{b}"),
    Rule(r"\\frac\s*(\\[a-zA-Z]+)(?![a-zA-Z])\s*([\da-zA-Z])", r"\\frac{\1}{\2}", r"\frac\pi2 -> \frac{\pi}{2}"),
    Rule(r"\\frac\s*(\\[a-zA-Z]+)\s*\{", r"\\frac{\1}{", r"\frac\pi{12} -> \frac{\pi}{12}"),
    Rule(r"\\sqrt\s*(\[[^\[\]]*\])?\s*([\da-zA-Z])", r"\\sqrt\1{\2}", r"\sqrt2 -> \sqrt{2}"),
    Rule(r"\\sqrt\s*(\\[a-zA-Z]+)", r"\\sqrt{\1}", r"\sqrt\pi -> \sqrt{\pi}"),
    Rule(r"\^\s*(\\frac\{[^{}]*\}\{[^{}]*\})", r"^{\1}", r"2^\frac{1}{2} -> 2^{\frac{1}{2}}"),
    Rule(r"\^\s*\(([^()]*)\)", r"^{(\1)}", r"2^(n-1) -> 2^{(n-1)}"),
    Rule(r"(?<=\d)\^(\d{2,})(?![\d^])", r"^{\1}", r"2^10 -> 2^{10}"),
    Rule(r"(?<!\\)([_^])\s*(\d)(?!\d)", r"\1{\2}", r"\log_2 8 -> \log_{2} 8"),
    Rule(r"(?<!\\)\{\s*([^{}]*?)\s*\\choose\s*([^{}]*?)\s*\}", r"\\binom{\1}{\2}", r"{5 \choose 2} -> \binom{5}{2}"),
    Rule(r"(?<![A-Za-z])C\s*\(\s*(\w+)\s*,\s*(\w+)\s*\)", r"\\binom{\1}{\2}", r"C(5,2) -> \binom{5}{2}"),
    Rule(r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?", r"\\binom{\1}{\2}", r"C_5^2 -> \binom{5}{2}"),
    Rule(r"(?<![A-Za-z])A_\{?(\d+)\}?\^\{?(\d+)\}?", r"\\frac{\1!}{(\1-\2)!}", r"A_5^2 -> \frac{5!}{(5-2)!}"),
    Rule(r"(?<![\w}])(?:\{\s*\})?[_^]\{?(\d+)\}?\s*C\s*_\{?(\d+)\}?", r"\\binom{\1}{\2}", r"^{10}C_3 -> \binom{10}{3}"),
    Rule(r"\\pi\s*\(", r"\\pi \\cdot (", r"\pi(4) -> \pi \cdot (4)"),
    Rule(r"(?<=[\d.])\\bar\s*\{?(\d+)\}?", r"\\overline{\1}", r"0.\bar{3} -> 0.\overline{3}"),
    Rule(r"(?<=\d)\s*\^\s*(?:o|\{\s*o\s*\})(?![a-zA-Z])", r"^\\circ ", r"45^o -> 45^\circ "),
    Rule(r"(?<=\d)\s*\\Omega\s*$", " ‹ohm›", r"5\Omega -> 5 ‹ohm›"),
    Rule(r"\+\s*/\s*-", r"\\pm ", r"+/-2 -> \pm 2"),
    Rule(r"∛\s*\(?(\d+|[a-z])\)?", r"\\sqrt[3]{\1}", r"∛8 -> \sqrt[3]{8}"),
    Rule(r"^\s*([\d.,]+)\s*\\\$\s*$", r"\\$\1", r"18\$ -> \$18"),
    Rule(r"\\\{\s*\\begin\{array\}\s*\{[lcr\s]*\}(.*)\\end\{array\}\s*$", r"\\begin{cases}\1\\end{cases}",
         r"\{\begin{array}{l}x=1\end{array} -> \begin{cases}x=1\end{cases}"),
    Rule(r"\\(?:pmod|pod|mod|bmod)\s*\{?\s*(\w+)\s*\}?", r" ‹mod› \1", r"7 \pmod{11} -> 7  ‹mod› 11"),
    Rule(r"\((?:mod|modulo)\s*(\w+)\)|(?<=\s)mod(?:ulo)?\s+(\w+)", r" ‹mod› \1\2", r"7 (mod 11) -> 7  ‹mod› 11"),
    # As in a program or on paper
    Rule(r"\*\*", "^", r"x**2 -> x^2"),
    Rule(r"\*", r"\\cdot ", r"2*x -> 2\cdot x"),
    Rule(r"(?<![A-Za-z\\])(?:sqrt|root)\s*\(([^()]*)\)", r"\\sqrt{\1}", r"2sqrt(3) -> 2\sqrt{3}"),
    Rule(r"√\s*\(([^()]*)\)", r"\\sqrt{\1}", r"√(12) -> \sqrt{12}"),
    Rule(r"√\s*\{?(\d+|[a-zA-Z])\}?", r"\\sqrt{\1}", r"2√3 -> 2\sqrt{3}"),
    Rule(r"(?<![A-Za-z\\])sqrt\s*\{", r"\\sqrt{", r"sqrt{3} -> \sqrt{3}"),
    Rule(r"(?<![A-Za-z\\])(?:inf|infty|infinity)(?![A-Za-z])", r"\\infty ", r"(-inf, 3) -> (-\infty , 3)"),
    Rule(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", r"pi/4 -> \pi /4"),
    Rule(r"(?<![A-Za-z\\])(alpha|beta|theta|lambda|omega|phi)(?![A-Za-z])", r"\\\1 ", r"2 theta -> 2 \theta "),
    Rule(r"(?<![A-Za-z\\])(sin|cos|tan|cot|log|ln|exp|arcsin|arccos|arctan)(?=\s*[\d(\\|x^_])", r"\\\1 ",
         r"sin(x) -> \sin (x)"),
    Rule(r"([\d.]+)\s*[eE]([+-]?\d+)(?!\.?\d|\w)", r"\1 \\times 10^{\2}", r"3e-4 -> 3 \times 10^{-4}"),
    Rule(r"(?<=\d)\s*x\s*(?=10\^)", r" \\times ", r"1.5x10^3 -> 1.5 \times 10^3"),
    Rule(r"(?<=[\d)}])\s+(?=[.,;]\s*$)", "", r"5 . -> 5."),
    # Connections
    Rule(r"(?i)\s*(?:,\s*)?(?<![a-z\\])or(?![a-z])\s*", " ‹or› ", r"5 or 6 -> 5 ‹or› 6"),
    Rule(r"(?i)\s*(?:,\s*)?(?<![a-z\\])and(?![a-z])\s*", " ‹and› ", r"5, and 6 -> 5 ‹and› 6"),
    Rule(r"\s*或\s*|\s*\\lor(?![a-zA-Z])\s*", " ‹or› ", r"1或2 -> 1 ‹or› 2"),
    Rule(r"\s*[和与且]\s*|\s*\\(?:land|wedge)(?![a-zA-Z])\s*", " ‹and› ", r"1 \land 2 -> 1 ‹and› 2"),
    Rule(r"\\(?:setminus|backslash)(?![a-zA-Z])", r"\\setminus ", r"A\backslash B -> A\setminus  B"),
    Rule(r"\\in(?![a-zA-Z])", r"\\in ", r"x\in A -> x\in  A"),
)  # fmt: skip

SAME_WORDS = {
    r"\emptyset": ["no solution", "no solutions", "no real solution", "no real solutions", "empty set", "the empty set",
                  "no such number", "no such numbers", "no values", "no roots", "no real roots", "there is no solution",
                  "there are no solutions", "no integer solutions", "none", "无解", "空集"],
    r"\R": ["all real numbers", "all reals", "the real numbers", "real numbers", "any real number", "所有实数", "实数",
            "任意实数", "all real x", "reals"],
    r"\infty": ["infinity", "无穷", "无穷大"],
    "yes": ["是", "yes"],
    "no": ["否", "no", "不是"],
    "true": ["正确", "对", "true"],
    "false": ["错误", "错", "false"],
    "dne": ["does not exist", "dne", "不存在", "doesnt exist", "the limit does not exist",
            "limit does not exist"],
    "12:00 pm": ["noon", "正午"],
    "12:00 am": ["midnight"],
    "undefined": ["undefined", "not defined"],
    "infinitely many": ["infinitely many", "infinite", "infinitely many solutions", "无穷多", "无数"],
}  # fmt: skip
"""one meaning (LaTeX or a word) and the words that say it"""

NUMBER_WORDS = {word: value for value, words in enumerate((
    "zero|零", "one|一", "two|二|两", "three|三", "four|四", "five|五", "six|六", "seven|七", "eight|八", "nine|九",
    "ten|十", "eleven|十一", "twelve|十二", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen"), start=0) for word in words.split("|")}  # fmt: skip
_TENS = dict(
    zip(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], range(20, 100, 10), strict=True)
)
NUMBER_WORDS |= _TENS | {f"{ten}{joint}{word}": value + unit for ten, value in _TENS.items() for joint in ("", " ")
                         for word, unit in NUMBER_WORDS.items() if 0 < unit < 10 and word.isascii()}  # fmt: skip
MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
               "dozen": 12, "百": 10**2, "千": 10**3, "万": 10**4, "亿": 10**8}  # fmt: skip
_BY_WORDS = {word: meaning for meaning, words in SAME_WORDS.items() for word in words}


def meaning_of_words(text: str) -> str | None:
    """The common form of a whole answer in words, if it has one.

    >>> meaning_of_words("No solutions."), meaning_of_words("Five"), meaning_of_words("Paris")
    ('\\\\emptyset', '5', None)
    """
    words = re.sub(r"[^\w\s]|_", "", text).strip().lower()
    words = re.sub(r"\s+", " ", words)
    if words in NUMBER_WORDS:
        return str(NUMBER_WORDS[words])
    return _BY_WORDS.get(words)


def normalised(text: str) -> str:
    r"""One plain form of LaTeX for the ways of writing above.

    >>> normalised(r"$\dfrac12$"), normalised("2²³"), normalised("１２"), normalised(r"5\text{ cm}^2")
    ('\\frac{1}{2}', '2^{23}', '12', '5 ‹cm› ^{2}')
    """
    text = _plain_characters(text)
    for rule in RULES[:_BEFORE_WORDS]:
        text = rule.apply(text)
    text = _unwrapped(text)
    for rule in RULES[_BEFORE_WORDS:]:
        text = _outside_words(rule, text)
    return re.sub(r"\s+", " ", text).strip()


_BEFORE_WORDS = next(i for i, rule in enumerate(RULES) if rule.pattern.startswith(r"\\(?:lvert"))


def _outside_words(rule: Rule, text: str) -> str:
    """The rule on what is not between `‹` and `›`."""
    if "‹" not in text:
        return rule.apply(text)
    pieces = re.split(r"(‹[^‹›]*›)", text)
    return "".join(piece if piece.startswith("‹") else rule.apply(piece) for piece in pieces)


def _plain_characters(text: str) -> str:
    text = re.sub(f"[{_SUPERSCRIPTS}]+", lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
    text = re.sub(f"[{_SUBSCRIPTS}]+", lambda m: "_{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
    text = re.sub(r"(\d?)\s*([¼-¾⅐-⅞])", _vulgar_fraction, text)
    text = "".join(CHARACTERS.get(char, char) for char in text)
    text = re.sub(f"[^{_ENCLOSED}]+", lambda m: unicodedata.normalize("NFKC", m[0]), text)
    text = "".join(CHARACTERS.get(char, char) for char in text)
    return "".join(
        str(unicodedata.digit(c)) if c.isdecimal() and not c.isascii() else c
        for c in text
        if unicodedata.category(c) not in ("Cf", "Co", "Cs")
    )


def _vulgar_fraction(match: re.Match[str]) -> str:
    over, under = unicodedata.normalize("NFKC", match[2]).split("\N{FRACTION SLASH}")
    return f"{match[1]} \\frac{{{over}}}{{{under}}}"


def _unwrapped(text: str) -> str:
    r"""Without commands of looks; words between `‹` and `›`."""
    for _ in range(20):  # nested ones, from the inside
        changed = _WRAPPER.sub(_unwrap, text)
        if changed == text:
            return text
        text = changed
    return text


_WRAPPER = re.compile(
    r"\\(?P<command>[a-zA-Z]+\*?)\s*\{(?P<inner>(?:[^{}\\]|\\[^{}]|\\[{}]|\{[^{}]*\}|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
)
_BARE_NUMBER = re.compile(r"\s*[-+]?[\d.,/:]*\d\s*|\s*[-+]?\d[\d.,/]*\s*%?\s*")
_CONNECTION = re.compile(r"(?i)\s*,?\s*(?:and|or)\s*,?\s*")
_CONNECTION_IN = re.compile(r"(?i)\s*,?\s+(and|or)\s+")


def _unwrap(match: re.Match[str]) -> str:
    command, inner = match["command"], match["inner"]
    if command in _LOOKS:
        return " " + inner + " " if inner.strip()[:1].isalnum() else inner
    if command not in _WORDS or "‹" in inner:
        return inner.replace("‹", " ").replace("›", " ") if command in _WORDS else match[0]
    if command.startswith(("operatorname", "mathrm")) and inner.strip() in _OPERATORS:
        return "\\" + inner.strip() + " "
    if _BARE_NUMBER.fullmatch(inner) or (command == "mathrm" and inner.strip() in ("e", "i")):
        return " " + inner + " "
    if _CONNECTION.fullmatch(inner):
        return f" ‹{'or' if 'or' in inner.lower() else 'and'}› "
    if re.search(r"\\|\d.*[+*/=^]|[<>=]", inner):  # mathematics in words
        return " " + inner + " "
    parts = [part.strip() for part in _CONNECTION_IN.split(inner)]
    words = [f" ‹{part}› " if i % 2 == 0 else f" ‹{part.lower()}› " for i, part in enumerate(parts) if part]
    return "".join(words) or " "
