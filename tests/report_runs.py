"""Run folders written by hand, as training and edge-grpo-evaluate leave them."""

import json
from pathlib import Path

import pandas as pd
import yaml

COLUMNS = (
    "train/entropy",
    "train/entropy_correct",
    "train/entropy_wrong",
    "train/advantage_var",
    "train/reward",
    "train/accuracy",
    "train/accuracy_corrected",
    "collapse/before/all_wrong",
    "collapse/before/mixed",
    "collapse/before/all_right",
    "collapse/no_advantage",
)


def write_run(
    folder: Path,
    arm: str,
    seed: int,
    *,
    typed: tuple[str, ...] = (),
    settings: dict | None = None,
    state: str = "finished",
    error: str | None = None,
    held_out: tuple[float, float] = (0.0, 0.5),
    iterations: int = 2,
) -> Path:
    """A run of iterations of 60 s and 128 responses, whose other metrics are all 0.5; evaluated at its ends."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"experiment={arm}", f"seed={seed}", *typed]))
    config = {
        "name": arm,
        "seed": seed,
        "trainer": {"max_iterations": 200},
        "evaluation": {"seed": seed},
        "paths": {"run_dir": str(folder)},
        **(settings or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))  # Hydra's own record is no other run
    (folder / "status.json").write_text(json.dumps({"state": state, "error": error}))
    names = ["step", "train/num_rollouts", "timing_s/total", "eval/held_out/avg@1", *COLUMNS]
    rows = [
        [step, 128 * (step + 1), 60, "" if step else held_out[0], *[0.5] * len(COLUMNS)] for step in range(iterations)
    ]
    if state == "finished":
        rows.append([iterations, "", "", held_out[1], *[""] * len(COLUMNS)])
        info = {"git_commit": "abc123", "packages": {"torch": "2.9"}, "python": "3.11", "machine": "x86_64"}
        (folder / "summary.json").write_text(json.dumps(info))
    (folder / "metrics.csv").write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]) + "\n")
    return folder


def write_evaluation(
    run: Path, scores: dict[str, float], *, iteration: int | None = None, num_samples: int = 2, width: float = 0.1
) -> None:
    """Benchmarks of 10 and 30 problems and so on, 20 more each; every score's interval is `width` to either side."""
    name = "paper" if iteration is None else f"paper-iteration-{iteration:06d}"
    iterations = int(pd.read_csv(run / "metrics.csv")["timing_s/total"].count())
    sizes = {benchmark: 10 + 20 * i for i, benchmark in enumerate(scores)}
    total = sum(sizes.values())

    def metrics(value: float) -> dict:
        score = {"value": value, "low": value - width, "high": value + width}
        length = {"value": 100.0, "low": 90.0, "high": 110.0}
        return {f"avg@{num_samples}": score, f"pass@{num_samples}": score, "mean_length": length}

    weighted = sum(scores[benchmark] * size / total for benchmark, size in sizes.items())
    results = {
        "name": "paper",
        "iteration": iterations if iteration is None else iteration,
        "num_samples": num_samples,
        "confidence": 0.95,
        "sampling": {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 3000},
        "benchmarks": {b: {"problems": sizes[b], "metrics": metrics(value)} for b, value in scores.items()},
        "total": {"problems": total, "metrics": metrics(weighted)},
        "mean": {"metrics": metrics(sum(scores.values()) / len(scores))},
    }
    folder = run / "evaluation" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("run: here\n")  # of the evaluation, no other run
    (folder / "results.json").write_text(json.dumps(results))
