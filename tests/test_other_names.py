"""Settings under the names that TRL, verl and people have for them."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from small_runs import composed

from edge_grpo.command_line.compose import _dotted, _explain_key
from edge_grpo.command_line.other_names import OTHER_NAMES, ours_of
from edge_grpo.command_line.resolvers import config_dir

HOW_TO = Path(__file__).resolve().parent.parent / "docs/how_to.md"


@pytest.fixture(scope="module")
def keys() -> set[str]:
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    return {*_dotted(OmegaConf.to_container(composed("train")[0], resolve=False)), *groups, "hydra.run.dir"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("iterations", "trainer.max_iterations="),
        ("algorithm.iterations", "trainer.max_iterations="),
        ("max_steps", "trainer.max_iterations="),
        ("num_iterations", "algorithm.update_epochs="),
        ("lr", "optimizer.lr="),
        ("batch_size", "data.problems_per_iteration="),
        ("temperature", "rollout.temperature="),  # not evaluation.temperature
        ("rollout.n", "algorithm.num_generations="),
        ("model_name_or_path", "model=hf model.path="),
        ("data.path", "data=file data.path="),
        ("advantage.clmp", "advantage.clamp"),  # near beside it
        ("evaluation.num_sample", "evaluation.num_samples"),
    ],
)
def test_a_name_of_the_field_gets_ours(typed: str, meant: str, keys: set[str]) -> None:
    assert _explain_key(typed, keys) == f"there is no setting {typed!r}; did you mean {meant}?"


def test_a_key_typed_into_a_group_that_the_program_has_not_is_found_by_its_last_part() -> None:
    keys = {"num_samples", "rollout", "rollout.temperature", "seed"}  # of edge-grpo-difficulty
    told = "there is no setting 'evaluation.num_samples'; did you mean num_samples?"
    assert _explain_key("evaluation.num_samples", keys) == told
    assert _explain_key("learning_rate", keys).startswith("there is no setting 'learning_rate'; the config has")


def test_every_suggestion_can_be_typed(keys: set[str]) -> None:
    names = " ".join(OTHER_NAMES.values()).split()
    assert len(names) == len(set(names))
    for ours in OTHER_NAMES:
        typed = [f"{text}1" if text.endswith("=") else text for text in ours.split()]
        if ours not in ("scheduler=", "loss=", "rollout=", "resume=", "advantage=", "logger=", "hydra.run.dir="):
            composed("train", *typed)
    assert all(ours_of(name, keys) for name in names)


def test_the_page_says_of_each_name_what_the_command_line_says(keys: set[str]) -> None:
    table = re.findall(r"^\| (`.*?|) \| (`.*?|the .*?|) \| (`.*?) \|$", HOW_TO.read_text(), re.MULTILINE)
    assert len(table) > 20
    for *theirs, ours in table:
        for name in re.findall(r"`([\w.]+)`", " ".join(theirs)):
            if name.rpartition(".")[2] not in ("name", "logger", "path"):  # too common to be a suggestion
                key = ours_of(name, keys).split(" ")[-1].partition("=")[0]
                assert key, name
                assert key in ours or key.startswith("rollout."), (name, ours)
