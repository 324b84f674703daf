"""Rows that could outgrow the model's context are refused before any work."""

import json
import re

import pytest
from small_runs import SHORT, composed, metrics_rows, run_small

from edge_grpo.command_line.check import instantiate
from edge_grpo.errors import UserError
from edge_grpo.programs.context import check_context, warn_of_small_budget
from edge_grpo.types.problems import Problem

# Rows of wrong answers take the answer branch: 8 sampled tokens, 84 of the phrase with the shortest gold answer, EOS.
ANSWER = (*SHORT, "correction.probabilities={reflect: 0.0, answer: 1.0, solution: 0.0}", "model.context_length=64")


def test_a_correction_that_would_outgrow_the_context_is_refused_and_one_token_more_is_enough(tmp_path):
    told = r"^arithmetic.*: (\d+) prompt tokens \+ up to (\d+) response tokens exceed .* context of 64: lower .*, corr"
    with pytest.raises(UserError, match=told) as caught:
        run_small(tmp_path / "64", "experiment=gec", *ANSWER)
    prompt, response = map(int, re.match(told, str(caught.value)).groups())
    assert 8 + 84 < response <= 8 + 84 + 3  # gold answers of up to three digits, and EOS
    with pytest.raises(UserError, match="exceed the model's context"):
        run_small(tmp_path / "less", "experiment=gec", *ANSWER, f"model.context_length={prompt + response - 1}")
    assert not (tmp_path / "less" / "metrics.csv").exists()
    folder = run_small(tmp_path / "enough", "experiment=gec", *ANSWER, f"model.context_length={prompt + response}")
    assert float(metrics_rows(folder)[0]["correction/answer/count"]) > 0


def test_the_row_that_is_over_by_most_is_named_whichever_prompt_is_longest(policy):
    prompts = {"long:1": 30, "short:1": 10}
    problems = [Problem(name, "", ("1",), origin=name, prompt_ids=(65,) * n) for name, n in prompts.items()]
    policy.model.config.max_position_embeddings = 50
    check_context(problems, policy, [20, 40], "way out")  # 50 and 50
    with pytest.raises(UserError, match=r"^short:1: 10 prompt tokens \+ up to 41 .* context of 50: way out$"):
        check_context(problems, policy, [20, 41], "way out")


def test_a_rollout_without_correction_needs_its_budget_alone(tmp_path):
    longest = "response tokens exceed the model's context of 8: lower"
    with pytest.raises(UserError, match=rf"\+ up to 8 {longest}"):
        run_small(tmp_path, "experiment=vanilla", "model.context_length=8")


def test_a_reference_that_does_not_fit_is_refused_by_sft(tmp_path):
    with pytest.raises(UserError, match=r"response tokens exceed the model's context of 40: drop the row, or take"):
        run_small(tmp_path, "model.context_length=40", config_name="sft")


@pytest.mark.parametrize(
    ("data", "budget", "told"), [("file", 128, True), ("file", 129, False), ("arithmetic", 8, False)]
)
def test_a_budget_for_arithmetic_is_told_of_where_the_problems_are_others(data, budget, told, tmp_path, caplog):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"question": "1 + 1", "answer": "2"}) + "\n")
    cfg, _ = composed("train", f"data={data}", *([f"data.path={path}"] if data == "file" else []))
    warn_of_small_budget(instantiate(cfg.data), budget)
    assert [record.message.startswith("rollout.max_new_tokens=128 suits") for record in caplog.records] == [True] * told
