"""What a run tells its loggers besides Lightning's own calls."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge_grpo.types.metric import Metric

Row = Mapping[str, Any]
"""a sampled row with its step; `pieces` are (provenance, text) in order"""


class RunLogger:
    """Base of the project's loggers; each overrides what it cares for."""

    def define_metrics(self, definitions: Mapping[str, Metric]) -> None:
        """Before the first metric: logged name -> definition of those that strategies report."""

    def log_samples(self, rows: Sequence[Row], step: int) -> None:
        """Sampled completions of one step, in order."""

    def log_artifacts(self, summary: Mapping[str, Any]) -> None:
        """After the last metric of a run that has finished, once its files are written."""

    def ways_to_look(self) -> Mapping[str, str]:
        """Label -> the command that shows the run, for its end."""
        return {}

    def close(self, *, failed: bool) -> None:
        """The end, however it came."""


def run_loggers(loggers: Iterable[Any]) -> list[RunLogger]:
    """Those of the project's own; Lightning's loggers, which a config may name too, have no such hooks."""
    return [logger for logger in loggers if isinstance(logger, RunLogger)]
