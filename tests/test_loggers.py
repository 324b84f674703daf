"""metrics.csv across steps and resumes; what W&B and TensorBoard are started with and what they have been sent."""

import csv
import json
import os

import pytest
import small_runs
import wandb
import yaml
from small_runs import offline_history
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from edge_grpo.errors import UserError
from edge_grpo.loggers import identity
from edge_grpo.loggers.csv import CSVMetrics
from edge_grpo.loggers.identity import group_of, resolve_mode, run_id, tags_of
from edge_grpo.loggers.tensorboard import TensorBoardMetrics
from edge_grpo.loggers.wandb import WandbMetrics


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


SETTINGS = {
    "project": "p",
    "entity": None,
    "name": "n",
    "arm": "edge_grpo",
    "group": None,
    "job_type": "train",
    "tags": ["x"],
    "log_model": False,
    "log_report": False,
}
ABOUT = {
    "config": {"advantage": {"clamp": 4.0, "base": None}, "seed": 0},
    "overrides": ["experiment=edge_grpo", "seed=0"],
    "info": {"git_commit": "abc", "packages": {"torch": "2.8"}},
}


def sample(step, text="2"):
    """A sampled row."""
    row = {"step": step, "id": "p", "question": "1 + 1?", "response": text, "gold": "2", "correct": True, "reward": 2.0}
    return row | {"reward_accuracy": 1.0, "branch": "reflect", "tokens": 3, "pieces": [["sampled", text]]}


class Server:
    """Stands for wandb.init and the service behind it, which keeps only steps above those it has."""

    def __init__(self, monkeypatch):
        self.asked, self.rows, self.defined = [], [], {}
        monkeypatch.setattr(wandb, "init", self.init)

    def init(self, **settings):
        self.asked.append(settings)
        self.defined = {}
        return self

    @property
    def step(self):
        return self.rows[-1][0] + 1 if self.rows else 0

    def define_metric(self, name, step_metric=None, summary=None, hidden=None):
        assert name not in self.defined, "once is enough"
        self.defined[name] = (step_metric, summary)

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


def test_every_metric_is_over_iterations_and_has_the_summary_of_its_definition(nobody, monkeypatch, tmp_path):
    server = Server(monkeypatch)
    logger = WandbMetrics(folder=str(tmp_path), mode="online", **SETTINGS)
    logger.log_metrics({"train/reward": 1.0, "timing_s/total": 2.0}, step=0)
    logger.log_metrics({"train/reward": 1.0, "eval/AIME24/avg@8": 0.5}, step=1)  # a name that comes later
    logger.save()
    assert server.defined == {
        "iteration": (None, None),
        "*": ("iteration", None),  # the last value, which is W&B's own summary, under the metric's own name
        "timing_s/total": ("iteration", "mean,last"),
        "eval/AIME24/avg@8": ("iteration", "max,last"),
    }


def records(folder, kind):
    """What W&B's offline file holds of one kind, once it has its end."""
    offline_history(folder)
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = small_runs.wandb_records(path.read_bytes())
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def test_a_file_that_wandb_is_still_writing_is_read_as_far_as_it_is_whole(nobody, tmp_path):
    logger = WandbMetrics(folder=str(tmp_path), mode="offline", **SETTINGS)
    logger.log_metrics({"train": 1.0}, step=0)
    logger.close(failed=False)
    offline_history(tmp_path)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = path.read_bytes()
    whole = small_runs.wandb_records(content)
    read = [small_runs.wandb_records(content[:end]) for end in range(len(content))]
    assert all(found == whole[: len(found)] for found in read)
    assert sorted(map(len, read)) == list(map(len, read))
    assert len(read[-1]) == len(whole) - 1


