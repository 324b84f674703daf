"""Does the grader accept the gold answers themselves? A problem whose gold answer it refuses counts as wrong always."""

import json
import logging
from pathlib import Path

from edge_grpo.evaluation.benchmarks import load_benchmarks
from edge_grpo.evaluation.suite import Evaluation
from edge_grpo.rewards.base import WeightedRewards

log = logging.getLogger(__name__)

FILE = "failed_golds.jsonl"


def grade_golds(evaluation: Evaluation, rewards: WeightedRewards, folder: Path) -> float:
    r"""Grade `\boxed{gold}` for every gold answer of every benchmark as if it were a response.

    Those that are not right are written to `failed_golds.jsonl`.

    Returns:
        The share of gold answers that are right.
    """
    failed, counts = [], {}
    for name, problems in load_benchmarks(evaluation.benchmarks, evaluation.limit).items():
        rows = [(problem, gold) for problem in problems for gold in problem.answers]
        right = rewards([p for p, _ in rows], [f"\\boxed{{{gold}}}" for _, gold in rows]).correct.tolist()
        counts[name] = (sum(right), len(rows))
        failed += [
            {"benchmark": name, "problem": problem.id, "origin": problem.origin, "gold": gold}
            for (problem, gold), ok in zip(rows, right, strict=True)
            if not ok
        ]
        log.info("%s  %d of %d gold answers of %d problems are right", name, *counts[name], len(problems))
    (folder / FILE).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in failed), encoding="utf-8")
    for row in failed:
        log.warning("%s: its gold answer %r is not right", row["origin"], row["gold"])
    total = sum(right for right, _ in counts.values()) / sum(count for _, count in counts.values())
    log.info("%.2f %% of all gold answers are right; the others are in %s", 100 * total, folder / FILE)
    return total
