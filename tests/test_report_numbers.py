"""The numbers and tables of a report, worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from report_runs import write_evaluation, write_run

from edge_grpo.reporting.arms import label_arms
from edge_grpo.reporting.curves import GRID, ITERATIONS, MINUTES, ROLLOUTS, Curve, curve, evaluated_at, over_seeds
from edge_grpo.reporting.headline import headline
from edge_grpo.reporting.numbers import Arms, numbers_of
from edge_grpo.reporting.runs import read_folder
from edge_grpo.reporting.scores import Member, chosen, paired
from edge_grpo.reporting.tables import learning_table, main_table, other_metrics_table, reading, tables_of
from edge_grpo.statistics.bootstrap import Bootstrap, Estimate, highest_coverage

BOOTSTRAP = Bootstrap(confidence=0.95, resamples=2000, seed=0)


def members_of(folder):
    runs = read_folder(folder)
    return [Member(arm, run, chosen(run, None)) for arm, run in zip(label_arms(runs), runs, strict=True)]


def numbers(members, seeds=2):
    arms = Arms(dict.fromkeys(dict.fromkeys(member.arm for member in members), seeds), members[0].arm)
    return numbers_of(members, arms, BOOTSTRAP), arms


def lines(table):
    return [[cell.line for cell in row] for row in table.rows]


def test_the_interval_of_three_seeds_by_hand():
    # 27 equal draws. The mean of (0, 0, 0) is alone at the bottom: 1/27 = 3.7 % is more than 2.5 %, less than 5 %; the
    # next, three draws of (0, 0, 0.3), is 0.1. At the top (0.9, 0.9, 0.9), then three of (0.9, 0.9, 0.3): 0.7.
    values = [0.0, 0.3, 0.9]
    wide = Bootstrap(confidence=0.95, resamples=10000, seed=0).mean(values)
    narrow = Bootstrap(confidence=0.90, resamples=10000, seed=0).mean(values)
    assert (wide.low, wide.high) == pytest.approx((0.0, 0.9))
    assert (narrow.low, narrow.high) == pytest.approx((0.1, 0.7))
    # Deviations -0.4, -0.1, 0.5: squares 0.16 + 0.01 + 0.25 = 0.42, over 2.
    assert (wide.value, wide.std, wide.n) == pytest.approx((0.4, math.sqrt(0.21), 3))


def test_paired_differences_are_over_common_seeds():
    # Seeds 0 and 1 are common: 0.1 and 0.3, so the mean is 0.2, the deviation 0.1 * sqrt(2).
    found = paired({0: 0.5, 1: 0.7, 2: 0.9}, {1: 0.4, 0: 0.4, 3: 0.1}, BOOTSTRAP)
    assert (found.value, found.std, found.low, found.high, found.n) == pytest.approx((0.2, 0.1 * 2**0.5, 0.1, 0.3, 2))
    assert paired({0: 0.5}, {0: 0.4}, BOOTSTRAP) == Estimate(pytest.approx(0.1))
    assert paired({0: 0.5}, {1: 0.4}, BOOTSTRAP) is None


def test_no_interval_of_few_seeds_covers_more_often_than_is_said():
    rng = np.random.default_rng(0)
    bootstrap = Bootstrap(confidence=0.95, resamples=200, seed=0)
    for n in (2, 3):
        found = [bootstrap.mean(rng.normal(size=n)) for _ in range(1000)]
        covered = np.mean([e.low <= 0 <= e.high for e in found])
        # The whole range of 2 or 3 seeds is their interval, so the ceiling is reached: +- 4 standard errors of 1.6 %.
        assert covered == pytest.approx(highest_coverage(n), abs=0.064)


@pytest.fixture
def evaluated_runs(tmp_path):
    """Two arms of two seeds, evaluated on A (10 problems) and B (30)."""
    scores = {
        ("vanilla", 0): (0.2, 0.2),
        ("vanilla", 1): (0.4, 0.4),
        ("edge_grpo", 0): (0.1, 0.5),
        ("edge_grpo", 1): (0.3, 0.7),
    }
    for job, ((arm, seed), (a, b)) in enumerate(scores.items()):
        run = write_run(tmp_path / f"{arm}-{seed}", arm, seed)
        (run / ".hydra" / "hydra.yaml").write_text(f"hydra: {{job: {{num: {job}}}}}\n")
        write_evaluation(run, {"A": a, "B": b})
    return tmp_path


def test_the_main_table_and_the_differences_by_hand(evaluated_runs):
    found, arms = numbers(members_of(evaluated_runs))
    _, main, differences, *_ = tables_of(found, arms, 0.95)
    assert main.columns == ["arm", "seeds", "Avg (40)", "A (10)", "B (30)"]
    # Avg = (10 A + 30 B) / 40: 0.2 and 0.4 for vanilla, 0.4 and 0.6 for edge_grpo. Two seeds 0.2 apart deviate by
    # 0.1 * sqrt(2) = 14.1 %, and their interval is their range (1/4 of the draws at each end).
    assert lines(main) == [
        ["vanilla", "2", "30.0 ± 14.1 [20.0, 40.0]", "30.0 ± 14.1 [20.0, 40.0]", "30.0 ± 14.1 [20.0, 40.0]"],
        ["edge_grpo", "2", "50.0 ± 14.1 [40.0, 60.0]", "20.0 ± 14.1 [10.0, 30.0]", "60.0 ± 14.1 [50.0, 70.0]"],
    ]
    assert [[cell.rank for cell in row[2:]] for row in main.rows] == [[0, 1, 0], [1, 0, 1]]
    # Both seeds differ by the same, of which no interval comes.
    assert lines(differences) == [["edge_grpo", "2", "+20.0 ± 0.0", "-10.0 ± 0.0", "+30.0 ± 0.0"]]
    assert "at most 50 % of the time with 2" in main.caption
    assert headline(found, arms, 0.95) == [
        "Highest Avg (40): edge_grpo, 50.0 ± 14.1 [40.0, 60.0] % (2 seeds). Its interval overlaps that of vanilla.",
        "Against vanilla: +20.0 ± 0.0 percentage points (2 pairs of seeds: no interval).",
    ]
    assert lines(other_metrics_table(found, arms, 0.95))[0] == [
        "vanilla", "2", "30.0 ± 14.1 [20.0, 40.0]", "100 ± 0",
    ]  # fmt: skip


def test_one_seed_has_the_interval_over_problems_and_its_difference_none(tmp_path):
    for arm, score in (("a", 0.3), ("b", 0.4)):
        write_evaluation(write_run(tmp_path / arm, arm, 0), {"A": score})
    found, arms = numbers(members_of(tmp_path), seeds=1)
    ranking, main, differences, *_ = tables_of(found, arms, 0.95)
    assert lines(main) == [["a", "1", "30.0 [20.0, 40.0]"], ["b", "1", "40.0 [30.0, 50.0]"]]
    assert [row[:4] for row in lines(ranking)] == [  # the higher mean first
        ["b", "1", "40.0 [30.0, 50.0]", "+10.0"],
        ["a", "1", "30.0 [20.0, 40.0]", "-"],
    ]
    assert lines(differences) == [["b", "1", "+10.0"]]
    assert "over problems] of one seed" in main.caption
    assert reading(found.differences, 0.95) == "One seed: no intervals."


def test_seeds_that_were_not_evaluated_are_not_counted(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path / str(seed), "a", seed)
    write_evaluation(run, {"A": 0.3})
    found, arms = numbers(members_of(tmp_path), seeds=2)
    main, learning, _ = tables_of(found, arms, 0.95)
    assert lines(main) == [["a", "1", "30.0 [20.0, 40.0]"]]
    assert lines(learning)[0][1] == "2"


def test_without_evaluations_the_main_table_is_of_held_out_accuracy(tmp_path):
    for arm, after in (("a", 0.5), ("b", 0.75)):
        write_run(tmp_path / arm, arm, 0, held_out=(0.25, after))
    found, arms = numbers(members_of(tmp_path), seeds=1)
    _, main, differences, learning = tables_of(found, arms, 0.95)
    assert main.columns == ["arm", "seeds", "held-out before", "held-out after"]
    assert lines(main) == [["a", "1", "25.0", "50.0"], ["b", "1", "25.0", "75.0"]]
    assert lines(differences) == [["b", "1", "+25.0"]]  # what was before training is no result of it
    assert learning.columns[2:4] == ["held-out before", "held-out after"]


def test_the_learning_table_by_hand(tmp_path):
    folder = write_run(tmp_path / "a", "a", 0, held_out=(0.0, 0.5))
    metrics = pd.read_csv(folder / "metrics.csv")
    metrics["train/entropy"] = [0.25, 0.75, None]
    metrics["collapse/no_advantage"] = [1.0, 0.5, None]
    metrics.drop(columns="train/advantage_var").to_csv(folder / "metrics.csv", index=False)
    found, arms = numbers(members_of(tmp_path), seeds=1)
    table = learning_table(found, arms, 0.95)
    # Dead groups (1 + 0.5) / 2; entropies of fewer than five iterations: their mean; 2 iterations of 128 responses
    # and 60 s. What was not logged has no column.
    assert dict(zip(table.columns, lines(table)[0], strict=True)) == {
        "arm": "a",
        "seeds": "1",
        "held-out before": "0.0",
        "held-out after": "50.0",
        "groups without advantage": "75.0",
        "entropy, first 5": "0.500",
        "entropy, last 5": "0.500",
        "responses sampled": "256",
        "iterations": "2",
        "seconds": "120",
    }


def test_an_arm_without_a_benchmark_has_a_dash(tmp_path):
    write_evaluation(write_run(tmp_path / "a", "a", 0), {"A": 0.5, "B": 0.5})
    write_evaluation(write_run(tmp_path / "b", "b", 0), {"B": 0.5})
    found, arms = numbers(members_of(tmp_path), seeds=1)
    table = main_table(found, arms, 0.95)
    # B has 30 problems in one and 10 in the other, so its head names no number.
    # B is the one set of both arms, so it comes first: there they are compared.
    assert table.columns == ["arm", "seeds", "B", "Avg (40)", "A (10)"]
    assert lines(table)[1] == ["b", "0 to 1", "50.0 [40.0, 60.0]", "-", "-"]


def test_a_part_of_the_evaluations_does_not_take_over_the_report(tmp_path):
    for arm, after in (("a", 0.5), ("b", 0.75), ("c", 0.25)):
        run = write_run(tmp_path / arm, arm, 0, held_out=(0.0, after))
    write_evaluation(run, {"A": 0.1, "B": 0.1})  # of arm c alone
    found, arms = numbers(members_of(tmp_path), seeds=1)
    tables = {table.name: table for table in tables_of(found, arms, 0.95)}
    assert list(tables) == ["ranking", "table", "benchmarks", "differences", "learning", "metrics"]
    assert tables["table"].columns == ["arm", "seeds", "held-out before", "held-out after"]
    assert [row[2:4] for row in lines(tables["ranking"])] == [["75.0", "+25.0"], ["50.0", "-"], ["25.0", "-25.0"]]
    assert lines(tables["benchmarks"]) == [
        ["a", "0", "-", "-", "-"],
        ["b", "0", "-", "-", "-"],
        ["c", "1", "10.0 [0.0, 20.0]", "10.0 [0.0, 20.0]", "10.0 [0.0, 20.0]"],
    ]
    assert not any(cell.rank for row in tables["benchmarks"].rows for cell in row)  # of one score none is the best
    assert "Without an evaluation of their end: a, seed 0; b, seed 0." in tables["benchmarks"].caption
    best, against = headline(found, arms, 0.95)
    assert best.startswith("Highest held-out after: b, 75.0 % (1 seed).")
    assert against.startswith("Against a: +25.0")


def test_no_headline_names_a_winner_among_equals(tmp_path):
    for arm in ("a", "b"):
        write_run(tmp_path / arm, arm, 0, held_out=(0.25, 0.0))
    found, arms = numbers(members_of(tmp_path), seeds=1)
    assert headline(found, arms, 0.95) == ["held-out after: the same mean for 2 arms, 0.0 %."]


def test_no_headline_names_a_winner_among_one(tmp_path):
    for arm in ("a", "b"):
        run = write_run(tmp_path / arm, arm, 0)
        pd.read_csv(run / "metrics.csv").drop(columns="eval/held_out/avg@1").to_csv(run / "metrics.csv", index=False)
    write_evaluation(run, {"A": 0.1})
    found, arms = numbers(members_of(tmp_path), seeds=1)
    assert headline(found, arms, 0.95) == [
        "A (10): b, 10.0 [0.0, 20.0] % (1 seed). 1 other arm has no such score: nothing is compared."
    ]


def test_evaluations_of_checkpoints_are_points_of_the_curve(tmp_path):
    run = write_run(tmp_path / "a", "a", 0, iterations=4)
    write_evaluation(run, {"A": 0.25, "B": 0.25}, iteration=2)
    write_evaluation(run, {"A": 0.5, "B": 0.5})  # of the run's end: iteration 4
    write_evaluation(run, {"A": 0.9, "B": 0.9}, iteration=3, num_samples=4)  # of other settings: not comparable
    (member,) = members_of(tmp_path)
    assert member.evaluation.iteration == 4
    assert evaluated_at(member)["A"].to_dict() == evaluated_at(member)["Avg"].to_dict() == {2: 0.25, 4: 0.5}
    # After 2 iterations of 128 responses and 60 s: 256 and 2 minutes; after 4: 512 and 4.
    for axis, places in ((ITERATIONS, [2, 4]), (ROLLOUTS, [256, 512]), (MINUTES, [2, 4])):
        assert curve([member], Curve("A", evaluated=True), axis)["x"].tolist() == places
    # The training metric of iteration 0 is of its 128 responses, and of its minute.
    assert curve([member], Curve("train/reward"), ROLLOUTS)["x"].tolist() == [128, 256, 384, 512]
    assert curve([member], Curve("train/reward"), MINUTES)["x"].tolist() == [1, 2, 3, 4]


def test_seeds_of_unequal_pace_are_interpolated_onto_common_points(tmp_path):
    for seed, pace in ((0, 1.0), (1, 2.0)):
        folder = write_run(tmp_path / str(seed), "a", seed, iterations=3)
        metrics = pd.read_csv(folder / "metrics.csv")
        metrics["train/num_rollouts"] *= pace
        metrics["train/reward"] = [0.0, 1.0, 2.0, None]
        metrics.to_csv(folder / "metrics.csv", index=False)
    found = curve(members_of(tmp_path), Curve("train/reward"), ROLLOUTS)
    # Seed 0 is at 128, 256, 384 and seed 1 at 256, 512, 768: both have begun at 256, where seed 0 is at 1. Seed 0 keeps
    # its last value to the end of seed 1.
    for seed, (first, last) in ((0, (1.0, 2.0)), (1, (0.0, 2.0))):
        own = found[found["seed"] == seed]
        assert len(own) == GRID
        assert own["x"].iloc[[0, -1]].tolist() == [256, 768]
        assert own["y"].iloc[[0, -1]].tolist() == pytest.approx([first, last])
    halfway = found[found["seed"] == 0].set_index("x")["y"]
    assert halfway[halfway.index > 384].unique().tolist() == [2.0]
    means = over_seeds(found)
    assert means.iloc[0].tolist() == ["a", 256, 0.5, 0.0, 1.0, 2]


def test_a_run_evaluated_at_a_checkpoint_only_has_no_score(tmp_path):
    write_evaluation(write_run(tmp_path / "a", "a", 0, iterations=4), {"A": 0.9}, iteration=2)
    (member,) = members_of(tmp_path)
    assert member.evaluation is None


def test_points_of_unequal_sampling_make_no_curve(tmp_path):
    sampling = {"num_samples": 2, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 3000}
    for name, own in (("same", sampling), ("other", {**sampling, "temperature": 0.0})):
        run = write_run(tmp_path / name, name, 0, settings={"evaluation": {"seed": 0, **own}})
        metrics = pd.read_csv(run / "metrics.csv")
        metrics.assign(**{"eval/A/avg@2": [0.1, 0.2, 0.3]}).to_csv(run / "metrics.csv", index=False)
        write_evaluation(run, {"A": 0.9})  # after its 2 iterations
    curves = {member.arm: evaluated_at(member)["A"].to_dict() for member in members_of(tmp_path)}
    # The one point of the later evaluation joins those of the same sampling, and gives way to others.
    assert curves == {"same": {0: 0.1, 1: 0.2, 2: 0.9}, "other": {0: 0.1, 1: 0.2, 2: 0.3}}


def test_a_mean_over_seeds_does_not_jump_where_one_has_no_value(tmp_path):
    for seed, missing in ((0, [1]), (1, []), (2, [0, 2])):
        folder = write_run(tmp_path / str(seed), "a", seed, iterations=5)
        metrics = pd.read_csv(folder / "metrics.csv")
        metrics["train/entropy_correct"] = float(seed)
        metrics.loc[[*missing, 5], "train/entropy_correct"] = None
        metrics.to_csv(folder / "metrics.csv", index=False)
    found = curve(members_of(tmp_path), Curve("train/entropy_correct"), ITERATIONS)
    # Seed 2 begins at iteration 1; the gaps between are filled, so all three are there from then on.
    assert found.groupby("x")["y"].mean().to_dict() == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
