"""TensorBoard: the same numbers as metrics.csv, every step once."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edge_grpo.errors import UserError
from edge_grpo.loggers.csv import recorded
from edge_grpo.loggers.hooks import Row, RunLogger
from edge_grpo.loggers.identity import config_of, shared_folder
from edge_grpo.loggers.samples import as_markdown


class TensorBoardMetrics(RunLogger, TensorBoardLogger):
    """Event files in `<folder>/tensorboard` that repeat no step after a resume.

    TensorBoard only adds to its files, and a kill loses what it had not flushed. So a run that goes on deletes the
    files that it finds and writes the steps before from `metrics.csv` (the CSV logger stands before this one).

    Limits: those steps then have the time of the resume, which TensorBoard's relative and wall time axes show.

    Args:
        folder: the run directory.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, folder: str) -> None:
        try:
            super().__init__(save_dir=folder, name="", version="tensorboard", default_hp_metric=False)
        except ModuleNotFoundError as error:
            raise UserError("logger=tensorboard needs tensorboard: pip install 'edge-grpo[tensorboard]'") from error
        self._folder, self._complete = Path(folder), False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, begun at the first use."""
        if self._experiment is None:
            for old in Path(self.log_dir).glob("events.out.tfevents.*"):
                old.unlink()
        return super().experiment

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """The resolved config and where the run came from, as text."""
        record = config_of(params)
        super().log_hyperparams(record)
        block = "\n".join(f"    {line}" for line in yaml.safe_dump(record, sort_keys=False).splitlines())
        self.experiment.add_text("config", block, 0)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics of a step; the first call of a run that goes on writes the steps before too."""
        if step is None:
            raise ValueError("metrics need a step")
        if not self._complete:
            before = {s: row for s, row in recorded(self._folder).items() if s <= step}
            metrics = {**before.pop(step, {}), **metrics}
            self._write_again(before)
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_samples(self, rows: Sequence[Row], step: int) -> None:
        """Sampled completions as text."""
        self.experiment.add_text("samples", "\n\n".join(map(as_markdown, rows)), step)

    def ways_to_look(self) -> Mapping[str, str]:
        """TensorBoard finds the runs below a folder itself."""
        return {"TensorBoard": f"tensorboard --logdir {shlex.quote(str(shared_folder(self._folder)))}"}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the files; those of a run that had nothing left to do are written here."""
        if status == "success" and not self._complete:
            self._write_again(recorded(self._folder))
        super().finalize(status)

    def _write_again(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        self._complete = True
        for step, row in rows.items():
            super().log_metrics(row, step)
