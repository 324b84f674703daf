"""The data stage's checks and its stateless order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from edge_grpo.data.base import ProblemDataModule
from edge_grpo.data.templates import TextTemplate
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.types import Problem, ProblemBatch

NEEDS_SOLUTION = frozenset({"answers", "solution"})
NEEDS_ANSWER = frozenset({"answers"})


class Given(ProblemDataModule):
    """The problems it was given, the last one held out."""

    def __init__(self, problems: list[Problem], **shared: Any) -> None:
        defaults: dict[str, Any] = {
            "template": TextTemplate("Q: {question}\n"),
            "problems_per_iteration": 4,
            "max_prompt_tokens": 32,
            "max_correctness_rate": None,
            "check_references": True,
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


def loaded(data: ProblemDataModule, required: frozenset[str] = NEEDS_ANSWER, grade: Any = all_right) -> Any:
    data.load_prepared(byte_tokenizer(), required_fields=required, grade=grade)
    return data


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


def test_a_prompt_over_the_budget_names_row_length_and_key() -> None:
    # "Q: 0 + 0\n" has 9 bytes.
    with pytest.raises(UserError, match=r"f\.json:1: .*9 tokens.*data\.max_prompt_tokens=8"):
        loaded(Given(problems(3), max_prompt_tokens=8))


def test_rows_without_a_field_that_the_arm_reads_are_counted() -> None:
    given = problems(5)
    given[1], given[3] = replace(given[1], solution=None), replace(given[3], solution=None)
    with pytest.raises(UserError, match=r"f\.json:2: no `solution`, nor in 1 other of 4 .*correction=none"):
        loaded(Given(given), NEEDS_SOLUTION)
    # An arm that does not read it does not ask for it.
    assert len(loaded(Given(given), NEEDS_ANSWER).train_problems) == 4


def test_a_repeated_id_is_refused_with_both_rows() -> None:
    given = problems(4)
    given[2] = replace(given[2], id="p0")
    with pytest.raises(UserError, match=r"f\.json:3: id 'p0' stands at f\.json:1"):
        loaded(Given(given))


def test_only_problems_that_are_hard_enough_are_trained_on() -> None:
    # Rates 0/8, 1/8, 2/8, 3/8 and a held-out 4/8, which stays.
    data = loaded(Given(problems(5), max_correctness_rate=0.125))
    assert [p.id for p in data.train_problems] == ["p0", "p1"]
    assert [p.id for p in data.held_out_problems] == ["p4"]


def test_a_rate_limit_without_rates_or_that_leaves_nothing_is_refused() -> None:
    unmeasured = [replace(p, correctness_rate=None) if p.id == "p1" else p for p in problems(4)]
    with pytest.raises(UserError, match=r"1 of 3 problems have no correctness_rate \(first: f\.json:2\)"):
        loaded(Given(unmeasured, max_correctness_rate=0.5))
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
