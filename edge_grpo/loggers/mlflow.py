"""MLflow: a server of one's own or a database in the sweep's folder, every step once."""

import fcntl
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edge_grpo.errors import UserError
from edge_grpo.loggers.csv import recorded
from edge_grpo.loggers.hooks import Row, RunLogger
from edge_grpo.loggers.identity import RUN_ID, config_of, dotted, group_of, run_id, shared_folder, tags_of
from edge_grpo.loggers.samples import as_page

log = logging.getLogger(__name__)

LONGEST_PARAM = 6000
"""characters of a value that MLflow takes"""
BATCH = 100
"""params that it takes at once"""
REPORT = ("training.png", "summary.json", "metrics.csv")
"""what a finished run's artifacts hold of its folder"""
RUN_TAG = f"edge_grpo.{RUN_ID}"


class MLflowMetrics(RunLogger, Logger):
    """A run of MLflow that repeats no step after a resume.

    A run that goes on finds its MLflow run by a tag with its id, asks it for the last step of every metric, and sends
    what is later: first from `metrics.csv` (the CSV logger stands before this one), what a kill kept back.
    MLflow knows no `@` in names: `avg@1` is `avg_at_1` there. Samples are a page a step among the artifacts.

    Where MLflow fails during a run, the run goes on without it; what it lacks, pages of samples excepted, is sent at
    the end or by a resumed run.

    Limits: MLflow never changes a param; of a setting that was changed on a resume it keeps the first value, and the
    artifact `settings.yaml` has the last. Steps that are measured again after a resume keep their first value.

    Args:
        folder: the run directory; it remembers the run's id in `run_id`.
        tracking_uri: of a server or a database; null for `MLFLOW_TRACKING_URI` if set, else an SQLite file in `mlflow/`
            in the folder of the sweep or, without one, of the run.
        experiment, name: as MLflow's.
        arm: what is compared; the tag `group` says it with what a sweep varies (see `group_of`).
        group: another group than the arm's; null for the arm's.

    Raises:
        UserError: mlflow is not installed, or there is no such place.
    """

    def __init__(
        self, folder: str, tracking_uri: str | None, experiment: str, name: str, arm: str, group: str | None
    ) -> None:
        super().__init__()
        self._mlflow = _imported()
        self._folder, self._experiment, self._name = Path(folder), experiment, name
        elsewhere = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._store = None if elsewhere else shared_folder(self._folder) / "mlflow"
        self._uri = elsewhere or f"sqlite:///{shared_folder(self._folder) / 'mlflow' / 'mlflow.db'}"
        self._tags = {RUN_TAG: run_id(self._folder), "group": group or group_of(self._folder, arm)}
        self._tags |= {"labels": ", ".join(tags_of(self._folder))}
        self._begun_run: tuple[Any, str] | None = None
        self._sent: dict[str, int] = {}  # last step of every metric
        self._complete = self._lost = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self._tags[RUN_TAG]

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """The resolved config as params, `advantage.clamp` under its own name, and where the run came from."""
        (client, run), record = self._begun(), config_of(params)
        values = {key: _written(value)[:LONGEST_PARAM] for key, value in dotted(record)}

        def send() -> None:
            known = client.get_run(run).data.params
            fresh = [self._mlflow.entities.Param(key, value) for key, value in values.items() if key not in known]
            for start in range(0, len(fresh), BATCH):
                client.log_batch(run, params=fresh[start : start + BATCH])
            client.log_text(run, yaml.safe_dump(record, sort_keys=False), "settings.yaml")

        self._attempt(send)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the metrics of a step; the first call of a run that goes on sends what MLflow has not had."""
        if step is None:
            raise ValueError("metrics need a step")
        self._attempt(partial(self._send_with_missing, step, metrics))

    @rank_zero_only
    def log_samples(self, rows: Sequence[Row], step: int) -> None:
        """Sampled completions as a page."""

        def send() -> None:
            client, run = self._begun()
            client.log_text(run, as_page(rows), f"samples/{step:06d}.html")

        self._attempt(send)

    @rank_zero_only
    def log_artifacts(self, summary: Mapping[str, Any]) -> None:
        """The figure, the summary and the metrics."""

        def send() -> None:
            client, run = self._begun()
            for path in filter(Path.is_file, (self._folder / name for name in REPORT)):
                client.log_artifact(run, str(path))

        self._lost = False  # it may answer again
        self._attempt(send)

    def ways_to_look(self) -> Mapping[str, str]:
        """MLflow's own command, for what lies here."""
        if self._store is None:
            return {"MLflow": f"{self._uri}, experiment {self._experiment}"}
        return {"MLflow": f"mlflow ui --backend-store-uri {shlex.quote(self._uri)}"}

    @rank_zero_only
    def close(self, *, failed: bool) -> None:
        """Say how the run ended."""
        if not failed and not self._complete:
            self._attempt(lambda: self._send_missing(recorded(self._folder)))
        if self._begun_run is not None:
            client, run = self._begun_run
            self._attempt(lambda: client.set_terminated(run, "FAILED" if failed else "FINISHED"))
            self._begun_run = None

    def _attempt(self, send: Callable[[], None]) -> None:
        """Send, unless MLflow has failed before."""
        if self._lost:
            return
        try:
            send()
        # Those of requests are OSErrors; a store in a cloud may want a package that is not here.
        except (self._mlflow.exceptions.MlflowException, OSError, ImportError) as error:
            self._lost, self._complete = True, False
            log.warning(
                "MLflow at %s fails (%s): the run goes on without it; what it lacks is sent at the end",
                self._uri,
                str(error).splitlines()[0],
            )

    def _begun(self) -> tuple[Any, str]:
        """The client and the id of MLflow's run, found or made at the first use."""
        if self._begun_run is None:
            try:
                with _alone(self._store):
                    client = self._mlflow.MlflowClient(self._uri)
                    place = client.get_experiment_by_name(self._experiment)
                    run = place and self._found(client, place.experiment_id)
                    self._begun_run = client, run or self._made(client, place and place.experiment_id)
            except self._mlflow.exceptions.MlflowException as error:
                raise UserError(f"MLflow at {self._uri}: {str(error).splitlines()[0]}") from error
        return self._begun_run

    def _found(self, client: Any, experiment: str) -> str | None:
        """The run of an earlier session, running again; what it has had is noted."""
        runs = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{self.version}'")
        if not runs:
            return None
        run = str(runs[0].info.run_id)
        client.update_run(run, status="RUNNING")
        for key in runs[0].data.metrics:
            self._sent[key] = max(point.step for point in client.get_metric_history(run, key))
        return run

    def _made(self, client: Any, experiment: str | None) -> str:
        if experiment is None:
            artifacts = None if self._store is None else (self._store / "artifacts").as_uri()
            experiment = client.create_experiment(self._experiment, artifacts)
        return str(client.create_run(experiment, run_name=self._name, tags=self._tags).info.run_id)

    def _send_with_missing(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._complete:
            self._send_missing({s: row for s, row in recorded(self._folder).items() if s <= step})
        self._send(step, metrics)

    def _send_missing(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        self._begun()
        for step, row in rows.items():
            self._send(step, row)
        self._complete = True

    def _send(self, step: int, row: Mapping[str, float]) -> None:
        """Those metrics of a step that MLflow has not had."""
        (client, run), now = self._begun(), int(1000 * time.time())
        values = {name.replace("@", "_at_"): float(value) for name, value in row.items()}
        fresh = {name: value for name, value in values.items() if step > self._sent.get(name, -1)}
        if fresh:
            points = [self._mlflow.entities.Metric(name, value, now, step) for name, value in fresh.items()]
            client.log_batch(run, metrics=points)
        self._sent |= dict.fromkeys(fresh, step)


def _imported() -> Any:
    """mlflow, which tells nobody that it is used."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow.exceptions  # a folder of this name, a run's, is a package too
    except ModuleNotFoundError as error:
        raise UserError("logger=mlflow needs mlflow: pip install 'edge-grpo[mlflow]'") from error
    for name in ("mlflow", "alembic"):  # they tell of every table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _written(value: Any) -> str:
    """A value as people type it: null, true, [a, b].

    >>> _written(None), _written(True), _written(0.1), _written("a")
    ('null', 'true', '0.1', 'a')
    """
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=1e9).split("\n")[0]


@contextmanager
def _alone(store: Path | None) -> Iterator[None]:
    """Inside, no other job of a sweep makes the tables of the same database."""
    if store is None:
        yield
        return
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
