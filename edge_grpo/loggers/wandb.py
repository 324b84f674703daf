"""Weights & Biases: online with a key, offline without one or without a server, every step once."""

import csv
import logging
import netrc
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edge_grpo.errors import UserError

log = logging.getLogger(__name__)

WANDB_RUN_ID = "wandb_run_id"
"""the file in the run directory that keeps the id"""

Mode = Literal["auto", "online", "offline", "disabled"]


class WandbMetrics(WandbLogger):
    """A WandbLogger that never asks a question, outlives its server and repeats no step.

    W&B's step is the iteration, and a step is sent once, whole: W&B ignores what comes later for it. A resumed run
    goes on in the same W&B run and first sends the steps that W&B has not had, from `metrics.csv` (so the CSV logger
    stands before this one). W&B's offline file is written in blocks and loses its end in a kill: a resumed offline
    run therefore writes all steps into a new file and deletes the one before, unless that was synced already.

    Limits: a finished run that is made longer has no training metrics in W&B for the step that was its last
    (`metrics.csv` has them); an online run that goes on offline has its earlier steps in that file again.

    Args:
        folder: the run directory; it remembers the run's id in `wandb_run_id`.
        project, entity, name, group, job_type, tags: as W&B's.
        mode: "auto" is WANDB_MODE if set, else online where there is a key, else offline.
    """

    _experiment: Any

    def __init__(
        self,
        folder: str,
        project: str,
        entity: str | None,
        name: str | None,
        group: str | None,
        job_type: str | None,
        tags: Sequence[str],
        mode: Mode,
    ) -> None:
        self._folder, self._run_mode = Path(folder), resolve_mode(mode)
        self._row: tuple[int, dict[str, Any]] | None = None  # the step that is not complete yet
        self._sent = -1
        self._recorded_to = -1
        super().__init__(
            save_dir=folder,
            project=project,
            entity=entity,
            name=name,
            group=group,
            job_type=job_type,
            tags=list(tags),
            id=_run_id(self._folder),
            settings=wandb.Settings(silent=True, console="off"),
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, begun at the first use."""
        if self._experiment is None:
            try:
                self._experiment = self._begin()
            except wandb.errors.Error as error:
                if self._run_mode != "online":
                    raise
                log.warning(
                    "W&B cannot be reached (%s): going on offline; when it can: wandb sync %s",
                    str(error).splitlines()[0],
                    self._folder / "wandb" / "latest-run",
                )
                wandb.teardown()  # its service still holds the run's id
                self._run_mode = "offline"
                self._experiment = self._begin()
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of `step`; the row before it is complete and sent."""
        if step is None:
            raise ValueError("metrics need a step")
        assert self.experiment is not None  # begun by now, so that `_sent` is known
        if self._row is None or self._row[0] != step:
            self.save()
            if step <= self._sent:
                return
            self._row = step, self._recorded(step)
        self._row[1].update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Send the open row: called when nothing more of its step will come."""
        if self._row is not None:
            (step, row), self._row = self._row, None
            self._send(step, row)

    @rank_zero_only
    def close(self, *, failed: bool) -> None:
        """End the W&B run. A row that is still open is left to the run that is resumed."""
        self._row = None
        if self._experiment is not None:
            if not failed:
                self._recorded(self._recorded_to + 1)  # of a run that had nothing left to do
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None

    def _begin(self) -> Any:
        synced = False
        if self._run_mode == "offline":
            segments = list((self._folder / "wandb").glob(f"offline-run-*-{self._wandb_init['id']}"))
            synced = any(list(segment.glob("*.synced")) for segment in segments)
            for segment in () if synced else segments:
                shutil.rmtree(segment)
        # A run of this process that nobody ended would be taken for this one.
        wandb.finish()
        resume = None if self._run_mode == "offline" else "allow"
        settings = {**self._wandb_init, "mode": self._run_mode, "resume": resume}
        settings.pop("anonymous", None)  # Lightning still sets what W&B warns of
        run = wandb.init(**settings)
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        self._sent = run.step - 1
        self._recorded_to = -1 if synced else max(_read(self._folder), default=-1)
        return run

    def _recorded(self, step: int) -> dict[str, Any]:
        """What `metrics.csv` has of `step` in a run that goes on; steps before it that W&B has not are sent."""
        if step > self._recorded_to <= self._sent:
            return {}
        rows = _read(self._folder)
        for earlier in sorted(s for s in rows if self._sent < s < step):
            self._send(earlier, rows[earlier])
        return rows.get(step, {})

    def _send(self, step: int, row: Mapping[str, Any]) -> None:
        self.experiment.log({"iteration": step, **row}, step=step)
        self._sent = step


def _read(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> metrics of `metrics.csv`."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {
            int(row.pop("step")): {name: float(value) for name, value in row.items() if value != ""}
            for row in csv.DictReader(file)
        }


def resolve_mode(mode: Mode) -> str:
    """The mode that W&B is started in."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return path.is_file() and host in netrc.netrc(path).hosts
    except netrc.NetrcParseError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}; mend it or set logger.wandb.mode=offline") from error


def _run_id(folder: Path) -> str:
    """The run's id, made once and kept in the run directory."""
    path = folder / WANDB_RUN_ID
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()
