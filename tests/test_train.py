"""Whole runs of the smallest size: what they write, that they repeat, and that they go on (kills: chaos.py)."""

import json
import math
import shutil
import sys
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from small_runs import SHORT, equal_weights, metrics_rows, offline_history, run_small, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_grpo.callbacks.samples import recorded_rows
from edge_grpo.errors import UserError
from edge_grpo.loggers.metrics import describe
from edge_grpo.policy.tiny import CHAT_TEMPLATE, byte_tokenizer, random_tiny_policy
from edge_grpo.programs import train_reports
from edge_grpo.programs.metrics_page import of_strategies
from edge_grpo.runs.status import write_status
from edge_grpo.runs.training_figure import draw_training_figure

OFFICIAL = ("edge_grpo_official", "edge_grpo_official_launched")
WITH_CORRECTION = ("gec", "force_r", "force_r_eda", "edge_grpo", *OFFICIAL)
EXPERIMENTS = ("vanilla", "eda", *WITH_CORRECTION, "sft")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """(experiment, overrides) -> folder of the run, made once a session."""
    done = {}

    def get(experiment, *overrides):
        key = (experiment, *overrides)
        if key not in done:
            # What the metrics of two equal settings must not share is a folder.
            folder = tmp_path_factory.mktemp(experiment) / "run"
            short = SHORT if experiment in WITH_CORRECTION else ()
            short = SHORT[:1] if experiment in OFFICIAL else short  # it knows no bound on the response
            entry = "sft" if experiment == "sft" else "train"
            done[key] = run_small(
                folder, f"experiment={experiment}", *short, *overrides, config_name=entry, figure=True
            )
        return done[key]

    return get


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_writes_what_the_readme_promises(run, experiment):
    folder = run(experiment)
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.name, config.trainer.max_iterations) == (experiment, 2)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["iterations"] == 2
    # Four held-out problems, one response each, or G under the released trainer's evaluation.
    responses = 4 * (2 if experiment in OFFICIAL else 1)
    assert {summary["accuracy"]["before"] * responses % 1, summary["accuracy"]["after"] * responses % 1} == {0}
    assert 0 <= summary["accuracy"]["before"] <= 1
    assert 0 <= summary["accuracy"]["after"] <= 1
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == [
        "iteration-000001",
        "iteration-000002",
    ]
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_logs_one_row_a_step_of_defined_metrics(run, experiment):
    rows = metrics_rows(run(experiment))
    # Iteration i logs at step i, the evaluation before at 0 and the one after at 2.
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    names = set(rows[0]) - {"step"}
    reported = {name for metrics in of_strategies().values() for name in metrics}
    assert {name for name in names - reported if describe(name) is None} == set()
    trained = "sft/loss" if experiment == "sft" else "train/loss"
    assert [row[trained] != "" for row in rows] == [True, True, False]
    accuracy = "eval/held_out/avg@2" if experiment in OFFICIAL else "eval/held_out/avg@1"
    assert [row[accuracy] != "" for row in rows] == [True, False, True]
    values = [float(value) for row in rows for value in row.values() if value != ""]
    assert all(math.isfinite(value) for value in values)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_exported_model_is_the_trained_one_and_loads_anywhere(run, experiment):
    folder = run(experiment)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    last = torch.load(folder / "checkpoints" / "iteration-000002" / "state.ckpt", weights_only=True)["state_dict"]
    parameters = model.state_dict()
    assert parameters
    for name, value in parameters.items():
        assert torch.equal(value, last[f"model.{name}"]), name
    text = "<|user|>12 + 3 = ?<|assistant|>12 + 3 = 15\n\\boxed{15}<|end|>"
    assert tokenizer(text)["input_ids"] == byte_tokenizer()(text)["input_ids"]
    assert (len(tokenizer), tokenizer.eos_token, tokenizer.chat_template) == (261, "<|end|>", CHAT_TEMPLATE)


def test_the_arms_do_what_they_are_named_after(run):
    """A random policy is never right and never boxes: every group is all wrong as sampled."""
    for experiment in ("vanilla", "eda"):
        for row in metrics_rows(run(experiment))[:2]:
            assert float(row["collapse/before/all_wrong"]) == float(row["collapse/after/zero_variance"]) == 1
            assert float(row["train/grad_norm"]) == 0
    rows = metrics_rows(run("force_r"))[:2]
    assert [float(row["correction/reflect/count"]) for row in rows] == [4, 4]  # 2 problems x 2 responses
    assert [float(row["train/num_rollouts"]) for row in rows] == [8, 16]  # each sampled and reflected
    rows = metrics_rows(run("gec"))[:2]
    branches = [f"correction/{branch}/count" for branch in ("reflect", "answer", "solution")]
    assert [sum(float(row[name] or 0) for name in branches if name in row) for row in rows] == [4, 4]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run):
    once, again = run("edge_grpo"), run("edge_grpo", "name=again")
    assert once != again
    assert equal_weights(weights(once), weights(again))
    assert metrics_rows(once, timed=False) == metrics_rows(again, timed=False)
    other = run("edge_grpo", "seed=1")
    assert not equal_weights(weights(once), weights(other))


