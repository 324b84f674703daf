"""Difficulty: what it writes is what the data modules read."""

import json

import pytest
import torch
from small_runs import SMALL_MODEL, composed

from edge_grpo.data.file import read_problems
from edge_grpo.errors import UserError
from edge_grpo.programs.difficulty_run import measure_difficulty
from edge_grpo.rollouts.native import NativeRollout
from edge_grpo.types.problems import Turn

SMALL = (
    "data.train_count=5",
    "data.held_out_count=1",
    "data.correctness_rates=null",
    *SMALL_MODEL,
    "rollout.max_new_tokens=4",
    "num_samples=4",
    "problems_per_batch=2",
)


def test_writes_problems_with_their_rates(tmp_path):
    cfg, _ = composed("difficulty", *SMALL, f"paths.run_dir={tmp_path}")
    # Four bytes of noise hold no box: no response is right, so every rate is 0.
    assert measure_difficulty(cfg) == 1.0
    columns = {"question": ["question"], "answer": ["answer"], "solution": ["solution"], "id": ["id"]}
    problems = read_problems(tmp_path / "problems.jsonl", columns | {"correctness_rate": ["correctness_rate"]}, [])
    assert [p.correctness_rate for p in problems] == [0.0] * 5
    assert problems[0].solution.endswith(f"\\boxed{{{problems[0].answers[0]}}}")
    by_question = json.loads((tmp_path / "correctness_rates.json").read_text())
    assert by_question == {p.question: 0.0 for p in problems}


def rates(folder, *settings):
    """Of even first bytes: a random model's problems differ."""
    mine = folder / "mine.py"
    mine.parent.mkdir()
    mine.write_text("def even(response):\n    return float(sum(map(ord, response)) % 2 == 0)\n")
    own = ("reward=python", f"reward.function={mine}:even", f"paths.run_dir={folder}")
    cfg, _ = composed("difficulty", *SMALL, *own, *settings)
    measure_difficulty(cfg)
    return list(json.loads((folder / "correctness_rates.json").read_text()).values())


def test_rates_depend_on_no_batch_and_no_bound_on_the_cache(tmp_path):
    together = rates(tmp_path / "a", "problems_per_batch=5")
    assert 0 < sum(together) < 5
    assert rates(tmp_path / "b", "problems_per_batch=2", "rollout.kv_cache_gb=1.0e-9") == together
    assert rates(tmp_path / "c", "seed=1") != together


def test_the_precision_is_that_of_the_samples(tmp_path, monkeypatch):
    seen, draw = [], NativeRollout.generate

    def noted(self, policy, *args):
        seen.append((policy.model.dtype, torch.is_autocast_enabled("cpu")))
        return draw(self, policy, *args)

    monkeypatch.setattr(NativeRollout, "generate", noted)
    expected = {
        "32-true": (torch.float32, False),
        "bf16-mixed": (torch.float32, True),
        "bf16-true": (torch.bfloat16, False),
    }
    for precision, of in expected.items():
        seen.clear()
        rates(tmp_path / precision, f"precision={precision}")
        assert set(seen) == {of}
    with pytest.raises(UserError, match="precision=16-mixed is none of 32-true, 64-true, bf16-mixed, bf16-true"):
        rates(tmp_path / "half", "precision=16-mixed")


def test_chats_and_other_columns_come_back(tmp_path):
    path, earlier = tmp_path / "mine.jsonl", [{"role": "system", "content": "Think."}]
    for i in range(2):
        question = {"role": "user", "content": f"{i} + 1 = ?"}
        row = {
            "prompt": [*earlier, question],
            "reward_model": {"ground_truth": i + 1},
            "extra_info": {"half": "\ud83d"},
        }
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    small = [text for text in SMALL if not text.startswith("data.")]
    cfg, _ = composed("difficulty", "data=file", f"data.path={path}", *small, f"paths.run_dir={tmp_path / 'out'}")
    measure_difficulty(cfg)
    before, after = read_problems(path, {}, []), read_problems(tmp_path / "out" / "problems.jsonl", {}, [])
    assert [(p.id, p.turns, p.question, p.answers) for p in after] == [
        (p.id, p.turns, p.question, p.answers) for p in before
    ]
    assert [p.turns for p in after] == [(Turn("system", "Think."),)] * 2
    assert [p.correctness_rate for p in after] == [0.0] * 2
    kept = ("reward_model", "extra_info")
    assert [[p.columns[name] for name in kept] for p in after] == [[p.columns[name] for name in kept] for p in before]


def test_every_row_of_a_file_is_measured(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f'{{"question": "{i} + 1 = ?", "answer": "{i + 1}"}}\n' for i in range(5)))
    small = [text for text in SMALL if not text.startswith("data.")]
    cfg, _ = composed("difficulty", "data=file", f"data.path={path}", *small, f"paths.run_dir={tmp_path / 'out'}")
    measure_difficulty(cfg)
    rows = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == [f"{i} + 1 = ?" for i in range(5)]
