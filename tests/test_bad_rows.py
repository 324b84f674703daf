"""Bad rows in whole runs: listed in the run directory, or refused before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL_GRPO, SMALL_MODEL, command, composed, metrics_rows

from edge_grpo.command_line.check import check_config
from edge_grpo.errors import UserError
from edge_grpo.programs.difficulty_run import measure_difficulty
from edge_grpo.programs.train import INJECTED
from edge_grpo.programs.train_run import run_experiment
from edge_grpo.rewards.base import WeightedRewards

# Row 3 is broken, 5 repeats the id of row 1, 6 has no question, 8 is too long, 9 has no solution.
BROKEN = [3, 5, 6, 8, 9]
FILE = ("data=file", "data.held_out_count=2", "data.max_prompt_tokens=200")
SETTINGS = (*(text for text in SMALL_GRPO if not text.startswith("data.")), "data.problems_per_iteration=2", *FILE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"id": i, "question": f"{i} + 1 = ?", "answer": i + 1, "solution": f"\\boxed{{{i + 1}}}"} for i in range(1, 13)
    ]
    rows[4]["id"], rows[5]["question"], rows[7]["question"], rows[8]["solution"] = 1, "", "1" * 200, None
    rows[9]["solution"], rows[10]["solution"] = "It is 11.", "It is \\boxed{13}."
    lines = [json.dumps(row) for row in rows]
    lines[2] = lines[2][:-1]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    return tmp_path / "t.jsonl"


def train(folder: Path, path: Path, *overrides: str) -> Path:
    cfg, _ = composed("train", *SETTINGS, f"data.path={path}", *overrides, f"paths.run_dir={folder}")
    check_config(cfg, INJECTED)
    run_experiment(cfg)
    return folder


def test_skip_trains_on_the_other_rows_and_lists_the_bad_ones(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = train(tmp_path / "run", path, "experiment=gec", "correction.reflection_tokens=8", "data.on_bad_row=skip")
    assert len(metrics_rows(folder)) == 3  # two iterations and the evaluation after them
    lines = (folder / "bad_rows.txt").read_text().splitlines()
    assert [int(line.removeprefix(f"{path}:").split(":")[0]) for line in lines] == BROKEN
    assert f"5 bad rows are left out: {folder / 'bad_rows.txt'}" in caplog.text
    assert "5 training problems, 2 held out" in caplog.text  # 12 - 5 = 5 + 2


def test_a_failed_reference_is_listed_with_its_reason(path: Path, tmp_path: Path) -> None:
    folder = train(tmp_path / "run", path, "experiment=gec", "correction.reflection_tokens=8", "data.on_bad_row=skip")
    found = [json.loads(line) for line in (folder / "failed_references.jsonl").read_text().splitlines()]
    assert found == [
        {"id": "10", "origin": f"{path}:10", "answers": ["11"], "reason": "no \\boxed{...}"},
        {
            "id": "11",
            "origin": f"{path}:11",
            "answers": ["12"],
            "reason": "the last \\boxed{...} holds 13, the gold answer is 12",
        },
    ]


def test_a_reward_that_most_references_fail_is_told_of_prominently(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text("def score(answer, response):\n    return float('It is' in response)\n")
    train(
        *(tmp_path / "run", path, "experiment=gec", "correction.reflection_tokens=8", "data.on_bad_row=skip"),
        *("reward=python", f"reward.function={tmp_path / 'mine.py'}:score"),
    )
    # Of five training problems, those with "It is 11." and "It is \\boxed{13}." pass.
    assert "3 of 5 reference solutions are wrong by this run's own reward" in caplog.text
    assert "MOST REFERENCES ARE WRONG BY YOUR REWARD" in caplog.text


def test_an_answer_that_the_reward_cannot_grade_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ungradable(self: WeightedRewards, problems: Any) -> list[str | None]:
        return ["gold answer '5' is odd" if p.answers == ("5",) else None for p in problems]

    monkeypatch.setattr(WeightedRewards, "ungradable", ungradable)
    with pytest.raises(UserError, match=r"t\.jsonl:4: answer is ungradable \(gold answer '5' is odd\)"):
        train(tmp_path / "run", path, "experiment=vanilla")


def test_the_command_line_refuses_with_all_rows_and_exit_code_2(path: Path, tmp_path: Path) -> None:
    process = command(*SETTINGS, f"data.path={path}", "experiment=gec", f"hydra.run.dir={tmp_path / 'run'}")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    message = output[output.index("error: ") :].splitlines()
    assert message[0] == "error: 5 bad rows; mend them, or data.on_bad_row=skip leaves them out:"
    assert [int(line.removeprefix(f"  {path}:").split(":")[0]) for line in message[1:]] == BROKEN
    assert not (tmp_path / "run/checkpoints").exists()


def test_difficulty_takes_the_same_path(path: Path, tmp_path: Path) -> None:
    settings = (*SMALL_MODEL, *FILE, f"data.path={path}", "rollout.max_new_tokens=4", f"paths.run_dir={tmp_path}/run")
    with pytest.raises(UserError, match="4 bad rows; mend them"):  # it reads no solutions
        measure_difficulty(composed("difficulty", *settings)[0])
    measure_difficulty(composed("difficulty", *settings, "data.on_bad_row=skip", "num_samples=1")[0])
    assert len((tmp_path / "run/bad_rows.txt").read_text().splitlines()) == 4
    assert len((tmp_path / "run/problems.jsonl").read_text().splitlines()) == 12 - 4  # none is held out
