from collections.abc import Iterator
from typing import Any

import pytest
from escapes import ESCAPES, NEXT_RESULT, Surroundings

from edge_grpo.errors import UserError
from edge_grpo.rewards.base import GRADING_COUNTS, WeightedRewards
from edge_grpo.rewards.reasoning_gym import ReasoningGymAccuracy, without_wrapper
from edge_grpo.types.problems import Problem

create_dataset = pytest.importorskip("reasoning_gym").create_dataset


@pytest.fixture(scope="module")
def accuracy() -> Iterator[ReasoningGymAccuracy]:
    accuracy = ReasoningGymAccuracy(workers=1, timeout_s=5.0)
    yield accuracy
    accuracy.close()


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Surroundings]:
    with Surroundings() as made:
        yield made


def problem(generator: str, entry: dict[str, Any]) -> Problem:
    return Problem(
        id=generator, question="?", answers=(), origin="gym:0", extra={"generator": generator, "entry": entry}
    )


# string_insertion gives 1 for its own answer and 0.1 for the same written as a Python list of characters
INSERTION = problem("string_insertion", {"question": "?", "answer": "AB", "metadata": {}})
SUM = problem("chain_sum", {"question": "4 - 1 - 7 =", "answer": "-4", "metadata": {}})


def test_scores_are_the_generators_own_and_keep_their_order(accuracy: ReasoningGymAccuracy) -> None:
    texts = [r"\boxed{AB}", r"\boxed{-4}", r"\boxed{['A', 'B']}", r"\boxed{4}", "-4", r"\boxed{" + "1" * 10_001 + "}"]
    problems = [INSERTION, SUM, INSERTION, SUM, SUM, SUM]
    assert accuracy(problems, texts).tolist() == pytest.approx([1.0, 1.0, 0.1, 0.0, 0.0, 0.0])


# An answer of each kind: a number, Yes or No, a sentence, a word, a list, several lines.
GENERATORS = (
    *("leg_counting", "syllogism", "knights_knaves", "letter_jumble", "number_sorting", "binary_matrix"),
    *("aiw", "decimal_arithmetic", "zebra_puzzles"),
)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("wrapper", [r"\text{%s}", r"\mathrm{%s}", "$%s$", r"$\textbf{ %s }$", r"\(%s\)", "%s"])
def test_a_right_answer_in_latex_is_right(accuracy: ReasoningGymAccuracy, generator: str, wrapper: str) -> None:
    entry = create_dataset(generator, size=1, seed=3)[0]
    assert accuracy([problem(generator, entry)], [rf"\boxed{{{wrapper % entry['answer']}}}"]).tolist() == [1.0]


def test_a_wrong_answer_in_latex_is_wrong(accuracy: ReasoningGymAccuracy) -> None:
    assert accuracy([SUM, SUM], [r"\boxed{\text{4}}", r"\boxed{$-5$}"]).tolist() == [0.0, 0.0]


def test_only_what_wraps_the_whole_answer_is_taken_off() -> None:
    kept = [r"\text{a} or \text{b}", "$1$ and $2$", r"\frac{1}{2}", r"5 \text{ cm}", r"\text{a", "", "$", r"\textit"]
    assert [without_wrapper(answer) for answer in kept] == kept
    assert without_wrapper(r"\text{\{a\} {b}}") == r"\{a\} {b}"
    assert without_wrapper("$$" + r"\mathbf{\text{7}}" + "$$") == "7"


def test_a_partial_score_is_not_right(accuracy: ReasoningGymAccuracy) -> None:
    scores = WeightedRewards({"accuracy": accuracy}, {"accuracy": 1.0})([INSERTION], [r"\boxed{['A', 'B']}"])
    assert scores.rewards.tolist() == pytest.approx([0.1])
    assert scores.correct.tolist() == [False]


@pytest.mark.parametrize("generator", ["binary_matrix", "string_insertion", "polynomial_multiplication", "countdown"])
@pytest.mark.parametrize(
    "escape", ["os.system", "fork_exec", "fork_exec, by gc", "ctypes", "open", "result that opens a file"]
)
def test_an_answer_that_the_scorer_evaluates_touches_nothing(
    accuracy: ReasoningGymAccuracy, surroundings: Surroundings, generator: str, escape: str
) -> None:
    row = problem(generator, {"question": "?", "answer": "1", "metadata": {"numbers": [1], "target": 1}})
    source = surroundings.source(next(attempt for attempt in ESCAPES if attempt.name == escape))
    assert accuracy([row], [rf"\boxed{{{source}}}"])[0] < 1.0
    assert surroundings.traces(None, NEXT_RESULT) == []


def test_the_scorer_of_binary_matrix_does_evaluate_the_answer(accuracy: ReasoningGymAccuracy) -> None:
    # Its score for the right matrix, written as Python instead of as text, is 0.1: else the attempts above attempt
    # nothing.
    matrix = problem("binary_matrix", {"question": "?", "answer": "0 1\n1 0", "metadata": {}})
    assert accuracy([matrix], [r"\boxed{[[abs(0), 1], [1, 0]]}"]).tolist() == pytest.approx([0.1])


def test_a_malformed_entry_scores_zero_and_is_counted(accuracy: ReasoningGymAccuracy) -> None:
    before = accuracy.counts["error"]
    assert accuracy([problem("chain_sum", {})], [r"\boxed{1}"]).tolist() == [0.0]
    assert accuracy.counts["error"] == before + 1


def test_problems_of_another_source_are_refused(accuracy: ReasoningGymAccuracy) -> None:
    with pytest.raises(UserError, match=r"gym:0.*no_such_generator"):
        accuracy([problem("no_such_generator", {})], [r"\boxed{1}"])
    with pytest.raises(UserError, match=r"data:1.*generator"):
        accuracy([Problem(id="p", question="?", answers=("1",), origin="data:1")], [r"\boxed{1}"])


def test_counts_and_ungradable_have_the_form_of_the_other_rewards(accuracy: ReasoningGymAccuracy) -> None:
    before = accuracy.counts
    accuracy([SUM, SUM, SUM], [r"\boxed{-4}", "-4", r"\boxed{" + "1" * 10_001 + "}"])
    assert set(before) == set(GRADING_COUNTS)
    assert {name: n - before[name] for name, n in accuracy.counts.items()} == {
        **{"total": 3, "fast": 2, "cached": 0, "unparsed": 2},
        **{"timeout": 0, "error": 0, "crash": 0},
    }
    plain = Problem(id="p", question="?", answers=("1",))
    assert accuracy.ungradable([SUM, plain, problem("no_such_generator", {})]) == [
        None,
        "reward=reasoning_gym needs problem.extra keys ['generator', 'entry']",
        "reasoning_gym has no generator named 'no_such_generator'",
    ]


def test_max_answer_chars_must_be_positive() -> None:
    with pytest.raises(UserError, match="max_answer_chars"):
        ReasoningGymAccuracy(max_answer_chars=-1)
