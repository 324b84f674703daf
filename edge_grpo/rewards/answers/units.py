r"""Units of answers: `5 km/h`, `$5`, `5 square feet`, `5 apples`.

A unit is a SymPy expression, so that `100 cm` is `1 m` and `5 m` is not `5 cm`. A noun that is no unit of measurement
is a symbol of its own: `5 apples` are not `5 oranges`.
"""

import re
from functools import cache

import sympy
from sympy import Expr, Integer, Rational, Symbol

_DOLLAR, _POUND, _EURO, _YUAN, _RUPEE, _YEN = (
    Symbol(f"currency {n}") for n in ("dollar", "pound", "euro", "yuan", "rupee", "yen")
)
DEGREE = Symbol("degree")
CELSIUS, FAHRENHEIT = Symbol("celsius"), Symbol("fahrenheit")


@cache
def _units() -> dict[str, Expr]:
    """Name -> unit. SymPy's units take 0.2 s to load, and the process that trains grades nothing itself."""
    from sympy.physics import units as u

    return {
        name: unit
        for names, unit in {
            "m|meter|metre|米": u.meter, "cm|centimeter|centimetre|厘米": u.centimeter,
            "mm|millimeter|毫米": u.millimeter,
            "km|kilometer|kilometre|公里|千米": u.kilometer, "dm|decimeter|分米": u.meter / 10,
            "in|inch|inche": u.inch, "ft|foot|feet": u.foot, "yd|yard": u.yard, "mi|mile": u.mile,
            "g|gram|克": u.gram, "kg|kilogram|千克|公斤": u.kilogram, "mg|milligram": u.milligram, "lb|pound": u.pound,
            "oz|ounce": u.pound / 16, "ton|tonne|吨": 1000 * u.kilogram,
            "s|sec|second|秒": u.second, "min|minute|分钟": u.minute, "h|hr|hour|小时|时": u.hour, "day|天|日": u.day,
            "week|周|星期": 7 * u.day, "yr|year|年": Symbol("year"), "month|月|个月": Symbol("month"),
            "l|L|liter|litre|升": u.liter, "ml|mL|milliliter|毫升": u.liter / 1000, "gal|gallon": Symbol("gallon"),
            "acre": Symbol("acre"), "hectare": 10000 * u.meter**2, "mph": u.mile / u.hour, "kmph": u.kilometer / u.hour,
            "cc": u.centimeter**3, "sqft": u.foot**2,
            "degree|deg|度": DEGREE, "radian|rad": Symbol("radian"),
            "dollar|USD|usd|buck|美元": _DOLLAR, "cent|¢|美分": _DOLLAR / 100, "pence|penny": _POUND / 100,
            "euro|欧元": _EURO,
            "yuan|元|RMB|块": _YUAN, "rupee|Rs|rs|INR": _RUPEE, "yen|日元": _YEN,
            "cal|calorie": Symbol("calorie"), "kcal|kilocalorie": 1000 * Symbol("calorie"),
            "eV": Symbol("electronvolt"),
            "kJ": 1000 * u.joule, "kW": 1000 * u.watt, "mol|mole": Symbol("mole"),
            "N|newton": u.newton, "J|joule": u.joule, "W|watt": u.watt, "Hz|hertz": u.hertz, "Pa|pascal": u.pascal,
            "V|volt": u.volt, "ohm": u.ohm, "K|kelvin": u.kelvin,
        }.items()
        for name in names.split("|")
    }  # fmt: skip


CURRENCY_SIGNS = {r"\$": _DOLLAR, "€": _EURO, "£": _POUND, "¥": _YUAN, "₹": _RUPEE}
"""what stands before an amount"""

_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3}
_SHORT_NOUN_TEXT = """
    men boy cat dog cow hen egg cup box bag car bus pen toy day way row ant bee pig km kg cm mm ft pie can jar
    bun nut fox rat bat bar tie job hat set bit tip key 人 个 只 本 张 次 种 块 条 支 名 棵 件 页 辆 位 桶 枚 颗
"""
_SHORT_NOUNS = frozenset(_SHORT_NOUN_TEXT.split())
_NO_NOUN_TEXT = """
    plus minus over squared cubed factorial root half halves third thirds fourth quarter quarters hundred
    thousand million billion trillion dozen percent negative positive infinity not wrong less more least most
    than or and if when where else otherwise mod base choose sin cos tan log exp sqrt for all any some none true
    false yes no is are was with without except divided by fifth fifths sixth sixths tenth tenths pi theta alpha
    beta incorrect divides greater smaller below above under up to at between through until
"""
_NO_NOUN = frozenset(_NO_NOUN_TEXT.split())
_IGNORED_TEXT = """
    approximately approx about exactly total altogether away only respectively
"""
_IGNORED = frozenset(_IGNORED_TEXT.split())
_MAX_WORDS = 4


