"""The shape of a model, without its weights and for the shipped presets without a download."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig

from edge_grpo.errors import UserError

SHAPES = Path(__file__).resolve().parent.parent / "assets" / "model_shapes.json"
"""of the presets in conf/model, as their publishers' config.json has them"""


class ModelConfig(NamedTuple):
    """A `PretrainedConfig`, and where it comes from, for people."""

    config: Any
    source: str


def read_config(path: str, revision: str | None, *, trust_remote_code: bool) -> ModelConfig:
    """The config of the model that `model.path` names.

    A folder's own config.json; of a hub name the file that is on this machine, then the published shape that ships with
    the project, then the hub's.

    Args:
        path, revision, trust_remote_code: as `load_policy`'s.

    Raises:
        UserError: there is none.
    """
    where = Path(path).expanduser()
    if path.startswith((".", "/", "~")) and not where.is_dir():
        raise UserError(f"model.path={path}: no such folder")
    settings = {"revision": revision, "trust_remote_code": trust_remote_code}
    if where.is_dir():
        return ModelConfig(_from_pretrained(path, str(where), settings), f"{path}/config.json")
    try:
        found = AutoConfig.from_pretrained(path, local_files_only=True, **settings)
        return ModelConfig(found, "the hub's config.json on this machine")
    except (OSError, ValueError):  # not there: nothing was ever loaded from the hub
        pass
    published = json.loads(SHAPES.read_text()).get(path)
    if published is not None:
        return ModelConfig(
            AutoConfig.for_model(**published), f"published shape ({SHAPES.name} of the project; nothing was downloaded)"
        )
    return ModelConfig(_from_pretrained(path, path, settings), "the hub's config.json")


def _from_pretrained(path: str, where: str, settings: dict[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(where, **settings)
    except Exception as error:  # foreign files make transformers raise all kinds
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"model.path={path}: its config.json cannot be read: {told}") from error
