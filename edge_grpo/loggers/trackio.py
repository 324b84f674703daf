"""trackio: a local view in the browser, without an account, of metrics, groups of runs and sampled completions."""

import io
import logging
import os
import shlex
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edge_grpo.errors import UserError
from edge_grpo.loggers.csv import recorded
from edge_grpo.loggers.hooks import Row, RunLogger
from edge_grpo.loggers.identity import config_of, group_of, run_id, shared_folder

log = logging.getLogger(__name__)

STORE = "TRACKIO_DIR"
"""environment variable; trackio reads it once, when it is imported"""
ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")

_chosen: list[str] = []
"""the store that this process has chosen for itself, which is no wish of the user's"""


class TrackioMetrics(RunLogger, Logger):
    """A run of trackio in a folder of this machine; nothing goes over a network.

    trackio keeps what it is given: a step that is logged twice has two points. So a run that goes on deletes the rows
    it has there and writes the steps before from `metrics.csv` (the CSV logger stands before this one), under the same
    id and name. Samples are traces: question and response as messages, rewards and branch as metadata, and a span for
    each piece with its writer.

    Limits: steps before a resume have the time of the resume.

    Args:
        folder: the run directory; it remembers the run's id in `run_id`.
        store: folder of trackio's data; null for `TRACKIO_DIR` if set, else `trackio` in the folder of the sweep or,
            without one, of the run.
        project, name: as trackio's.
        arm: what is compared; runs of one arm are a group (see `group_of`).
        group: another group than the arm's; null for the arm's.

    Raises:
        UserError: trackio is not installed, keeps its data elsewhere in this process, or would send them away.
    """

    def __init__(self, folder: str, store: str | None, project: str, name: str, arm: str, group: str | None) -> None:
        super().__init__()
        self._folder, self._project = Path(folder), project
        self._store = _store(store, self._folder)
        self._trackio = _imported(self._store)
        self._name = name
        self._group = group or group_of(self._folder, arm)
        self._id = run_id(self._folder)
        self._config: dict[str, Any] = {}
        self._run: Any = None
        self._complete = self._told = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self._id

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """The resolved config, and where the run came from; it is sent with the first step."""
        self._config = config_of(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics of a step; the first call of a run that goes on writes the steps before too."""
        if step is None:
            raise ValueError("metrics need a step")
        with self._attempt():
            if not self._complete:
                before = {s: row for s, row in recorded(self._folder).items() if s <= step}
                metrics = {**before.pop(step, {}), **metrics}
                self._write_again(before)
            self._begun().log(dict(metrics), step=step)

    @rank_zero_only
    def log_samples(self, rows: Sequence[Row], step: int) -> None:
        """Sampled completions as traces."""
        with self._attempt():
            self._begun().log({"samples": [self._trace(row) for row in rows]}, step=step)

    @rank_zero_only
    def log_artifacts(self, summary: Mapping[str, Any]) -> None:
        """What the run came to, as a report."""
        accuracy = {when: f"{100 * share:.1f} %" for when, share in summary["accuracy"].items()}
        text = (
            f"**{summary['name']}, seed {summary['seed']}**: held-out accuracy {accuracy['before']} -> "
            f"{accuracy['after']} in {summary['iterations']} iterations"
        )
        with self._attempt():
            self._begun().log({"summary": self._trackio.Markdown(text)}, step=summary["iterations"])

    def ways_to_look(self) -> Mapping[str, str]:
        """trackio's own command, which finds the store by the environment."""
        place, project = shlex.quote(str(self._store)), shlex.quote(self._project)
        return {"trackio": f"{STORE}={place} trackio show --project {project}"}

    @rank_zero_only
    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        if not failed and not self._complete:
            with self._attempt():
                self._write_again(recorded(self._folder))
        if self._run is not None:
            with redirect_stdout(io.StringIO()):  # trackio prints of an upload that there is not
                self._run.finish()
            self._run = None

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """A store that cannot be used costs trackio's view, and not the run; it is told of once."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if not self._told:
                log.warning("trackio in %s fails (%s): the run goes on without it", self._store, error)
            self._told = True

    def _begun(self) -> Any:
        """trackio's run, begun at the first use without the rows that an earlier session left."""
        if self._run is None:
            self._trackio.api.Run(self._project, self._name, self._id).delete()
            self._run = _local_run(self._trackio)(
                url=None,
                project=self._project,
                client=None,
                name=self._name,
                run_id=self._id,
                group=self._group,
                config=self._config,
            )
        return self._run

    def _write_again(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        self._complete = True
        for step, row in rows.items():
            self._begun().log(dict(row), step=step)

    def _trace(self, row: Row) -> Any:
        messages = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["response"]},
        ]
        spans = [
            {"id": str(i), "name": kind, "kind": "generation" if kind == "sampled" else "span", "output": text}
            for i, (kind, text) in enumerate(row["pieces"])
        ]
        metadata = {name: value for name, value in row.items() if name not in ("question", "response", "pieces")}
        return self._trackio.Trace(messages, metadata, spans)


def _store(asked: str | None, folder: Path) -> Path:
    wished = os.environ.get(STORE)
    if asked is None and wished is not None and wished not in _chosen:
        asked = wished
    return Path(asked).absolute() if asked is not None else shared_folder(folder) / "trackio"


def _imported(store: Path) -> Any:
    """trackio, with its data in `store`."""
    away = [name for name in ELSEWHERE if os.environ.get(name)]
    if away:
        raise UserError(f"{away[0]} is set, and logger=trackio writes here: unset it; `trackio sync` uploads later")
    if os.environ.get(STORE) != str(store):
        os.environ[STORE] = str(store)
        _chosen.append(str(store))
    try:
        import trackio
        from trackio.utils import TRACKIO_DIR
    except ModuleNotFoundError as error:
        raise UserError("logger=trackio needs trackio: pip install 'edge-grpo[trackio]'") from error
    if Path(TRACKIO_DIR).absolute() != store:
        raise UserError(
            f"trackio keeps the data of one folder a process: this one's are in {TRACKIO_DIR}, and not in {store}; "
            f"set logger.trackio.store or {STORE} for all runs"
        )
    return trackio


def _local_run(trackio: Any) -> Any:
    class LocalRun(trackio.Run):
        """A run that does not ask the hub who is logged in."""

        def _get_username(self) -> None:
            return None

    return LocalRun
