"""Problems from files: every format says the same, every bad row says where it stands."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from edge_grpo.command_line.check import instantiate
from edge_grpo.data.file import FileDataModule, read_problems
from edge_grpo.errors import UserError
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.types.problems import Problem, Turn

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
COLUMNS: dict[str, list[str]] = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/data/file.yaml").columns)  # type: ignore[assignment]
ROWS = [{"problem": f"{i} + 1", "answer": i + 1.0, "solution": f"\\boxed{{{i + 1}}}"} for i in range(6)]

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


def write_json(path: Path, rows: Any) -> None:
    path.write_text(json.dumps(rows))


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_parquet(path: Path, rows: list[Any]) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def write_arrow_file(path: Path, rows: list[Any]) -> None:
    table = pa.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write_arrow_stream(path: Path, rows: list[Any]) -> None:
    table = pa.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.json", write_json),
        ("t.jsonl", write_jsonl),
        ("t.parquet", write_parquet),
        ("t.arrow", write_arrow_file),
        ("t.arrow", write_arrow_stream),
    ],
)
def test_every_format_says_the_same(tmp_path: Path, name: str, write: Any) -> None:
    path = tmp_path / name
    write(path, ROWS)
    problems = read_problems(path, COLUMNS, [])
    assert [p.question for p in problems] == [row["problem"] for row in ROWS]
    second = problems[1]
    assert (second.id, second.origin) == ("t-2", f"{path}:2")
    assert (second.answers, second.solution, second.correctness_rate) == (("2",), "\\boxed{2}", None)


def test_a_folder_from_save_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([4])}).save_to_disk(tmp_path / "several")
    assert [p.id for p in read_problems(tmp_path / "one", COLUMNS, [])] == [f"one-{i}" for i in range(1, 7)]
    assert [p.question for p in read_problems(tmp_path / "several", COLUMNS, [], split="test")] == ["4 + 1"]
    with pytest.raises(UserError, match=r"splits train, test: choose one, such as .*several/train"):
        read_problems(tmp_path / "several", COLUMNS, [])
    with pytest.raises(UserError, match=r"no split 'tset'; did you mean test\?"):
        read_problems(tmp_path / "several", COLUMNS, [], split="tset")
    with pytest.raises(UserError, match="no split 'train'"):
        read_problems(tmp_path / "one", COLUMNS, [], split="train")


def touch(folder: Path, *names: str) -> None:
    """One row in each file, which names it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write = write_parquet if name.endswith("parquet") else write_jsonl
        write(folder / name, [{"question": name, "answer": 1}])


def questions(path: Path, split: str | None = None) -> list[str]:
    return [p.question for p in read_problems(path, COLUMNS, [], split)]


def test_a_folder_of_shards_has_the_splits_that_its_files_name(tmp_path: Path) -> None:
    shards = ["data/test-00000-of-00001.parquet", *(f"data/train-{i:05d}-of-00011.parquet" for i in (10, 0, 9))]
    touch(tmp_path, *shards, ".cache/train.jsonl", "data/.train.jsonl.lock", "dataset_infos.json")
    train = [shards[2], shards[3], shards[1]]
    assert questions(tmp_path / "train") == questions(tmp_path, "train") == train
    assert questions(tmp_path / "test") == [shards[0]]
    with pytest.raises(UserError, match=rf"{tmp_path}: holds the splits test, train: choose one, such as .*/test$"):
        questions(tmp_path)
    with pytest.raises(UserError, match=r"no split 'tset'; did you mean test\?"):
        questions(tmp_path, "tset")
    with pytest.raises(UserError, match=r"/trian: no such file or folder"):
        questions(tmp_path / "trian")
    assert [p.id for p in read_problems(tmp_path / "train", COLUMNS, [])] == ["train-1", "train-2", "train-3"]
    assert [p.id for p in read_problems(tmp_path, COLUMNS, [], "test")] == ["test-1"]


