"""Hydra composes in a third of its time: it reads a file and an interpolation once a process, builds no map that nobody
looks into, and copies little and quickly.

Composing was a third of a small run. The programs that tests start compose as a user's do.
"""

import copy
import functools
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.default_element import InputDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, _utils, base, flag_override
from omegaconf.grammar_parser import parse

_load = ConfigRepository.load_config
_interpolation_map = defaults_list._create_interpolation_map
_embed_result_config = ConfigLoaderImpl._embed_result_config
_re_parent = base.Box._re_parent
_copied_repository = CachingConfigRepository.__init__
_loaded: dict[tuple[Any, ...], bytes] = {}
"""pickled, which is copied five times as fast as by `deepcopy`"""


def _load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    """A copy of what was read, as long as the file is the same; Hydra's own files never change."""
    source = self._find_object_source(config_path, ObjectType.CONFIG)
    if source is None or source.scheme() not in ("file", "pkg"):
        return _load(self, config_path)
    key: tuple[Any, ...] = (source.provider, source.path, config_path)
    if source.scheme() == "file":
        state = os.stat(os.path.join(source.path, source._normalize_file_name(config_path)))
        key += (state.st_ino, state.st_mtime_ns, state.st_size)
    if key not in _loaded:
        _loaded[key] = pickle.dumps(_load(self, config_path))
    return pickle.loads(_loaded[key])


def _map_if_asked(overrides: Any, defaults: list[InputDefault], self_added: bool) -> DictConfig:
    """Only options like `${other_group}` are looked up in it."""
    if any(default.is_interpolation() for default in defaults):
        return _interpolation_map(overrides, defaults, self_added)
    return OmegaConf.create()


def _embed(ret: ConfigResult, package_override: str | None) -> ConfigResult:
    """A copy of what was loaded, which another package may get too, below the keys of its package."""
    package = ret.header["package"] if package_override is None else package_override
    if package:
        cfg = OmegaConf.create()
        with flag_override(cfg, "no_deepcopy_set_nodes", True):
            OmegaConf.update(cfg, package, pickle.loads(pickle.dumps(ret.config)), merge=False)
        ret = copy.copy(ret)
        ret.config = cfg
    return ret


def _of_the_same_sources(self: CachingConfigRepository, delegate: ConfigRepository) -> None:
    """Sources do not change; a repository that gets others gets a new list."""
    self.delegate, self.cache = copy.copy(delegate), {}


def _re_parent_strangers(self: base.Box) -> None:
    """Below those that have this parent already there may be others; everything is visited after every merge."""
    content = self.__dict__["_content"]
    if isinstance(self, base.UnionNode):
        _re_parent(self)
    elif isinstance(content, dict | list):
        for node in content.values() if isinstance(content, dict) else content:
            if node is not None and node.__dict__["_parent"] is not self:
                node._set_parent(self)
            if isinstance(node, base.Box):
                node._re_parent()


@contextmanager
def quick_hydra() -> Iterator[None]:
    parse_once = functools.cache(parse)
    with (
        patch.object(ConfigRepository, "load_config", _load_once),
        patch.object(defaults_list, "_create_interpolation_map", _map_if_asked),
        patch.object(ConfigLoaderImpl, "_embed_result_config", staticmethod(_embed)),
        patch.object(CachingConfigRepository, "__init__", _of_the_same_sources),
        patch.object(base.Box, "_re_parent", _re_parent_strangers),
        patch.object(base, "parse", parse_once),
        patch.object(_utils, "parse", parse_once),
    ):
        yield
