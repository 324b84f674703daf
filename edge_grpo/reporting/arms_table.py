"""`python -m edge_grpo.reporting.arms_table FOLDER`: the arms of a sweep side by side, as Markdown."""

import argparse
import json
from pathlib import Path

import pandas as pd

COLUMNS = {
    "accuracy before": "before",
    "accuracy after": "after",
    "iterations to 50 %": "half",
    "groups without advantage, first 10": "first",
    "... over the run": "all",
    "entropy, last 5": "entropy",
    "advantage variance, mean": "variance",
    "rollouts": "rollouts",
    "seconds": "seconds",
}


def arms_table(folder: Path) -> str:
    """One row an arm, mean and range over its seeds; runs without a summary are listed as unfinished.

    Args:
        folder: any folder above the runs.
    """
    configs = [path for path in sorted(folder.rglob("config.yaml")) if path.parent.name != ".hydra"]
    runs = [_run(path.parent) for path in configs if (path.parent / "summary.json").exists()]
    unfinished = [path.parent for path in configs if not (path.parent / "summary.json").exists()]
    lines = [f"| arm | runs | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    frame = pd.DataFrame(runs)
    for arm, rows in frame.groupby("arm", sort=False) if runs else ():
        cells = " | ".join(_cell(rows[column]) for column in COLUMNS.values())
        lines.append(f"| {arm} | {len(rows)} | {cells} |")
    lines += [f"\nunfinished: {path}" for path in unfinished]
    return "\n".join(lines)


def _run(folder: Path) -> dict[str, object]:
    """The figures of one run."""
    summary = json.loads((folder / "summary.json").read_text())
    metrics = pd.read_csv(folder / "metrics.csv").set_index("step")

    def column(name: str) -> pd.Series:
        return metrics[name].dropna() if name in metrics else pd.Series(dtype=float)

    held_out = column("eval/held_out/accuracy")
    reached = held_out[held_out >= 0.5]
    dead = column("collapse/after/zero_variance")
    return {
        "arm": summary["name"],
        "before": summary["accuracy"]["before"],
        "after": summary["accuracy"]["after"],
        "half": reached.index[0] if len(reached) else float("nan"),
        "first": dead.head(10).mean(),
        "all": dead.mean(),
        "entropy": column("train/entropy").tail(5).mean(),
        "variance": column("train/advantage_var").mean(),
        "rollouts": column("train/num_rollouts").max(),
        "seconds": summary["seconds"],
    }


def _cell(values: pd.Series) -> str:
    """mean (min to max) over the runs that have the figure."""
    found = values.dropna()
    if found.empty:
        return "-"
    digits = 0 if found.mean() >= 10 else 3
    text = f"{found.mean():.{digits}f}"
    missing = f", {len(values) - len(found)} never" if len(found) < len(values) else ""
    return text if len(values) == 1 else f"{text} ({found.min():.{digits}f} to {found.max():.{digits}f}{missing})"


def main() -> None:
    """Print the table of the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(arms_table(parser.parse_args().folder))


if __name__ == "__main__":
    main()
