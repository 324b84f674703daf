"""pass@k, maj@n and intervals against brute force and simulation."""

import itertools

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_grpo.evaluation.results import problem_values, results_markdown, summarise
from edge_grpo.statistics.bootstrap import Bootstrap
from edge_grpo.statistics.estimators import majority, pass_at_k


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_response(case):
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    # One right among 10,000: a subset of half of them holds it half of the time.
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_out_of_range(n, c, k):
    with pytest.raises(ValueError, match=rf"pass@{k} of {c} right among {n}"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["1", "1", "2"], [True, True, False], 1.0),
        (["1", "2", "2"], [True, False, False], 0.0),
        (["1", "2"], [True, False], 0.5),  # one of two winners is right
        (["1", "2", "3"], [True, False, False], 1 / 3),
        (["1", "1", "2", "2", "3"], [True, True, False, False, True], 0.5),  # 3 is right too, but has lost
        ([None, None, "1"], [False, False, True], 1.0),  # no answer, no vote
        ([None, None], [False, False], 0.0),
        (["0.50", ".5", " 0.5 "], [True, True, True], 1.0),
        (["1/2", "0.5", "7", "7"], [True, True, False, False], 0.0),  # equal values of different text vote apart
    ],
)
def test_majority_by_hand(answers, correct, expected):
    assert majority(answers, correct) == pytest.approx(expected)


def completions(benchmark, right_of):
    """n = 2 rows a problem; the answers are all different."""
    rows = [
        {"problem": f"{benchmark}-{p}", "correct": j < right, "answer": f"{p}.{j + 1}", "tokens": 10 * (j + 1)}
        for p, right in enumerate(right_of)
        for j in range(2)
    ]
    return pd.DataFrame(rows).assign(benchmark=benchmark, finish_reason="stop", unparsed=False)


def scored(frame, *, average=None, confidence=0.95, resamples=500, seed=0):
    return summarise(frame, average=average, bootstrap=Bootstrap(confidence, resamples, seed))


def test_total_weighs_by_problems_and_mean_does_not():
    # a: 4 problems with 0, 1, 1, 2 of 2 right: avg@2 = 0.5, pass@2 = 3/4. b: 1 problem, 2 of 2: 1 and 1.
    frame = pd.concat([completions("a", [0, 1, 1, 2]), completions("b", [2])])
    scores = scored(frame)
    value = {part: scores[part]["metrics"] for part in ("total", "mean")}
    assert scores["benchmarks"]["a"]["metrics"]["avg@2"]["value"] == 0.5
    assert scores["benchmarks"]["a"]["metrics"]["pass@2"]["value"] == 0.75
    assert (scores["total"]["problems"], value["total"]["avg@2"]["value"]) == (5, pytest.approx((4 * 0.5 + 1) / 5))
    assert value["mean"]["avg@2"]["value"] == pytest.approx(0.75)
    assert value["total"]["mean_length"]["value"] == pytest.approx(15)
    for metrics in value.values():
        assert metrics["avg@2"]["low"] < metrics["avg@2"]["value"] < metrics["avg@2"]["high"]


def test_only_averaged_benchmarks_are_in_the_total():
    frame = pd.concat([completions("a", [0, 1]), completions("b", [2])])
    scores = scored(frame, average=["b"])
    assert (scores["total"]["problems"], scores["total"]["benchmarks"]) == (1, ["b"])
    # Wilson's interval of 1 of 1: from 1 / (1 + 1.96^2) on.
    assert scores["total"]["metrics"]["avg@2"] == {"value": 1.0, "low": pytest.approx(0.2065, abs=1e-4), "high": 1.0}


def test_a_single_problem_has_no_interval():
    (found,) = scored(completions("a", [1]))["benchmarks"].values()
    assert found["metrics"]["avg@2"] == {"value": 0.5, "low": None, "high": None}
    # Nor has it beside another benchmark, of which there is something to draw.
    found = scored(pd.concat([completions("a", [1]), completions("b", [0, 2])]))["benchmarks"]
    assert found["a"]["metrics"]["avg@2"] == {"value": 0.5, "low": None, "high": None}
    assert found["b"]["metrics"]["avg@2"] == {"value": 0.5, "low": 0.0, "high": 1.0}


def test_benchmarks_are_resampled_within_themselves_and_independently():
    # Two sets of 50 problems, half of each right: the mean of a set varies with sd 0.5 / sqrt(50) = 0.0707 and, of
    # independent draws, that of both with 0.0707 / sqrt(2) = 0.05. Half of a 68.3 % interval is one sd.
    frame = pd.concat([completions(name, [0, 2] * 25) for name in "ab"])
    scores = scored(frame, confidence=0.683, resamples=4000)
    ends = [scores["benchmarks"]["a"]["metrics"]["avg@2"], scores["total"]["metrics"]["avg@2"]]
    assert [(end["high"] - end["low"]) / 2 for end in ends] == pytest.approx([0.0707, 0.05], abs=0.011)
    # A set whose problems are all alike adds no spread: only the other half of the total varies.
    frame = pd.concat([completions("a", [0, 2] * 25), completions("b", [2] * 50)])
    total = scored(frame, confidence=0.683, resamples=4000)["total"]["metrics"]["avg@2"]
    assert (total["high"] - total["low"]) / 2 == pytest.approx(0.0707 / 2, abs=0.006)


def test_intervals_follow_the_seed_and_narrow_with_confidence():
    frame = completions("a", [0, 1, 2, 0, 0] * 13)
    wide, again, other, narrow = (
        scored(frame, confidence=c, resamples=200, seed=seed)["total"]["metrics"]["avg@2"]
        for c, seed in ((0.95, 0), (0.95, 0), (0.95, 1), (0.5, 0))
    )
    assert wide == again
    assert wide != other
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_problems_with_different_numbers_of_samples_are_no_evaluation():
    with pytest.raises(ValueError, match="unpack"):
        problem_values(completions("a", [1, 1]).iloc[:3])


def test_the_table_shows_shares_in_percent_with_intervals():
    results = scored(completions("a", [1, 1]))
    table = results_markdown({"num_samples": 2, **results}).splitlines()
    # Two problems with one of two right: no spread, so no interval, as in a report. Two answers of one vote each: half
    # a point a problem.
    # Of all that are right in every draw: Wilson's interval of 2 of 2, from 1 / (1 + 1.96^2 / 2) on.
    assert table[2] == ("| a | 2 | 50.0 % | 100.0 % [34.2, 100.0] | 50.0 % | 15 | 0.0 % | 0.0 % |")
    assert results["benchmarks"]["a"]["metrics"]["mean_length"] == {"value": 15, "low": None, "high": None}
    assert len(table) == 3  # of one benchmark there is no total
