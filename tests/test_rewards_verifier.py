import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_grpo.errors import UserError
from edge_grpo.rewards.verifier import MathVerifier

TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    verifier = MathVerifier(workers=2, timeout_s=TIMEOUT_S)
    yield verifier
    verifier.close()


EQUAL = [
    ("0.5", r"\frac{1}{2}"),
    ("1/2", r"\frac{1}{2}"),
    (r"\dfrac12", r"\frac{1}{2}"),
    ("1000", "1,000"),
    ("1{,}000", "1000"),
    ("12.0", "12"),
    (" 30\\% ", r"30 \%"),
    ("50%", r"50\%"),
    (r"\$18.90", "18.9"),
    ("$7$", "7"),
    (r"7 \text{ cm}", "7"),
    (r"90^\circ", "90"),
    ("x = 5", "5"),
    ("1 + x", "x+1"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("2^{10}", "1024"),
    (r"\{2, 1\}", r"\{1, 2\}"),
    ("(1,2)", "(1, 2)"),
    (r"\text{Even}", r"\text{even}"),
    (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]
UNEQUAL = [
    ("0.51", r"\frac{1}{2}"),
    ("1 2", "12"),  # a space between numbers separates
    ("(2, 1)", "(1, 2)"),
    ("(1, 2]", "(1, 2)"),
    ("7, 8", "7"),
    (r"7 \text{ or } 8", "7"),
    ("7$ or $8", "8"),  # its own dollars must not leave only the last piece
    (r"\text{odd}", r"\text{even}"),
    ("0.33", r"\frac{1}{3}"),
    ("-5", "5"),
    (r"\boxed", "5"),
]


def test_equal_answers_are_right(verifier: MathVerifier) -> None:
    verdicts = verifier([(answer, (gold,)) for answer, gold in EQUAL])
    assert [pair for pair, right in zip(EQUAL, verdicts, strict=True) if not right] == []


def test_unequal_answers_are_wrong(verifier: MathVerifier) -> None:
    verdicts = verifier([(answer, (gold,)) for answer, gold in UNEQUAL])
    assert [pair for pair, right in zip(UNEQUAL, verdicts, strict=True) if right] == []


def test_order_is_kept_and_any_gold_will_do(verifier: MathVerifier) -> None:
    golds = ("3", r"\frac{1}{2}")
    answers = [r"\sqrt{9}", "7", "0.5", None, "3", r"\frac{2}{4}", "x"]
    assert verifier([(a, golds) for a in answers]) == [True, False, True, False, True, True, False]


HOSTILE = [
    "__import__('os').system('touch {canary}')",
    r"\text{{__import__('os').system('touch {canary}')}}",
    "open('{canary}', 'w')",
    "9" * 2000,  # longer than max_answer_chars
    "{" * 100_000,
    "{" * 400,
    "5\0",
    "\0",
    r"\frac{1}{",
    r"\left( \right] }}}} \sqrt",
    r"\begin{pmatrix}",
    "\ud800",  # a lone surrogate does not encode
    r"\int_0^{10^{10}} e^{x^{x^{x}}} dx",
]


def test_hostile_answers_are_wrong_and_touch_nothing(verifier: MathVerifier, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    answers = [text.replace("{canary}", str(canary)) for text in HOSTILE]
    start = time.perf_counter()
    assert verifier([(answer, ("42",)) for answer in answers]) == [False] * len(answers)
    assert time.perf_counter() - start < 3 * TIMEOUT_S
    assert not canary.exists()


@pytest.mark.parametrize("answer", ["10**10**10", "10^{10^{10}}", "9^{9^{9^9}}"])
def test_towers_of_powers_end_within_the_limit(verifier: MathVerifier, answer: str) -> None:
    start = time.perf_counter()
    assert verifier([(answer, ("42",)), (r"\sqrt{1764}", ("42",))]) == [False, True]
    assert time.perf_counter() - start < 2 * TIMEOUT_S + 1.0


def test_a_time_out_is_wrong_counted_and_not_remembered() -> None:
    verifier = MathVerifier(workers=1, timeout_s=0.5)
    for calls in (1, 2):
        assert verifier([("10^{10^{10}}", ("42",))]) == [False]
        assert verifier.counts == {"total": calls, "fast": 0, "cached": 0, "timeout": calls, "error": 0}
    verifier.close()


def test_counts_tell_fast_cached_and_graded_apart(verifier: MathVerifier) -> None:
    before = verifier.counts
    pair = (r"\frac{6}{4}", ("1.5",))
    # four fast ones (same text, number, none, too long); of three equal hard pairs two are cached
    fast = [("7", ("7",)), ("8.0", ("7", "8")), (None, ("7",)), ("x" * 1001, ("7",))]
    assert verifier([*fast, pair, pair]) == [True, True, False, False, True, True]
    assert verifier([pair]) == [True]
    after = verifier.counts
    assert {k: after[k] - before[k] for k in after} == {"total": 7, "fast": 4, "cached": 2, "timeout": 0, "error": 0}


def test_works_off_the_main_thread(verifier: MathVerifier) -> None:
    with ThreadPoolExecutor(2) as threads:
        verdicts = threads.map(verifier, [[(r"\frac{8}{2}", ("4",))], [(r"\frac{9}{2}", ("4",))]])
        assert list(verdicts) == [[True], [False]]


@given(st.integers(), st.integers(min_value=-(10**9), max_value=10**9))
def test_integers_are_decided_exactly_and_without_a_worker(a: int, b: int) -> None:
    verifier = MathVerifier(workers=1)
    bounded = a % 10**29
    assert verifier([(f"{bounded:,}" if bounded < 10**27 else str(bounded), (str(bounded),))]) == [True]
    assert verifier([(str(bounded), (str(b),))]) == [bounded == b]
    assert verifier.counts["fast"] == 2


def test_max_answer_chars_must_be_positive() -> None:
    with pytest.raises(UserError, match="max_answer_chars"):
        MathVerifier(max_answer_chars=0)