def test_the_seed_of_the_draws_is_not_that_of_the_weights_alone(run):
    # The same initial weights, other draws of rollout and correction.
    other = run("edge_grpo", "seed=1", "model.seed=0")
    assert not equal_weights(weights(run("edge_grpo")), weights(other))


def test_a_finished_run_can_be_resumed_further(tmp_path):
    # A linear schedule would know of the longer run from its first step; the constant one does not.
    part = run_small(tmp_path / "part", "experiment=edge_grpo", *SHORT)
    run_small(part, "experiment=edge_grpo", *SHORT, "trainer.max_iterations=3")
    whole = run_small(tmp_path / "whole", "experiment=edge_grpo", *SHORT, "trainer.max_iterations=3")
    assert equal_weights(weights(part), weights(whole))
    assert [row["step"] for row in metrics_rows(part)] == ["0", "1", "2", "3"]


def test_repeating_a_finished_run_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    again = partial(run_small, tmp_path / "run", "experiment=vanilla", "logger=wandb")
    # W&B's service writes its own logs when it likes.
    found = again().rglob("*")
    files = [path for path in found if path.is_file() and path.suffix != ".log" and path.name != ".lock"]
    history = offline_history(tmp_path / "run")
    before = {path: path.read_bytes() for path in files}
    again()
    assert {path: path.read_bytes() for path in files} == before
    assert [row["iteration"] for row in history] == [0, 1, 2]


def test_a_run_that_was_killed_while_it_exported_still_reaches_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    again = partial(run_small, tmp_path / "run", "experiment=vanilla", "logger=wandb")
    (again() / "summary.json").unlink()
    expected = offline_history(tmp_path / "run")
    again()
    assert json.loads((tmp_path / "run/summary.json").read_text())["iterations"] == 2
    found = offline_history(tmp_path / "run")
    assert [row["iteration"] for row in found] == [0, 1, 2]
    for row in (*expected, *found):  # table and page of samples are objects
        assert (row.pop("samples", None), row.pop("samples_page", None)) == (None, None)
    assert found == expected


@pytest.mark.parametrize("saved", [False, True])
def test_a_model_is_written_whole_or_not_at_all(tmp_path, monkeypatch, saved):
    """On a full disk a folder with a config and no weights was left, and a checkpoint promised that was not there."""

    class Full:
        room = False

        def save(self, folder):
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            if not self.room:
                raise OSError(28, "No space left on device")
            (folder / "model.safetensors").touch()

    monkeypatch.setattr(sys, "argv", ["/bin/edge-grpo-train", "seed=1"])
    if saved:
        (tmp_path / "checkpoints/iteration-000005").mkdir(parents=True)
    policy = Full()
    with pytest.raises(UserError, match="the model cannot be written") as caught:
        train_reports._export(policy, tmp_path / "model")
    way_on = f"go on from the last checkpoint: edge-grpo-train resume={tmp_path}"
    start_over = "train again, for no checkpoint could be written: edge-grpo-train seed=1"
    assert str(caught.value).endswith(f"make room and {way_on if saved else start_over}")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"] * saved
    policy.room = True
    for _ in range(2):  # in place of an earlier one too
        train_reports._export(policy, tmp_path / "model")
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    policy.room = False
    with pytest.raises(UserError):
        train_reports._export(policy, tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").exists()  # the earlier one stays


def test_a_run_cannot_become_shorter_than_it_is(tmp_path):
    run_small(tmp_path, "experiment=vanilla")
    with pytest.raises(UserError, match=r"trainer\.max_iterations=1, but .*iteration-000002 has done 2: raise it"):
        run_small(tmp_path, "experiment=vanilla", "trainer.max_iterations=1")


def test_without_a_checkpoint_nothing_of_an_earlier_run_is_mixed_in(tmp_path):
    run_small(tmp_path, "experiment=edge_grpo", *SHORT)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "summary.json").unlink()
    write_status(tmp_path, "running")  # as if it had been killed before its first checkpoint
    run_small(tmp_path, "experiment=vanilla")
    assert not [name for row in metrics_rows(tmp_path) for name in row if name.startswith(("eda/", "correction/s"))]


def test_resume_never_starts_over(tmp_path):
    folder = run_small(tmp_path / "run", "experiment=gec", *SHORT)
    first = weights(folder)
    run_small(folder, "experiment=gec", *SHORT, "resume=never")
    assert equal_weights(weights(folder), first)
    assert [row["step"] for row in metrics_rows(folder)] == ["0", "1", "2"]


def test_without_beta_there_is_no_kl(run):
    assert "train/kl" not in metrics_rows(run("gec"))[0]


