"""Entropy of right against wrong responses: globally, and within a question."""

import numpy as np
import pandas as pd
import pytest
from analysis_rows import BOOTSTRAP, completion, evaluation_source, rollout, run_source, values

from edge_grpo.analysis.entropy import _Compared, entropy
from edge_grpo.statistics.bootstrap import Bootstrap


def compared(finding):
    return {row["compared"]: values(row) for row in finding.tables["auroc"].rows}


def simpson():
    """Hard questions have high entropy and mostly wrong responses; within each, entropy tells nothing.

    Easy: right at 0.1, 0.1, 0.3, 0.3, wrong at 0.2. Hard: right at 1.2, wrong at 1.1, 1.1, 1.3, 1.3.
    """
    easy = [(0.1, True), (0.1, True), (0.3, True), (0.3, True), (0.2, False)]
    hard = [(1.2, True), (1.1, False), (1.1, False), (1.3, False), (1.3, False)]
    return [("easy", *row) for row in easy] + [("hard", *row) for row in hard]


def test_global_and_within_question_differ_as_in_simpsons_paradox(tmp_path):
    rows = [completion(problem=p, sample=i, entropy=e, correct=c) for i, (p, e, c) in enumerate(simpson())]
    found = compared(entropy(evaluation_source(tmp_path, rows), BOOTSTRAP))
    # Wrong 0.2 beats 2 of the 5 right ones. Wrong 1.1 beats the 4 easy ones (twice), wrong 1.3 all 5 (twice).
    assert found["all responses"]["AUROC, over pairs"] == pytest.approx((2 + 2 * 4 + 2 * 5) / 25)
    # Easy: 0.2 beats 2 of 4. Hard: 1.1 loses, 1.3 wins against 1.2: 2 of 4.
    assert found["within question"] == {
        "compared": "within question",
        "AUROC, over pairs": 0.5,
        "AUROC, mean over groups": 0.5,
        "groups with both": 2,
        "pairs": 8,
    }
    assert "within benchmark" not in found  # there is one


def test_groups_weigh_by_their_pairs_or_all_the_same(tmp_path):
    # Group a: one pair, which the wrong one wins. Group b: 3 pairs, all lost. Group c is all right.
    rows = [("a", 0.9, False), ("a", 0.1, True), ("b", 0.1, False), *[("b", 0.5, True)] * 3, *[("c", 0.2, True)] * 2]
    finding = entropy(
        run_source(tmp_path, [rollout(problem=p, row=i, entropy=e, correct=c) for i, (p, e, c) in enumerate(rows)]),
        BOOTSTRAP,
    )
    within = compared(finding)["within question"]
    assert within["AUROC, over pairs"] == 1 / 4
    assert within["AUROC, mean over groups"] == (1 + 0) / 2
    assert (within["groups with both"], within["pairs"]) == (2, 4)


def test_one_question_in_two_iterations_is_two_groups(tmp_path):
    # Within an iteration the wrong one always wins; across iterations it would lose once.
    rows = [(0, 0.2, False), (0, 0.1, True), (1, 0.9, False), (1, 0.8, True)]
    source = run_source(tmp_path, [rollout(step=s, row=i, entropy=e, correct=c) for i, (s, e, c) in enumerate(rows)])
    found = compared(entropy(source, BOOTSTRAP))
    assert found["all responses"]["AUROC, over pairs"] == 3 / 4
    assert found["within iteration"]["AUROC, over pairs"] == 1
    assert found["within question"]["AUROC, over pairs"] == 1


def test_draws_of_whole_questions_lie_around_the_estimate():
    # Within a question entropy tells nothing, across questions a lot. Were the copies of a question that is drawn
    # twice compared with each other, draws would lie below the estimate: with 6 questions in a stratum, by about
    # (1/6) * (0.8 - 0.5) = 0.05 where a sixth of pairs would be of one question on top.
    generator = np.random.default_rng(0)
    question = np.repeat(np.arange(240), 4)
    hardness = generator.random(240)[question]
    frame = pd.DataFrame({"question": question, "group": question, "correct": generator.random(960) > hardness})
    frame["entropy"] = hardness + 0.1 * generator.random(960)
    row = _Compared(frame, Bootstrap(confidence=0.02, resamples=500, seed=0)).pooled("strata", question // 6)
    found = row["AUROC, over pairs"]
    assert (found.low + found.high) / 2 == pytest.approx(found.value, abs=0.005)


def test_distributions_by_hand_and_responses_without_entropy(tmp_path):
    right, wrong = [0.1, 0.2, 0.6], [0.4, 0.8]
    rows = [rollout(problem="a", row=i, entropy=e, correct=True) for i, e in enumerate(right)]
    rows += [rollout(problem="b", row=i, entropy=e) for i, e in enumerate([*wrong, None])]
    finding = entropy(run_source(tmp_path, rows), BOOTSTRAP)
    first, second = (values(row) for row in finding.tables["entropy"].rows)
    # Means 0.9 / 3 and 1.2 / 2; quartiles of three values lie halfway between neighbours.
    assert first == pytest.approx(
        {"responses": "right", "number": 3, "mean": 0.3, "25 %": 0.15, "median": 0.2, "75 %": 0.4}
    )
    assert second == pytest.approx(
        {"responses": "wrong", "number": 2, "mean": 0.6, "25 %": 0.5, "median": 0.6, "75 %": 0.7}
    )
    assert finding.notes[0] == "1 responses have no entropy and are left out."
    assert "no group has both" in finding.notes[1]
    assert np.isnan(compared(finding)["within question"]["AUROC, over pairs"])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"correct": True}, "holds no wrong response"),
        ({"correct": False}, "holds no right response"),
        ({"entropy": None}, "has no entropies"),
    ],
)
def test_says_why_there_is_nothing_to_compare(tmp_path, row, why):
    finding = entropy(run_source(tmp_path, [rollout(row=i, **row) for i in range(2)]), BOOTSTRAP)
    assert not finding.tables
    assert why in finding.notes[-1]
