"""What is taken out of a row, which rows are bad, and what is told of a table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_grpo.data.base import fingerprint
from edge_grpo.data.checks import tell_repeats
from edge_grpo.data.file import read_problems
from edge_grpo.data.rows import hold_out
from edge_grpo.errors import UserError
from edge_grpo.types.problems import Problem, Turn

QUESTION = {"role": "user", "content": "1 + 1?"}


def read(tmp_path: Path, *rows: Any, columns: Any = None) -> tuple[list[Problem], list[str]]:
    """Problems, and bad rows without their file."""
    path, bad_rows = tmp_path / "t.jsonl", []
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    problems = read_problems(path, columns or {}, bad_rows)
    return problems, [str(row).removeprefix(f"{path}:") for row in bad_rows]


def test_named_columns_go_before_the_format(tmp_path: Path) -> None:
    row = {
        "prompt": [QUESTION],
        "reward_model": {"ground_truth": "wrong"},
        "extra_info": {"answer": "We add.\n#### 2", "question": "What is 1 + 1?"},
    }
    columns = {"answer": ["extra_info.answer"], "question": None}
    (problem,), _ = read(tmp_path, row, columns=columns)
    assert (problem.question, problem.answers, problem.solution) == ("1 + 1?", ("2",), "We add.\n\\boxed{2}")
    columns = {"question": ["extra_info.question"], "solution": ["extra_info.answer"]}
    (problem,), _ = read(tmp_path, row, columns=columns)
    assert (problem.question, problem.answers, problem.solution) == (
        "What is 1 + 1?",
        ("wrong",),
        "We add.\n\\boxed{2}",
    )
    assert problem.columns == row  # the question lies in one of them, and so nothing is taken away
    # A table of no known format: what is not named is found under any format's name.
    (problem,), _ = read(
        tmp_path, {"input": "1 + 1?", "deep": {"er": {"gold": 2}}}, columns={"answer": ["deep.er.gold"]}
    )
    assert (problem.question, problem.answers) == ("1 + 1?", ("2",))


def test_a_column_whose_name_has_a_dot_goes_before_a_nested_one(tmp_path: Path) -> None:
    row = {"prompt": "q", "reward_model.ground_truth": "1", "reward_model": {"ground_truth": "2"}}
    assert read(tmp_path, row)[0][0].answers == ("1",)


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"solution": "s", "x": 1},
            {},
            r"no question column; .*found solution, x: set data\.columns\.question=\[\.\.\.\]$",
        ),
        (
            {"Problem": "q", "answer": 1},
            {},
            r"no question column; .*did you mean data\.columns\.question=\[Problem\]\?$",
        ),
        ({"question": "q", "meta": {"answer": 1}}, {}, r"no answer column; .*\.answer=\[meta\.answer\]\?$"),
        (
            {"question": "q", "info": '{"golds": 1}'},
            {},
            r"no answer column; .*found question, info\.golds; .*\[info\.golds\]",
        ),
        ({"question": "q", "x": {"answer": 1}}, {"answer": ["x.anser"]}, r"looked for x\.anser, .*\[x\.answer\]\?$"),
        (
            {"question": "q", "answer": 1},
            {"answer": "answer"},
            r"data\.columns\.answer=answer: expected a list, \[answer\]",
        ),
        # A named column that is not there is not replaced by another one.
        ({"question": "q", "answer": 1}, {"answer": ["anser"]}, r"looked for anser, .*\.answer=\[answer\]\?$"),
    ],
)
def test_a_missing_column_is_told_with_what_may_be_meant(tmp_path: Path, row: Any, columns: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, row, columns=columns)


TEXT, CHAT = "a text that is not empty", "one that ends with a turn of the user"
BAD_CHATS: list[tuple[Any, str]] = [
    ([], f"prompt is [] (list), expected {TEXT}, or a chat, [{{role: user, content: ...}}]"),
    (
        [{"role": "tool", "content": "x"}],
        "prompt is a chat whose turn 1 has the role 'tool', expected one of system, user, assistant",
    ),
    ([QUESTION, "x"], "prompt is a chat whose turn 2 is str, expected an object {role, content}"),
    ([{"role": "user", "content": None}], "prompt is a chat whose turn 1 holds NoneType, expected a text"),
    (
        [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]}],
        "prompt is a chat whose turn 1 holds list, expected a text",
    ),
    (
        [{"role": "user", "content": " "}],
        f"prompt is a chat whose last turn is empty, expected {TEXT}",
    ),
    ([{"role": "system", "content": ""}], f"prompt is a chat without a turn of the user, expected {CHAT}"),
    (
        [QUESTION, {"role": "assistant", "content": "2"}],
        f"prompt is a chat that ends with a turn of the assistant, expected {CHAT}",
    ),
]


@pytest.mark.parametrize(("chat", "message"), BAD_CHATS, ids=[message[:60] for _, message in BAD_CHATS])
def test_a_broken_chat_is_a_bad_row(tmp_path: Path, chat: Any, message: str) -> None:
    good = {"prompt": [QUESTION], "answer": "2"}
    problems, bad_rows = read(tmp_path, good, {"prompt": chat, "answer": "2"}, good)
    assert [p.id for p in problems] == ["t-1", "t-3"]
    assert bad_rows == [f"2: {message}"]


def test_chats_written_in_other_ways_are_the_same_chat(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Think."}
    parts = [{"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}]}]
    ways = [[system, QUESTION], json.dumps([system, QUESTION]), [system, *parts]]
    ways.append({"role": ["system", "user"], "content": ["Think.", "1 + 1?"]})  # type: ignore[arg-type]
    problems, bad_rows = read(tmp_path, *({"prompt": way, "answer": "2"} for way in ways))
    assert bad_rows == []
    assert {(p.turns, p.question) for p in problems} == {((Turn("system", "Think."),), "1 + 1?")}
    # One turn of the user is the question as a text, and an empty system prompt none.
    ways = ["1 + 1?", [QUESTION], [{"role": "system", "content": " "}, QUESTION]]  # type: ignore[list-item]
    problems, _ = read(tmp_path, *({"prompt": way, "answer": "2"} for way in ways))
    assert [(p.turns, p.question) for p in problems] == [((), "1 + 1?")] * 3


def test_a_system_prompt_stands_once(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "Think."}, QUESTION]
    rows = [{"prompt": prompt, "answer": "2", "system_prompt": system} for system in ("Think.", None, "Guess.")]
    problems, bad_rows = read(tmp_path, *rows)
    assert [p.turns for p in problems] == [(Turn("system", "Think."),)] * 2
    assert bad_rows == [
        "3: system_prompt is 'Guess.' (str), expected none beside the system turn of the chat, or the same"
    ]


def test_a_solution_column_goes_before_the_last_turn(tmp_path: Path) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "\\boxed{3}"}]
    rows = [{"messages": messages, "solution": solution} for solution in ("\\boxed{2}", None)]
    problems, _ = read(tmp_path, *rows)
    assert [(p.answers, p.solution) for p in problems] == [(("2",), "\\boxed{2}"), (("3",), "\\boxed{3}")]


def test_the_gold_of_a_solution(tmp_path: Path) -> None:
    rows = [{"problem": "q", "solution": text} for text in ("\\boxed{1}, no, \\boxed{\\frac{1}{2}}", "It is 5.", None)]
    problems, bad_rows = read(tmp_path, *rows, {"problem": "q", "solution": "So.\n#### 7"})
    assert [p.answers for p in problems] == [("\\frac{1}{2}",), ("7",)]
    assert problems[1].solution == "So.\n\\boxed{7}"
    assert bad_rows == [
        "2: solution is 'It is 5.' (str), expected a last \\boxed{...} with the gold answer, as there is no answer "
        "column",
        "3: solution is without a solution, expected one, as there is no answer column",
    ]
    # TRL's accuracy_reward takes the whole text; one of several lines is no answer but a solution without a box.
    rows = [{"prompt": "q", "solution": text} for text in ("$5$", "So\nit is 5.")]
    problems, bad_rows = read(tmp_path, *rows)
    assert [(p.answers, p.solution) for p in problems] == [(("$5$",), None)]
    assert [row[:14] for row in bad_rows] == ["2: solution is"]


@pytest.mark.parametrize(
    "lost", ["\\frac{1}{2}", "\\beta", "\\times 2", "\\theta", "2 \\neq 3", "\\right)", "\\text{m}"]
)
@pytest.mark.parametrize("field", ["question", "answer", "solution"])
def test_a_lone_backslash_is_a_bad_row(tmp_path: Path, lost: str, field: str) -> None:
    fields = {"question": '"q"', "answer": '"1"', "solution": '"s"'}
    good = "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"
    written = "{" + ", ".join(f'"{n}": {v}' for n, v in (fields | {field: f'"{lost}"'}).items()) + "}"
    problems, bad_rows = read(tmp_path, good, written)
    assert len(problems) == 1
    word = lost[lost.index("\\") :].rstrip("0123456789{}/) m").split("{")[0]
    assert len(bad_rows) == 1
    assert bad_rows[0].startswith(f"2: {field} is '")
    assert bad_rows[0].endswith(f" with a control character, expected {word}: JSON writes a backslash twice, \\{word}")


def test_a_lone_backslash_in_one_of_several_answers(tmp_path: Path) -> None:
    problems, bad_rows = read(tmp_path, '{"question": "q", "answer": ["0.5", "\\frac{1}{2}"]}')
    assert problems == []
    assert bad_rows[0].startswith("1: answer is '\\x0crac{1}{2}' with a control character")


def test_line_breaks_tabs_and_page_breaks_of_prose_stay(tmp_path: Path) -> None:
    text = "by\neq. (3)\tan apple\textra\r\nright\fChapter 2\n\nnot\tto\tfractions \\frac{1}{2} \\neq"
    problems, bad_rows = read(tmp_path, {"question": text, "answer": "1", "solution": text})
    assert (problems[0].question, problems[0].solution, bad_rows) == (text, text, [])


def test_an_escape_that_json_does_not_have_says_what_to_do(tmp_path: Path) -> None:
    _, bad_rows = read(tmp_path, '{"question": "q", "answer": "\\sqrt{2}"}')
    assert bad_rows[0].startswith("1: line is not JSON (Invalid \\escape, column ")
    assert "; JSON writes a backslash twice)" in bad_rows[0]


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_number_of_too_many_digits_is_a_bad_row(tmp_path: Path, quote: str) -> None:
    rows = [f'{{"question": "q", "answer": {quote}{"9" * digits}{quote}}}' for digits in (4300, 4301, 5000)]
    problems, bad_rows = read(tmp_path, *rows)
    assert [p.answers for p in problems] == [("9" * 4300,)]
    expected = "answer is 99999999999999999999... ({} characters), expected numbers of at most 4300 digits"
    assert bad_rows == [f"{row}: {expected.format(length)}" for row, length in ((2, 4301), (3, 5000))]
    # In a whole file it is no fault of the file.
    (tmp_path / "t.json").write_text(f"[{','.join(rows)}]")
    bad: list[Any] = []
    assert len(read_problems(tmp_path / "t.json", {}, bad)) == 1
    assert len(bad) == 2


def test_a_line_nested_too_deep_is_a_bad_row(tmp_path: Path) -> None:
    _, bad_rows = read(tmp_path, {"question": "q", "answer": 1}, "[" * 100_000)
    assert bad_rows == ["2: line is nested too deep, expected an object {column: value}"]


def test_a_broken_id_is_a_bad_row(tmp_path: Path) -> None:
    problems, bad_rows = read(tmp_path, *({"question": "q", "answer": 1, "id": name} for name in ("a\udc00", "a", 2)))
    assert [p.id for p in problems] == ["a", "2"]
    assert bad_rows == ["1: id is 'a\\udc00' with half a character, '\\udc00', expected a text that is valid Unicode"]


def test_csv(tmp_path: Path) -> None:
    path, bad_rows = tmp_path / "t.csv", []
    path.write_text('question,answer,correctness_rate,solution\n"a, b",1,0.5,\n\nc,2\nd,3,x,\ne,4,,\n')
    problems = read_problems(path, {}, bad_rows)
    assert [(p.question, p.correctness_rate, p.solution) for p in problems] == [("a, b", 0.5, None), ("e", None, None)]
    assert [str(row).removeprefix(f"{path}:") for row in bad_rows] == [
        "2: line is of 2 fields, expected 4, as in the header",
        "3: correctness_rate is 'x' (str), expected a number in [0, 1] or null",
    ]


def asks(name: str, question: str, *turns: Turn) -> Problem:
    return Problem(name, question, ("1",), origin=f"f:{name}", turns=turns)


def test_turns_and_columns_enter_the_fingerprint() -> None:
    one = asks("a", "q")
    others = [
        asks("a", "q", Turn("system", "Think.")),
        asks("a", "q", Turn("system", "Think!")),
        asks("a", "q", Turn("user", "Think.")),
        replace(one, columns={"x": {"y": 1}}),
        replace(one, columns={"x": {"y": 2}}),
    ]
    assert len({fingerprint([p]) for p in (one, *others)}) == 6
    # Of an object that JSON has no word for, nothing that another process would not have.
    assert fingerprint([replace(one, columns={"x": object()})]) == fingerprint([replace(one, columns={"x": object()})])


def test_a_repeated_question_is_counted_and_never_held_out(caplog: pytest.LogCaptureFixture) -> None:
    system, earlier = Turn("system", "Think."), Turn("user", "More.")
    problems = [
        *(asks("1", "q"), asks("2", "q ", system), asks("3", "other"), asks("4", "q", earlier), asks("5", "alone")),
    ]
    rest, held_out = hold_out(problems, 3, "f")
    # 1 and 2 ask the same, blanks and system prompt aside; 4 asks it of another chat.
    assert ([p.id for p in rest], [p.id for p in held_out]) == (["1", "2"], ["3", "4", "5"])
    with caplog.at_level("INFO"):
        tell_repeats(rest, held_out)
    assert caplog.messages == ["1 of 2 training rows repeat the question of another; they are kept"]


def test_training_rows_of_the_held_out_set_are_told(caplog: pytest.LogCaptureFixture) -> None:
    train = [asks("1", "a"), asks("2", "b"), asks("3", "c")]
    tell_repeats(train, [asks("8", "d"), asks("9", " b", Turn("system", "Think."))])
    assert caplog.messages == [
        "1 of 3 training rows stand in the held-out set too (f:2 is f:9), so held-out accuracy is partly that of "
        "questions trained on"
    ]
    caplog.clear()
    tell_repeats(train, [asks("8", "d")])
    assert caplog.messages == []
