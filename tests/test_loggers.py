"""metrics.csv across steps and resumes, and the mode W&B is started in."""

import csv

import pytest

from edge_grpo.loggers import wandb as module
from edge_grpo.loggers.csv import CSVMetrics
from edge_grpo.loggers.wandb import build_wandb_logger, resolve_mode


def read(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_of_one_step_share_a_row(tmp_path):
    logger = CSVMetrics(str(tmp_path / "run"))  # the folder is made
    logger.log_metrics({"b": 1.0}, step=0)
    logger.log_metrics({"a": 2.0, "b": 3.0}, step=0)
    logger.log_metrics({"a": 4.0}, step=2)
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines() == ["step,a,b", "0,2.0,3.0", "2,4.0,"]


def test_the_file_is_whole_after_every_call(tmp_path):
    logger = CSVMetrics(str(tmp_path))
    for step in range(3):
        logger.log_metrics({"a": step}, step=step)
        assert [row["step"] for row in read(tmp_path)] == [str(i) for i in range(step + 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]  # no temporary file stays


def test_a_metric_that_comes_later_gets_a_column(tmp_path):
    logger = CSVMetrics(str(tmp_path))
    logger.log_metrics({"b": 1}, step=0)
    logger.log_metrics({"b": 2, "a": 3}, step=1)
    assert read(tmp_path) == [{"step": "0", "a": "", "b": "1"}, {"step": "1", "a": "3", "b": "2"}]


def test_a_resumed_run_continues_the_file_without_double_rows(tmp_path):
    first = CSVMetrics(str(tmp_path))
    for step in range(4):
        first.log_metrics({"a": step, "gone": 1}, step=step)
    # A checkpoint of two iterations: steps 2 and 3 are measured again, what was known of 0 and 1 stays.
    second = CSVMetrics(str(tmp_path))
    second.log_metrics({"a": 20}, step=2)
    assert [row["a"] for row in read(tmp_path)] == ["0", "1", "20"]
    second.log_metrics({"a": 30, "new": 5}, step=3)
    rows = read(tmp_path)
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["a"] for row in rows] == ["0", "1", "20", "30"]
    assert [row["new"] for row in rows] == ["", "", "", "5"]


def test_values_survive_a_resume_to_the_last_digit(tmp_path):
    CSVMetrics(str(tmp_path)).log_metrics({"a": 0.1 + 0.2, "b": float("nan")}, step=0)
    CSVMetrics(str(tmp_path)).log_metrics({"a": 1.0}, step=1)
    assert (float(read(tmp_path)[0]["a"]), read(tmp_path)[0]["b"]) == (0.1 + 0.2, "nan")


def test_a_step_is_required(tmp_path):
    with pytest.raises(ValueError, match="metrics need a step"):
        CSVMetrics(str(tmp_path)).log_metrics({"a": 1.0})


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """An account without a W&B key."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_is_offline_without_a_key(nobody):
    assert resolve_mode("auto") == "offline"


def test_wandb_is_online_with_a_key_in_the_environment(nobody, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_mode("auto") == "online"


@pytest.mark.parametrize(
    ("machine", "server", "mode"),
    [
        ("api.wandb.ai", None, "online"),
        ("example.org", None, "offline"),
        ("wandb.example.org", "https://wandb.example.org/", "online"),
        ("api.wandb.ai", "https://wandb.example.org", "offline"),
    ],
)
def test_wandb_looks_for_its_servers_key_in_netrc(nobody, monkeypatch, machine, server, mode):
    nobody.write_text(f"machine {machine}\n  login user\n  password {'0' * 40}\n")
    nobody.chmod(0o600)
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert resolve_mode("auto") == mode


def test_what_the_user_says_wins(nobody, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    assert resolve_mode("offline") == "offline"
    assert resolve_mode("online") == "online"


@pytest.mark.parametrize(("mode", "resume"), [("offline", None), ("online", "allow")])
def test_a_resumed_run_keeps_its_identity(nobody, monkeypatch, tmp_path, mode, resume):
    asked = []
    monkeypatch.setattr(module, "WandbLogger", lambda **settings: asked.append(settings))
    settings = {"project": "p", "entity": None, "name": "n", "group": None, "job_type": None, "tags": ["x"]}
    for folder in ("one", "one", "two"):
        build_wandb_logger(folder=str(tmp_path / folder), mode=mode, **settings)
    assert asked[0]["id"] == asked[1]["id"] != asked[2]["id"]
    assert {call["mode"] for call in asked} == {mode}
    assert {call["resume"] for call in asked} == {resume}
    assert {call["save_dir"] for call in asked} == {str(tmp_path / "one"), str(tmp_path / "two")}
