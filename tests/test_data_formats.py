"""Rows and files as people have them: each is read as exactly these problems, and trains."""

import csv
import gzip
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet
import pytest
from small_runs import SMALL_MODEL, composed, metrics_rows

from edge_grpo.command_line.check import check_config
from edge_grpo.data.file import read_problems
from edge_grpo.programs import train_reports
from edge_grpo.programs.train import INJECTED
from edge_grpo.programs.train_run import run_experiment
from edge_grpo.types.problems import Problem, Turn

COUNT = 6
QUESTIONS = [f"{i} + 1 = ?" for i in range(COUNT)]
THINK = (Turn("system", "Think."),)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def table(row: Callable[[int, str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [row(i, question) for i, question in enumerate(QUESTIONS)]


def problem(i: int, **of: Any) -> Problem:
    """What every table below says of row i, but for `of`."""
    return Problem(**{"id": f"t-{i + 1}", "question": QUESTIONS[i], "answers": (str(i + 1),), **of})


# name -> (rows, what is told, the expected problem of row i without its origin)
LAYOUTS: dict[str, tuple[list[dict[str, Any]], str, Callable[[int], Problem]]] = {
    "verl": (
        table(
            lambda i, question: {
                "data_source": "sums",
                "prompt": [{"role": "system", "content": "Think."}, user(question)],
                "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
                "extra_info": {"index": i, "answer": f"It is {i + 1}."},
            }
        ),
        "verl rows (question: prompt, answer: reward_model.ground_truth)",
        lambda i: problem(
            i,
            turns=THINK,
            is_chat=True,
            columns={
                "data_source": "sums",
                "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
                "extra_info": {"index": i, "answer": f"It is {i + 1}."},
            },
        ),
    ),
    "PRIME": (
        table(
            lambda i, question: {
                "problem_id": f"p{i}",
                "prompt": question,
                "verification_info": json.dumps({"ground_truth": str(i + 1)}),
                "gold_standard_solution": f"\\boxed{{{i + 1}}}",
            }
        ),
        "PRIME rows (question: prompt, answer: verification_info.ground_truth, solution: gold_standard_solution, "
        "id: problem_id)",
        lambda i: problem(
            i,
            id=f"p{i}",
            solution=f"\\boxed{{{i + 1}}}",
            columns={
                "problem_id": f"p{i}",
                "verification_info": json.dumps({"ground_truth": str(i + 1)}),
                "gold_standard_solution": f"\\boxed{{{i + 1}}}",
            },
        ),
    ),
    # The prompt was made from the column `problem`, which stays: the prompt is what is asked.
    "TRL with a chat": (
        table(lambda i, question: {"problem": "made from", "prompt": [user(question)], "solution": f"${i + 1}$"}),
        "TRL rows (question: prompt, solution: solution)",
        lambda i: problem(
            i, is_chat=True, answers=(f"${i + 1}$",), columns={"problem": "made from", "solution": f"${i + 1}$"}
        ),
    ),
    "TRL with a text": (
        table(lambda i, question: {"prompt": question, "answer": str(i + 1), "solution": f"So $\\boxed{{{i + 1}}}$"}),
        "TRL rows (question: prompt, answer: answer, solution: solution)",
        lambda i: problem(
            i,
            solution=f"So $\\boxed{{{i + 1}}}$",
            columns={"answer": str(i + 1), "solution": f"So $\\boxed{{{i + 1}}}$"},
        ),
    ),
    "OpenRLHF": (
        table(lambda i, question: {"input": question, "label": str(i + 1), "datasource": "sums"}),
        "OpenRLHF rows (question: input, answer: label)",
        lambda i: problem(i, columns={"label": str(i + 1), "datasource": "sums"}),
    ),
    "messages": (
        table(
            lambda i, question: {
                "messages": [
                    user("0 + 0 = ?"),
                    {"role": "assistant", "content": "0"},
                    user(question),
                    {"role": "assistant", "content": f"\\boxed{{{i + 1}}}"},
                ]
            }
        ),
        "messages rows (question: messages)",
        lambda i: problem(
            i, is_chat=True, turns=(Turn("user", "0 + 0 = ?"), Turn("assistant", "0")), solution=f"\\boxed{{{i + 1}}}"
        ),
    ),
    "MATH": (
        table(lambda i, question: {"problem": question, "solution": f"First \\boxed{{0}}, so \\boxed{{{i + 1}}}."}),
        "MATH rows (question: problem, solution: solution)",
        lambda i: problem(
            i,
            solution=f"First \\boxed{{0}}, so \\boxed{{{i + 1}}}.",
            columns={"solution": f"First \\boxed{{0}}, so \\boxed{{{i + 1}}}."},
        ),
    ),
    "GSM8K": (
        table(lambda i, question: {"question": question, "answer": f"We add.\n####{i + 1}"}),
        "question and answer rows (question: question, answer: answer)",
        lambda i: problem(i, solution=f"We add.\n\\boxed{{{i + 1}}}", columns={"answer": f"We add.\n####{i + 1}"}),
    ),
    "question that is a chat, system column": (
        table(lambda i, question: {"question": [user(question)], "answer": i + 1, "system_prompt": "Think."}),
        "question and answer rows (question: question, answer: answer, system: system_prompt)",
        lambda i: problem(i, is_chat=True, turns=THINK, columns={"answer": i + 1, "system_prompt": "Think."}),
    ),
}


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_parquet(path: Path, rows: list[Any]) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[Any], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_shards(folder: Path, rows: list[Any]) -> None:
    """As hubs lay a data set out."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("a data set")
    (folder / "dataset_infos.json").write_text("{}")
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows[:4])
    write_parquet(folder / "data" / "train-00001-of-00002-0a1b2c.parquet", rows[4:])


PLAIN = table(lambda i, question: {"question": question, "answer": str(i + 1), "solution": f'"{i}",\nso {i + 1}'})

# name of the file -> how the rows of PLAIN are written there
FILES: dict[str, Callable[[Path], object]] = {
    "t.csv": lambda path: write_csv(path, PLAIN),
    "t.TSV": lambda path: write_csv(path, PLAIN, "\t"),
    "t.ndjson": lambda path: write_jsonl(path, PLAIN),
    "t.JSONL": lambda path: write_jsonl(path, PLAIN),
    "t.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, PLAIN)).encode())),
    "t.json": lambda path: path.write_text(json.dumps({"version": 1, "tags": ["a"], "data": PLAIN})),
    "t.Parquet": lambda path: write_parquet(path, PLAIN),
    "t": lambda path: write_shards(path, PLAIN),
}


def without_origin(problems: Sequence[Problem]) -> list[Problem]:
    return [Problem(**{**vars(p), "origin": ""}) for p in problems]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_layout_is_read_and_said(layout: str, write: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, told, expected = LAYOUTS[layout]
    path, bad_rows = tmp_path / ("t.jsonl" if write is write_jsonl else "t.parquet"), []
    write(path, rows)
    with caplog.at_level("INFO"):
        problems = read_problems(path, {}, bad_rows)
    assert bad_rows == []
    assert without_origin(problems) == [expected(i) for i in range(COUNT)]
    assert [p.origin for p in problems] == [f"{path}:{i + 1}" for i in range(COUNT)]
    assert caplog.messages == [f"{path}: read as {told}"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_whatever_its_ending(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    expected = [problem(i, solution=f'"{i}",\nso {i + 1}') for i in range(COUNT)]
    problems = read_problems(tmp_path / name, {}, [])
    assert [Problem(**{**vars(p), "origin": "", "columns": {}}) for p in problems] == expected
    assert problems[5].columns == {"answer": "6", "solution": '"5",\nso 6'}
    last = {"t": "t/data/train-00001-of-00002-0a1b2c.parquet:2"}.get(name, f"{name}:6")
    assert problems[5].origin == f"{tmp_path / last}"


@pytest.mark.parametrize("name", [*LAYOUTS, *FILES])
def test_it_trains_for_two_iterations(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / (name if name in FILES else "t.jsonl")
    if name in FILES:
        FILES[name](path)
    else:
        write_jsonl(path, LAYOUTS[name][0])
    cfg, _ = composed(
        "train",
        *("experiment=vanilla", f"data.path={path}", "data=file", "data.held_out_count=2", *SMALL_MODEL),
        *("data.problems_per_iteration=2", "rollout.max_new_tokens=4", "algorithm.num_generations=2", "trainer=cpu"),
        *("trainer.max_iterations=2", "logger=csv", "~callbacks.console", f"paths.run_dir={tmp_path}/run"),
        "reward.rewards.accuracy.verifier.workers=1",  # each imports for more than a second
    )
    check_config(cfg, INJECTED)
    with patch.object(train_reports, "draw_training_figure"):
        run_experiment(cfg)
    run = tmp_path / "run"
    assert [row["step"] for row in metrics_rows(run)] == ["0", "1", "2"]  # two iterations, the evaluation after them
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    told = LAYOUTS[name][1] if name in LAYOUTS else "question and answer rows (question: question, answer: answer, "
    assert f"read as {told}" in caplog.text
