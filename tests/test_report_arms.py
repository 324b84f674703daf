"""Which runs are one arm, and what it is called."""

import shlex
from types import SimpleNamespace

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import given

from edge_grpo.command_line.compose import parse
from edge_grpo.errors import UserError
from edge_grpo.reporting.arms import label_arms, newest_of_each_seed
from edge_grpo.reporting.build import _arms
from edge_grpo.reporting.runs import Run


def run(name, seed, *typed, place="run", written=0.0, state="finished", **settings):
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    return Run(
        place=place,
        settings={"name": name, "seed": seed, **settings},
        overrides=[f"experiment={name}", f"seed={seed}", *typed],
        state=state,
        metrics=pd.DataFrame({"timing_s/total": [1.0]}),
        written=written,
    )


def test_experiments_are_called_by_name_and_seeds_share_a_label():
    runs = [run(name, seed, evaluation__seed=seed, paths__run_dir=f"{name}{seed}") for name in "ab" for seed in (0, 1)]
    assert label_arms(runs) == ["a", "a", "b", "b"]


def test_what_was_typed_and_differs_follows_the_name():
    all_have = ("trainer.max_iterations=50", "logger=csv")
    runs = [run("vanilla", 0, *all_have, trainer__max_iterations=50)]
    for clamp in (2, 4):
        typed = (*all_have, f"advantage.clamp={clamp}")
        runs.append(run("edge_grpo", 0, *typed, trainer__max_iterations=50, advantage__clamp=clamp))
    assert label_arms(runs) == ["vanilla", "edge_grpo, advantage.clamp=2", "edge_grpo, advantage.clamp=4"]


def test_within_one_experiment_the_difference_is_the_label():
    runs = [run("a", 0, "loss.beta=0.1", loss__beta=0.1), run("a", 0, "loss.beta=0.2", loss__beta=0.2)]
    assert label_arms(runs) == ["loss.beta=0.1", "loss.beta=0.2"]


def test_a_default_that_was_typed_is_no_difference():
    runs = [run("a", 0, "loss.beta=0.1", loss__beta=0.1), run("a", 1, loss__beta=0.1)]
    assert label_arms(runs) == ["a", "a"]


def test_what_was_not_typed_is_told_where_arms_would_look_alike():
    runs = [run("a", 0, advantage__clamp=4), run("a", 1, advantage__clamp=10)]
    assert label_arms(runs) == ["a (advantage.clamp=4)", "a (advantage.clamp=10)"]


def test_our_own_files_elsewhere_are_the_same_files():
    runs = [run("a", seed, model__path=f"/{home}/edge_grpo/assets/tiny") for seed, home in enumerate(("x", "y"))]
    assert label_arms(runs) == ["a", "a"]


def test_a_run_that_cannot_be_read_changes_no_label():
    broken = Run(place="broken", settings={}, overrides=["experiment=a", "loss.beta=0.1"], state="unknown")
    readable = [run(name, 0, "loss.beta=0.1", loss__beta=0.1) for name in "ab"]
    assert label_arms([*readable, broken]) == ["a", "b", "unknown"]


settings = st.dictionaries(st.sampled_from(["x", "y.z", "w", "v", "u"]), st.sampled_from([0, 1]))


@given(st.lists(st.tuples(settings, st.booleans(), st.integers(0, 2)), min_size=1, max_size=6))
def test_labels_are_equal_exactly_where_settings_are(drawn):
    runs = [run("a", seed, *(f"{k}={v}" for k, v in own.items() if typed), **own) for own, typed, seed in drawn]
    labels = label_arms(runs)
    for (mine, *_), label in zip(drawn, labels, strict=True):
        assert [other == label for other in labels] == [own == mine for own, *_ in drawn]


def test_of_one_arm_and_seed_the_newest_finished_run_wins_and_it_is_told():
    runs = [
        run("a", 0, place="old", written=1.0),
        run("a", 0, place="new", written=2.0),
        run("a", 0, place="newer, but not finished", written=3.0, state="killed"),
        run("a", 1, place="other seed"),
    ]
    positions, notes = newest_of_each_seed(runs, ["a"] * 4)
    assert positions == [1, 3]
    assert notes == ["a, seed 0: old is left out, new of the same settings is newer."]


def test_a_failed_run_with_other_settings_does_not_change_the_labels():
    runs = [
        run("vanilla", 0, data__path="my.jsonl"),
        run("edge_grpo", 0, data__path="my.jsonl"),
        run("vanilla", 0, "data.path=missing.jsonl", data__path="missing.jsonl", state="failed"),
        run("vanilla", 1, data__path="my.jsonl", state="killed"),
    ]
    assert label_arms(runs) == ["vanilla", "edge_grpo", "vanilla, data.path=missing.jsonl", "vanilla"]


def test_a_name_that_one_arm_has_says_it_all():
    # What was typed for it follows only where several arms have the name.
    runs = [
        run("vanilla", 0, "name=vanilla", "trainer.max_iterations=5", trainer__max_iterations=5),
        run("sft", 0, "name=sft", "trainer.max_iterations=9", trainer__max_iterations=9),
        run("eda", 0, "name=eda", "trainer.max_iterations=5", trainer__max_iterations=5),
        run("eda", 0, "name=eda", "trainer.max_iterations=7", trainer__max_iterations=7),
    ]
    told = ["vanilla", "sft", "eda, trainer.max_iterations=5", "eda, trainer.max_iterations=7"]
    assert label_arms(runs) == told


def test_the_baseline_may_be_a_value_that_one_label_alone_has():
    members = [SimpleNamespace(arm=arm) for arm in ("advantage=vanilla", "advantage=opo", "advantage=opo, loss.beta=1")]
    assert _arms(members, "vanilla").baseline == "advantage=vanilla"
    assert _arms(members, "loss.beta=1").baseline == "advantage=opo, loss.beta=1"
    assert _arms(members, "advantage=opo").baseline == "advantage=opo"  # a label itself
    for typed, told in (("opo", "several arms have that value"), ("van", "no arm of finished runs has that label")):
        with pytest.raises(UserError, match=rf"baseline={typed}: {told}; there are: ") as caught:
            _arms(members, typed)
    shown = str(caught.value).partition("in quotes: ")[2]
    (override,) = parse(shlex.split(shown))  # as a shell and Hydra read it
    assert (override.key_or_group, override.value()) == ("baseline", "advantage=vanilla")