def test_wandb_keeps_config_summaries_samples_and_artifacts(nobody, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "summary.json").write_text("{}")
    logger = WandbMetrics(
        folder=str(tmp_path), mode="offline", **SETTINGS | {"log_model": True, "log_report": True, "tags": ["t" * 80]}
    )
    logger.log_hyperparams(ABOUT)
    for step, score in enumerate([0.5, 1.0, 0.25]):
        logger.log_samples([sample(step, text=f"it is {step}")] * 2, step)
        logger.log_metrics({"eval/held_out/avg@1": score, "train/reward": score}, step=step)
    logger.log_artifacts({"name": "n", "seed": 0, "accuracy": {"after": 0.25}, "iterations": 2, "more": 1})
    logger.save()
    logger.close(failed=False)

    (run,) = records(tmp_path, "run")
    assert (run.run_group, run.job_type, list(run.tags)) == ("edge_grpo", "train", ["t" * 64])
    (config,) = records(tmp_path, "config")
    assert {item.key: json.loads(item.value_json) for item in config.update} == {
        "advantage": {"clamp": 4.0, "base": None},
        "seed": 0,
        "overrides": ["experiment=edge_grpo", "seed=0"],
        "git_commit": "abc",
        "packages": {"torch": "2.8"},
    }
    kept = {}
    for summary in records(tmp_path, "summary"):
        kept |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in summary.update}
    assert (kept["eval/held_out/avg@1"], kept["train/reward"]) == ({"max": 1.0, "last": 0.25}, 0.25)
    # Each increment holds its own rows, and knows of those before.
    assert (kept["samples/log_mode"], kept["samples/nrows"], kept["samples/increment_num"]) == ("INCREMENTAL", 6, 2)
    assert len(kept["samples/previous_increments_paths"]) == 2
    tables = [json.loads(path.read_text()) for path in tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")]
    assert sorted([row[0] for row in table["data"]] for table in tables) == [[0, 0], [1, 1], [2, 2]]
    assert "pieces" not in tables[0]["columns"]
    # A copied run keeps the pages: they lie in its folder, and the file names them by their place there.
    assert kept["samples_page/path"].startswith("media/html/samples_page_")
    pages = list(tmp_path.glob("wandb/offline-run-*/files/media/html/samples_page_*.html"))
    assert (len(pages), all("reward 2, right, reflect" in page.read_text() for page in pages)) == (3, True)
    artifacts = {a.type: a for a in records(tmp_path, "artifact") if a.type in ("model", "report")}
    assert [entry.path for entry in artifacts["model"].manifest.contents] == ["model.safetensors"]
    assert [entry.local_path for entry in artifacts["model"].manifest.contents] == [
        str(tmp_path / "model" / "model.safetensors")  # the file itself, no copy
    ]
    assert [entry.path for entry in artifacts["report"].manifest.contents] == ["summary.json"]
    assert json.loads(artifacts["model"].metadata)["accuracy"] == {"after": 0.25}


@pytest.fixture
def agent(nobody, monkeypatch, tmp_path):
    """An agent of W&B that has chosen parameters and started this process for one run."""
    params = {"advantage.clamp": None, "correction": "guided", "seed": 0}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"wandb_version": 1, **{k: {"value": v} for k, v in params.items()}}))
    told = {"SWEEP_ID": "swp", "RUN_ID": "agents1", "SWEEP_PARAM_PATH": str(path), "PROJECT": "theirs"}
    for name, value in told.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # W&B reads them when it starts
    yield tmp_path / "agents1"
    monkeypatch.undo()
    wandb.teardown()


def test_an_agents_run_is_the_agents_with_every_setting_once_and_its_parameters_as_the_arm(agent):
    typed = ["advantage.clamp=null", "correction=guided", "seed=0"]
    (agent / ".hydra").mkdir(parents=True)
    (agent / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(typed))
    logger = WandbMetrics(folder=str(agent), mode="offline", **SETTINGS)
    guided = {"trigger": "every_wrong", "probabilities": {"reflect": 0.5}}
    logger.log_hyperparams(ABOUT | {"config": {**ABOUT["config"], "correction": guided}})
    logger.log_metrics({"train": 1.0}, step=0)
    logger.save()
    logger.close(failed=False)
    assert (agent / "run_id").read_text() == "agents1"
    (run,) = records(agent, "run")
    assert (run.run_id, run.sweep_id, run.project) == ("agents1", "swp", "theirs")
    assert run.run_group == "edge_grpo, advantage.clamp=null, correction=guided"
    kept = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
    for config in records(agent, "config"):
        kept |= {item.key: json.loads(item.value_json) for item in config.update}
    assert (kept["advantage.clamp"], kept["advantage"], kept["seed"]) == (None, {"base": None}, 0)
    assert (kept["correction"], kept["correction.trigger"]) == ("guided", "every_wrong")
    assert kept["correction.probabilities.reflect"] == 0.5