def test_a_folder_of_configurations(tmp_path: Path) -> None:
    touch(tmp_path, "main/train/0000.parquet", "main/train/0001.parquet", "main/test/0000.parquet")
    touch(tmp_path, "socratic/train-00000-of-00001.parquet", "much/too/deep/train.jsonl")
    with pytest.raises(UserError, match=r"holds the splits main/test, main/train, socratic/train: choose one"):
        questions(tmp_path)
    assert questions(tmp_path / "main" / "train") == ["main/train/0000.parquet", "main/train/0001.parquet"]
    assert questions(tmp_path / "main", "test") == ["main/test/0000.parquet"]
    assert questions(tmp_path / "socratic") == questions(tmp_path / "socratic" / "train")


def test_a_path_that_is_not_there_is_not_told_of_its_neighbours(tmp_path: Path) -> None:
    touch(tmp_path, "train.jsonl", "test.jsonl", "test.parquet")
    with pytest.raises(UserError, match=r"/trian: no such file or folder; did you mean .*/train\?"):
        questions(tmp_path / "trian")
    assert questions(tmp_path / "train") == ["train.jsonl"]
    with pytest.raises(UserError, match=r"holds the splits test, train: choose one"):
        questions(tmp_path)


def test_a_number_that_is_no_shard_belongs_to_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "aime-2024.jsonl", "aime-2025.jsonl")
    with pytest.raises(UserError, match="holds the splits aime-2024, aime-2025"):
        questions(tmp_path)
    touch(tmp_path, "aime-2025.parquet")
    with pytest.raises(UserError, match=r"aime-2025\.jsonl and .*aime-2025\.parquet are one split in two formats"):
        questions(tmp_path / "aime-2025")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("\\frac{1}{2}", ("\\frac{1}{2}",)),
        (" 9.6\n", ("9.6",)),
        (8, ("8",)),
        (142.0, ("142",)),
        (0.5, ("0.5",)),
        (["1", 2.0], ("1", "2")),
    ],
)
def test_gold_answers(tmp_path: Path, answer: Any, expected: tuple[str, ...]) -> None:
    write_json(tmp_path / "t.json", [{"question": "q", "gold": answer}])
    assert read_problems(tmp_path / "t.json", COLUMNS, [])[0].answers == expected


def test_the_answers_of_gsm8k(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "48/2 = <<48/2=24>>24 clips.\n24*50 = <<24*50=1200>>1200.\n#### 1,200"}
    write_jsonl(tmp_path / "t.jsonl", [row])
    problem = read_problems(tmp_path / "t.jsonl", COLUMNS, [])[0]
    assert problem.answers == ("1200",)
    assert problem.solution == "48/2 = 24 clips.\n24*50 = 1200.\n\\boxed{1200}"
    # A solution of the table's own is not overwritten.
    write_jsonl(tmp_path / "t.jsonl", [row | {"solution": "s"}])
    assert read_problems(tmp_path / "t.jsonl", COLUMNS, [])[0].solution == "s"


def test_a_line_separator_inside_a_string_does_not_end_the_row(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "a\u2028b", "answer": 1}\n\n{"question": "c", "answer": 2}\n', encoding="utf-8")
    assert [(p.question, p.id) for p in read_problems(path, COLUMNS, [])] == [("a\u2028b", "t-1"), ("c", "t-3")]


GOOD = {"question": "q", "answer": "1"}


