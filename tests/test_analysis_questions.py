"""Reflection, collapse, branches and multipliers, counted by hand on small tables."""

import math

import pytest
from analysis_rows import BOOTSTRAP, completion, evaluation_source, rollout, run_source, values

from edge_grpo.analysis.branches import branches
from edge_grpo.analysis.collapse import collapse
from edge_grpo.analysis.multipliers import multipliers
from edge_grpo.analysis.reflection import reflection


def by(rows, *keys):
    return {tuple(row[key] for key in keys): values(row) for row in rows}


def test_forced_and_spontaneous_reflection(tmp_path):
    forced = [  # (right before, right after the phrase, how it ended)
        (False, True, "length"),
        (False, False, "stop"),
        (False, False, "stop"),
        (True, False, "stop"),
        (True, True, "stop"),
    ]
    rows = [
        completion(problem=str(i), correct=before, forced_correct=after, finish_reason=end)
        for i, (before, after, end) in enumerate(forced)
    ]
    # Spontaneous: 1 of 2 wrong ones repaired, the right one broken; one had boxed nothing before.
    spontaneous = [(False, True), (False, False), (True, False), (None, True)]
    rows += [
        completion(benchmark="AMC", problem=str(i), reflection="Wait", correct_before_reflection=before, correct=after)
        for i, (before, after) in enumerate(spontaneous)
    ]
    finding = reflection(evaluation_source(tmp_path, rows), BOOTSTRAP)
    table = by(finding.tables["repairs"].rows, "reflection", "over")
    assert table["forced", "all"] == pytest.approx(
        {
            "reflection": "forced",
            "over": "all",
            "wrong": 3,
            "repaired": 1 / 3,
            "right": 2,
            "broken": 1 / 2,
            "accuracy before": 2 / 5,
            "accuracy after": 2 / 5,
            "net change": 0,
        }
    )
    assert table["forced", "cut by the budget"]["repaired"] == 1
    assert table["forced", "ended by itself"]["net change"] == pytest.approx(-1 / 4)
    assert math.isnan(table["forced", "cut by the budget"]["broken"])
    assert table["forced", "AIME24"] == {**table["forced", "all"], "over": "AIME24"}
    assert ("forced", "AMC") not in table
    all_of_it = table["spontaneous", "all"]
    assert (all_of_it["wrong"], all_of_it["repaired"], all_of_it["right"], all_of_it["broken"]) == (2, 0.5, 1, 1.0)
    assert all_of_it["net change"] == pytest.approx(-0 / 3 + (1 - 1) / 3)
    assert finding.statements[0].startswith("Forced reflection repairs 33.3 %")
    assert not finding.notes


def test_accuracy_with_a_marker_globally_and_within_questions(tmp_path):
    # Question a: with (right, wrong), without (right). Question b: without (wrong, wrong). c: with (right).
    rows = [("a", 1, 1), ("a", 1, 0), ("a", 0, 1), ("b", 0, 0), ("b", 0, 0), ("c", 1, 1)]
    rows = [
        completion(problem=p, sample=i, reflection="Wait" if m else None, correct=bool(c))
        for i, (p, m, c) in enumerate(rows)
    ]
    finding = reflection(evaluation_source(tmp_path, rows), BOOTSTRAP)
    assert values(finding.tables["markers"].rows[0]) == pytest.approx(
        {
            "responses with a marker": 3,
            "share": 1 / 2,
            "accuracy with": 2 / 3,
            "accuracy without": 1 / 3,
            "difference": 1 / 3,
            "difference within question": 1 / 2 - 1,  # a alone has both
            "questions with both": 1,
        }
    )
    assert "repairs" not in finding.tables
    assert "edge-grpo-evaluate reflection=forced" in finding.notes[0]
    assert "no response holds a reflection marker with a boxed answer" in finding.notes[1]


def test_reflections_of_a_run_are_of_wrong_responses(tmp_path):
    rows = [rollout(row=i, branch="reflect", correct_after=i == 0) for i in range(4)]
    rows += [rollout(row=4, branch="answer", correct_after=True), rollout(row=5, correct=True)]
    source = run_source(tmp_path, rows)
    finding = reflection(source, BOOTSTRAP)
    row = finding.tables["repairs"].rows[0]
    assert (row["wrong"], row["repaired"].value) == (4, 1 / 4)
    assert f"edge-grpo-evaluate run={tmp_path} reflection=forced" in finding.notes[0]
    without = reflection(run_source(tmp_path, [rollout()]), BOOTSTRAP)
    assert not without.tables
    assert "use correction=guided or forced_reflection" in without.notes[0]