def test_what_an_agent_cannot_start_is_refused(agent, monkeypatch):
    agent.mkdir()
    (agent / "run_id").write_text("another")
    with pytest.raises(UserError, match=r"is run another, and W&B's agent starts run agents1: .*oc\.env:WANDB_RUN_ID"):
        WandbMetrics(folder=str(agent), mode="offline", **SETTINGS)
    (agent / "run_id").unlink()
    monkeypatch.setattr(identity, "_sweep_at_work", lambda: agent.parent)
    with pytest.raises(UserError, match="W&B's agent starts one run at a time: leave out --multirun"):
        WandbMetrics(folder=str(agent), mode="offline", **SETTINGS)


def test_a_jobs_wandb_folder_is_found_in_its_sweep_also_after_a_resume(nobody, job):
    def session():
        logger = WandbMetrics(folder=str(job), mode="offline", **SETTINGS)
        logger.log_metrics({"train": 1.0}, step=0)
        logger.close(failed=True)
        return logger

    sweep = job.parent / "wandb"
    sweep.mkdir()
    gone = sweep / f"offline-run-20000101_000000-{run_id(job)}"
    gone.symlink_to("nowhere")
    logger = session()
    (link,) = sweep.iterdir()
    assert not os.path.isabs(os.readlink(link))
    (file,) = job.glob("wandb/offline-run-*/*.wandb")
    assert [path.resolve() for path in link.glob("*.wandb")] == [file]
    assert logger.ways_to_look() == {"W&B": f"wandb sync {sweep}", "W&B, here": f"wandb leet {sweep}"}


def test_no_artifact_is_uploaded_unasked(nobody, monkeypatch, tmp_path):
    Server(monkeypatch)  # it has no log_artifact
    logger = WandbMetrics(folder=str(tmp_path), mode="online", **SETTINGS)
    logger.log_artifacts({"name": "n", "seed": 0, "accuracy": {}, "iterations": 1})


def test_samples_of_a_step_that_wandb_has_are_not_sent_again(nobody, monkeypatch, tmp_path):
    server = Server(monkeypatch)
    server.rows = [(0, {}), (1, {})]
    logger = WandbMetrics(folder=str(tmp_path), mode="online", **SETTINGS)
    for step in (0, 1, 2):
        logger.log_samples([sample(step)], step)
    logger.save()
    (row,) = server.rows[2:]
    assert row[0] == 2
    assert [data[0] for data in row[1]["samples"].data] == [2]


@pytest.fixture
def no_home(nobody, monkeypatch):
    """An account whose HOME cannot be written, and that has not told W&B another place."""
    monkeypatch.setenv("HOME", "/dev/null/home")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)


def logged(folder):
    """A run of two steps with samples, offline; it has been closed."""
    logger = WandbMetrics(folder=str(folder), mode="auto", **SETTINGS)
    for step in (0, 1):
        logger.log_samples([sample(step)], step)
        logger.log_metrics({"train/reward": 1.5}, step=step)
    logger.save()
    logger.close(failed=False)


def test_wandb_needs_no_home(no_home, tmp_path):
    for name in ("a", "b"):  # two runs of one process, as in a sweep
        logged(tmp_path / name)
        assert [row["samples"] for row in offline_history(tmp_path / name)] == [None, None]  # tables, read as None
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / name / "wandb" / "data")
        assert (tmp_path / name / "wandb" / "data" / "artifacts" / "staging").is_dir()
        assert (tmp_path / name / "wandb" / "cache").is_dir()