ANSWER = "a text that is not empty, a finite number, or a list of these"
BAD = [
    ({"question": " ", "answer": "1"}, "question is ' ' (str), expected a text that is not empty"),
    ({"question": 3, "answer": "1"}, "question is 3 (int), expected a text that is not empty"),
    # Half of a surrogate pair is no character: it can be neither encoded nor written.
    (
        {"question": "\ud83d", "answer": "1"},
        "question is '\\ud83d' with half a character, '\\ud83d', expected a text that is valid Unicode",
    ),
    ({"question": "q"}, f"answer is None (NoneType), expected {ANSWER}"),
    ({"question": "q", "answer": ""}, f"answer is '' (str), expected {ANSWER}"),
    ({"question": "q", "answer": []}, f"answer is [] (list), expected {ANSWER}"),
    ({"question": "q", "answer": ["1", None]}, f"answer is ['1', None] (list), expected {ANSWER}"),
    ({"question": "q", "answer": True}, f"answer is True (bool), expected {ANSWER}"),
    ({"question": "q", "answer": float("nan")}, f"answer is nan (float), expected {ANSWER}"),
    (GOOD | {"solution": 5}, "solution is 5 (int), expected a text or null"),
    (GOOD | {"correctness_rate": 12}, "correctness_rate is 12 (int), expected a number in [0, 1] or null"),
    (GOOD | {"id": 1.5}, "id is 1.5 (float), expected a text that is not empty, a whole number, or null"),
    (["q", "1"], "row is ['q', '1'] (list), expected an object {column: value}"),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=[message.split(",")[0] for _, message in BAD])
def test_a_row_that_does_not_fit_is_collected(tmp_path: Path, row: Any, message: str) -> None:
    path, bad_rows = tmp_path / "t.jsonl", []
    write_jsonl(path, [GOOD, row, GOOD])
    assert [p.id for p in read_problems(path, COLUMNS, bad_rows)] == ["t-1", "t-3"]
    assert [str(bad) for bad in bad_rows] == [f"{path}:2: {message}"]


def test_a_line_that_is_not_json_is_collected(tmp_path: Path) -> None:
    path, bad_rows = tmp_path / "t.jsonl", []
    path.write_text('{"question": "q", "answer": 1}\n{"question": \n{"question": "q", "answer": 1}\n')
    assert [p.id for p in read_problems(path, COLUMNS, bad_rows)] == ["t-1", "t-3"]
    assert [str(bad) for bad in bad_rows] == [
        f"{path}:2: line is not JSON (Expecting value, column 14), expected an object {{column: value}}"
    ]


def test_a_blank_solution_is_none(tmp_path: Path) -> None:
    write_json(tmp_path / "t.json", [GOOD | {"solution": " \n"}, GOOD | {"solution": ""}])
    assert [p.solution for p in read_problems(tmp_path / "t.json", COLUMNS, [])] == [None, None]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset_dict.json", "{}"),
        ("dataset_dict.json", '{"splits": 3}'),
        ("state.json", "{"),
        ("state.json", '{"_data_files": [{"name": "a.arrow"}]}'),
        ("state.json", '{"_data_files": ["a.arrow"]}'),
        ("state.json", "[]"),
    ],
)
def test_a_saved_folder_that_is_broken_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: lists no \w+ as datasets.save_to_disk writes them"):
        read_problems(tmp_path, COLUMNS, [])


