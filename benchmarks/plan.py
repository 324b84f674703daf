"""The memory that a run's first line plans, against the peak that the same process then has.

    python benchmarks/plan.py model=hf model.path=DIR [any settings of edge-grpo-train]

One short iteration on the CPU unless the settings say otherwise. Predicted is what the line says; measured is the last
`perf/peak_memory_gb`, the peak resident set (on a GPU the peak of torch's allocator, which does not hold CUDA's own:
the plan's share of that is taken off).
Rows are as long as the plan has them only if few responses end before their budget.
"""

import csv
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SHORT = (
    *("trainer=cpu", "trainer.max_iterations=2", "experiment=vanilla", "logger=csv", "evaluation.every_n_iterations=0"),
    *("data.held_out_count=4", "data.train_count=16", "data.max_correctness_rate=null", "data.correctness_rates=null"),
    *("data.problems_per_iteration=2", "data.max_prompt_tokens=128", "algorithm.num_generations=4"),
    *("rollout.max_new_tokens=24", "algorithm.microbatch_tokens=256", "checkpoint.keep=1"),
)


def main() -> None:
    if not sys.argv[1:] or "--help" in sys.argv:
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder:
        given = {text.partition("=")[0] for text in sys.argv[1:]}
        short = [text for text in SHORT if text.partition("=")[0] not in given]
        command = [sys.executable, "-m", "edge_grpo.programs.train", *short, *sys.argv[1:], f"hydra.run.dir={folder}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        line = re.search(r"memory planned: ([\d.,]+).*", done.stdout)
        if done.returncode or line is None:
            raise SystemExit(done.stdout)
        with (Path(folder) / "metrics.csv").open(newline="") as file:
            peaks = [row["perf/peak_memory_gb"] for row in csv.DictReader(file) if row.get("perf/peak_memory_gb")]
    context = re.search(r"CUDA ([\d.]+)", line[0])
    predicted = float(line[1].replace(",", "")) - (float(context[1]) if context else 0.0)
    measured = float(peaks[-1])
    print(line[0])
    print(f"predicted={predicted:.3f} measured={measured:.3f} ratio={predicted / measured:.3f}")


if __name__ == "__main__":
    main()
