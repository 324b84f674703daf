"""Which problems are drawn, how often, and which groups are trained on; numbers by hand."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from allocation_rounds import Rounds, visited
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import SMALL_GRPO, command, equal_weights, metrics_rows, run_small, weights

from edge_grpo.advantages.dr_grpo import DrGRPO
from edge_grpo.algorithms.checks import check_settings
from edge_grpo.allocations.difficulty_pools import DifficultyPools
from edge_grpo.allocations.dynamic import Dynamic
from edge_grpo.allocations.greso import Greso
from edge_grpo.allocations.mopps import MoPPS
from edge_grpo.allocations.no_positive_resampling import NoPositiveResampling
from edge_grpo.allocations.reinforce_ada import ReinforceAda
from edge_grpo.allocations.speed import Speed
from edge_grpo.errors import UserError
from edge_grpo.importance_corrections.uncorrected import Uncorrected
from edge_grpo.rollouts.base import Sampling
from edge_grpo.token_filters.keep_all import KeepAllTokens
from edge_grpo.types.history import History

DYNAMIC = Dynamic(max_rounds=3, problems_per_round=None, by="reward", fill="none")
REFILL = {"max_rounds": 3, "problems_per_round": None, "by": "reward", "fill": "none"}
GRESO = Greso(**REFILL, look_ahead=4, easy=0.98, hard=0.11, p_start=0.5, p_step=0.01, p_min=0.05, p_max=0.95,
              easy_target=1 / 12, hard_target=1 / 6, floor=0.01)  # fmt: skip
RETIRE = NoPositiveResampling(**REFILL, look_ahead=3, retire_at=0.9)
MOPPS = MoPPS(candidates_per_group=2, decay=1.0, target=0.5)
POOLS = DifficultyPools(candidates_per_group=2, bounds=[0.2, 0.8], weights=[0.5, 1.0, 0.25])
ADA = ReinforceAda(until="balanced", rows_per_round=4, max_rounds=3)
SPEED = Speed(screen_rows=2, problems_per_round=None, max_rounds=4)
WRONG, RIGHT, MIXED, FORMAT = [0.0], [1.0], [0.0, 1.0], [0.0, 0.1]


def drawn(allocation, rewards, **settings):
    rounds = Rounds(allocation, rewards, **settings)
    rounds.draw()
    return rounds


# --- dynamic -------------------------------------------------------------------------------------------------------


def test_dynamic_draws_new_problems_until_enough_groups_are_mixed():
    of = drawn(DYNAMIC, {"a": WRONG, "b": MIXED, "c": RIGHT, "d": MIXED, "e": MIXED, "f": WRONG})
    assert of.rounds == [["a", "a", "b", "b"], ["c", "c", "d", "d"]]
    assert of.chosen == [("b", [0, 1]), ("d", [0, 1])]
    assert of.result.position == 4
    assert of.result.metrics["allocation/collapsed"] == 0.5


def test_dynamic_throws_the_surplus_away_and_remembers_it():
    allocation = replace(DYNAMIC, problems_per_round=3)
    of = drawn(allocation, {"a": WRONG, "b": MIXED, "c": RIGHT, "d": MIXED, "e": MIXED, "f": WRONG})
    assert [len(rows) for rows in of.rounds] == [6, 6]
    assert of.chosen == [("b", [0, 1]), ("d", [0, 1])]
    assert [(name, visit.right) for name, visit in of.result.visits] == [
        ("a", 0), ("b", 1), ("c", 2), ("d", 1), ("e", 1), ("f", 0)
    ]  # fmt: skip


def test_dynamic_by_outcome_does_not_take_a_format_bonus_for_life():
    rewards = {"a": FORMAT, "b": MIXED, "c": MIXED, "d": WRONG}
    assert [name for name, _ in drawn(DYNAMIC, rewards).chosen] == ["a", "b"]
    assert [name for name, _ in drawn(replace(DYNAMIC, by="outcome"), rewards).chosen] == ["b", "c"]


@pytest.mark.parametrize(
    ("fill", "live", "chosen"),
    [("none", "", "a"), ("dead", "", "ab"), ("none", "d", "d"), ("dead", "d", "da"), ("dead", "df", "df")],
)
def test_dynamic_ends_at_its_bound_with_what_it_has_and_says_so(fill, live, chosen, caplog):
    caplog.set_level(logging.INFO)
    of = drawn(replace(DYNAMIC, fill=fill), {name: MIXED if name in live else WRONG for name in "abcdefgh"})
    assert len(of.rounds) == 3
    assert of.result.position == 6  # nothing is taken for a round that does not come
    assert "".join(name for name, _ in of.chosen) == chosen
    assert of.result.metrics["allocation/groups"] == len(chosen)
    said = "iteration 5: of 12 responses to 6 problems the allocation chose 1 groups, not 2" in caplog.text
    assert said == (len(chosen) < 2)


def test_a_rank_that_has_enough_waits_for_one_that_has_not():
    of = drawn(DYNAMIC, {"a": MIXED, "b": MIXED}, others_want=3)
    assert len(of.rounds) == 1
    assert of.asked[1:] == [[], []]
    assert of.result.metrics["allocation/rounds"] == 3


# --- greso and retirement ------------------------------------------------------------------------------------------


def test_greso_by_hand():
    p = {"easy": 0.9, "hard": 0.5}

    def skip(*right):
        return GRESO.skip_probability(visited(a=right).of("a"), p)

    assert [skip(), skip(4), skip(0, 4), skip(1)] == [0, 0, 0, 0]  # 1 of 8 is 0.125, above 0.11
    assert skip(0) == 0.5
    assert skip(4, 0, 0, 0) == 1 - 0.125
    assert skip(0, 0, 8, 8) == pytest.approx(1 - 0.81, abs=1e-12)  # the streak is of one kind
    assert skip(*[0] * 7) == 0.99  # 0.5^7 = 0.0078 is below the floor


def test_gresos_probabilities_follow_the_iterations_of_the_second_pass():
    start = {"easy": 0.5, "hard": 0.5}
    assert GRESO.probabilities(History()) == start
    assert GRESO.probabilities(visited(a=[8], b=[0], c=[0])) == start
    # Iteration 1: of three visits one easy (1/3 above 1/12) and none hard (0 below 1/6).
    assert GRESO.probabilities(visited(a=[8, 8], b=[0, 4], c=[0, 4])) == pytest.approx({"easy": 0.49, "hard": 0.51})
    # Iteration 2: one of two hard.
    history = visited(a=[8, 8, 4], b=[0, 4, 0], c=[0, 4])
    assert GRESO.probabilities(history) == pytest.approx({"easy": 0.50, "hard": 0.50})
    # 60 iterations without an easy visit: 0.5 + 0.01 * 60 is more than 0.95; all hard: less than 0.05.
    assert GRESO.probabilities(visited(a=[0] * 61)) == {"easy": 0.95, "hard": 0.05}


def test_greso_skips_as_often_as_it_says_and_the_skipped_are_remembered():
    # Every problem was hard three times: p is 0.5 - 2 * 0.01 after two iterations of a second pass.
    names = [f"p{i}" for i in range(3000)]
    history = visited(**{name: [0, 0, 0] for name in names})
    of = drawn(replace(GRESO, max_rounds=1, look_ahead=1000), dict.fromkeys(names, MIXED), groups=200, history=history)
    taken, sampled = of.result.position, len(of.pool.problems)
    assert sampled == 200
    assert of.result.metrics["allocation/skipped"] == taken - sampled
    keep = 0.48**3  # 0.1106; over some 1800 problems its deviation is 0.0074
    assert sampled / taken == pytest.approx(keep, abs=0.03)


def test_every_round_draws_with_another_number():
    rounds = Rounds(Dynamic(3, None, "reward", "none"), {"a": [0.0], "b": [0.0]})
    rounds.draw()
    assert rounds.calls == [0, 1, 2]


def test_greso_without_history_is_dynamic():
    rewards = {"a": WRONG, "b": MIXED, "c": RIGHT, "d": MIXED}
    assert drawn(GRESO, rewards).rounds == drawn(DYNAMIC, rewards).rounds


def test_what_is_solved_does_not_come_back_until_nothing_else_is_left():
    rewards = dict.fromkeys("abcdef", MIXED)
    of = drawn(RETIRE, rewards, history=visited(a=[8], b=[7], c=[8, 4], d=[4, 8]))
    # 8 of 8 retire, 7 of 8 do not; c was solved and is no longer.
    assert [name for name, _ in of.chosen] == ["b", "c"]
    assert [name for name, visit in of.result.visits if not visit.rows] == ["a"]
    of = drawn(RETIRE, rewards, history=visited(**{name: [8] for name in rewards}))
    # A round looks at 3 * 2 problems, samples the last one, and another round finds one more.
    assert of.rounds == [["f", "f"], ["f", "f"]]


# --- candidates ----------------------------------------------------------------------------------------------------


def test_the_posterior_of_mopps_by_hand():
    history = visited(a=[2, 8])
    assert MOPPS.posterior(history.of("a")) == (11, 7)  # 1 + 2 + 8, 1 + 6 + 0
    # (0.5 + 0.5 + 2, 0.5 + 0.5 + 6) = (3, 7), then (1.5 + 0.5 + 8, 3.5 + 0.5 + 0)
    assert replace(MOPPS, decay=0.5).posterior(history.of("a")) == (10, 4)


def test_mopps_takes_the_problems_nearest_to_its_target():
    history = visited(a=[0] * 40, b=[4] * 40, c=[8] * 40, d=[3] * 40)  # rates 1/322, 0.5, 321/322, 121/322
    rewards = dict.fromkeys("abcd", MIXED)
    of = drawn(MOPPS, rewards, history=history)
    assert [name for name, _ in of.chosen] == ["b", "d"]
    assert sorted(name for name, visit in of.result.visits if not visit.rows) == ["a", "c"]
    assert [name for name, _ in drawn(replace(MOPPS, target=0.99), rewards, history=history).chosen] == ["c", "b"]


def test_mopps_explores():
    # Of a problem with one half right in 8 and one never seen, the nearer draw wins, now this one and now that.
    chosen = Counter(
        drawn(MOPPS, dict.fromkeys("ab", MIXED), groups=1, history=visited(a=[4]), seed=seed).chosen[0][0]
        for seed in range(100)
    )
    assert 60 < chosen["a"] < 95


def test_pools_are_drawn_with_their_weights():
    history = visited(a=[8, 1], b=[0, 4], c=[4, 8])  # the latest visit counts: 1/8, 1/2, 1
    assert [POOLS.weight(history.of(name)) for name in "abcd"] == [0.5, 1.0, 0.25, 1.0]
    pools = replace(POOLS, candidates_per_group=4)
    of_seeds = [drawn(pools, dict.fromkeys("abcd", MIXED), groups=1, history=history, seed=s) for s in range(1000)]
    first = Counter(of.chosen[0][0] for of in of_seeds)
    # Weights 0.5, 1, 0.25 and 1 of 2.75; of 1000 draws the deviation is at most 16.
    expected = {"a": 1000 * 2 / 11, "b": 1000 * 4 / 11, "c": 1000 / 11, "d": 1000 * 4 / 11}
    assert {name: first[name] for name in "abcd"} == pytest.approx(expected, abs=60)


def test_a_pool_of_weight_0_is_sampled_only_where_nothing_else_is():
    pools = replace(POOLS, weights=[1.0, 1.0, 0.0])
    rewards = dict.fromkeys("abcd", MIXED)
    of = drawn(pools, rewards, groups=2, history=visited(a=[8], b=[8], c=[8]))
    assert [name for name, _ in of.chosen] == ["d"]
    of = drawn(pools, rewards, groups=2, history=visited(a=[8], b=[8], c=[8], d=[8]))
    assert [name for name, _ in of.chosen] == ["a"]


@pytest.mark.parametrize("allocation", [MOPPS, POOLS])
def test_a_problem_that_comes_twice_among_the_candidates_is_sampled_once(allocation):
    of = drawn(allocation, dict.fromkeys("abc", MIXED), groups=3)
    assert of.result.position == 6
    assert sorted(name for name, _ in of.chosen) == ["a", "b", "c"]
    assert of.result.metrics["allocation/skipped"] == 0


# --- more rows -----------------------------------------------------------------------------------------------------


def test_reinforce_ada_draws_until_right_and_wrong_are_balanced():
    rewards = {"a": [0, 1, 0, 1], "b": [0] * 6 + [1, 0] + [0, 1, 1, 0], "c": WRONG}
    rewards = {name: list(map(float, values)) for name, values in rewards.items()}
    of = drawn(ADA, rewards, groups=3, num_generations=4)
    # a has two of each at once; b has one right of eight, then three of twelve; c never has any.
    assert [Counter(rows) for rows in of.rounds] == [{"a": 4, "b": 4, "c": 4}, {"b": 4, "c": 4}, {"b": 4, "c": 4}]
    assert of.chosen == [("a", [0, 1, 0, 1]), ("b", [0, 0, 1, 1]), ("c", [0] * 4)]
    assert [len(of_group) for of_group in of.result.scored.drawn] == [4, 12, 12]
    assert [float(of_group.mean()) for of_group in of.result.scored.drawn] == [0.5, 0.25, 0]
    assert of.pool.candidate[[0, 1]].tolist() == [0, 0]


def test_reinforce_ada_until_one_is_right():
    rewards = {"a": [0.0, 0.0, 1.0, 0.0], "b": [0.0] * 5 + [1.0] * 3}
    of = drawn(replace(ADA, until="positive"), rewards, num_generations=4)
    assert [Counter(rows) for rows in of.rounds] == [{"a": 4, "b": 4}, {"b": 4}]
    assert of.chosen == [("a", [0, 0, 1, 0]), ("b", [0, 0, 1, 1])]


def test_reinforce_ada_has_a_whole_group_before_it_ends_and_fills_what_is_missing():
    # Three rows a round and G = 5: two of each after the first two rounds, and the place that is left is a wrong one's.
    of = drawn(replace(ADA, rows_per_round=3), {"a": [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]}, groups=1, num_generations=5)
    assert [len(rows) for rows in of.rounds] == [3, 3]
    assert of.chosen == [("a", [0, 1, 1, 0, 0])]
    # One wrong one only: it is kept, and right ones fill the group.
    of = drawn(ADA, {"a": [1.0] * 7 + [0.0] + [1.0] * 4}, groups=1, num_generations=4)
    assert [len(rows) for rows in of.rounds] == [4, 4, 4]
    assert of.chosen == [("a", [1, 1, 1, 0])]


def test_speed_gives_the_rest_to_what_is_mixed_at_screening():
    rewards = {"a": WRONG, "b": [0.0, 1.0, 0.0, 0.0], "c": [0.0, 0.0, 1.0, 1.0], "d": [1.0, 0.0, 1.0, 1.0], "e": MIXED}
    of = drawn(SPEED, rewards, num_generations=4)
    # c would be mixed, but not at screening.
    assert of.rounds == [["a", "a", "b", "b"], ["b", "b", "c", "c", "d", "d"], ["d", "d"]]
    assert of.chosen == [("b", [0, 1, 0, 0]), ("d", [1, 0, 1, 1])]
    assert of.result.position == 4


def test_speed_throws_away_what_is_mixed_beyond_the_batch():
    of = drawn(replace(SPEED, problems_per_round=3), dict.fromkeys("abc", MIXED), num_generations=4)
    assert of.rounds == [["a", "a", "b", "b", "c", "c"], ["a", "a", "b", "b"]]
    assert [name for name, _ in of.chosen] == ["a", "b"]


@pytest.mark.parametrize(("live", "chosen", "rows"), [("", "a", 12 + 2), ("d", "d", 12 + 2), ("f", "f", 12 + 2)])
def test_speed_screens_in_every_round_but_the_last(live, chosen, rows):
    of = drawn(SPEED, {name: MIXED if name in live else WRONG for name in "abcdefgh"}, num_generations=4)
    assert of.result.position == 6  # three rounds of two
    assert len(of.pool.candidate) == rows
    assert "".join(name for name, _ in of.chosen) == chosen


# --- bounds --------------------------------------------------------------------------------------------------------

# Rows at most, P = 3 and G = 4.
BOUNDS = [
    (DYNAMIC, 3 * 3 * 4),
    (replace(DYNAMIC, problems_per_round=5, fill="dead", by="outcome"), 3 * 5 * 4),
    (GRESO, 3 * 3 * 4),
    (RETIRE, 3 * 3 * 4),
    (MOPPS, 3 * 4),
    (POOLS, 3 * 4),
    (ADA, 3 * 3 * 4),
    (replace(ADA, until="positive", rows_per_round=2), 3 * 3 * 2),
    (SPEED, 3 * 3 * 2 + 3 * 2),
    (replace(SPEED, screen_rows=3, problems_per_round=4, max_rounds=2), 4 * 3 + 3 * 1),
]
REWARDS = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=1, max_size=8), min_size=1, max_size=20
).map(lambda of: {f"p{i}": rewards for i, rewards in enumerate(of)})  # fmt: skip


@pytest.mark.parametrize(("allocation", "most"), BOUNDS)
@settings(max_examples=40, deadline=None)
@given(rewards=REWARDS)
def test_rows_never_exceed_the_bound(allocation, most, rewards):
    of = drawn(allocation, rewards, groups=3, num_generations=4)
    assert len(of.pool.candidate) <= most


@pytest.mark.parametrize("allocation", [ADA, SPEED, replace(DYNAMIC, by="outcome")])
@settings(max_examples=40, deadline=None)
@given(rewards=REWARDS)
def test_what_lives_in_the_pool_lives_in_the_batch(allocation, rewards):
    of = drawn(allocation, rewards, groups=3, num_generations=4)
    alive = [0 < sum(r == 1 for r in group) < 4 for _, group in of.chosen]
    whole = torch.tensor([len(rows) >= 4 for rows in of.pool.rows])
    assert sum(alive) == min(3, int((of.pool.mixed & whole).sum()))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allocation", "bad", "message"),
    [
        (DYNAMIC, {"max_rounds": 0}, "allocation.max_rounds=0 must be at least 1"),
        (DYNAMIC, {"problems_per_round": 0}, "allocation.problems_per_round=0 must be at least 1"),
        (GRESO, {"look_ahead": 0}, "allocation.look_ahead=0 must be at least 1"),
        (GRESO, {"max_rounds": 0}, "allocation.max_rounds=0 must be at least 1"),
        (GRESO, {"easy": 1.1}, "allocation.easy=1.1 must be between 0 and 1"),
        (GRESO, {"p_step": -0.1}, "allocation.p_step=-0.1 must be between 0 and 1"),
        (GRESO, {"hard": 0.98}, "allocation.hard=0.98 must be below allocation.easy=0.98"),
        (GRESO, {"p_start": 0.01}, "allocation.p_start=0.01 must be between p_min=0.05 and p_max=0.95"),
        (GRESO, {"floor": 0}, "allocation.floor=0 must be above 0"),
        (RETIRE, {"retire_at": 0}, "allocation.retire_at=0 must be above 0 and at most 1"),
        (RETIRE, {"retire_at": 1.1}, "allocation.retire_at=1.1 must be above 0 and at most 1"),
        (MOPPS, {"candidates_per_group": 0}, "allocation.candidates_per_group=0 must be at least 1"),
        (MOPPS, {"decay": 1.5}, "allocation.decay=1.5 must be between 0 and 1"),
        (MOPPS, {"target": 1.0}, "allocation.target=1.0 must be above 0 and below 1"),
        (POOLS, {"bounds": [0.5, 0.5]}, "allocation.bounds=[0.5, 0.5] must ascend"),
        (POOLS, {"weights": [1.0]}, "allocation.weights=[1.0] must be 3 numbers"),
        (POOLS, {"weights": [1.0, -1.0, 1.0]}, "allocation.weights[1]=-1.0 must be at least 0"),
        (POOLS, {"weights": [0.0, 0.0, 0.0]}, "must not all be 0"),
        (ADA, {"rows_per_round": 0}, "allocation.rows_per_round=0 must be at least 1"),
        (ADA, {"max_rounds": 0}, "allocation.max_rounds=0 must be at least 1"),
        (SPEED, {"screen_rows": 1}, "allocation.screen_rows=1 must be at least 2"),
        (SPEED, {"max_rounds": 1}, "allocation.max_rounds=1 must be at least 2"),
        (SPEED, {"problems_per_round": 0}, "allocation.problems_per_round=0 must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(allocation, bad, message):
    with pytest.raises(UserError) as caught:
        replace(allocation, **bad)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("allocation", "size", "message"),
    [
        (SPEED, 2, "algorithm.num_generations=2: allocation.screen_rows=2 must be below it"),
        (ADA, 13, "algorithm.num_generations=13: allocation.max_rounds=3 times rows_per_round=4 is less"),
    ],
)
def test_groups_that_an_allocation_cannot_draw_are_refused(allocation, size, message):
    class Engine:
        sampling = Sampling()

    class Loss:
        beta = 0.0

    strategies = {"allocation": allocation, "correction": object(), "advantage": DrGRPO(), "loss": Loss()}
    strategies |= {"token_filter": KeepAllTokens(), "importance_correction": Uncorrected()}
    with pytest.raises(UserError) as caught:
        check_settings(Engine(), strategies, size, 1, None)
    assert str(caught.value) == message
    assert check_settings(Engine(), strategies, 12, 1, None) is None


# --- whole runs ----------------------------------------------------------------------------------------------------

# An odd or even checksum makes right and wrong responses of what the random model writes.
CHECKSUM = (
    "reward=python",
    f"reward.function={Path(__file__).parent}/examples/my_strategies.py:even_checksum",
    "correction=none",
    "optimizer.lr=0.01",
)
ARMS = {
    "dynamic": ("allocation=dynamic", "allocation.max_rounds=3"),
    # Of four problems two an iteration come back soon, and pairs are often all right or all wrong.
    "greso": ("allocation=greso", "allocation.max_rounds=2", "allocation.p_start=0.05", "data.train_count=4"),
}


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_that_was_resumed_is_the_run_that_was_not(arm, tmp_path):
    arm_settings = (*ARMS[arm], *CHECKSUM, "evaluation.every_n_iterations=1")  # the shorter run ends with one
    whole = run_small(tmp_path / "whole", *arm_settings, "trainer.max_iterations=4")
    run_small(tmp_path / "cut", *arm_settings, "trainer.max_iterations=2")
    cut = run_small(tmp_path / "cut", *arm_settings, "trainer.max_iterations=4")
    assert equal_weights(weights(cut), weights(whole))
    assert metrics_rows(cut, timed=False) == metrics_rows(whole, timed=False)
    states = [torch.load(run / "checkpoints/iteration-000004/state.ckpt", weights_only=True) for run in (cut, whole)]
    assert states[0]["history"] == states[1]["history"]
    assert states[0]["positions"] == states[1]["positions"]
    assert {visit[0] for _, visit in states[1]["history"]["log"]} == {0, 1, 2, 3}
    rows = [row for row in metrics_rows(whole) if row.get("allocation/rounds")]
    assert len(rows) == 4
    assert max(float(row["allocation/rounds"]) for row in rows) > 1
    if arm == "greso":
        assert sum(float(row["allocation/skipped"]) for row in rows[2:]) > 0


def test_what_was_drawn_and_not_kept_is_in_the_mean_of_pool_mean(tmp_path):
    ada = ("allocation=reinforce_ada", "allocation.rows_per_round=3", "advantage=pool_mean")
    folder = run_small(tmp_path, *ada, *CHECKSUM, "algorithm.num_generations=4", "trainer.max_iterations=2")
    lines = pq.read_table(folder / "rollouts").to_pylist()
    groups = {}
    for line in lines:
        groups.setdefault((line["step"], line["problem"]), []).append(line)
    means, kept = [], []
    for rows in groups.values():
        assert len(rows) == 4
        of_rows = {round(row["reward"] - row["advantage"], 5) for row in rows}
        assert len(of_rows) == 1
        means += of_rows
        kept.append(sum(row["reward"] for row in rows) / 4)
    # Of 6, 9 or 12 rows.
    assert all(min(abs(mean * n - round(mean * n)) for n in (6, 9, 12)) < 1e-3 for mean in means)
    assert any(abs(mean - of) > 1e-3 for mean, of in zip(means, kept, strict=True))


@pytest.mark.slow
def test_ranks_that_need_different_rounds_end_together(tmp_path):
    settings = (*SMALL_GRPO, *CHECKSUM, "allocation=dynamic", "allocation.max_rounds=6")
    ddp = ("data.problems_per_iteration=4", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_iterations=4")
    process = command(*settings, *ddp, f"hydra.run.dir={tmp_path}")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    rows = [row for row in metrics_rows(tmp_path) if row.get("allocation/rounds")]
    rounds = [float(row["allocation/rounds"]) for row in rows]
    assert len(rounds) == 4
    # A round of both ranks is 2 ranks * 2 problems * 2 responses.
    asked = [float(row["allocation/rows_drawn"]) / 8 for row in rows]
    assert all(mine <= theirs <= 6 for mine, theirs in zip(asked, rounds, strict=True))
    assert any(mine < theirs for mine, theirs in zip(asked, rounds, strict=True))
    newest = sorted((tmp_path / "checkpoints").glob("iteration-*"))[-1]
    positions = torch.load(newest / "state.ckpt", weights_only=True)["positions"]
    assert len(positions) == 2
    assert positions[0] != positions[1]
    assert sum(positions) == sum(float(row["allocation/candidates"]) for row in rows)