def test_a_second_update_epoch_leaves_the_ratio_of_one(run):
    # With a clip range of width 0 every trained token that moved the way of its advantage counts as clipped.
    width_0 = ("loss.epsilon_low=0.0", "loss.epsilon_high=0.0", "optimizer.lr=0.01")
    clips = [f"train/clip_ratio/{side}_mean" for side in ("low", "high")]
    for epochs, moved in ((1, False), (2, True)):
        rows = metrics_rows(run("gec", *width_0, f"algorithm.update_epochs={epochs}"))[:2]
        shares = [sum(float(row[name]) for name in clips) for row in rows]
        # Over both epochs, and the first of them clips nothing: half of the tokens at most.
        assert all(0 <= share <= 0.5 for share in shares)
        assert any(share > 0 for share in shares) == moved


def test_minibatches_move_the_ratio_within_one_epoch_and_resume(tmp_path):
    # Four problems of two responses: four steps of two rows. With a clip range of width 0 a later step clips.
    settings = ("experiment=gec", *SHORT, "data.problems_per_iteration=4", "optimizer.lr=0.01")
    settings = (*settings, "loss.epsilon_low=0.0", "loss.epsilon_high=0.0")
    two = (*settings, "algorithm.minibatch_rows=2")
    folder = run_small(tmp_path / "two", *two)
    assert max(float(row["train/clip_ratio/region_mean"]) for row in metrics_rows(folder)[:2]) > 0
    whole = run_small(tmp_path / "null", *settings)
    assert equal_weights(weights(run_small(tmp_path / "all", *settings, "algorithm.minibatch_rows=8")), weights(whole))
    assert not equal_weights(weights(folder), weights(whole))
    run_small(tmp_path / "again", *two, "trainer.max_iterations=1")
    assert equal_weights(weights(run_small(tmp_path / "again", *two)), weights(folder))


def test_dropped_groups_leave_the_weights_alone(run):
    initial = random_tiny_policy(
        0, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32
    ).model.state_dict()
    folder = run("vanilla", "group_filter=drop_zero_variance", "optimizer.lr=0.1")
    rows = metrics_rows(folder)[:2]
    assert [float(row["train/frac_reward_zero_std"]) for row in rows] == [1, 1]  # nothing to learn from
    final = weights(folder)
    assert final.keys() <= initial.keys()
    assert all(torch.equal(final[name], initial[name]) for name in final)
    # The same settings do move the weights where correction revives groups.
    revived = weights(run("gec", "group_filter=drop_zero_variance", "optimizer.lr=0.1"))
    assert not equal_weights(revived, final)


def test_samples_are_whole_groups_with_their_branches(run):
    records = recorded_rows(run("gec"), step=0, num_rows=16)
    assert len(records) == 4  # 2 problems x 2 responses
    assert [r["id"] for r in records] == [records[0]["id"]] * 2 + [records[2]["id"]] * 2
    assert {r["branch"] for r in records} <= {"reflect", "answer", "solution"}
    for r in records:
        if r["branch"] in ("answer", "solution"):
            assert r["correct"]
            assert r["gold"] in r["response"]
            assert r["finish_reason"] == "stop"
        assert r["sampled_tokens"] == {"solution": 0, "answer": 8}.get(r["branch"], r["sampled_tokens"])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains(run, precision):
    folder = run("edge_grpo", f"trainer.precision={precision}", "optimizer.lr=0.01")
    assert any(float(row["train/grad_norm"]) > 0 for row in metrics_rows(folder)[:2])
    assert all(torch.isfinite(value).all() for value in weights(folder).values())


def test_tensorboard_writes_event_files(tmp_path):
    folder = run_small(tmp_path / "run", "experiment=vanilla", "logger=tensorboard")
    events = list(folder.rglob("events.out.tfevents.*"))
    assert events
    assert sum(path.stat().st_size for path in events) > 1000
    assert len(metrics_rows(folder)) == 3  # metrics.csv is written beside it


def test_wandb_offline_writes_its_run_into_the_run_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = run_small(tmp_path / "run", "experiment=vanilla", "logger=wandb")
    (run_folder,) = (folder / "wandb").glob("offline-run-*")
    identity = (folder / "run_id").read_text()
    assert run_folder.name.endswith(identity)
    assert list(run_folder.glob("*.wandb"))
    assert len(metrics_rows(folder)) == 3


@pytest.mark.parametrize("name", ["p$_$q", "lr=$x, $y", r"\frac{"])
def test_a_name_that_is_no_mathematics_ends_no_run(tmp_path, name):
    """matplotlib would read what stands between two dollars as TeX, and raise once all training is done."""
    (tmp_path / "metrics.csv").write_text("step,train/entropy\n0,1.0\n1,0.5\n")
    draw_training_figure(tmp_path / "metrics.csv", tmp_path / "training.png", title=name)
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
