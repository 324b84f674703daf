r"""Seeded completions for `verifier.py`: ordinary answers whose truth is known, and hostile ones.

Every kind is a function of a `random.Random`. An ordinary one gives a right answer, a wrong answer and the gold
answers; a hostile one gives a whole completion to a problem whose gold answer is 42, and is never right. `CANARY` in a
hostile text stands for a file that only executed code could make.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from random import Random

CANARY = "@canary@"
SLOW_SHARE = 0.02  # of all completions; each is meant to cost a time-out

Ordinary = Callable[[Random], tuple[str, str, tuple[str, ...]]]


@dataclass(frozen=True)
class Completion:
    """One response and what is known of it."""

    kind: str
    text: str
    golds: tuple[str, ...]
    is_hostile: bool
    is_right: bool


def completions(n: int, seed: int) -> list[Completion]:
    """n completions, half of them ordinary (half of these right), in random order."""
    rng = Random(seed)
    made = [_ordinary(rng) for _ in range(n // 2)]
    slow = round(SLOW_SHARE * n)
    kinds = [(SLOW, slow), (HOSTILE, n - len(made) - slow)]
    for table, count in kinds:
        for _ in range(count):
            kind = rng.choice(list(table))
            made.append(Completion(kind, table[kind](rng), ("42",), is_hostile=True, is_right=False))
    rng.shuffle(made)
    return made


def _ordinary(rng: Random) -> Completion:
    kind = rng.choice(list(ORDINARY))
    right, wrong, golds = ORDINARY[kind](rng)
    is_right = rng.random() < 0.5
    text = f"Thus we find \\boxed{{{right if is_right else wrong}}}."
    return Completion(kind, text, golds, is_hostile=False, is_right=is_right)


def _fraction(rng: Random) -> Fraction:
    return Fraction(2 * rng.randint(1, 400) + 1, 2 ** rng.randint(1, 4))


def _tex(value: Fraction, factor: int = 1) -> str:
    return rf"\frac{{{value.numerator * factor}}}{{{value.denominator * factor}}}"


def _integer(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    n = rng.randint(-999, 10**7)
    return f"{n:,}", f"{n + 1}", (str(n),)


def _decimal(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    value = _fraction(rng)
    return str(float(value)), str(float(value) + 0.01), (_tex(value),)


def _unreduced(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    value = _fraction(rng)
    return _tex(value, rng.randint(2, 9)), _tex(value + 1), (_tex(value),)


def _mixed(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    value = 1 + _fraction(rng)
    whole = int(value)
    tail = value - whole
    return f"{whole}{_tex(tail)}", f"{whole + 1}{_tex(tail)}", (_tex(value),)


def _mixed_plain(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    value = 1 + _fraction(rng)
    whole = int(value)
    return f"{whole} {value - whole}", f"{whole + 2} {value - whole}", (str(value),)


def _surd(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    a, b = rng.randint(2, 30), rng.choice([2, 3, 5, 6, 7, 10])
    return rf"{a}\sqrt{{{b}}}", rf"{a + 1}\sqrt{{{b}}}", (rf"\sqrt{{{a * a * b}}}",)


def _polynomial(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    return f"x^2 + {a + b}x + {a * b}", f"x^2 + {a + b + 1}x + {a * b}", (f"(x+{a})(x+{b})",)


def _percentage(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    n = rng.randint(1, 999) / 10
    return rf"{n}\%", rf"{n + 1:.1f}\%", (f"{n}%",)


def _unit(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    n, unit = rng.randint(2, 500), rng.choice([r"\text{ cm}^2", r"\text{ hours}", r"\,\mathrm{kg}", r"^\circ"])
    return f"{n}{unit}", f"{n + 1}{unit}", (str(n),)


def _pair(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    a, b = _fraction(rng), rng.randint(-50, 50)
    return rf"({float(a)}, {b})", rf"({b}, {float(a)})", (rf"\left( {_tex(a)}, {b} \right)",)


def _solutions(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    a, b, c = rng.sample(range(-40, 40), 3)
    return f"{c}, {a}, {b}", f"{a}, {b}", (f"${a}, {b}, {c}$",)


def _interval(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    a = rng.randint(-20, 20)
    b = a + rng.randint(1, 9)
    return (
        rf"({a},{b}] \cup [{b + 2}, \infty)",
        rf"({a},{b}) \cup [{b + 2}, \infty)",
        (rf"({a}, {b}]\cup[{b + 2},\infty)",),
    )


def _word(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    right, wrong = rng.sample(["Monday", "even", "no solution", "hyperbola", "Evelyn", "(C)"], 2)
    return rf"\text{{{right}}}", rf"\text{{{wrong}}}", (rf"\text{{{right}}}" if rng.random() < 0.5 else right,)


def _matrix(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    a, b = rng.sample(range(100), 2)
    rows = "\\begin{{{0}}}\n{1} \\\\\n{2}\n\\end{{{0}}}"
    return rows.format("bmatrix", a, b), rows.format("bmatrix", b, a), (rows.format("pmatrix", a, b),)


def _scientific(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    mantissa, power = rng.randint(11, 99) / 10, rng.choice([-10, -5, 7, 12, 33])
    return rf"{mantissa} \times 10^{{{power}}}", rf"{mantissa} \times 10^{{{power + 1}}}", (f"{mantissa}e{power}",)


def _two_golds(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    a, b = rng.sample(range(2, 50), 2)
    golds = (rf"\ln {a} + \frac{{i\pi}}{{{b}}}", rf"\ln {a} + i\frac{{\pi}}{{{b}}}")
    return rf"\frac{{\pi i}}{{{b}}} + \ln {a}", rf"\ln {a} - \frac{{i\pi}}{{{b}}}", golds


ORDINARY: dict[str, Ordinary] = {
    "integer": _integer,
    "decimal": _decimal,
    "unreduced": _unreduced,
    "mixed number": _mixed,
    "mixed, plain": _mixed_plain,
    "surd": _surd,
    "polynomial": _polynomial,
    "percentage": _percentage,
    "unit": _unit,
    "pair": _pair,
    "solutions": _solutions,
    "interval": _interval,
    "word": _word,
    "matrix": _matrix,
    "scientific": _scientific,
    "two golds": _two_golds,
}


def _soup(rng: Random) -> str:
    parts = ["\\frac", "{", "}", "\\sqrt", "^", "_", "\\left(", "\\right]", "5", "x", "&", "\\\\", "$", "%", "\\text{"]
    return "\\boxed{" + "".join(rng.choices(parts, k=rng.randint(5, 60))) + "}"


def _characters(rng: Random) -> str:
    points = rng.choices([*range(0x20), *range(0x7F, 0x100), 0x202E, 0xFEFF, 0x1D7D8, 0xD800], k=rng.randint(1, 200))
    return "\\boxed{" + "".join(map(chr, points)) + "}"


_CALL = "__import__('os').system('touch " + CANARY + "')"

HOSTILE: dict[str, Callable[[Random], str]] = {
    "system call": lambda r: rf"\boxed{{{r.randint(43, 99)} + {_CALL}}}",
    "call in text": lambda r: rf"\boxed{{\text{{{_CALL} {r.random()}}}}}",
    "call in a lambda": lambda r: rf"\boxed{{(lambda x{r.randint(0, 99)}: open('{CANARY}', 'w'))(0)}}",
    "call by subclass": lambda r: (
        rf"\boxed{{().__class__.__base__.__subclasses__()[{r.randint(0, 300)}]('touch {CANARY}', shell=True)}}"
    ),
    "file by TeX": lambda r: rf"\boxed{{\{r.choice(['input', 'include'])}{{/etc/passwd}}}}",
    "shell by TeX": lambda r: rf"\boxed{{\immediate\write18{{touch {CANARY}}} {r.randint(43, 99)}}}",
    "100 kB of braces": lambda r: r.choice(["\\boxed{" + "{" * 50_000 + "}" * 50_001, "\\boxed{" * 14_000]),
    "10,000 boxes": lambda r: rf"\boxed{{{r.randint(100, 999)}}} " * 10_000,
    "null bytes": lambda r: "\\boxed{" + "\0".join(str(r.randint(50, 99)) for _ in range(r.randint(2, 9))) + "}",
    "unbalanced": lambda r: rf"\boxed{{\frac{{{r.randint(1, 9)}}}{{\left[ \sqrt \}} \right)}}",
    "right to left": lambda r: f"\\boxed{{\u202e{r.randint(100, 999)}24\u200f}}",
    "long number": lambda r: "\\boxed{" + str(r.randint(2, 9)) * r.randint(500, 5000) + "}",
    "every number": lambda r: "\\boxed{" + ", ".join(map(str, range(r.randint(0, 40), 44))) + "}",
    "no box": lambda r: f"the answer is {r.randint(43, 99)}",
    "soup": _soup,
    "characters": _characters,
}

SLOW: dict[str, Callable[[Random], str]] = {
    "tower": lambda r: rf"\boxed{{{r.randint(2, 99)}^{{10^{{{r.randint(9, 12)}}}}}}}",
    "python power": lambda r: f"\\boxed{{(10**10**{r.randint(10, 99)})}}",
    "factorial": lambda r: rf"\boxed{{{r.randint(10**10, 10**11)}!}}",
    "power of a sum": lambda r: rf"\boxed{{({r.randint(2, 9)}+x)^{{{r.randint(10**5, 10**6)}}}}}",
    "nested": lambda r: "\\boxed{" + "(" * 400 + str(r.randint(1, 9**9)) + ")" * 400 + "}",
    "nested fractions": lambda r: "\\boxed{" + r"\frac{1}{" * 90 + str(r.randint(1, 9**9)) + "}" * 91,
    "long sum": lambda r: rf"\boxed{{\sum_{{k=1}}^{{{r.randint(10**8, 10**9)}}} k!}}",
}
