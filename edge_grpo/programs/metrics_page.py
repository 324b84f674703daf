"""`python -m edge_grpo.programs.metrics_page` prints docs/metrics.md: every logged name, those of strategies too."""

from functools import cache
from itertools import zip_longest
from typing import Any

from hydra import compose, initialize_config_dir

from edge_grpo.command_line.check import instantiate
from edge_grpo.command_line.resolvers import config_dir
from edge_grpo.loggers import metrics
from edge_grpo.types.metric import Metric, StrategyMetrics

GROUPS = ("correction", "advantage", "loss", "token_filter")
"""of the strategies that report something"""


@cache  # composing takes seconds
def of_strategies() -> dict[str, dict[str, Metric]]:
    """Classes of strategies in conf/ -> what all of them report: logged name -> definition."""
    classes: dict[tuple[str, str, Metric], list[str]] = {}
    for group, strategies in _strategies().items():
        for strategy in strategies:
            reported: StrategyMetrics = getattr(strategy, "metrics", {})
            for name, reported_metric in reported.items():
                of = classes.setdefault((group, name, reported_metric), [])
                if type(strategy).__name__ not in of:
                    of.append(type(strategy).__name__)
    found: dict[str, dict[str, Metric]] = {}
    for (group, name, metric), of in classes.items():
        found.setdefault(f"{group.replace('_', ' ')}: {', '.join(of)}", {})[name] = metric
    return found


def _strategies() -> dict[str, list[Any]]:
    """Every option of `GROUPS`. A config holds one of each group, so that there are as few to compose as can be."""
    built: dict[str, list[Any]] = {group: [] for group in GROUPS}
    options = [[f"{group}={path.stem}" for path in sorted((config_dir() / group).glob("*.yaml"))] for group in GROUPS]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for chosen in zip_longest(*options):
            cfg = compose("train", [choice for choice in chosen if choice])
            for group, choice in zip(GROUPS, chosen, strict=True):
                if choice:
                    built[group].append(instantiate(cfg[group]))
    return built


def as_markdown() -> str:
    """docs/metrics.md."""
    lines = ["# Metrics", "", *((metrics.__doc__ or "").strip().splitlines()[2:]), ""]
    for title, definitions in {"": metrics.METRICS, **of_strategies()}.items():
        lines += [f"## Of the {title}", ""] if title else []
        lines += ["| name | unit | summary | ranks | estimator |", "|---|---|---|---|---|"]
        lines += [
            f"| `{name}` | {metric.unit} | {metric.summary} | {metric.ranks} | {metric.estimator} |"
            for name, metric in definitions.items()
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
