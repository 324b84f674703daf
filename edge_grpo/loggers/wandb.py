"""Weights & Biases: online with a key, offline without one or without a server, every step once."""

import logging
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edge_grpo.loggers.csv import recorded
from edge_grpo.loggers.hooks import Row, RunLogger
from edge_grpo.loggers.identity import (
    MAX_TAG,
    Mode,
    agents_parameters,
    agents_run,
    config_of,
    group_of,
    resolve_mode,
    run_id,
    shared_folder,
    tags_of,
    without,
)
from edge_grpo.loggers.metrics import describe
from edge_grpo.loggers.samples import as_page, marked
from edge_grpo.loggers.wandb_folders import keep_in, link_in_sweep
from edge_grpo.types.metric import Metric

log = logging.getLogger(__name__)

REPORT = ("training.png", "summary.json", "metrics.csv", "config.yaml")
"""what a finished run's report artifact holds of its folder"""
SAMPLES, PAGE = "samples", "samples_page"
"""the table and the page of samples"""


class WandbMetrics(RunLogger, WandbLogger):
    """A WandbLogger that never asks a question, outlives its server and repeats no step.

    W&B's step is the iteration, and a step is sent once, whole: W&B ignores what comes later for it. A resumed run
    goes on in the same W&B run and first sends the steps that W&B has not had, from `metrics.csv` (so the CSV logger
    stands before this one). W&B's offline file is written in blocks and loses its end in a kill: a resumed offline
    run therefore writes all steps into a new file and deletes the one before, unless that was synced already.

    Every metric has `iteration` as its x-axis and the summary that `loggers/metrics.py` gives it. W&B's config is the
    resolved config, with `overrides`, `git_commit`, `packages` and the machine beside it; settings that W&B's agent has
    put there are not repeated. Samples are one incremental table of texts and, each step, a page that shows who wrote
    what; both lie under the run's folder. Jobs of a sweep are linked in the sweep's `wandb`.

    Limits: a finished run that is made longer has no training metrics in W&B for the step that was its last
    (`metrics.csv` has them); an online run that goes on offline has its earlier steps in that file again. Of a resumed
    online run we do not know whether W&B's `max`, `min` and `mean` count the steps before. W&B shows the last 100
    increments of a table, and a server of one's own must be 0.70 or newer for it. Files of an offline run's artifacts
    (the table is one too) are found by their absolute path, so a run that is copied and synced there has the pages of
    samples and not the table. None of this was tried against a real server.

    Args:
        folder: the run directory; it remembers the run's id in `run_id`.
        project, entity, name, job_type: as W&B's.
        arm: what is compared; runs of one arm are a group (see `group_of`).
        group: another group than the arm's; null for the arm's.
        tags: besides the experiment and the sweep's folder.
        mode: "auto" is WANDB_MODE if set, else online where there is a key, else offline.
        log_model: upload the exported model when the run has finished, as the artifact `model-<run id>`.
        log_report: upload `REPORT` of the run's folder when it has finished, as the artifact `report-<run id>`.
    """

    _experiment: Any

    def __init__(
        self,
        folder: str,
        project: str,
        entity: str | None,
        name: str | None,
        arm: str,
        group: str | None,
        job_type: str | None,
        tags: Sequence[str],
        mode: Mode,
        log_model: bool,
        log_report: bool,
    ) -> None:
        self._folder, self._run_mode = Path(folder), resolve_mode(mode)
        self._upload_model, self._upload_report = log_model, log_report
        self._row: tuple[int, dict[str, Any]] | None = None  # the step that is not complete yet
        self._sent = -1
        self._recorded_to = -1
        self._samples: Any = None
        self._takes_files = True
        self._defined: set[str] = set()
        self._definitions: Mapping[str, Metric] = {}
        super().__init__(
            save_dir=folder,
            project=project,
            entity=entity,
            name=name,
            group=group or group_of(self._folder, arm),
            job_type=job_type,
            tags=list(dict.fromkeys([*tags_of(self._folder), *(tag[:MAX_TAG] for tag in tags)])),
            id=run_id(self._folder),
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
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """The resolved config, and where the run came from."""
        super().log_hyperparams(without(config_of(params), agents_parameters()))

    def define_metrics(self, definitions: Mapping[str, Metric]) -> None:
        """Their summaries are read when each is first sent."""
        self._definitions = definitions

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of `step`; the row before it is complete and sent."""
        if step is None:
            raise ValueError("metrics need a step")
        row = self._open(step)
        if row is not None:
            row.update(metrics)

    @rank_zero_only
    def log_samples(self, rows: Sequence[Row], step: int) -> None:
        """Add the rows to the run's table of samples, and show them as a page."""
        row = self._open(step)
        if row is None or not self._takes_files:
            return
        if self._samples is None:
            columns = [name for name in rows[0] if name != "pieces"]
            self._samples = wandb.Table(columns=columns, log_mode="INCREMENTAL")
        for sample in rows:
            shown = {**sample, "response": marked(sample["pieces"])}
            self._samples.add_data(*[shown.get(name) for name in self._samples.columns])
        row[SAMPLES] = self._samples
        row[PAGE] = wandb.Html(as_page(rows), inject=False, data_is_not_path=True)

    @rank_zero_only
    def log_artifacts(self, summary: Mapping[str, Any]) -> None:
        """Upload what was asked for of a finished run, with its accuracy as metadata."""
        metadata = {name: summary[name] for name in ("name", "seed", "accuracy", "iterations")}
        if self._upload_model:
            self._log_files("model", sorted((self._folder / "model").iterdir()), metadata)
        if self._upload_report:
            self._log_files("report", [self._folder / name for name in REPORT], metadata)

    def _log_files(self, kind: str, paths: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        artifact = wandb.Artifact(f"{kind}-{self.version}", type=kind, metadata=dict(metadata))
        try:
            for path in filter(Path.is_file, paths):
                # Not copied: an offline run's files are read when it is synced.
                artifact.add_file(str(path), policy="immutable")
            self.experiment.log_artifact(artifact)
        except OSError as error:
            self._without(f"the {kind}", error)

    def _without(self, what: str, error: OSError) -> None:
        reason = str(error).splitlines()[0]
        log.warning("W&B goes on without %s, for its files cannot be written: %s", what, reason)

    def ways_to_look(self) -> Mapping[str, str]:
        """The terminal view, and of an offline run the upload: of the sweep, where the run is a job of one."""
        if self._run_mode not in ("online", "offline"):
            return {}
        place = shared_folder(self._folder) / "wandb"
        if place == self._folder.absolute() / "wandb":
            place = place / "latest-run"
        upload = {"W&B": f"wandb sync {shlex.quote(str(place))}"} if self._run_mode == "offline" else {}
        return {**upload, "W&B, here": f"wandb leet {shlex.quote(str(place))}"}

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
        keep_in(self._folder)
        resume = None if self._run_mode == "offline" else "allow"
        settings = {**self._wandb_init, "mode": self._run_mode, "resume": resume}
        settings.pop("anonymous", None)  # Lightning still sets what W&B warns of
        if agents_run(self._folder) is not None:  # W&B takes these from its agent, and warns of others
            settings = {key: value for key, value in settings.items() if key not in ("project", "entity", "id")}
        run = wandb.init(**settings)
        sweep = shared_folder(self._folder)
        if sweep != self._folder.absolute() and self._run_mode != "disabled":
            link_in_sweep(Path(run.dir).absolute().parent, sweep)
        run.define_metric("iteration", hidden=True)
        run.define_metric("*", step_metric="iteration")
        self._sent = run.step - 1
        self._recorded_to = -1 if synced else max(recorded(self._folder), default=-1)
        self._samples, self._defined = None, set()
        return run

    def _open(self, step: int) -> dict[str, Any] | None:
        """The row of `step`, once the rows before it are sent; None if W&B has it already."""
        assert self.experiment is not None  # begun by now, so that `_sent` is known
        if self._row is None or self._row[0] != step:
            self.save()
            if step <= self._sent:
                return None
            self._row = step, self._recorded(step)
        return self._row[1]

    def _recorded(self, step: int) -> dict[str, Any]:
        """The row of `step` in a resumed run's `metrics.csv`; earlier steps that W&B lacks are sent first."""
        if step > self._recorded_to <= self._sent:
            return {}
        rows = recorded(self._folder)
        for earlier in sorted(s for s in rows if self._sent < s < step):
            self._send(earlier, rows[earlier])
        return rows.get(step, {})

    def _send(self, step: int, row: Mapping[str, Any]) -> None:
        for name in sorted(row.keys() - self._defined):
            self._define(name)
        try:
            self.experiment.log({"iteration": step, **row}, step=step)
        except OSError as error:
            if SAMPLES not in row:
                raise
            self._without("samples", error)
            self._takes_files = False
            rest = {name: value for name, value in row.items() if name not in (SAMPLES, PAGE)}
            self.experiment.log({"iteration": step, **rest}, step=step)
        self._sent = step

    def _define(self, name: str) -> None:
        """Tell W&B the metric's summary, once. Not by pattern: W&B knows `*` at the end of a name only."""
        metric = self._definitions.get(name) or describe(name)
        if metric is not None and metric.summary != "last":
            self.experiment.define_metric(name, step_metric="iteration", summary=f"{metric.summary},last")
        self._defined.add(name)
