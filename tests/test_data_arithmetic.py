"""Generated chains."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edge_grpo.data.arithmetic import ArithmeticDataModule, chain
from edge_grpo.data.templates import TextTemplate
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import byte_tokenizer


def module(**changes: Any) -> ArithmeticDataModule:
    settings: dict[str, Any] = {
        "train_count": 600,
        "held_out_count": 100,
        "min_terms": 2,
        "max_terms": 4,
        "max_operand": 99,
        "problem_seed": 0,
        "correctness_rates": None,
        "template": TextTemplate("{question}"),
        "problems_per_iteration": 8,
        "max_prompt_tokens": 64,
        "max_correctness_rate": None,
        "check_references": False,
        "on_bad_row": "error",
        "seed": 0,
    }
    return ArithmeticDataModule(**(settings | changes))


def test_every_chain_adds_up() -> None:
    train, held_out = module().load()
    for problem in train + held_out:
        terms = problem.question.removesuffix(" = ?")
        assert re.fullmatch(r"\d+( [+-] \d+){1,3}", terms)
        assert problem.answers == (str(eval(terms)),)
        assert problem.solution is not None
        *steps, boxed = problem.solution.split("\n")
        assert boxed == f"\\boxed{{{problem.answers[0]}}}"
        # k terms take k - 1 steps, and each step's left side is worth its right side.
        assert len(steps) == len(re.findall(r" [+-] ", terms))
        for step in steps:
            left, right = step.split(" = ")
            assert eval(left) == int(right) >= 0


def test_no_question_occurs_twice_within_or_across_the_sets() -> None:
    train, held_out = module().load()
    questions = [p.question for p in train + held_out]
    assert len(train) == 600
    assert len(held_out) == 100
    assert len(set(questions)) == len(questions)


def test_neither_count_moves_the_other_problems() -> None:
    train, held_out = module().load()
    fewer, more = module(train_count=10, held_out_count=200).load()
    assert fewer == train[:10]
    assert more[:100] == held_out


def test_a_chain_has_each_number_of_terms_equally_often() -> None:
    rng = random.Random(0)
    counts = Counter(len(re.findall(r"\d+", chain(rng, 2, 4, 99)[0])) for _ in range(3000))
    # Uniform over 2, 3, 4: 1000 each, standard deviation sqrt(3000 * 1/3 * 2/3) = 26; five of them are 130.
    # Of single draws only: in a set without repeats two-term chains are rarer, because they repeat most.
    assert set(counts) == {2, 3, 4}
    assert all(abs(count - 1000) < 130 for count in counts.values())


def test_problems_follow_problem_seed_and_not_seed() -> None:
    assert module(seed=0).load() == module(seed=1).load()
    assert module(problem_seed=0).load() != module(problem_seed=1).load()


def test_rates_are_joined_by_question(tmp_path: Path) -> None:
    first = module().load()[0][0].question
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({first: 0.25}))
    train, _ = module(correctness_rates=str(path)).load()
    assert [p.correctness_rate for p in train[:2]] == [0.25, None]
    with pytest.raises(UserError, match=r"data\.correctness_rates=.*absent\.json: no such file"):
        module(correctness_rates=str(tmp_path / "absent.json")).load()
    refused = {b"[1, 2]": "holds list, expected an object", b"\xff": "not UTF-8 at byte 0", b"{": "json:1: not JSON"}
    for content, message in refused.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            module(correctness_rates=str(path)).load()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"min_terms": 1}, "min_terms=1"),
        ({"min_terms": 4, "max_terms": 3}, "max_terms=3"),
        ({"train_count": 0}, "train_count=0"),
        ({"held_out_count": 1025}, "held_out_count=1025"),
        # Two terms up to 9 make 9 * 9 + 45 questions: fewer than the held-out pool.
        ({"max_operand": 9}, "max_operand=9"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(changes: dict[str, int], key: str) -> None:
    with pytest.raises(UserError, match=f"data.{key}"):
        module(**changes)


def test_the_longest_prompt_fits_the_configured_budget() -> None:
    data = module()
    data.load_prepared(
        byte_tokenizer(),
        required_fields=frozenset({"answers", "solution"}),
        grade=lambda p, t: 1 / 0,
        ungradable=lambda problems: [None] * len(problems),
    )
    # Four two-digit terms, three " + " and " = ?": 8 + 9 + 4.
    assert max(len(p.prompt_ids) for p in data.train_problems) == 21