def test_where_the_users_own_folder_cannot_be_written_wandb_goes_on_without_samples(
    no_home, monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("WANDB_DATA_DIR", "/dev/null/data")
    logged(tmp_path)
    (message,) = [m for m in caplog.messages if "without samples" in m]
    assert "/dev/null/data" in message
    assert offline_history(tmp_path) == [{"iteration": step, "train/reward": 1.5} for step in (0, 1)]
    assert os.environ["WANDB_DATA_DIR"] == "/dev/null/data"


def test_without_a_readable_netrc_there_is_no_key(nobody, monkeypatch, caplog):
    def locked(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.is_file", locked)
    assert resolve_mode("auto") == "offline"
    assert "cannot be read (Permission denied)" in caplog.messages[0]


@pytest.fixture
def job(tmp_path):
    """A job of `-m experiment=vanilla,edge_grpo advantage.clamp=2,4 seed=0,1 trainer.max_iterations=5`."""
    sweep = tmp_path / "2026-01-01_00-00-00"
    folder = sweep / "job"
    (folder / ".hydra").mkdir(parents=True)
    swept = ["experiment=vanilla,edge_grpo", "advantage.clamp=2,4", "seed=0,1", "trainer.max_iterations=5"]
    sweeper = {"params": {"loss.beta": "0,0.1"}}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": {"task": swept}, "sweeper": sweeper}}))
    typed = ["experiment=edge_grpo", "advantage.clamp=4", "seed=1", "trainer.max_iterations=5", "loss.beta=0.1"]
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(typed))
    choices = {"hydra": {"runtime": {"choices": {"experiment": "edge_grpo"}}, "run": {"dir": "${run_dir:x,y}"}}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(choices))
    return folder


def test_runs_of_a_sweep_are_grouped_by_what_is_swept_besides_the_seed(job):
    # Not trainer.max_iterations, which is the same in every job.
    assert group_of(job, "edge_grpo") == "edge_grpo, advantage.clamp=4, loss.beta=0.1"
    assert tags_of(job) == ["edge_grpo", "2026-01-01_00-00-00"]


def test_long_groups_that_begin_alike_are_two(tmp_path):
    path = "/data/" + "x" * 120
    (tmp_path / "multirun.yaml").write_text("hydra:\n  overrides:\n    task: ['model.path=a,b']\n")
    groups = []
    for name in "ab":
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(f"- model.path={path}/{name}\n")
        groups.append(group_of(tmp_path / name, "arm"))
    assert len(set(groups)) == 2
    assert [len(group) for group in groups] == [128, 128]  # what W&B takes
    assert all(group.startswith("arm, model.path=/data/xx") for group in groups)


def test_a_single_run_is_grouped_by_its_arm(tmp_path):
    assert (group_of(tmp_path, "edge_grpo"), tags_of(tmp_path)) == ("edge_grpo", [])
    assert len(group_of(tmp_path, "x" * 200)) == 128


def board(folder):
    """{tag: [(step, value)]} of the event files, and the texts."""
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    texts = {
        tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in found.Tensors(tag)]
        for tag in found.Tags()["tensors"]
    }
    return scalars, texts


def test_tensorboard_has_every_step_once_after_a_resume(tmp_path):
    def part(start, end):
        loggers = (CSVMetrics(str(tmp_path)), TensorBoardMetrics(str(tmp_path)))
        loggers[1].log_hyperparams(ABOUT)
        for step in range(start, end):
            for logger in loggers:
                logger.log_metrics({"train": step + start / 16}, step=step)
                logger.log_metrics({"eval": step + 1.0}, step=step + 1)
        return loggers[1]

    part(0, 4).save()  # killed here, after the evaluation of step 4
    part(2, 5).finalize("success")  # from a checkpoint of iteration 2: its evaluation is not repeated
    scalars, texts = board(tmp_path)
    # 2/16 = 0.125 marks what the second part measured.
    assert scalars["train"] == [(0, 0), (1, 1), (2, 2.125), (3, 3.125), (4, 4.125)]
    assert scalars["eval"] == [(step, step) for step in range(1, 6)]
    assert set(scalars) == {"train", "eval"}
    assert "clamp: 4.0" in texts["config/text_summary"][0][1]


def test_tensorboard_of_a_run_that_had_nothing_left_to_do_is_whole(tmp_path):
    CSVMetrics(str(tmp_path)).log_metrics({"train": 1.0}, step=0)
    logger = TensorBoardMetrics(str(tmp_path))
    logger.log_hyperparams(ABOUT)
    logger.finalize("success")
    assert board(tmp_path)[0] == {"train": [(0, 1.0)]}


def test_tensorboard_shows_samples_with_their_provenance(tmp_path):
    logger = TensorBoardMetrics(str(tmp_path))
    row = sample(3) | {"pieces": [["sampled", "2\n"], ["injected", " Wait!"]]}
    logger.log_samples([row], 3)
    logger.finalize("success")
    ((step, text),) = board(tmp_path)[1]["samples/text_summary"]
    assert (step, text) == (3, "**p: reward 2, right, reflect**\n\n    2\n    [injected:  Wait!]\n")