def unit_of(words: str, *, in_text: bool) -> Expr | None:
    """The unit that the words name; 1 if they name none (`approximately`), None if they are no unit.

    Args:
        words: what stands behind a number, such as `km/h`, `square feet`, `apples`, `m^2`.
        in_text: whether it stood in `\\text` or the like. If not, only units and nouns of four letters and more
            count, because `5 abc` is a product.

    >>> unit_of("square feet", in_text=False), unit_of("km/h", in_text=False), unit_of("eggs", in_text=False)
    (foot**2, kilometer/hour, egg)
    >>> unit_of("x", in_text=False), unit_of("or more", in_text=True), unit_of("(approximately)", in_text=True)
    (None, None, 1)
    """
    text = re.sub(r"[()‹›]|(?<=[a-zA-Z])\.(?=\s|$)|\\cdot(?![a-zA-Z])|\s+(?=\^)|[{}]", "", words).strip()
    if not text or re.search(r"[^\w\s/^·\-'¢]", text) or re.search(r"(?<!\^)(?<!\^-)\d", text):
        return None
    over, *under = re.split(r"\s*/\s*|\s+per\s+|每", f" {text}")
    if len(under) > 1:
        return None
    unit = _product(over, in_text=in_text) if over.strip() else Integer(1)
    if not under or unit is None:
        return unit
    per = _product(under[0], in_text=in_text)
    return None if per is None else unit / per


def _product(text: str, *, in_text: bool) -> Expr | None:
    words = re.sub(r"(?<=[a-zA-Z])-(?=[a-zA-Z])|·", " ", text).split()
    if not words or len(words) > _MAX_WORDS + 2:
        return None
    unit: Expr = Integer(1)
    power = 1
    nouns: list[str] = []
    for word in words:
        if match := re.fullmatch(r"(平方|立方)(.+)", word):
            power, word = _POWERS[match[1]], match[2]
        name, exponent = (re.fullmatch(r"(.+?)\^(-?\d+)", word) or re.fullmatch(r"(.+)()", word)).groups()  # type: ignore[union-attr]
        if name.lower() in _IGNORED:
            continue
        if name.lower() in ("squared", "cubed") and unit != 1:
            unit = unit ** (2 if name.lower() == "squared" else 3)
            continue
        if re.fullmatch("units?", name.lower()):
            continue
        if name.lower() in _POWERS:
            power = _POWERS[name.lower()]
            continue
        known = _known(name)
        if known is not None and not (nouns and len(name) <= 2):
            unit, power = unit * known ** (power * int(exponent or 1)), 1
        elif not exponent and _is_noun(name, in_text=in_text):
            nouns.append(_singular(name.lower()) if len(name) > 3 else _singular(name))
        else:
            return None
    if len(nouns) > _MAX_WORDS:
        return None
    if power != 1:  # square units
        return Symbol(f"unit^{power}") if unit == 1 and not nouns and "unit" in text else None
    return unit * Symbol(" ".join(nouns)) if nouns else unit


def _known(name: str) -> Expr | None:
    for candidate in (name, name.lower() if len(name) > 2 else name):
        for form in (candidate, candidate.removesuffix("s") if len(candidate) > 2 else candidate):
            if form in _units():
                return _units()[form]
    return None


def _is_noun(word: str, *, in_text: bool) -> bool:
    if word.lower() in _NO_NOUN or not re.fullmatch(r"[A-Za-z'一-鿿]+", word):
        return False
    if re.fullmatch(r"[一-鿿]+", word):
        return len(word) <= 4 and not re.search(r"[或和与且不无]", word)
    if in_text:
        return len(word) > 1
    return (len(word) >= 4 and word.islower()) or word in _SHORT_NOUNS


def _singular(word: str) -> str:
    """
    >>> [_singular(word) for word in ("apples", "boxes", "children", "class")]
    ['apple', 'box', 'child', 'class']
    """
    irregular = {"children": "child", "people": "person", "men": "man", "women": "woman", "feet": "foot"}
    if word in irregular:
        return irregular[word]
    if word.endswith(("xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def ratio(of: Expr, to: Expr) -> Expr | None:
    """How many of the second unit the first one is; None if they measure different things.

    >>> from sympy.physics.units import centimeter, meter, second
    >>> ratio(meter, centimeter), ratio(meter, second)
    (100, None)
    """
    from sympy.physics import units as u

    value = sympy.nsimplify(u.convert_to(of / to, [u.meter, u.kilogram, u.second]), rational=True)
    if value.free_symbols or value.has(u.Quantity):
        return None
    return Rational(value) if value.is_Rational else value
