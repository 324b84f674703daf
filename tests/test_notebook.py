"""docs/read_a_run.ipynb runs on a run folder, and was saved as it ran."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import write_run

from edge_grpo.evaluation.completions import SCHEMA
from edge_grpo.loggers.metrics import METRICS

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "read_a_run.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One of two runs of a sweep, with an evaluation of three completions."""
    for seed in (0, 1):
        folder = write_run(tmp_path / "sweep" / f"seed={seed}", "edge_grpo", seed, iterations=4)
        summary = {"name": "edge_grpo", "seed": seed, "accuracy": {"before": 0.0, "after": 0.25 + 0.5 * seed}}
        (folder / "summary.json").write_text(json.dumps(summary))
    rows = [
        {"benchmark": "chain2", "problem": f"p{i}", "correct": i > 0, "tokens": 10, "entropy": 0.1 + i, "answer": "1"}
        for i in range(3)
    ]
    evaluation = tmp_path / "sweep" / "seed=0" / "evaluation" / "arithmetic"
    evaluation.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), evaluation / "completions.parquet")
    return tmp_path / "sweep" / "seed=0"


def test_the_notebook_reads_a_run(run: Path) -> None:
    matplotlib.use("agg")
    variables: dict[str, Any] = {}
    for number, cell in enumerate(CELLS):
        source = "".join(cell["source"])
        if number == 0:
            source, replaced = re.subn(r'Path\(".*"\)', f"Path({str(run)!r})", source)
            assert replaced == 1
        exec(compile(source, f"cell {number}", "exec"), variables)
    assert variables["sweep"]["after"].tolist() == [0.25, 0.75]
    assert len(variables["wrong"]) == 1
    # Four iterations and the evaluation after the last one.
    assert len(variables["metrics"]) == 5


def test_the_notebook_was_saved_after_running_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] in ("error", "stream")]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_the_notebook_names_metrics_that_exist() -> None:
    code = "".join(line for cell in CELLS for line in cell["source"])
    named = re.findall(r'"((?:train|eval|collapse)/[\w/@]+)"', code)
    assert len(named) >= 5
    assert not [name for name in named if not any(fnmatchcase(name, metric) for metric in METRICS)]
