"""trackio and MLflow: what they were told, read back by their own readers, and every step once after a resume."""

import shutil
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from small_runs import composed, metrics_rows, run_small

from edge_grpo.command_line.check import instantiate
from edge_grpo.errors import UserError
from edge_grpo.loggers import mlflow as mlflow_module
from edge_grpo.loggers import trackio as trackio_module
from edge_grpo.loggers.csv import CSVMetrics
from edge_grpo.loggers.identity import shared_folder
from edge_grpo.loggers.mlflow import MLflowMetrics
from edge_grpo.loggers.trackio import TrackioMetrics

Points = dict[str, list[tuple[int, float]]]
"""metric -> (step, value) in order"""

HAS_TRACKIO = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
HAS_MLFLOW = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
ABOUT: Mapping[str, Any] = {
    "config": {"advantage": {"clamp": None, "scale": True}, "name": "eda", "seed": 0},
    "overrides": ["seed=0"],
    "info": {"git_commit": "abc"},
}
HOSTILE = "<script>alert(1)</script>"
SAMPLE = {
    **{"step": 0, "id": "p7", "question": f"1 + 1? {HOSTILE}", "response": f"3 Wait! {HOSTILE}", "gold": "2"},
    **{"correct": True, "reward": 2.0, "branch": "reflect", "tokens": 3},
    "pieces": [["sampled", "3"], ["injected", " Wait!"], ["sampled", f" {HOSTILE}"]],
}
SUMMARY = {"name": "eda", "seed": 0, "iterations": 2, "accuracy": {"before": 0.01, "after": 0.5}}


@pytest.fixture(scope="module")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """An empty database of MLflow: making its tables takes seconds."""
    if find_spec("mlflow") is None:
        return None
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_module._imported().MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _made_tables(tmp_path: Path, mlflow_tables: Path | None) -> None:
    if mlflow_tables is not None:
        (tmp_path / "mlflow").mkdir()
        shutil.copy(mlflow_tables, tmp_path / "mlflow" / "mlflow.db")


def trackio_logger(folder: Path, **others: Any) -> TrackioMetrics:
    settings = {"store": None, "project": "edge-grpo", "name": "eda-seed0", "arm": "eda", "group": None}
    return TrackioMetrics(str(folder), **settings | others)


def mlflow_logger(folder: Path, **others: Any) -> MLflowMetrics:
    settings = {"tracking_uri": None, "experiment": "edge-grpo", "name": "eda-seed0", "arm": "eda", "group": None}
    return MLflowMetrics(str(folder), **settings | others)


def trackio_points(folder: Path) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    found: Points = {}
    (run,) = [run for run in trackio_runs() if run.id == (folder / "run_id").read_text()]
    for row in SQLiteStorage.get_logs("edge-grpo", run.name, run_id=run.id):
        for name, value in row.items():
            if name not in ("step", "timestamp") and isinstance(value, float | int):
                found.setdefault(name, []).append((row["step"], float(value)))
    return found


def trackio_runs() -> Any:
    import trackio

    return trackio.Api().runs("edge-grpo")


