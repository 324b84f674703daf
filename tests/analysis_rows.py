"""Rows of rollouts/ and completions.parquet, written by hand."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from edge_grpo.analysis.source import Source, load_source
from edge_grpo.runs.rollout_files import RolloutFiles
from edge_grpo.statistics.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(confidence=0.9, resamples=100, seed=0)


def rollout(**values: Any) -> dict[str, Any]:
    """A wrong response of 10 tokens that was left alone, in a group without advantage."""
    row = {
        "step": 0,
        "problem": "a",
        "row": 0,
        "correct": False,
        "reward": 0.0,
        "branch": "",
        "tokens": 10,
        "entropy": 0.5,
        "advantage": 0.0,
        **values,
    }
    for ours in ("multiplier", "clamped"):  # as a run writes them
        if ours in row:
            row[f"eda/{ours}"] = row.pop(ours)
    after = {"correct_after": row["correct"], "reward_after": float(row["reward"])}
    lengths = {"tokens_after": row["tokens"], "sampled_tokens_after": row["tokens"]}
    return {**after, **lengths, **row}


def completion(**values: Any) -> dict[str, Any]:
    """A wrong response that ended by itself and did not reflect, nor was made to."""
    return {
        "benchmark": "AIME24",
        "problem": "a",
        "sample": 0,
        "question": "1 + 1?",
        "answers": ["2"],
        "prompt": "1 + 1?",
        "response": "3",
        "tokens": 10,
        "finish_reason": "stop",
        "answer": "3",
        "correct": False,
        "unparsed": False,
        "entropy": 0.5,
        "reflection": None,
        "correct_before_reflection": None,
        "forced_response": None,
        "forced_tokens": None,
        "forced_correct": None,
        **values,
    }


def write_rollouts(folder: Path, rows: Iterable[dict[str, Any]], rank: int = 0) -> Path:
    """rollouts/ in the folder; the folder. A row number that comes again is of another group of the problem."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        steps.setdefault(row["step"], []).append(row)
    files = RolloutFiles(folder, rank, keep_bytes=None)
    for step, of_step in steps.items():
        seen: Counter[tuple[str, int]] = Counter()
        groups: dict[tuple[str, int], int] = {}
        for row in of_step:
            place = row["problem"], row["row"]
            again = seen.update([place]) or seen[place]
            row["group"] = groups.setdefault((row["problem"], again), len(groups))
        columns = dict.fromkeys(name for row in of_step for name in row)
        files.append(step, [columns | row for row in of_step])
    return folder


def write_completions(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """completions.parquet in the folder; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(list(rows)).to_parquet(folder / "completions.parquet")
    return folder


def run_source(folder: Path, rows: Iterable[dict[str, Any]]) -> Source:
    return load_source(str(write_rollouts(folder, rows)), None)


def evaluation_source(folder: Path, rows: Iterable[dict[str, Any]]) -> Source:
    return load_source(str(write_completions(folder, rows)), None)


def values(row: Any) -> dict[str, Any]:
    """A row of a table without its intervals."""
    return {name: getattr(cell, "value", cell) for name, cell in row.items()}
