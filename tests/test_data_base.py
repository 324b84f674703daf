"""The data stage's checks and its stateless order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from edge_grpo.data.base import ProblemDataModule
from edge_grpo.data.templates import ChatTemplate, TextTemplate
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.programs.train_reports import report_data
from edge_grpo.types.problems import Problem, ProblemBatch, Turn

NEEDS_SOLUTION = frozenset({"answers", "solution"})
NEEDS_ANSWER = frozenset({"answers"})
READ = "this arm reads it (correction=none and correction=forced_reflection do not)"
WAY_OUT = "; mend it, or data.on_bad_row=skip leaves it out"


class Given(ProblemDataModule):
    """The problems it was given, the last one held out."""

    def __init__(self, problems: list[Problem], **shared: Any) -> None:
        defaults: dict[str, Any] = {
            "template": TextTemplate("Q: {question}\n"),
            "problems_per_iteration": 4,
            "max_prompt_tokens": 32,
            "max_correctness_rate": None,
            "check_references": True,
            "on_bad_row": "error",
            "seed": 0,
        }
        super().__init__(**(defaults | shared))
        self.problems = problems

    def load(self) -> tuple[list[Problem], list[Problem]]:
        return self.problems[:-1], self.problems[-1:]


def problems(count: int) -> list[Problem]:
    return [
        Problem(
            id=f"p{i}",
            question=f"{i} + {i}",
            answers=(str(2 * i),),
            solution=f"\\boxed{{{2 * i}}}",
            correctness_rate=i / 8,
            origin=f"f.json:{i + 1}",
        )
        for i in range(count)
    ]


def all_right(graded: Sequence[Problem], texts: Sequence[str]) -> torch.Tensor:
    return torch.ones(len(graded), dtype=torch.bool)


def no_complaint(asked: Sequence[Problem]) -> list[str | None]:
    return [None] * len(asked)


def loaded(
    data: ProblemDataModule,
    required: frozenset[str] = NEEDS_ANSWER,
    grade: Any = all_right,
    ungradable: Any = no_complaint,
) -> Any:
    data.load_prepared(byte_tokenizer(), required_fields=required, grade=grade, ungradable=ungradable)
    return data


def check_bad_row(given: list[Problem], message: str, ids: list[str], *how: Any, **settings: Any) -> None:
    """Refused with this message under error; under skip the other rows are left, and the message is reported."""
    with pytest.raises(UserError) as refused:
        loaded(Given(given, **settings), *how)
    assert str(refused.value) == message + WAY_OUT
    data = loaded(Given(given, on_bad_row="skip", **settings), *how)
    assert [p.id for p in (*data.train_problems, *data.held_out_problems)] == ids
    assert [str(row) for row in data.bad_rows] == [message]


@pytest.mark.parametrize(
    ("key", "value"),
    [("problems_per_iteration", 0), ("max_prompt_tokens", 0), ("max_correctness_rate", 1.5)],
)
def test_a_value_out_of_range_is_refused_by_its_key(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"data.{key}={value}"):
        Given(problems(3), **{key: value})


def test_prompts_and_solutions_become_tokens_without_specials() -> None:
    data = loaded(Given(problems(3)))
    tokenizer = byte_tokenizer()
    first, held_out = data.train_problems[0], data.held_out_problems[0]
    assert tokenizer.decode(first.prompt_ids) == "Q: 0 + 0\n"
    assert tokenizer.decode(first.solution_ids) == "\\boxed{0}"
    # Three characters more than the question's five in front, one behind: one token a byte.
    assert len(first.prompt_ids) == 9
    assert tokenizer.decode(held_out.prompt_ids) == "Q: 2 + 2\n"


def test_special_tokens_written_in_a_template_become_one_token_each() -> None:
    data = loaded(Given(problems(3), template=TextTemplate("<|user|>{question}<|assistant|>")))
    assert len(data.train_problems[0].prompt_ids) == 1 + len("0 + 0") + 1


def test_a_prompt_over_the_budget_is_a_bad_row() -> None:
    # "Q: 1 + 1\n" has 9 bytes, and so have all but the row with three digits more.
    given = problems(4)
    given[1] = replace(given[1], question="1000 + 1")
    message = "f.json:2: prompt is 12 tokens long, expected at most data.max_prompt_tokens=9"
    check_bad_row(given, message, ["p0", "p2", "p3"], max_prompt_tokens=9)


def test_the_turns_of_a_chat_are_in_its_prompt() -> None:
    given = [replace(p, turns=(Turn("system", "Add."),)) for p in problems(3)]
    data = loaded(Given(given, template=ChatTemplate("", "user")))
    assert byte_tokenizer().decode(data.held_out_problems[0].prompt_ids) == "<|system|>Add.<|user|>2 + 2<|assistant|>"


def test_a_chat_that_the_template_has_no_place_for_is_a_bad_row() -> None:
    given = problems(4)
    given[1] = replace(given[1], turns=(Turn("user", "1 + 0"), Turn("assistant", "1")))
    message = (
        "f.json:2: prompt is a chat with earlier turns (user, assistant), expected a question alone, as data/template "
        "is a fixed text (chat, chat_user and question take a chat)"
    )
    check_bad_row(given, message, ["p0", "p2", "p3"])


def test_repeats_are_told_when_the_problems_are_loaded(caplog: pytest.LogCaptureFixture) -> None:
    given = problems(4)
    given[1], given[3] = replace(given[1], question="0 + 0"), replace(given[3], question="2 + 2")
    with caplog.at_level("INFO"):
        data = loaded(Given(given))
    assert len(data.train_problems) == 3
    assert caplog.messages[0] == "1 of 3 training rows repeat the question of another; they are kept"
    assert caplog.messages[1].startswith("1 of 3 training rows stand in the held-out set too (f.json:3 is f.json:4)")


def test_a_held_out_row_is_checked_too() -> None:
    given = problems(5)
    given[4] = replace(given[4], question="1000 + 1")
    message = "f.json:5: prompt is 12 tokens long, expected at most data.max_prompt_tokens=9"
    with pytest.raises(UserError) as refused:
        loaded(Given(given, max_prompt_tokens=9))
    assert str(refused.value) == message + WAY_OUT
    # The only one: nothing is left to evaluate on.
    with pytest.raises(UserError) as refused:
        loaded(Given(given, max_prompt_tokens=9, on_bad_row="skip"))
    assert str(refused.value) == f"no row is left to evaluate on; 1 bad rows:\n  {message}"


def test_a_row_without_a_field_that_the_arm_reads_is_a_bad_row() -> None:
    given = problems(5)
    given[1] = replace(given[1], solution=None)
    message = f"f.json:2: solution is missing, expected one, for {READ}"
    check_bad_row(given, message, ["p0", "p2", "p3", "p4"], NEEDS_SOLUTION)
    # An arm that does not read it does not ask for it.
    assert len(loaded(Given(given), NEEDS_ANSWER).train_problems) == 4
    # Nor does evaluation.
    given[1], given[4] = problems(2)[1], replace(given[4], solution=None)
    assert len(loaded(Given(given), NEEDS_SOLUTION).held_out_problems) == 1


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_field_that_no_row_has_is_no_fault_of_the_rows(on_bad_row: str) -> None:
    given = [replace(p, solution=None) for p in problems(5)]
    with pytest.raises(UserError) as refused:
        loaded(Given(given, on_bad_row=on_bad_row), NEEDS_SOLUTION)
    assert str(refused.value) == (
        f"f.json:1: no `solution`, nor in any other of 4 problems, and {READ}; in a table, name its column in "
        "data.columns.solution"
    )


def test_a_repeated_id_is_a_bad_row_and_names_the_first() -> None:
    given = problems(5)
    given[2] = replace(given[2], id="p0")
    message = "f.json:3: id is 'p0', which stands at f.json:1 already, expected another id in every row"
    check_bad_row(given, message, ["p0", "p1", "p3", "p4"])


@pytest.mark.parametrize(
    ("complaint", "shown"),
    [
        (
            "gold answer '(1,' is no mathematics: expected a number",
            "(gold answer '(1,' is no mathematics), expected a number",
        ),
        ("no gold answer", "(no gold answer), expected one that the reward can grade"),
    ],
)
def test_a_gold_answer_that_cannot_be_graded_is_a_bad_row(complaint: str, shown: str) -> None:
    def ungradable(asked: Sequence[Problem]) -> list[str | None]:
        return [complaint if p.id == "p1" else None for p in asked]

    how = (NEEDS_ANSWER, all_right, ungradable)
    check_bad_row(problems(4), f"f.json:2: answer is ungradable {shown}", ["p0", "p2", "p3"], *how)


def test_a_problem_without_answer_is_left_to_the_reward() -> None:
    given = [replace(p, answers=()) for p in problems(3)]
    assert len(loaded(Given(given), frozenset()).train_problems) == 2


def test_several_bad_rows_are_told_at_once() -> None:
    given = problems(15)
    given[:11] = [replace(p, solution=None) for p in given[:11]]
    given[11:13] = [replace(p, question="1000 + 1") for p in given[11:13]]  # too long
    with pytest.raises(UserError) as refused:
        loaded(Given(given, max_prompt_tokens=11), NEEDS_SOLUTION)
    expected = ["13 bad rows; mend them, or data.on_bad_row=skip leaves them out:"]
    expected += [f"  f.json:{i}: solution is missing, expected one, for {READ}" for i in range(1, 11)]
    assert str(refused.value).split("\n") == [*expected, "  ... and 3 more"]
    data = loaded(Given(given, max_prompt_tokens=11, on_bad_row="skip"), NEEDS_SOLUTION)
    # The check of prompts comes first, but the report is in the order of the rows.
    assert [row.where for row in data.bad_rows] == [f"f.json:{i}" for i in range(1, 14)]
    assert [p.id for p in data.train_problems] == ["p13"]


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(UserError, match=r"no row is left to train on; 4 bad rows:\n  f\.json:1: prompt is 9 tokens"):
        loaded(Given(problems(4), max_prompt_tokens=8, on_bad_row="skip"))
    # No row has both fields, though each field is there.
    given = [replace(p, solution=None) if i % 2 else replace(p, answers=()) for i, p in enumerate(problems(5))]
    with pytest.raises(UserError, match="no row is left to train on; 4 bad rows"):
        loaded(Given(given, on_bad_row="skip"), NEEDS_SOLUTION)


class Drawn(Given):
    """Holds out the first of the problems it is left with."""

    def load(self) -> tuple[list[Problem], list[Problem]]:
        return self.problems, []

    def divide(self, train: list[Problem], held_out: list[Problem]) -> tuple[list[Problem], list[Problem]]:
        return train[1:], train[:1]


def test_held_out_rows_are_drawn_of_good_ones_whatever_the_arm_reads() -> None:
    given = problems(4)
    given[0], given[1] = replace(given[0], question="1000 + 1"), replace(given[1], solution=None)
    data = loaded(Drawn(given, max_prompt_tokens=9, on_bad_row="skip"), NEEDS_SOLUTION)
    # Row 2 has no solution, which evaluation does not need: it is held out, as in an arm that reads none.
    assert [p.id for p in data.held_out_problems] == ["p1"]
    assert [p.id for p in data.train_problems] == ["p2", "p3"]
    assert [row.where for row in data.bad_rows] == ["f.json:1"]


def test_only_problems_that_are_hard_enough_are_trained_on() -> None:
    # Rates 0/8, 1/8, 2/8, 3/8 and a held-out 4/8, which stays.
    data = loaded(Given(problems(5), max_correctness_rate=0.125))
    assert [p.id for p in data.train_problems] == ["p0", "p1"]
    assert [p.id for p in data.held_out_problems] == ["p4"]


def test_a_row_without_a_rate_is_bad_where_rates_select() -> None:
    given = [replace(p, correctness_rate=None) if p.id == "p1" else p for p in problems(4)]
    message = (
        "f.json:2: correctness_rate is missing, expected one, for data.max_correctness_rate=0.5 reads it (measure it "
        "with edge-grpo-difficulty, or set data.max_correctness_rate=null)"
    )
    check_bad_row(given, message, ["p0", "p2", "p3"], max_correctness_rate=0.5)
    with pytest.raises(UserError, match=r"no `correctness_rate`, nor in any other of 3 .* with edge-grpo-difficulty"):
        loaded(Given([replace(p, correctness_rate=None) for p in problems(4)], max_correctness_rate=0.5))


def test_a_rate_limit_that_leaves_nothing_is_refused() -> None:
    easy = [replace(p, correctness_rate=1.0) for p in problems(4)]
    with pytest.raises(UserError, match=r"data\.max_correctness_rate=0\.5 leaves none of 3"):
        loaded(Given(easy, max_correctness_rate=0.5))


def test_references_that_fail_the_grader_are_marked() -> None:
    def grade(graded: Sequence[Problem], texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([text != "\\boxed{2}" for text in texts])

    data = loaded(Given(problems(4)), NEEDS_SOLUTION, grade)
    assert [p.solution_passes for p in data.train_problems] == [True, False, True]
    assert [p.id for p in data.failed_references] == ["p1"]
    # Neither asked for nor read: not graded.
    for unread in (
        loaded(Given(problems(4), check_references=False), NEEDS_SOLUTION, grade),
        loaded(Given(problems(4))),
    ):
        assert all(p.solution_passes for p in unread.train_problems)
        assert not unread.failed_references


def test_references_that_all_fail_are_refused_with_the_first_and_the_ways_out() -> None:
    with pytest.raises(UserError) as caught:
        loaded(Given(problems(4)), NEEDS_SOLUTION, lambda graded, texts: torch.zeros(len(texts), dtype=torch.bool))
    text = str(caught.value)
    assert text.startswith("none of 3 reference solutions is right by this run's own reward")
    assert "the reward is below 1 all the same" in text  # its box holds the gold answer
    assert "data.check_references=false" in text


def test_an_epoch_holds_every_problem_once() -> None:
    data = loaded(Given(problems(13)))
    # 12 problems, 4 an iteration: 3 iterations an epoch.
    epochs = [[p.id for i in range(3 * e, 3 * e + 3) for p in data.problems_at(i)] for e in range(2)]
    assert all(sorted(epoch) == sorted(p.id for p in data.train_problems) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_an_iteration_may_straddle_and_span_epochs() -> None:
    data = loaded(Given(problems(4), problems_per_iteration=7))
    # 3 problems, 21 = 3 * 7 positions: 7 whole epochs in 3 iterations.
    counts = Counter(p.id for i in range(3) for p in data.problems_at(i))
    assert counts == {"p0": 7, "p1": 7, "p2": 7}


def test_ranks_share_an_iteration_in_order() -> None:
    data = loaded(Given(problems(10)))
    whole = data.problems_at(5)
    assert data.problems_at(5, rank=0, world_size=2) + data.problems_at(5, rank=1, world_size=2) == whole
    with pytest.raises(UserError, match=r"data\.problems_per_iteration=4 must be a multiple of the 3 ranks"):
        data.problems_at(0, rank=0, world_size=3)


def test_the_order_follows_the_seed_alone() -> None:
    one, same, other = (loaded(Given(problems(30), seed=seed)) for seed in (1, 1, 2))
    assert one.problems_at(3) == same.problems_at(3)
    assert one.problems_at(3) != other.problems_at(3)


class Recorder(pl.LightningModule):
    """Notes the ids of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Linear(1, 1)
        self.seen: list[list[str]] = []

    def training_step(self, batch: ProblemBatch, batch_idx: int) -> None:
        self.seen.append([p.id for p in batch.problems])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_epoch_is_an_iteration() -> None:
    data, module = loaded(Given(problems(7))), Recorder()
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    assert module.seen == [[p.id for p in data.problems_at(i)] for i in range(4)]


@pytest.mark.parametrize(("count", "told"), [(5, False), (4, True)])  # one of them is held out; 4 an iteration
def test_an_iteration_of_more_problems_than_there_are_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int, told: bool
) -> None:
    data = loaded(Given(problems(count)))
    report_data(data, tmp_path)
    assert ("an iteration has the same problem more than once" in caplog.text) == told
    assert (len({p.id for p in data.problems_at(0)}) < 4) == told