def test_an_evaluation_of_the_run_is_named(tmp_path):
    evaluation_source(tmp_path / "evaluation" / "paper", [completion()])
    finding = reflection(run_source(tmp_path, [rollout()]), BOOTSTRAP)
    assert f"edge-grpo-analyze source={tmp_path / 'evaluation' / 'paper'}`" in finding.notes[-1]


def groups_of_a_run():
    """Right before and after, of four groups of two; the reward is what is right, but one has a format reward."""
    kinds = {
        "revived": ([0, 0], [0, 1]),
        "created": ([0, 1], [1, 1]),
        "dead": ([0, 0], [0, 0]),
        "mixed": ([0, 1], [0, 1]),
    }
    for problem, (before, after) in kinds.items():
        for row, (b, a) in enumerate(zip(before, after, strict=True)):
            branch = "answer" if a and not b else ""
            reward = float(b) + (0.5 if problem == "dead" and row else 0)  # all wrong, yet unequal rewards
            yield rollout(
                problem=problem,
                row=row,
                correct=bool(b),
                correct_after=bool(a),
                reward=reward,
                reward_after=reward + a - b,
                branch=branch,
            )


def test_collapse_before_after_and_by_correction(tmp_path):
    finding = collapse(run_source(tmp_path, groups_of_a_run()), BOOTSTRAP)
    table = {key: (row["before"], row["after"], row["change"]) for (key,), row in groups_table(finding).items()}
    assert table == {
        "all wrong": (2 / 4, 1 / 4, -1 / 4),  # revived and dead; dead
        "mixed": (2 / 4, 2 / 4, 0),  # created and mixed; revived and mixed
        "all right": (0, 1 / 4, 1 / 4),  # created
        "equal rewards": (1 / 4, 1 / 4, 0),  # revived; created
    }
    changes = by(finding.tables["correction"].rows, "change")
    assert changes[("revived by correction",)]["of all"] == 1 / 4
    assert changes[("revived by correction",)]["of those that could"] == 1
    assert changes[("created by correction",)]["of those that could"] == 1 / 3
    assert changes[("created, all right",)]["groups"] == 1
    transitions = by(finding.tables["transitions"].rows, "before")
    assert transitions[("all wrong",)] == {
        "before": "all wrong",
        "all wrong after": 1,
        "mixed after": 1,
        "all right after": 0,
    }
    assert not finding.notes


def groups_table(finding):
    return by(finding.tables["groups"].rows, "groups")


def test_collapse_of_an_evaluation_by_benchmark(tmp_path):
    rows = [("AIME24", "a", 0), ("AIME24", "a", 0), ("AMC", "a", 0), ("AMC", "a", 1), ("AMC", "b", 1), ("AMC", "b", 1)]
    source = evaluation_source(
        tmp_path,
        [completion(benchmark=b, problem=p, sample=i, correct=bool(c)) for i, (b, p, c) in enumerate(rows)],
    )
    table = by(collapse(source, BOOTSTRAP).tables["groups"].rows, "benchmark")
    third = pytest.approx(1 / 3)
    assert table[("all",)] == {
        "benchmark": "all",
        "groups": 3,
        "all wrong": third,
        "mixed": third,
        "all right": third,
    }
    assert [table[("AMC",)][kind] for kind in ("all wrong", "mixed", "all right")] == [0, 1 / 2, 1 / 2]


def test_one_response_a_question_is_no_group(tmp_path):
    finding = collapse(evaluation_source(tmp_path, [completion(), completion(problem="b")]), BOOTSTRAP)
    assert not finding.tables
    assert "evaluation.num_samples=8" in finding.notes[0]