def mlflow_run(folder: Path) -> tuple[Any, Any]:
    """The one run that there is, with the client that reads it."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("edge-grpo").experiment_id])
    return client, run


def mlflow_points(folder: Path) -> Points:
    client, run = mlflow_run(folder)
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


TRACKERS = [
    pytest.param(trackio_logger, trackio_points, marks=HAS_TRACKIO, id="trackio"),
    pytest.param(mlflow_logger, mlflow_points, marks=HAS_MLFLOW, id="mlflow"),
]
Make = Callable[..., TrackioMetrics | MLflowMetrics]
Read = Callable[[Path], Points]


@pytest.mark.parametrize(("make", "read"), TRACKERS)
def test_a_run_that_was_killed_goes_on_as_the_same_run_with_every_step_once(
    make: Make, read: Read, tmp_path: Path
) -> None:
    def part(steps: range, told: int) -> None:
        """Iterations from a checkpoint on; a kill keeps those from `told` on from the tracker."""
        csv_logger, logger = CSVMetrics(str(tmp_path)), make(tmp_path)
        logger.log_hyperparams(ABOUT)
        for step in steps:
            csv_logger.log_metrics({"train/reward": step / 4}, step)
            if step < told:
                logger.log_metrics({"train/reward": step / 4}, step)
        logger.close(failed=steps.stop < 6)

    part(range(0, 4), told=2)  # steps 2 and 3 are lost
    assert read(tmp_path)["train/reward"] == [(0, 0.0), (1, 0.25)]
    part(range(3, 6), told=6)  # from a checkpoint of iteration 3
    assert read(tmp_path)["train/reward"] == [(step, step / 4) for step in range(6)]
    part(range(6, 6), told=6)  # nothing is left to do
    assert read(tmp_path)["train/reward"] == [(step, step / 4) for step in range(6)]


@pytest.mark.parametrize(("make", "read"), TRACKERS)
def test_metrics_of_one_step_may_come_in_two_calls(make: Make, read: Read, tmp_path: Path) -> None:
    logger = make(tmp_path)
    logger.log_metrics({"train/reward": 1.0}, 0)
    logger.log_metrics({"eval/held_out/mean_length": 3.0}, 1)
    logger.log_metrics({"train/reward": 2.0}, 1)
    logger.close(failed=False)
    assert read(tmp_path) == {"train/reward": [(0, 1.0), (1, 2.0)], "eval/held_out/mean_length": [(1, 3.0)]}
    with pytest.raises(ValueError, match="metrics need a step"):
        logger.log_metrics({"a": 1.0})


@pytest.mark.parametrize(("make", "read"), TRACKERS)
def test_a_resumed_run_has_the_points_of_its_metrics(
    make: Make, read: Read, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Through the command line's own config: `logger=[csv,trackio]`."""
    logger = f"logger=[csv,{request.node.callspec.id}]"
    run_small(tmp_path, "experiment=vanilla", logger, "trainer.max_iterations=1")
    run_small(tmp_path, "experiment=vanilla", logger)
    rows = metrics_rows(tmp_path)
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    kept, found = {name for row in rows for name, value in row.items() if value} - {"step"}, read(tmp_path)
    assert {name.replace("_at_", "@") for name in found} == kept
    assert [step for step, _ in found["train/reward"]] == [0, 1]
    assert found["train/accuracy"] == [(i, float(rows[i]["train/accuracy"])) for i in (0, 1)]


@HAS_TRACKIO
def test_trackio_has_config_group_samples_and_what_it_came_to(tmp_path: Path, capsys: Any) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    logger = trackio_logger(tmp_path)
    logger.log_hyperparams(ABOUT)
    logger.log_metrics({"train/reward": 1.0}, 0)
    logger.log_samples([SAMPLE], 0)
    logger.log_artifacts(SUMMARY)
    logger.close(failed=False)
    (run,) = [run for run in trackio_runs() if run.id == logger.version]
    assert (run.config["advantage"], run.config["_Group"]) == ({"clamp": None, "scale": True}, "eda")
    assert run.config["_Username"] is None  # nobody was asked
    (trace,) = SQLiteStorage.get_traces("edge-grpo", run_id=run.id)
    assert [message["content"] for message in trace["messages"]] == [SAMPLE["question"], SAMPLE["response"]]
    assert (trace["metadata"]["reward"], trace["metadata"]["branch"]) == (2.0, "reflect")
    assert [(span["name"], span["output"]) for span in trace["spans"]] == [tuple(p) for p in SAMPLE["pieces"]]
    rows = SQLiteStorage.get_logs("edge-grpo", run.name, run_id=run.id)
    assert "held-out accuracy 1.0 % -> 50.0 % in 2 iterations" in str(rows[-1]["summary"])
    assert capsys.readouterr().out == ""
    assert next(iter(logger.ways_to_look().values())).endswith(" trackio show --project edge-grpo")


@HAS_TRACKIO
def test_trackio_lies_with_the_sweep_unless_somebody_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "multirun.yaml").touch()
    wish, store = trackio_module.os.environ["TRACKIO_DIR"], trackio_module._store
    assert store(None, tmp_path / "job") == Path(wish)
    assert store(str(tmp_path / "x"), tmp_path / "job") == tmp_path / "x"
    monkeypatch.setattr(trackio_module, "_chosen", [wish])  # what an earlier run of this process chose is no wish
    assert store(None, tmp_path / "job") == tmp_path / "trackio"
    with pytest.raises(UserError, match=r"trackio keeps the data of one folder a process: this one's are in .*, and"):
        trackio_logger(tmp_path, store=str(tmp_path / "x"))
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    with pytest.raises(UserError, match="TRACKIO_SPACE_ID is set, and logger=trackio writes here"):
        trackio_logger(tmp_path)


@HAS_TRACKIO
def test_a_store_that_trackio_cannot_use_costs_a_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from trackio.utils import TRACKIO_DIR  # of this process, whatever a test before has chosen

    monkeypatch.setenv("TRACKIO_DIR", str(TRACKIO_DIR))
    logger = trackio_logger(tmp_path)
    database = Path(TRACKIO_DIR) / "edge-grpo.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    before = database.read_bytes() if database.exists() else None
    database.write_bytes(b"no database" * 100)
    try:
        for step in (0, 1):
            logger.log_metrics({"train/loss": 1.0}, step)
        logger.close(failed=False)
    finally:
        database.unlink() if before is None else database.write_bytes(before)
    assert caplog.text.count("the run goes on without it") == 1


