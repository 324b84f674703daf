r"""Answers as people write them: `benchmarks/grading_pairs.jsonl` holds pairs of each kind and what is right."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_grpo.errors import UserError
from edge_grpo.rewards._grade import grade, is_readable
from edge_grpo.rewards.accuracy import Accuracy
from edge_grpo.rewards.answers.equality import equal
from edge_grpo.rewards.answers.options import options, with_options
from edge_grpo.rewards.answers.reading import read
from edge_grpo.rewards.answers.rules import RULES, normalised
from edge_grpo.rewards.boxed import final_answers
from edge_grpo.rewards.verifier import MathVerifier
from edge_grpo.types.problems import Problem

PAIRS = Path(__file__).resolve().parents[1] / "benchmarks" / "grading_pairs.jsonl"
CHOICE = "Which is it?\n(A) $\\frac{1}{2}$\n(B) $2$\n(C) red\n(D) none of these"


@pytest.fixture(scope="module")
def accuracy() -> Iterator[Accuracy]:
    """One for all tests: a worker imports for a second."""
    verifier = MathVerifier(workers=1)
    yield Accuracy(verifier)
    verifier.close()


def is_right(response: str, gold: str) -> bool:
    return any(grade((answer, (gold,), None)) == "right" for answer in final_answers(response))


def test_no_wrong_answer_is_called_right_and_hardly_any_right_one_wrong() -> None:
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    found = [(row["response"], row["gold"], row["right"], is_right(row["response"], row["gold"])) for row in rows]
    assert [pair for *pair, right, called in found if called and not right] == []
    missed = [pair for *pair, right, called in found if right and not called]
    assert len(missed) <= 4, missed
    assert sum(row["right"] for row in rows) > 400
    assert sum(not row["right"] for row in rows) > 200


def test_every_rule_does_what_its_example_says() -> None:
    assert [rule.example for rule in RULES if not rule.holds()] == []


@given(
    st.sampled_from([r"\foo{2}", r"\mid", r"\#", "@", r"\substack{1\\2}", "?", r"\bar", "2 |", "#"]),
    st.integers(2, 99),
)
def test_a_number_in_what_cannot_be_read_is_not_the_answer(unknown: str, value: int) -> None:
    for text in (f"{unknown} {value}", f"{value} {unknown}", f"{value} {unknown} {value + 1}"):
        assert not is_right(rf"\boxed{{{text}}}", str(value)), text
        assert grade((str(value), (text,), None)) != "right", text


@given(st.text(alphabet=st.sampled_from("0123456789xyABC+-*/^_(){}[]|,.:;=<>%$\\ dfrac&~'‹›有或°²")))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_and_equals_itself(text: str) -> None:
    value = read(text)
    assert equal(value, value)
    assert isinstance(is_readable(text), bool)


@given(st.text(alphabet=st.sampled_from("0123456789/.,-% ")), st.integers(1000, 9999))
@settings(max_examples=100, deadline=None)
def test_a_four_digit_number_is_not_right_without_its_digits(text: str, value: int) -> None:
    if str(value) not in text.replace(",", "").replace(" ", "") and not set(text) & set("/%."):
        assert grade((text, (str(value),), None)) != "right"


def test_decimals_are_exact_unless_a_tolerance_is_set(accuracy: Accuracy) -> None:
    close, far = r"\boxed{3.14}", r"\boxed{3.24}"
    problem = Problem("p", "?", (r"\pi",))
    assert accuracy([problem] * 2, [close, far]).tolist() == [0.0, 0.0]
    near = Accuracy(MathVerifier(workers=1, decimal_tolerance=0.01))
    assert near([problem] * 2, [close, far]).tolist() == [1.0, 0.0]
    # without a decimal there is nothing to forgive, and plain numbers take the same path
    assert near([problem], [r"\boxed{\frac{22}{7}}"]).tolist() == [0.0]
    assert near([Problem("p", "?", ("2.50",))] * 2, [r"\boxed{2.51}", r"\boxed{2.6}"]).tolist() == [1.0, 0.0]
    assert near([Problem("p", "?", ("100",))], [r"\boxed{101}"]).tolist() == [0.0]
    with pytest.raises(UserError, match="decimal_tolerance must lie between 0 and 1"):
        MathVerifier(decimal_tolerance=1.0)


def test_the_letter_and_the_text_of_an_option_are_one_answer(accuracy: Accuracy) -> None:
    assert list(options(CHOICE)) == ["A", "B", "C", "D"]
    assert with_options(CHOICE, ("B",)) == ("B", "2")
    letter, text = Problem("p", CHOICE, ("A",)), Problem("q", CHOICE, ("red",))
    answers = [r"\boxed{A}", r"\boxed{0.5}", r"\boxed{\text{(A)}}", r"\boxed{B}", r"\boxed{2}", r"\boxed{(B) \frac12}"]
    assert accuracy([letter] * 6, answers).tolist() == [1, 1, 1, 0, 0, 0]
    assert accuracy([text] * 3, [r"\boxed{\text{Red}}", r"\boxed{C}", r"\boxed{D}"]).tolist() == [1, 1, 0]
    alone = Problem("r", "Which point?", ("A",))
    assert accuracy([alone] * 2, [r"\boxed{A}", r"\boxed{0.5}"]).tolist() == [1, 0]


def test_the_boxes_of_a_list_are_one_answer_and_a_comparison_may_stand_outside(accuracy: Accuracy) -> None:
    both = r"so $x=\boxed{1}$, $y=\boxed{2}$"
    assert accuracy([Problem("p", "?", ("1, 2",)), Problem("q", "?", ("2",))], [both] * 2).tolist() == [1, 0]
    outside = r"so $n \ge \boxed{13}$"
    golds = [r"n \geq 13", "13", r"n \leq 13", "14"]
    problems = [Problem(gold, "?", (gold,)) for gold in golds]
    assert accuracy(problems, [outside] * 4).tolist() == [1, 1, 0, 0]
    assert accuracy.unparsed(problems, [outside] * 4) == [False] * 4


def test_normalising_is_done_once() -> None:
    for text in (r"$\dfrac12$", r"\text{5 cm}", r"1 \text{ and } 2", r"3\mathrm{i}", "2²³", r"\left(1,2\right)"):
        once = normalised(text)
        assert normalised(once) == once
