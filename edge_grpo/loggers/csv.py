"""metrics.csv: one row a step, whole after every step, continued by a resumed run."""

import csv
import logging
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edge_grpo.loggers.hooks import RunLogger

log = logging.getLogger(__name__)


class CSVMetrics(RunLogger, Logger):
    """One row a step in `<folder>/metrics.csv`.

    Lightning's own CSVLogger deletes the file of an earlier run in the same folder and writes a step logged in two
    calls as two rows. Here the metrics of one step share a row, and a step that is logged again after a resume
    replaces the row it had, with those after it.

    Args:
        folder: of the file; made if absent.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._rows: list[dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The resolved config is written by the run itself."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Merge into the row of `step` and write the file."""
        if step is None:
            raise ValueError("metrics need a step")
        rows = self._load() if self._rows is None else self._rows
        # What lies beyond a resume point is measured again.
        rows = [row for row in rows if int(row["step"]) <= step]
        if not rows or int(rows[-1]["step"]) != step:
            rows.append({"step": step})
        rows[-1] |= metrics
        self._rows = rows
        try:
            self._write(rows)
        except OSError as error:  # every call writes all rows, so nothing is lost once there is room again
            log.warning("%s not written at step %d: %s", self.path, step, error.strerror)

    def _load(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Whole file to a temporary name, then renamed: a reader or a kill never sees half a row."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".csv.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=["step", *sorted(n for n in names if n != "step")])
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)


def cut_back(folder: Path, done: int) -> None:
    """Drop from `metrics.csv` what is of iteration `done` and later; the evaluation of the policy before it stays."""
    rows = recorded(folder)
    if not rows or max(rows) < done:
        return
    table = CSVMetrics(str(folder))
    at_end = {n: value for n, value in rows.get(done, {}).items() if n.startswith(("eval/", "timing_s/evaluation"))}
    kept = [row for row in table._load() if int(row["step"]) < done]
    table._write([*kept, *([{"step": done, **at_end}] if at_end else [])])


def recorded(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> metrics of `metrics.csv`, in order; nothing where there is none."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {
            int(row.pop("step")): {name: float(value) for name, value in row.items() if value != ""}
            for row in csv.DictReader(file)
        }
