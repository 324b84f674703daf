"""What a panel and a section of the dashboard are; nothing here knows W&B."""

from dataclasses import dataclass
from typing import Literal

ITERATION = "iteration"
ROLLOUTS = "train/num_rollouts"
TOKENS = "train/num_generated_tokens"
AXES = {ITERATION: "iteration", ROLLOUTS: "responses sampled", TOKENS: "tokens generated"}
"""metric of an axis -> what is written there"""


@dataclass(frozen=True)
class Lines:
    """Metrics over the run, one line an arm: the mean of its runs, with a band from the lowest to the highest.

    Args:
        title: of the panel.
        metrics: logged names; a `*` stands for one variable part, and then there is one metric only.
        says: what to read off it.
        x: the axis.
        smooth: whether neighbouring iterations are averaged; not where a value is exact or rare.
        unit: of metrics that a strategy defines; null for that of the definition in `loggers/metrics.py`.
    """

    title: str
    metrics: tuple[str, ...]
    says: str
    x: str = ITERATION
    smooth: bool = True
    unit: str | None = None


@dataclass(frozen=True)
class OfEnds:
    """What shows one number of each run.

    Args:
        title: of the panel.
        metric: logged name.
        summary: which of the metric's summaries; its definition must keep it.
        says: what to read off it.
    """

    title: str
    metric: str
    summary: Literal["last", "max", "mean"]
    says: str


class Bars(OfEnds):
    """A bar an arm: the mean of its runs."""


class Swept(OfEnds):
    """Every run as a line through the settings that the dashboard is asked for, to the number."""


class Importance(OfEnds):
    """How well each setting predicts the number."""


@dataclass(frozen=True)
class Pages:
    """Pages that the runs have logged, a step at a time.

    Args:
        title: of the panel.
        media: logged name.
        says: what to read off it.
    """

    title: str
    media: str
    says: str


Panel = Lines | Bars | Pages | Swept | Importance


@dataclass(frozen=True)
class Section:
    """A heading, what it is about, and its panels in order."""

    name: str
    about: str
    panels: tuple[Panel, ...]