def test_branches_by_hand(tmp_path):
    rows = [
        rollout(row=0, correct=True, advantage=1.0),  # 10 tokens
        # Continued from 10 to 20 tokens, 4 of them injected; wrong still.
        rollout(row=1, branch="reflect", tokens_after=20, sampled_tokens_after=16, advantage=-1.0),
        rollout(row=2, branch="reflect", correct_after=True, tokens_after=20, sampled_tokens_after=16, advantage=1.0),
        # The reference of 30 tokens, in a group that left the update.
        rollout(
            problem="b",
            branch="solution",
            correct_after=True,
            tokens_after=30,
            sampled_tokens_after=0,
            advantage=None,
        ),
        # In the update without advantage.
        rollout(problem="c", branch="no_room", advantage=0.0),
    ]
    # The largest group comes last: a small one there is taken for one that a kill cut.
    finding = branches(run_source(tmp_path, rows[3:] + rows[:3]), BOOTSTRAP)
    table = by(finding.tables["branches"].rows, "branch")
    assert table[("reflect",)] == pytest.approx(
        {
            "branch": "reflect",
            "rows": 2,
            "of wrong rows": 2 / 4,
            "success": 1 / 2,
            "tokens before": 10,
            "tokens after": 20,
            "tokens not sampled": 8,
            "of its tokens": 8 / 40,
            "of tokens in updates": 8 / (10 + 20 + 20 + 10),
            "of tokens with a gradient": 8 / (10 + 20 + 20),
        }
    )
    solution = table[("solution",)]
    assert (solution["tokens not sampled"], solution["of its tokens"], solution["of tokens in updates"]) == (30, 1, 0)
    assert table[("no room",)]["success"] == 0
    everything = table[("all wrong rows",)]
    assert (everything["rows"], everything["tokens not sampled"]) == (4, 38)
    assert everything["success"] == 2 / 4
    assert list(table) == [("reflect",), ("solution",), ("no room",), ("all wrong rows",)]


def test_multipliers_and_gradient_by_hand(tmp_path):
    # Multipliers 1 to 5, of which 5 is the clamp; the first two rows are right.
    rows = [
        rollout(
            row=i,
            problem="ab"[i % 2],
            correct=i < 2,
            advantage=(-1.0) ** i,
            multiplier=float(i + 1),
            clamped=float(i == 4),
        )
        for i in range(5)
    ]
    others = [rollout(problem="c", tokens=20, advantage=0.0), rollout(problem="d", tokens=30, advantage=None)]
    # A group of 3 comes last: a small one there is taken for one that a kill cut.
    finding = multipliers(
        run_source(tmp_path, [*others, *sorted(rows, key=lambda row: row["problem"] == "a")]), BOOTSTRAP
    )
    table = by(finding.tables["multipliers"].rows, "rows")
    # Quantiles of 1, ..., 5 are 1 + 4 q.
    assert table[("all",)] == pytest.approx(
        {
            "rows": "all",
            "number": 5,
            "mean": 3,
            "5 %": 1.2,
            "25 %": 2,
            "median": 3,
            "75 %": 4,
            "95 %": 4.8,
            "max": 5,
            "clamped": 1 / 5,
        }
    )
    assert (table[("right",)]["mean"], table[("wrong",)]["mean"]) == (1.5, 4)
    assert table[("wrong",)]["clamped"] == pytest.approx(1 / 3)
    gradient = by(finding.tables["gradient"].rows, "over")
    assert gradient[("rows",)]["with a gradient"] == pytest.approx(5 / 7)
    assert gradient[("response tokens",)]["with a gradient"] == 50 / 100


def test_a_run_without_correction_and_without_eda_says_so(tmp_path):
    source = run_source(tmp_path, [rollout(row=i, correct=bool(i), reward=float(i)) for i in range(2)])
    assert "use correction=guided" in branches(source, BOOTSTRAP).notes[0]
    assert "the run used no EDA" in multipliers(source, BOOTSTRAP).notes[0]
    assert multipliers(source, BOOTSTRAP).tables["gradient"].rows[0]["with a gradient"].value == 0
    assert collapse(source, BOOTSTRAP).notes == ["No response was corrected: after is before."]


def test_an_evaluation_trains_and_corrects_nothing(tmp_path):
    source = evaluation_source(tmp_path, [completion()])
    for question in (branches, multipliers):
        finding = question(source, BOOTSTRAP)
        assert not finding.tables
        assert "analyze the run itself" in finding.notes[0]
