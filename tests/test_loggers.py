"""metrics.csv across steps and resumes; what W&B is started with and what it has been sent."""

import csv

import pytest
import wandb
from small_runs import offline_history

from edge_grpo.loggers.csv import CSVMetrics
from edge_grpo.loggers.wandb import WandbMetrics, resolve_mode


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


SETTINGS = {"project": "p", "entity": None, "name": "n", "group": None, "job_type": None, "tags": ["x"]}


class Server:
    """Stands for wandb.init and the service behind it, which keeps only steps above those it has."""

    def __init__(self, monkeypatch):
        self.asked, self.rows = [], []
        monkeypatch.setattr(wandb, "init", self.init)

    def init(self, **settings):
        self.asked.append(settings)
        return self

    @property
    def step(self):
        return self.rows[-1][0] + 1 if self.rows else 0

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, row, step):
        assert step >= self.step, "W&B would ignore this row"
        self.rows.append((step, row))

    def finish(self, exit_code):
        pass


@pytest.mark.parametrize(("mode", "resume"), [("offline", None), ("online", "allow")])
def test_a_resumed_run_keeps_its_identity(nobody, monkeypatch, tmp_path, mode, resume):
    server = Server(monkeypatch)
    for folder in ("one", "one", "two"):
        assert WandbMetrics(folder=str(tmp_path / folder), mode=mode, **SETTINGS).experiment is server
    assert server.asked[0]["id"] == server.asked[1]["id"] != server.asked[2]["id"]
    assert {call["mode"] for call in server.asked} == {mode}
    assert {call["resume"] for call in server.asked} == {resume}
    assert {call["dir"] for call in server.asked} == {str(tmp_path / "one"), str(tmp_path / "two")}


def test_an_online_run_gets_every_step_once_and_whole(nobody, monkeypatch, tmp_path):
    server = Server(monkeypatch)

    def part(start, end, *, sent_to):
        """Iterations from a checkpoint to a kill: the evaluation of a step comes before its training."""
        csv_logger = CSVMetrics(str(tmp_path))
        wandb_logger = WandbMetrics(folder=str(tmp_path), mode="online", **SETTINGS)
        for step in range(start, end):
            for metrics in [{"train": step}, {"eval": step + 1}]:
                for logger in (csv_logger, wandb_logger):
                    logger.log_metrics(metrics, step=step + ("eval" in metrics))
                if "train" in metrics:
                    wandb_logger.save()
        del server.rows[sent_to:]  # what the kill kept from the server

    part(0, 5, sent_to=3)  # steps 0, 1, 2 have arrived
    part(4, 7, sent_to=7)  # from a checkpoint of iteration 4: 3 comes from metrics.csv
    part(5, 8, sent_to=8)  # 5 and 6 are repeated and have arrived
    assert [step for step, _ in server.rows] == list(range(8))
    expected = [{"iteration": 0, "train": 0}] + [{"iteration": i, "train": i, "eval": i} for i in range(1, 8)]
    assert [row for _, row in server.rows] == expected


def test_without_a_server_the_run_goes_on_offline_and_says_how_to_sync(nobody, monkeypatch, tmp_path, caplog):
    # A port that nobody listens on; W&B gives up after WANDB_INIT_TIMEOUT seconds (90 by itself).
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    logger = WandbMetrics(folder=str(tmp_path), mode="auto", **SETTINGS)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    logger.close(failed=False)
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("edge_grpo")]
    assert told.startswith("W&B cannot be reached (")
    assert told.endswith(f"going on offline; when it can: wandb sync {tmp_path / 'wandb' / 'latest-run'}")
    assert [row["iteration"] for row in offline_history(tmp_path)] == [0]
    assert list((tmp_path / "wandb" / "latest-run").resolve().glob("*.wandb"))


def test_an_offline_run_that_was_killed_is_written_whole_again(nobody, tmp_path):
    csv_logger = CSVMetrics(str(tmp_path))
    for step in range(4):  # W&B had these in memory when the run was killed
        csv_logger.log_metrics({"train": step}, step=step)
    csv_logger.log_metrics({"eval": 1.0}, step=4)
    WandbMetrics(folder=str(tmp_path), mode="offline", **SETTINGS).experiment  # noqa: B018 (begins the file)
    wandb.finish()
    logger = WandbMetrics(folder=str(tmp_path), mode="offline", **SETTINGS)
    for step in (4, 5):
        for each in (csv_logger, logger):
            each.log_metrics({"train": step}, step=step)
        logger.save()
    logger.close(failed=False)
    expected = [{"iteration": i, "train": i} for i in range(6)]
    expected[4]["eval"] = 1.0
    assert offline_history(tmp_path) == expected


def test_a_file_that_was_synced_is_not_written_again(nobody, tmp_path):
    for steps in ((0, 1), (2, 3)):
        logger = WandbMetrics(folder=str(tmp_path), mode="offline", **SETTINGS)
        for step in steps:
            CSVMetrics(str(tmp_path)).log_metrics({"train": step}, step=step)
            logger.log_metrics({"train": step}, step=step)
        logger.save()
        logger.close(failed=False)
        for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb"):
            path.with_name(f"{path.name}.synced").touch()
    assert sorted(row["iteration"] for row in offline_history(tmp_path)) == [0, 1, 2, 3]
