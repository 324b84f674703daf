"""The cluster bootstrap and AUROC: by hand, against brute force, and its coverage on simulated data."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_grpo.errors import UserError
from edge_grpo.statistics.auroc import wins_and_pairs
from edge_grpo.statistics.bootstrap import Bootstrap, Estimate


def bootstrap(**values):
    return Bootstrap(**{"confidence": 0.9, "resamples": 200, "seed": 0, **values})


def test_ratio_is_over_all_rows_and_its_interval_over_units():
    # Clusters (1, 1, 0) and (0): 2 of 4. Drawn twice the first gives 2/3, the second 0; one of each 1/2.
    numerator, clusters = np.array([1, 1, 0, 0]), np.array([0, 0, 0, 1])
    found = bootstrap().ratio(numerator, np.ones(4), clusters)
    assert found.value == 0.5
    assert (found.low, found.high) == (0.0, pytest.approx(2 / 3))


def test_no_interval_or_one_of_no_width_where_resampling_tells_nothing():
    one_unit = bootstrap().ratio([1, 0], [1, 1], np.array([0, 0]))
    never = bootstrap().ratio([0, 0, 0], [1, 1, 1], np.arange(3))
    nothing = bootstrap().ratio([0, 0, 0], [0, 0, 0], np.arange(3))
    one_question = bootstrap().ratio([1 / 3, 0, 0], [0.7, 0, 0], np.arange(3))  # w / 3 over 0.7 w, but for rounding
    assert one_unit == Estimate(0.5)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (None, None)
    assert never == Estimate(0.0, 0.0, 0.0, n=3)
    assert one_question.low == one_question.high == one_question.value == pytest.approx(1 / 2.1)


def test_draws_follow_from_the_seed_and_not_from_the_memory_they_take(monkeypatch):
    numbers, clusters = np.random.default_rng(0).random(300), np.repeat(np.arange(100), 3)
    first = bootstrap(seed=1).ratio(numbers, np.ones(300), clusters)
    assert first != bootstrap(seed=2).ratio(numbers, np.ones(300), clusters)
    monkeypatch.setattr("edge_grpo.statistics.bootstrap.CHUNK", 700)  # 7 draws at once
    again = bootstrap(seed=1).ratio(numbers, np.ones(300), clusters)
    assert [again.low, again.high] == pytest.approx([first.low, first.high], abs=1e-12)


def test_coverage_of_intervals_over_questions():
    # 4 responses to each of 80 questions, whose difficulties are uniform in [0, 1]: truly half are right. In 400
    # data sets the share of 90 % intervals that hold 0.5 has a standard error of 1.5 points. Var(mean) by question
    # is (1/12 + 1/24) / 80; by response it is taken as 1/4 / 320, half of that: z = 1.64 * sqrt(1/2) covers 75 %.
    covered = {}
    for name, clusters in (("question", np.repeat(np.arange(80), 4)), ("response", np.arange(320))):
        generator = np.random.default_rng(0)
        data = (generator.random((80, 4)) < generator.random((80, 1)) for _ in range(400))
        found = [bootstrap().ratio(right.ravel(), np.ones(320), clusters) for right in data]
        covered[name] = sum(estimate.low <= 0.5 <= estimate.high for estimate in found)
    assert 0.86 <= covered["question"] / 400 <= 0.94
    assert covered["response"] / 400 < 0.82


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"confidence": 0}, {"resamples": 0}, {"seed": -1}])
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(UserError, match=f"bootstrap.{next(iter(wrong))}="):
        bootstrap(**wrong)


ROWS = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2), st.integers(0, 3)), min_size=1)


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_wins_and_pairs_are_those_of_brute_force(rows):
    values, wrong, strata, weights = (np.array(column) for column in zip(*rows, strict=True))
    _, strata = np.unique(strata, return_inverse=True)
    expected = np.zeros((2, strata.max() + 1))
    for i, j in itertools.product(range(len(rows)), repeat=2):
        if wrong[i] and not wrong[j] and strata[i] == strata[j]:
            beats = float(values[i] > values[j]) + 0.5 * float(values[i] == values[j])
            expected[:, strata[i]] += weights[i] * weights[j] * np.array([beats, 1.0])
    found = wins_and_pairs(values.astype(float), wrong, strata, weights[None].astype(float))
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-9)
