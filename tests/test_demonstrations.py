"""Demonstrations in a mixture of styles that changes from phase to phase."""

import re
from collections import Counter

import pytest

from edge_grpo.data.demonstrations import STYLES, DemonstrationDataModule
from edge_grpo.data.templates import ChatTemplate
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
WAIT = " Wait! Something is wrong here."
MIXTURE = {"asked": 0.1, "worked": 0.1, "repaired": 0.2, "guess": 0.5, "unboxed": 0.1}


def module(phases=None, **changes):
    settings = {
        "steps_template": ChatTemplate("Step by step.", "user"),
        "wait_phrase": WAIT,
        "guess_spread": 40,
        "template": ChatTemplate("", "user"),
        "train_count": 50,
        "held_out_count": 20,
        "min_terms": 2,
        "max_terms": 4,
        "max_operand": 99,
        "problem_seed": 0,
        "correctness_rates": None,
        "problems_per_iteration": 400,
        "max_prompt_tokens": 64,
        "max_correctness_rate": None,
        "check_references": False,
        "on_bad_row": "error",
        "seed": 0,
    }
    made = DemonstrationDataModule(phases or [{"iterations": 1, "styles": MIXTURE}], **(settings | changes))
    made.load_prepared(
        TOKENIZER,
        required_fields=frozenset({"answers", "solution"}),
        grade=lambda problems, texts: None,
        ungradable=lambda problems: [None] * len(problems),
    )
    return made


def only(style):
    """Demonstrations of one style."""
    return module([{"iterations": 1, "styles": {style: 1.0}}]).problems_at(0)


def value(question):
    """The answer, from the question alone."""
    total, *rest = re.findall(r"[+-]? ?\d+", question)
    return sum((int(term.replace(" ", "")) for term in rest), int(total))


def prompt(problem):
    return TOKENIZER.decode(problem.prompt_ids)


def boxed(text):
    return [int(x) for x in re.findall(r"\\boxed\{(\d+)\}", text)]


def test_a_worked_solution_ends_in_the_right_box():
    for problem in only("worked"):
        *lines, last = problem.solution.split("\n")
        assert last == f"\\boxed{{{value(problem.question)}}}"
        for line in lines:  # every step is true
            left, right = line.split(" = ")
            assert value(left) == int(right)
        assert prompt(problem) == f"<|user|>{problem.question}<|assistant|>"


def test_only_the_style_that_is_asked_for_steps_is_asked():
    for problem in only("asked")[:20]:
        assert prompt(problem) == f"<|user|>{problem.question}\nStep by step.<|assistant|>"
        assert boxed(problem.solution) == [value(problem.question)]


def test_guesses_are_wrong_but_near():
    for style in ("guess", "unboxed"):
        for problem in only(style):
            words = problem.solution.removeprefix("It is ").removesuffix(".")
            guess = boxed(problem.solution)[0] if style == "guess" else int(words)
            assert problem.solution == (f"\\boxed{{{guess}}}" if style == "guess" else f"It is {guess}.")
            assert 0 < abs(guess - value(problem.question)) <= 40
            assert guess >= 0
            assert problem.answers == (str(value(problem.question)),)  # the gold answer is the right one


def test_a_repair_is_a_wrong_box_the_phrase_and_the_worked_solution():
    for problem in only("repaired"):
        wrong, right = problem.solution.split(f"{WAIT}\n")
        assert boxed(wrong)[0] != value(problem.question)
        assert boxed(right) == [value(problem.question)]


def test_tokens_are_those_of_the_text():
    for problem in module().problems_at(0)[:20]:
        assert TOKENIZER.decode(problem.solution_ids) == problem.solution
        assert TOKENIZER.eos_token_id not in problem.solution_ids


def test_styles_come_in_their_shares():
    # 400 draws: the standard deviation of a share of 1/2 is 0.025, of 1/10 0.015; the seed is fixed.
    counts = Counter(problem.id for problem in module().problems_at(0))
    assert set(counts) == set(STYLES)
    for style, share in MIXTURE.items():
        assert counts[style] / 400 == pytest.approx(share, abs=0.06)


def test_phases_follow_each_other_and_the_last_one_stays():
    phases = [
        {"iterations": 2, "styles": {"worked": 1.0}},
        {"iterations": 1, "styles": {"guess": 1.0}},
        {"iterations": 1, "styles": {"unboxed": 1.0}},
    ]
    data = module(phases, problems_per_iteration=4)
    styles = [{problem.id for problem in data.problems_at(i)} for i in range(6)]
    assert styles == [{"worked"}, {"worked"}, {"guess"}, {"unboxed"}, {"unboxed"}, {"unboxed"}]


def test_no_question_of_the_sets_is_demonstrated():
    # A quarter of the chains of two numbers have one digit twice: few chains, often drawn, many of them reserved.
    data = module(min_terms=2, max_terms=2)
    reserved = {p.question for p in (*data.train_problems, *data.held_out_problems)}
    assert len(reserved) == 50 + 20
    assert not {problem.question for problem in data.problems_at(0)} & reserved
    data._reserved = set()  # the same draws would have met them
    assert {problem.question for problem in data.problems_at(0)} & reserved


def test_draws_follow_from_seed_iteration_and_rank_alone():
    data = module(problems_per_iteration=8)
    once, again = data.problems_at(3), module(problems_per_iteration=8).problems_at(3)
    assert once == again
    assert data.problems_at(4) != once
    assert module(problems_per_iteration=8, seed=1).problems_at(3) != once
    ranks = [data.problems_at(3, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(problems) for problems in ranks] == [4, 4]
    assert ranks[0] != ranks[1]


@pytest.mark.parametrize(
    "styles",
    [{"worked": 0.5}, {"worked": 0.5, "guess": 0.6}, {"worked": 0.5, "gess": 0.5}],
    ids=["low", "high", "name"],
)
def test_styles_that_are_no_mixture_are_refused(styles):
    with pytest.raises(UserError, match=r"data\.phases\[1\]\.styles=.*asked, worked, repaired, guess, unboxed"):
        module([{"iterations": 1, "styles": {"worked": 1.0}}, {"iterations": 1, "styles": styles}])
