"""What the tests' Hydra composes is what Hydra composes."""

from pathlib import Path
from unittest.mock import patch

import pytest
import quick_hydra
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_repository import ConfigRepository
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from edge_grpo.command_line.run import config_dir


def composed(folder: Path, name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(name, list(overrides), return_hydra_config=True)


def composed_plainly(folder: Path, name: str, *overrides: str) -> DictConfig:
    with (
        patch.object(ConfigRepository, "load_config", quick_hydra._load),
        patch.object(defaults_list, "_create_interpolation_map", quick_hydra._interpolation_map),
    ):
        return composed(folder, name, *overrides)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "experiment=edge_grpo", "model=tiny_random", "~callbacks"),
        ("train", "experiment=[cures,vanilla]", "advantage=entropy_driven", "advantage@advantage.base=rloo"),
        ("sft", "hydra/launcher=joblib", "seed=1"),
        ("evaluate", "evaluation=paper"),
    ],
)
def test_it_composes_the_same(command: tuple[str, ...]) -> None:
    expected = composed_plainly(config_dir(), *command)
    for _ in range(2):  # as read, and as remembered
        cfg = composed(config_dir(), *command)
        assert OmegaConf.to_yaml(cfg) == OmegaConf.to_yaml(expected)
        assert OmegaConf.is_struct(cfg) == OmegaConf.is_struct(expected)
        OmegaConf.set_struct(cfg, False)
        cfg.update(seed=-1, trainer={}, hydra={})  # nobody else's


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for group, option in (("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")):
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / f"{option}.yaml").write_text(f"{group}: {option}\n")
    (tmp_path / "main.yaml").write_text("defaults: [a: x, b: '${a}', _self_]\n")
    return tmp_path


def test_an_option_can_follow_that_of_another_group(folder: Path) -> None:
    assert composed(folder, "main", "a=y").b.b == "y"
    assert composed(folder, "main", "b=${a}").b.b == "x"


def test_a_file_that_changed_is_read_again(folder: Path) -> None:
    assert composed(folder, "main").a.a == "x"
    (folder / "a" / "x.yaml").write_text("a: changed\n")
    assert composed(folder, "main").a.a == "changed"
    (folder / "a" / "x.yaml").unlink()
    with pytest.raises(MissingConfigException):
        composed(folder, "main")
