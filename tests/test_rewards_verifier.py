import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
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
    ("\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    # mixed numbers
    (r"3\frac{1}{2}", r"\frac{7}{2}"),
    (r"3\frac12", "3.5"),
    ("3 1/2", "7/2"),
    (r"-3 \tfrac{1}{2}", "-3.5"),
    (r"\frac{9}{5}", r"1\frac{4}{5}"),  # a gold answer of MATH-500
    # units and \text
    (r"5 \text{ cm}^2", "5"),
    (r"5 \mathrm{~m} / \mathrm{s}", "5"),
    ("5 kg", "5"),
    (r"\text{5}", "5"),
    (r"\text{(B)}", "B"),
    (r"\text{no solution}", "no solution"),
    # percentages: of a hundred or as printed
    (r"62.5\%", "62.5%"),
    (r"12\frac{1}{2}\%", "12.5%"),
    ("0.08", r"8 \%"),
    ("8", r"8 \%"),
    # powers of ten as Minerva writes them, thousands
    (r"3.3 \times 10^{12}", "3.3e12"),
    ("0.00001", "1e-5"),
    (r"3.89 \cdot 10^{-10}", "3.89e-10"),
    (r"10\,000", "10000"),
    (r"1{,}234{,}567", "1234567"),
    # intervals, tuples, sets
    (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)"),
    (r"x \in [1, 2]", "[1,2]"),
    ("[1, 2]", r"1 \le x \le 2"),
    (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"(\frac{2}{2}, 4)", "(1, 4)"),
    ("2, 1", "1,2"),
    (r"1 \text{ and } 2", r"\{1, 2\}"),
    (r"\pm 3", "3,-3"),
    # OlympiadBench: several values in one gold, its dollars kept
    (r"\frac{\pi}{4}, \frac{\pi}{6}", r"$\frac{1}{6} \pi, \frac{1}{4} \pi$"),
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
    ("3 1/2", "2"),
    (r"3\frac{1}{2}", r"\frac{3}{2}"),
    (r"12\frac{1}{2}\%", "12"),
    ("80%", "8%"),
    ("11", "1e11"),  # not 11 * e
    ("0.0", "3.89e-10"),  # nor equal to six places
    ("0.0000001", "0.0000002"),
    (r"2 \cdot 10^{-7}", "0.0000001"),
    ("(1, 2)", "[1, 2]"),
    ("(1, 2)", "(1, 2, 3)"),
    ("1, 2", "1, 2, 3"),
    (r"\{1, 2, 3, 4, 5\}", "5"),  # all that it could be
    (r"\pm 5", "5"),
    (r"\mathbb{R}", "5"),
    (r"\frac{0}{0}", "0"),
    (r"\text{(A)}", "B"),
    ("5<6", "5"),
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


def test_either_of_two_spellings_of_a_gold_will_do(verifier: MathVerifier) -> None:
    golds = (r"\ln 2 + i\frac{\pi}{3}", r"\ln 2 + \frac{i\pi}{3}")  # one problem of Minerva
    answers = [r"\frac{\pi i}{3} + \ln 2", golds[1], r"\ln 2"]
    assert verifier([(answer, golds) for answer in answers]) == [True, True, False]


def test_unparsed_answers_are_counted_each_time_they_are_used(verifier: MathVerifier) -> None:
    before = verifier.counts
    answers = ["(1,", r"\input{x}", "(1,", None, "x" * 1001, r"\frac{1}{3}", "7"]
    for _ in range(2):
        assert verifier([(answer, ("42",)) for answer in answers]) == [False] * 7
    # twice five of seven, and of the 4 + 4 that need a worker all but three gradings come from memory
    after = verifier.counts
    assert after["unparsed"] - before["unparsed"] == 10
    assert after["cached"] - before["cached"] == 5
    # an answer in mere characters can still be the gold answer's text
    assert verifier([("E_1 , E_2", ("E_{1},E_{2}", "E_1, E_2"))]) == [True]


def test_unreadable_golds() -> None:
    verifier = MathVerifier(workers=1, timeout_s=0.5)
    golds = ["5", "(1,", r"\frac{1}{2}", "", "(1,", r"\text{north}", "1,000"]
    assert verifier.unreadable(golds) == [False, True, False, True, True, True, False]
    assert verifier.unreadable([]) == []
    verifier.close()


def test_the_cache_survives_a_checkpoint_with_its_order(
    verifier: MathVerifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(f"{row}/2", ("0.5", "x")) for row in range(1, 5)]
    verdicts = verifier(pairs)
    assert verifier(pairs[:1]) == [True]  # so the second is the one used longest ago
    torch.save(verifier.state_dict(), tmp_path / "state")
    resumed = MathVerifier(workers=1)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert resumed.state_dict() == verifier.state_dict()
    assert resumed(pairs) == verdicts
    assert resumed.counts["cached"] == 4  # no worker was started
    kept = [(answer, golds) for (answer, golds), _ in verifier.state_dict()["cache"]]
    assert kept[-4:] == [*pairs[1:], pairs[0]]
    monkeypatch.setattr("edge_grpo.rewards.verifier._CACHE_SIZE", 2)
    resumed.load_state_dict(verifier.state_dict())
    resumed([pairs[1]])
    assert [key for key, _ in resumed.state_dict()["cache"]] == [pairs[0], pairs[1]]


def test_the_state_of_a_full_cache_is_taken_in_milliseconds() -> None:
    verifier = MathVerifier()
    verifier.load_state_dict({"cache": [((rf"\frac{{{row}}}{{7}}", ("1",)), "wrong") for row in range(50_000)]})
    seconds = []
    for _ in range(5):
        start = time.thread_time()
        state = verifier.state_dict()
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.05  # measured 0.002 s
    assert len(state["cache"]) == 50_000


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
        assert verifier.counts == {
            **{"total": calls, "fast": 0, "cached": 0, "unparsed": 0},
            **{"timeout": calls, "error": 0, "crash": 0},
        }
    verifier.close()


def test_counts_tell_fast_cached_and_graded_apart(verifier: MathVerifier) -> None:
    before = verifier.counts
    pair = (r"\frac{6}{4}", ("1.5",))
    # four fast ones (same text, number, none, too long); of three equal hard pairs two are cached
    fast = [("7", ("7",)), ("8.0", ("7", "8")), (None, ("7",)), ("x" * 1001, ("7",))]
    assert verifier([*fast, pair, pair]) == [True, True, False, False, True, True]
    assert verifier([pair]) == [True]
    after = verifier.counts
    assert {k: after[k] - before[k] for k in after} == {
        **{"total": 7, "fast": 4, "cached": 2, "unparsed": 2},
        **{"timeout": 0, "error": 0, "crash": 0},
    }


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


def test_what_is_known_needs_no_worker_and_no_second_grading(verifier: MathVerifier) -> None:
    pairs = [(r"\frac{12}{24}", ("0.5",)), (")(", ("0.5",)), ("3", ("4",)), (None, ("4",))]
    assert verifier.known(pairs) == [None, None, "wrong", "unparsed"]
    verifier(pairs)
    before = verifier.counts
    assert verifier.known(pairs) == ["right", "unparsed", "wrong", "unparsed"]
    assert verifier.counts == before


def test_a_reply_that_is_no_verdict_is_wrong_counted_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        MathVerifier, "_grade", staticmethod(repr)
    )  # as a process that its answer took over could reply
    verifier = MathVerifier(workers=1)
    assert verifier([(r"\frac{1}{2}", ("0.5",))]) == [False]
    assert verifier.counts["error"] == 1
    assert verifier.known([(r"\frac{1}{2}", ("0.5",))]) == [None]
    verifier.close()


def test_the_question_is_no_answer_where_plain_numbers_are_asked_for(verifier: MathVerifier) -> None:
    pairs = [(answer, ("13",)) for answer in ("5 + 8", "26/2", "13 km", " 13.0 ", "+13", "12")]
    assert verifier(pairs) == [True, True, True, True, True, False]
    plain = MathVerifier(workers=1, plain_numbers=True)
    assert plain(pairs) == [False, False, False, True, True, False]
    assert plain.counts["fast"] == 6, "no worker is asked"
    # a gold answer that is no plain number has no plain answer
    assert plain([("2/4", (r"\frac{1}{2}",)), ("5 + 8", ("13", "x"))]) == [True, True]
    plain.close()