def test_a_missing_column_names_what_is_there_and_what_is_near(tmp_path: Path) -> None:
    write_json(tmp_path / "t.json", [{"question": "q", "answers": "1"}])
    with pytest.raises(
        UserError, match=r"no answer column; .*found question, answers; .*data\.columns\.answer=\[answers\]"
    ):
        read_problems(tmp_path / "t.json", COLUMNS, [])
    with pytest.raises(UserError, match=r"data\.columns\.solutoin: no such field; did you mean solution"):
        read_problems(tmp_path / "t.json", COLUMNS | {"solutoin": ["s"]}, [])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", "\n", r"t\.jsonl: no rows"),
        ("t.json", '[\n{"question": "q",\n]', r"t\.json:3: not JSON"),
        ("t.json", '{"question": 1}\n{"question": 2}', r"t\.json:2: not JSON .*\.jsonl"),
        (
            "t.json",
            '{"question": 1}',
            r"t\.json: expected a list of objects, .* an object with the keys question$",
        ),
        ("t.json", '{"data": {"rows": [{"question": 1}]}}', r"found an object with the keys data$"),
        ("t.json", "{}", r"found an empty object$"),
        ("t.json", "3", r"t\.json: expected a list of objects, .* found int$"),
        ("t.jsonl", '[{"question": 1}]', r"t\.jsonl: holds one JSON list, expected an object a line: call it \.json$"),
        ("t.jsonl", '[\n{"question": 1}\n]', r"t\.jsonl: holds one JSON list, .* \.json$"),
        ("t.jsonl", '{\n"data": [{"question": 1}]\n}', r"t\.jsonl: holds one JSON object, .* \.json$"),
        (
            "t.csv",
            "question;answer\n1;2",
            r"the header 'question;answer' is one field: separate fields by commas$",
        ),
        ("t.csv", "question\tanswer\n1\t2", r"one field: separate fields by commas, or call it \.tsv$"),
        ("t.tsv", "question,answer\n1,2", r"one field: separate fields by tabs, or call it \.csv$"),
        ("t.json", "[]", r"t\.json: no rows"),
        ("t.parquet", "no parquet", r"t\.parquet: cannot be read as parquet"),
        ("t.arrow", "no arrow", r"t\.arrow: cannot be read as arrow"),
        ("t.csv", "question,answer", r"t\.csv: no rows"),
        ("t.csv", "question,question\n1,2", r"t\.csv: two columns are called 'question': rename one"),
        ("t.csv", 'question,answer\n"1,2', r"t\.csv:2: unexpected end of data; a quotation mark"),
        ("t.txt", "question,answer", r"t\.txt: cannot read \.txt, only \.json, .*\.csv"),
        ("t.jsonl.gz", "no gzip", r"t\.jsonl\.gz: cannot be read as gz"),
        ("t.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}', r"t\.json: lists of objects stand under train, test"),
        ("t.json", "[" * 100_000, r"t\.json: nested too deep"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_problems(tmp_path / name, COLUMNS, [])


def test_blanks_around_the_names_of_a_header_are_no_part_of_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("question , answer\n1 + 1?, 2\n")
    (problem,) = read_problems(tmp_path / "t.csv", {}, [])
    assert (problem.question, problem.answers) == ("1 + 1?", ("2",))
    (tmp_path / "t.csv").write_text("question, question\n1,2\n")
    with pytest.raises(UserError, match="two columns are called 'question'"):
        read_problems(tmp_path / "t.csv", {}, [])


def test_lines_of_a_jsonl_file_that_are_lists_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('[1]\n{"question": "q", "answer": 1}\n')
    bad_rows: list[Any] = []
    assert [p.id for p in read_problems(tmp_path / "t.jsonl", {}, bad_rows)] == ["t-2"]
    assert len(bad_rows) == 1


def test_other_paths_that_cannot_be_read(tmp_path: Path) -> None:
    write_json(tmp_path / "train.json", ROWS)
    with pytest.raises(UserError, match=r"trian\.json: no such file or folder; did you mean .*train\.json"):
        read_problems(tmp_path / "trian.json", COLUMNS, [])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("no table")
    with pytest.raises(UserError, match=r"empty: holds no table \(\.json, .*\.parquet"):
        read_problems(tmp_path / "empty", COLUMNS, [])
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.jsonl: not UTF-8 at byte 14"):
        read_problems(tmp_path / "latin.jsonl", COLUMNS, [])


def no_complaint(problems: Sequence[Problem]) -> list[str | None]:
    return [None] * len(problems)


def configured(*overrides: str) -> FileDataModule:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("data/file", overrides=["+seed=0", *overrides])
    return instantiate(cfg.data)


def divided(*overrides: str) -> tuple[list[Problem], list[Problem]]:
    data = configured(*overrides)
    return data.divide(*data.load())


def test_the_held_out_part_is_the_same_for_every_seed(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_json(path, ROWS)
    splits = [divided(f"data.path={path}", "data.held_out_count=2", f"seed={seed}") for seed in (0, 1)]
    assert splits[0] == splits[1]
    train, held_out = splits[0]
    assert len(held_out) == 2
    assert sorted(p.id for p in train + held_out) == [f"t-{i}" for i in range(1, 7)]


def test_a_repeated_question_is_never_held_out(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_json(path, [*ROWS, *ROWS[:4]])
    # Questions 4 and 5 occur once: those two, and no third, can be held out.
    train, held_out = divided(f"data.path={path}", "data.held_out_count=2")
    assert [p.question for p in held_out] == ["4 + 1", "5 + 1"]
    assert len(train) == 8
    with pytest.raises(
        UserError, match=r"data\.held_out_count=3: .* has 10 good rows, 2 of them .*; set it to 1 to 2, as one"
    ):
        divided(f"data.path={path}", "data.held_out_count=3")
    write_json(path, [*ROWS, *ROWS])
    with pytest.raises(
        UserError, match=r"has 12 good rows, and each question occurs more than once, so none can be held out; name "
    ):
        divided(f"data.path={path}", "data.held_out_count=1")
    write_json(path, ROWS)
    assert len(divided(f"data.path={path}", "data.held_out_count=5")[0]) == 1
    with pytest.raises(UserError, match=r"has 6 good rows; set it to 1 to 5, as one row must be left to train on"):
        divided(f"data.path={path}", "data.held_out_count=6")
    write_json(path, ROWS[:1])
    with pytest.raises(UserError, match=r"has 1 good row, which is trained on, so none can be held out; name held-out"):
        divided(f"data.path={path}", "data.held_out_count=1")


def test_held_out_problems_of_another_file(tmp_path: Path) -> None:
    train, test = tmp_path / "train.json", tmp_path / "test.json"
    write_json(train, ROWS)
    write_json(test, ROWS[:3])
    paths = (f"data.path={train}", f"data.held_out_path={test}")
    for count, expected in (("null", 3), ("2", 2)):
        problems, held_out = divided(*paths, f"data.held_out_count={count}")
        assert (len(problems), len(held_out)) == (6, expected)
    with pytest.raises(UserError, match=r"data\.held_out_count=4: .*test\.json has 3 good rows.* 1 to 3, or to null"):
        divided(*paths, "data.held_out_count=4")
    with pytest.raises(UserError, match=r"data\.held_out_count=null"):
        configured(f"data.path={train}", "data.held_out_count=null")


def test_bad_rows_of_both_files_are_told_and_move_no_other_row(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    write_jsonl(train, [{"problem": ""}, *ROWS])
    write_jsonl(test, [*ROWS[:3], {"problem": 5, "answer": 1}])
    settings = (f"data.path={train}", f"data.held_out_path={test}", "data.held_out_count=null")
    how: dict[str, Any] = {"required_fields": frozenset(), "grade": lambda p, t: 1 / 0, "ungradable": no_complaint}
    with pytest.raises(UserError, match=r"^2 bad rows;.*\n  .*test\.jsonl:4: problem is 5.*\n  .*train\.jsonl:1: prob"):
        configured(*settings).load_prepared(byte_tokenizer(), **how)
    data = configured(*settings, "data.on_bad_row=skip")
    data.load_prepared(byte_tokenizer(), **how)
    assert [p.origin for p in data.train_problems] == [f"{train}:{i}" for i in range(2, 8)]
    assert [p.id for p in data.held_out_problems] == ["test-1", "test-2", "test-3"]


@needs_shared
def test_deepscaler_hard_fits_the_configured_budget() -> None:
    data = configured(f"data.path={SHARED / 'deepscaler_hard-1k.json'}", "data.max_correctness_rate=0.0")
    data.load_prepared(byte_tokenizer(), required_fields=frozenset(), grade=lambda p, t: 1 / 0, ungradable=no_complaint)
    problems = (*data.train_problems, *data.held_out_problems)
    # The longest question has 985 bytes; the instruction 72, and three turns one token each.
    assert max(len(p.prompt_ids) for p in problems) <= 985 + 72 + 3 <= data.max_prompt_tokens
    # 782 of the 1,000 rows have rate 0; the 64 held out keep theirs.
    kept_out = sum(p.correctness_rate == 0 for p in data.held_out_problems)
    assert len(data.train_problems) == 782 - kept_out


@needs_shared
@pytest.mark.parametrize(
    ("name", "count"), [("aime", 30), ("amc", 83), ("math", 500), ("minerva", 272), ("olympiad_bench", 675)]
)
def test_the_evaluation_suite(name: str, count: int) -> None:
    problems = read_problems(SHARED / "evaluation_suite", COLUMNS, [], split=name)
    assert len(problems) == count
    if name == "amc":
        assert not any(answer.endswith(".0") for p in problems for answer in p.answers)


@needs_shared
def test_gsm8k() -> None:
    problems = read_problems(SHARED / "gsm8k" / "train.jsonl", COLUMNS, [])
    assert len(problems) == 7473
    assert problems[0].answers == ("72",)
    assert problems[0].solution == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n\\boxed{72}"
    )
    assert not any("<<" in (p.solution or "<<") for p in problems)


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "problems.jsonl").write_text(json.dumps({"question": "1 + 1", "answer": "2"}) + "\n")
    (problem,) = read_problems("~/problems.jsonl", COLUMNS, [])
    assert problem.origin == f"{tmp_path / 'problems.jsonl'}:1"
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}/problem\.jsonl: no such file"):
        read_problems("~/problem.jsonl", COLUMNS, [])


def test_a_column_that_is_named_and_not_there_is_refused(tmp_path: Path) -> None:
    train, test = tmp_path / "train.json", tmp_path / "test.json"
    rows = [row | {"rate": 0.5, "name": str(i), "told": "Think."} for i, row in enumerate(ROWS)]
    write_json(train, rows)
    write_json(test, [{"problem": "6 + 1", "answer": 7, "told": "Think."}])
    named = {"solution": "solution", "correctness_rate": "rate", "id": "name", "system": "told"}
    columns = [f"data.columns.{field}=[{name}]" for field, name in named.items()]
    # What only training rows are read for may be missing of the held-out ones.
    paths = (f"data.path={train}", f"data.held_out_path={test}", "data.held_out_count=null")
    problems, held_out = divided(*paths, *columns)
    assert [(p.id, p.correctness_rate) for p in problems] == [(str(i), 0.5) for i in range(6)]
    assert held_out[0].turns == (Turn("system", "Think."),)
    for field, name, hint in (
        ("solution", "solutoin", r"; did you mean data\.columns\.solution=\[solution\]\?"),
        ("correctness_rate", "rates", r"; did you mean data\.columns\.correctness_rate=\[rate\]\?"),
        ("id", "number", r": name one that is there in data\.columns\.id, or leave that out"),
        ("system", "prefix", r": name one that is there in data\.columns\.system, or leave that out"),
        ("answer", "zzz", r": name one that is there in data\.columns\.answer, or leave that out"),
    ):
        with pytest.raises(UserError, match=rf"train\.json: no {field} column; looked for {name}, found .*{hint}$"):
            divided(*paths, *columns, f"data.columns.{field}=[{name}]")
    write_json(test, [{"problem": "6 + 1", "answer": 7}])
    with pytest.raises(UserError, match=r"test\.json: no system column; looked for told"):
        divided(*paths, *columns)


@pytest.mark.parametrize("options", [["3", "4"], {"text": ["3", "4"], "label": ["A", "B"]}, [3, 4]])
def test_options_that_the_model_does_not_see_are_told(
    options: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": f"{i}: A or B, 2 + 2?", "answer": 1, "choices": options} for i in range(2)]
    shown = [{"question": "5: 2 + 2? (A) 3 (B) 4", "answer": "B", "choices": options}]
    write_json(tmp_path / "t.json", [*shown, *rows])
    read_problems(tmp_path / "t.json", {}, [])
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "in 2 of 3 rows the question lacks options that stand in the column 'choices'" in warning
    assert f"({tmp_path / 't.json'}:2)" in warning
    caplog.clear()
    write_json(tmp_path / "t.json", shown)
    read_problems(tmp_path / "t.json", {}, [])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
