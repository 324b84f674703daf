"""Folders -> runs: what a training run left behind, whether it finished or not."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from edge_grpo.errors import UserError
from edge_grpo.reporting.evaluations import Evaluation, read_evaluations
from edge_grpo.runs.status import read_status

FINISHED = "finished"
# Folders in a run's folder whose config.yaml is not a run's.
INSIDE = frozenset({"evaluation", "wandb", "checkpoints", "model"})
INFO = ("git_commit", "git_dirty", "packages", "python", "machine")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        place: its folder, or its address at W&B.
        settings: the resolved config, dotted key -> value; lists are values.
        overrides: what was typed, `key=value`.
        state: of runs/status.py, or W&B's.
        error: why it is not finished, or why it cannot be read.
        metrics: one row a step, one column a metric, NaN where it was not logged.
        info: of runs/provenance.py.
        evaluations: see `read_evaluations`.
        written: when it was last written to, in seconds.
        choices: config group -> chosen option, by Hydra's record; nothing of a run that is read from W&B.
    """

    place: str
    settings: Mapping[str, Any]
    overrides: Sequence[str]
    state: str
    error: str | None = None
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)
    info: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    written: float = 0.0
    choices: Mapping[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether it may enter a table: it finished, and its metrics can be read."""
        return self.state == FINISHED and self.error is None and not self.metrics.empty

    @property
    def is_remote(self) -> bool:
        """Whether its place is an address, not a folder."""
        return "://" in self.place

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")

    @property
    def iterations(self) -> int:
        """Iterations done."""
        return len(self.column("timing_s/total"))

    @property
    def logged(self) -> list[str]:
        """Names of the metrics."""
        return [str(name) for name in self.metrics]

    def column(self, name: str) -> pd.Series:
        """step -> value of one metric, where it was logged; empty if it never was."""
        return self.metrics[name].dropna() if name in self.metrics else pd.Series(dtype=float)


def read_folder(root: Path) -> list[Run]:
    """The training runs in a folder or below it, each sweep in the order of its jobs.

    Raises:
        UserError: no such folder, or no run in it.
    """
    found = [run for run in map(_read, run_folders(root)) if _is_training(run)]
    if not found:
        raise UserError(f"runs={root}: what was recorded there is of other programs than edge-grpo-train")
    return found


def run_folders(root: Path) -> list[Path]:
    """Folders with a config, of training runs and of other programs.

    Raises:
        UserError: no such folder, or no config in it.
    """
    if not root.is_dir():
        raise UserError(f"runs={root}: no such folder; name the folder of a run or of a sweep, or wandb:entity/project")
    folders = {path.parent.parent if path.parent.name == ".hydra" else path.parent for path in _configs(root)}
    if not folders:
        raise UserError(
            f"runs={root}: no run in it or below it (a run has a config.yaml); runs lie in outputs/, "
            "sweeps in multirun/"
        )
    return sorted(folders, key=_place_in_sweep)


def _configs(root: Path) -> Iterator[Path]:
    """Every run's config, also in a sweep whose folder has the name of a part of a run, such as `model`."""
    found = [p for p in root.rglob("config.yaml") if ".hydra" not in p.relative_to(root).parts[:-2]]
    runs = {p.parent for p in found if p.parent.name != ".hydra"}
    return (p for p in found if not any(_is_inside(p.parent, run) for run in runs))


def _is_inside(folder: Path, run: Path) -> bool:
    """Whether the folder belongs to that run: its evaluations, its model."""
    return folder != run and run in folder.parents and folder.relative_to(run).parts[0] in INSIDE


def _place_in_sweep(folder: Path) -> tuple[str, int, str]:
    """Jobs in the order in which their sweep ran them."""
    return str(folder.parent), _recorded(folder, "hydra.job.num") or 0, folder.name


def _recorded(folder: Path, key: str) -> Any:
    """What Hydra recorded of itself; None if it is not there."""
    path = folder / ".hydra" / "hydra.yaml"
    try:
        return OmegaConf.select(OmegaConf.load(path), key) if path.is_file() else None
    except (YAMLError, OmegaConfBaseException):  # cut by a kill
        return None


def _choices(folder: Path) -> dict[str, str]:
    """Config group -> option; a group without one is left out."""
    found = _recorded(folder, "hydra.runtime.choices") or {}
    return {str(group): str(option) for group, option in found.items() if option is not None}


def _is_training(run: Run) -> bool:
    """Other programs record their configs too; a config that cannot be read might be a run's."""
    return not run.settings or "trainer.max_iterations" in run.settings


def _read(folder: Path) -> Run:
    status = read_status(folder)
    faults: list[str] = [status.error] if status.error else []
    settings: dict[str, Any] = {}
    info: dict[str, Any] = {}
    metrics = pd.DataFrame()
    evaluations: tuple[Evaluation, ...] = ()
    try:
        settings = _settings(folder)
        metrics = _metrics(folder / "metrics.csv")
        info = _info(folder / "summary.json")
        evaluations = read_evaluations(folder)
    except UserError as error:
        if not faults:  # what ended the run says more than what it therefore lacks
            faults.append(str(error))
    if status.state == "killed" and not faults:
        faults = ["its process ended without a word: the same command goes on with it"]
    table = folder / "metrics.csv"
    return Run(
        place=str(folder),
        settings=settings,
        overrides=_overrides(folder / ".hydra" / "overrides.yaml"),
        state=status.state,
        error="; ".join(faults) or None,
        metrics=metrics,
        info=info,
        evaluations=evaluations,
        written=(table if table.exists() else folder).stat().st_mtime,
        choices=_choices(folder),
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Dotted settings. For a run that failed before it wrote its config: Hydra's record, as far as it resolves."""
    written = folder / "config.yaml"
    path = written if written.is_file() else folder / ".hydra" / "config.yaml"
    try:
        config = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path.name} holds no settings")
    flat = flatten(OmegaConf.to_container(config, resolve=False))
    return {key: _resolved(config, key) if "${" in str(value) else value for key, value in flat.items()}


def _resolved(config: DictConfig, key: str) -> Any:
    try:
        found = OmegaConf.select(config, key)
    except OmegaConfBaseException:  # ${hydra:...} and its like: of the run, not of this program
        return None
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted keys.

    >>> flatten({"loss": {"beta": 0.0}, "tags": ["a"]})
    {'loss.beta': 0.0, 'tags': ['a']}
    """
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _metrics(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError("metrics.csv does not exist: the run logged nothing (logger=csv is in every default)")
    try:
        metrics = pd.read_csv(path).set_index("step").apply(pd.to_numeric)
    except (ValueError, KeyError) as error:  # pandas' ParserError and EmptyDataError are ValueErrors
        raise UserError(f"metrics.csv cannot be read: {str(error).splitlines()[0]}") from error
    if metrics.empty:
        raise UserError("metrics.csv holds no row")
    return metrics


def _info(path: Path) -> dict[str, Any]:
    """Where the run came from; nothing of a run without a summary."""
    try:
        summary = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"summary.json cannot be read: {error}") from error
    return {key: summary[key] for key in INFO if key in summary}


def _overrides(path: Path) -> list[str]:
    try:
        return [str(text) for text in OmegaConf.load(path)] if path.is_file() else []
    except (YAMLError, OmegaConfBaseException):
        return []