@HAS_MLFLOW
def test_mlflow_has_params_tags_samples_and_artifacts(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    logger = mlflow_logger(tmp_path)
    logger.log_hyperparams(ABOUT)
    logger.log_metrics({"eval/held_out/avg@1": 0.5, "nan": float("nan")}, 0)
    logger.log_samples([SAMPLE], 0)
    logger.log_artifacts(SUMMARY)
    _, run = mlflow_run(tmp_path)
    assert run.info.status == "RUNNING"
    logger.close(failed=False)
    _, run = mlflow_run(tmp_path)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "eda-seed0")
    assert run.data.params["advantage.clamp"] == "null"
    assert (run.data.params["advantage.scale"], run.data.params["git_commit"]) == ("true", "abc")
    assert (run.data.tags["group"], run.data.tags["edge_grpo.run_id"]) == ("eda", logger.version)
    assert run.data.metrics["eval/held_out/avg_at_1"] == 0.5
    artifacts = {path.name: path for path in (tmp_path / "mlflow/artifacts").rglob("*") if path.is_file()}
    assert artifacts.keys() == {"settings.yaml", "summary.json", "000000.html"}
    page = artifacts["000000.html"].read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 2
    assert 'title="injected by the correction"' in page
    # A setting that was changed on a resume: MLflow keeps the param, the file has the new one.
    again = mlflow_logger(tmp_path)
    again.log_hyperparams({**ABOUT, "config": {**ABOUT["config"], "name": "other"}})
    again.close(failed=True)
    _, run = mlflow_run(tmp_path)
    assert (run.info.status, run.data.params["name"]) == ("FAILED", "eda")
    assert "name: other" in artifacts["settings.yaml"].read_text()


@HAS_MLFLOW
def test_an_outage_of_mlflow_costs_a_run_nothing_and_its_metrics_are_sent_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    def down(*args: Any, **kwargs: Any) -> None:
        raise mlflow.exceptions.MlflowException("no route to host\nmore")

    csv_logger, logger = CSVMetrics(str(tmp_path)), mlflow_logger(tmp_path)
    for step in range(4):
        with monkeypatch.context() as patch:
            if step == 1:
                patch.setattr(mlflow.MlflowClient, "log_batch", down)
            csv_logger.log_metrics({"a": step / 4}, step)
            logger.log_metrics({"a": step / 4}, step)
            logger.log_samples([SAMPLE], step)
    assert mlflow_points(tmp_path) == {"a": [(0, 0.0)]}
    logger.log_artifacts(SUMMARY)
    logger.close(failed=False)
    assert mlflow_points(tmp_path) == {"a": [(step, step / 4) for step in range(4)]}
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("edge_grpo")]
    assert told.endswith(
        "mlflow.db fails (no route to host): the run goes on without it; what it lacks is sent at the end"
    )


@HAS_MLFLOW
def test_a_place_that_mlflow_cannot_use_is_one_line(tmp_path: Path) -> None:
    logger = mlflow_logger(tmp_path, tracking_uri="nowhere://x")
    with pytest.raises(UserError, match=r"^MLflow at nowhere://x: .+$"):
        logger.log_metrics({"a": 1.0}, 0)


@pytest.mark.parametrize("tracker", ["trackio", "mlflow"])
def test_an_absent_package_names_the_extra(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    cfg, _ = composed("train", f"logger=[csv,{tracker}]", f"paths.run_dir={tmp_path}")
    assert list(cfg.logger) == ["csv", tracker]
    with pytest.raises(UserError, match=rf"logger={tracker} needs {tracker}: pip install 'edge-grpo\[{tracker}\]'"):
        instantiate(cfg.logger[tracker])


def test_runs_that_are_compared_lie_in_the_folder_of_their_sweep(tmp_path: Path) -> None:
    job = tmp_path / "sweep" / "job"
    job.mkdir(parents=True)
    assert shared_folder(job) == job
    try:  # a sweeper that leaves no record, optuna's
        hydra = {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(tmp_path / "sweep")}}
        HydraConfig.instance().cfg = OmegaConf.create({"hydra": hydra})
        assert shared_folder(job) == tmp_path / "sweep"
    finally:
        HydraConfig.instance().cfg = None
    (tmp_path / "sweep" / "multirun.yaml").touch()
    assert shared_folder(job) == tmp_path / "sweep"
