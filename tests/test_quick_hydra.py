"""What the tests' Hydra composes is what Hydra composes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import quick_hydra
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf, _utils, base

from edge_grpo.command_line.resolvers import config_dir


def composed(folder: Path, name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(name, list(overrides), return_hydra_config=True)


@contextmanager
def plain_hydra() -> Iterator[None]:
    with (
        patch.object(ConfigRepository, "load_config", quick_hydra._load),
        patch.object(defaults_list, "_create_interpolation_map", quick_hydra._interpolation_map),
        patch.object(ConfigLoaderImpl, "_embed_result_config", staticmethod(quick_hydra._embed_result_config)),
        patch.object(CachingConfigRepository, "__init__", quick_hydra._copied_repository),
        patch.object(base.Box, "_re_parent", quick_hydra._re_parent),
        patch.object(base, "parse", quick_hydra.parse),
        patch.object(_utils, "parse", quick_hydra.parse),
    ):
        yield


def job(cfg: DictConfig) -> Any:
    """What a program gets, interpolations resolved; without what asks Hydra for the running job."""
    copied = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "logger")])
    copied.name = copied.paths.run_dir = "run"
    return OmegaConf.to_container(copied, resolve=True)


def mappings(cfg: DictConfig) -> Iterator[DictConfig]:
    """All of a config."""
    yield cfg
    for key in cfg:
        if not OmegaConf.is_missing(cfg, key) and isinstance(node := cfg._get_node(key), DictConfig) and node:
            yield from mappings(node)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "experiment=edge_grpo", "model=tiny_random", "~callbacks"),
        ("train", "experiment=[cures,vanilla]", "advantage=entropy_driven", "advantage@advantage.base=rloo"),
        ("sft", "hydra/launcher=joblib", "seed=1"),
        ("train", "experiment=tiny_base"),  # one option in two places
        ("evaluate", "evaluation=paper", "paths.evaluation_suite=suite"),
    ],
)
def test_it_composes_the_same(command: tuple[str, ...]) -> None:
    with plain_hydra():
        expected = composed(config_dir(), *command)
        expected_job = job(expected)
    for _ in range(2):  # as read, and as remembered
        cfg = composed(config_dir(), *command)
        assert OmegaConf.to_yaml(cfg) == OmegaConf.to_yaml(expected)
        assert OmegaConf.is_struct(cfg) == OmegaConf.is_struct(expected)
        assert job(cfg) == expected_job
        assert len(set(map(id, mappings(cfg)))) == len(list(mappings(cfg)))  # not one in two places
        OmegaConf.set_struct(cfg, False)
        cfg.update(seed=-1, trainer={}, hydra={})  # nobody else's


def test_what_is_merged_belongs_to_its_new_place() -> None:
    cfg = OmegaConf.create({"c": 1, "a": [0]})
    cfg.merge_with({"a": [{"b": "${c}"}]})  # the list's content is made elsewhere
    assert cfg.a[0]._get_parent() is cfg.a
    assert (cfg.a[0].b, cfg.a[0]._get_full_key("b")) == (1, "a[0].b")


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
