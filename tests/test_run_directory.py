"""Whose folder it is, what is kept of a finished run, and what a resumed run goes on with."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import small_runs
import torch
from small_runs import REPO, SMALL_GRPO, command, run_small, weights
from torch.optim.lr_scheduler import ExponentialLR

from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.command_line import resolvers
from edge_grpo.errors import UserError
from edge_grpo.programs.difficulty import WRITTEN
from edge_grpo.runs.directory import alone_in, check_shared, holder
from edge_grpo.runs.ownership import check_ours, check_results_ours
from edge_grpo.runs.settings import check_ranks, refuse_changes
from edge_grpo.runs.status import write_status


def rates(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        found = [row["train/learning_rate"] for row in csv.DictReader(file)]
    return [float(rate) for rate in found if rate]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two iterations with somebody's evaluation of it."""
    folder = run_small(tmp_path_factory.mktemp("finished") / "run", "experiment=vanilla")
    (folder / "evaluation" / "paper").mkdir(parents=True)
    (folder / "evaluation" / "paper" / "results.json").write_text("{}")
    return folder


@pytest.fixture
def bare(finished, tmp_path):
    """The same after its owner has deleted the checkpoints to save the disk."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


def test_another_folder_of_that_name_is_refused_on_a_rank(finished, tmp_path):
    with alone_in(tmp_path):
        held = holder(tmp_path)
    check_shared(tmp_path, held, None)
    for theirs in (finished, tmp_path / "nowhere"):  # somebody else's, and none
        with pytest.raises(UserError, match=r"is not the folder that rank 0 \(process \d+ on .+\) has under this name"):
            check_shared(theirs, held, None, patience_s=0.0)


@pytest.mark.parametrize("harm", ["missing", "short"])
def test_a_checkpoint_that_a_rank_does_not_see_whole_is_refused(finished, tmp_path, harm):
    shutil.copytree(finished, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "iteration-000002"
    held = holder(tmp_path / "run")
    check_shared(tmp_path / "run", held, checkpoint)
    state = checkpoint / "state.ckpt"
    state.unlink() if harm == "missing" else state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"state\.ckpt is not there as rank 0 sees it"):
        check_shared(tmp_path / "run", held, checkpoint)


def test_another_number_of_ranks_is_refused_whatever_the_settings_say(finished, caplog):
    checkpoint = finished / "checkpoints" / "iteration-000002"
    check_ranks(checkpoint, 1, allow_changes=False)
    with pytest.raises(UserError, match=r"was trained by 1 ranks, and here are 2 .*: start 1, or"):
        check_ranks(checkpoint, 2, allow_changes=False)
    check_ranks(checkpoint, 2, allow_changes=True)
    assert "going on all the same" in caplog.text


def test_as_many_ranks_on_other_machines_are_no_change():
    assert refuse_changes(Path("run"), {"trainer": {"devices": 2, "num_nodes": 4}},
                          {"trainer": {"devices": 8, "num_nodes": 1}}) == ""  # fmt: skip


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("state", ["finished", "running"])
def test_a_finished_run_without_its_checkpoints_stays_as_it_is(bare, state):
    write_status(bare, state)  # its process may have died after the summary was written
    before = files(bare)
    run_small(bare, "experiment=vanilla")
    assert json.loads((bare / "status.json").read_text())["state"] == "finished"
    before.pop("status.json")
    assert {name: content for name, content in files(bare).items() if name != "status.json"} == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.max_iterations=3", "finished after 2 iterations and its checkpoints are gone"),
        ("trainer.max_iterations=1", r"max_iterations=1, but .* has done 2"),
        ("optimizer.lr=0.5", r"optimizer.lr: 4e-05 -> 0.5"),
    ],
)
def test_one_that_shall_do_something_else_is_refused(bare, setting, message):
    before = files(bare)
    with pytest.raises(UserError, match=message):
        run_small(bare, "experiment=vanilla", setting)
    assert files(bare) == before


def test_changes_that_are_allowed_leave_it_finished(bare, caplog):
    before = files(bare)
    run_small(bare, "experiment=vanilla", "optimizer.lr=0.5", ALLOWED)
    assert files(bare) == before
    assert "optimizer.lr: 4e-05 -> 0.5" in caplog.text


def test_one_whose_checkpoints_are_all_damaged_is_finished_too(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for path in run.glob("checkpoints/*/*"):
        path.write_text("")
    before = files(run)
    run_small(run, "experiment=vanilla")
    assert files(run) == before
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        run_small(run, "experiment=vanilla", "trainer.max_iterations=3")


@pytest.mark.parametrize("summary", [None, '{"iterations": 2, "acc', "[]"])
def test_one_whose_summary_is_gone_or_broken_does_not_begin_again(bare, summary):
    shutil.rmtree(bare / "evaluation")
    (bare / "summary.json").unlink()
    if summary is not None:
        (bare / "summary.json").write_text(summary)
    before = files(bare)
    with pytest.raises(UserError, match=r"is finished as status\.json says, but summary\.json cannot be read"):
        run_small(bare, "experiment=vanilla")
    assert files(bare) == before


@pytest.mark.parametrize("state", ["failed", "stopped", "running"])
def test_one_that_never_finished_begins_again(bare, state):
    shutil.rmtree(bare / "evaluation")
    (bare / "summary.json").unlink()
    write_status(bare, state)
    run_small(bare, "experiment=vanilla", "trainer.max_iterations=1")
    assert len(rates(bare)) == 1


def test_a_refusal_at_the_command_line_changes_nothing(bare):
    before = files(bare)
    process = command(*SMALL_GRPO, "experiment=vanilla", "trainer.max_iterations=3", f"hydra.run.dir={bare}")
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output.count("\n")) == (2, 1), output
    assert "its checkpoints are gone, so it cannot go on to trainer.max_iterations=3" in output
    assert files(bare) == before  # what was typed for the run (.hydra) among them


def test_starting_over_deletes_its_evaluations(bare):
    run_small(bare, "experiment=vanilla", "resume=never", "trainer.max_iterations=1")
    assert not (bare / "evaluation").exists()
    assert len(rates(bare)) == 1


def test_evaluations_of_a_run_that_lost_its_checkpoints_are_not_deleted(bare):
    (bare / "summary.json").unlink()
    write_status(bare, "stopped")
    with pytest.raises(UserError, match="holds evaluations of an earlier run, whose checkpoints are gone"):
        run_small(bare, "experiment=vanilla")
    assert (bare / "evaluation" / "paper" / "results.json").exists()


@pytest.mark.parametrize("name", ["evaluation/mine.txt", "summary.json", "config.yaml", "model/weights", "metrics.csv"])
def test_a_foreign_folder_is_refused_before_anything_is_written(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"it holds {name.partition('/')[0]}, which a run would overwrite"):
        run_small(tmp_path, "experiment=vanilla")
    assert files(tmp_path) == {name: b"mine"}
    assert not (tmp_path / ".lock").exists()


OURS = '{"state": "finished", "error": null}'
RUNS = "algorithm: {}\ntrainer: {}\nresume: {}\n"


@pytest.mark.parametrize(
    ("status", "config"),
    [
        ('{"state": "ok", "error": null}', RUNS),
        ('{"state": "running"}', RUNS),
        ("[]", RUNS),
        (OURS, None),
        (OURS, "algorithm: {}\n"),
        (None, RUNS),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_is_ours_by_its_status_and_its_config(tmp_path, status, config, resume):
    found = {"status.json": status, "config.yaml": config, "evaluation/mine.txt": "mine", "summary.json": "{}"}
    (tmp_path / "evaluation").mkdir()
    for name in (name for name, text in found.items() if text is not None):
        (tmp_path / name).write_text(found[name])
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"it holds .*evaluation, .*which a run would overwrite"):
        run_small(tmp_path, "experiment=vanilla", f"resume={resume}")
    assert files(tmp_path) == before


def test_a_kill_between_status_and_config_leaves_a_folder_of_ours(tmp_path):
    write_status(tmp_path, "running")
    check_ours(tmp_path)


@pytest.mark.parametrize("record", [None, ""])
def test_a_kill_while_hydra_writes_leaves_a_folder_that_can_be_used(tmp_path, record):
    (tmp_path / ".hydra").mkdir()
    if record is not None:
        (tmp_path / ".hydra" / "hydra.yaml").write_text(record)
    check_ours(tmp_path)
    check_results_ours(tmp_path, "difficulty", WRITTEN)
    (tmp_path / "problems.jsonl").write_text("mine")  # which such a record does not tell whose it is
    with pytest.raises(UserError, match=r"it holds problems\.jsonl, which it would overwrite"):
        check_results_ours(tmp_path, "difficulty", WRITTEN)


def test_hydras_record_of_another_program_is_not_overwritten(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra:\n  help:\n    app_name: mine\n")
    with pytest.raises(UserError, match=r"it holds \.hydra, which a run would overwrite"):
        check_ours(tmp_path)
    with pytest.raises(UserError, match=r"it holds \.hydra, which it would overwrite"):
        check_results_ours(tmp_path, "difficulty", WRITTEN)


def test_the_command_line_refuses_it_too_and_other_files_may_lie_there(tmp_path):
    (tmp_path / "mine" / "evaluation").mkdir(parents=True)  # empty, but somebody's
    process = command(*SMALL_GRPO, f"hydra.run.dir={tmp_path / 'mine'}")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "which a run would overwrite" in output.splitlines()[-1]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["evaluation"]
    (tmp_path / "README.md").write_text("mine")
    run_small(tmp_path, "experiment=vanilla", "trainer.max_iterations=1")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_run_leaves_one_folder(tmp_path):
    process = command(*SMALL_GRPO, "trainer.max_iterations=1", cwd=tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (one,) = (tmp_path / "outputs" / "train").iterdir()
    assert (one / "summary.json").exists()
    # Hydra's record says which program of ours wrote there.
    (one / "problems.jsonl").write_text("mine")
    check_results_ours(one, "train", WRITTEN)
    with pytest.raises(UserError, match=r"edge-grpo-difficulty has not written there before, but it holds problems"):
        check_results_ours(one, "difficulty", WRITTEN)


ALLOWED = "resume.allow_changes=true"


def test_a_changed_rate_is_the_rate(tmp_path):
    run_small(tmp_path, "experiment=vanilla", "optimizer.lr=0.001")
    changed = ("optimizer.lr=0.00001", "optimizer.weight_decay=0.5", "trainer.max_iterations=4", ALLOWED)
    run_small(tmp_path, "experiment=vanilla", *changed)
    assert rates(tmp_path) == [0.001, 0.001, 0.00001, 0.00001]
    state = torch.load(tmp_path / "checkpoints/iteration-000004/state.ckpt", weights_only=True)["optimizer_states"][0]
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.5}
    assert {int(moments["step"]) for moments in state["state"].values()} == {4}  # moments went on


def test_a_lengthened_schedule_is_followed_from_the_iteration_reached(tmp_path):
    settings = ("experiment=vanilla", "scheduler=linear", "optimizer.lr=0.01")
    run_small(tmp_path, *settings)
    assert rates(tmp_path) == [0.01, 0.005]
    run_small(tmp_path, *settings, "trainer.max_iterations=4", ALLOWED)
    # Of the schedule over four iterations: 4/4 and 3/4 are past, 2/4 and 1/4 are left.
    assert rates(tmp_path) == pytest.approx([0.01, 0.005, 0.005, 0.0025])


def test_a_schedule_that_multiplies_its_rate_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(
        PolicyModule,
        "configure_optimizers",
        lambda self: {
            "optimizer": (optimizer := self._make_optimizer(self.model.parameters())),
            "lr_scheduler": ExponentialLR(optimizer, 0.7),
        },
    )
    settings = ("experiment=vanilla", "optimizer.lr=0.01")
    run_small(tmp_path / "whole", *settings, "trainer.max_iterations=3")
    run_small(tmp_path / "parts", *settings, "trainer.max_iterations=2")
    run_small(tmp_path / "parts", *settings, "trainer.max_iterations=3")
    assert rates(tmp_path / "parts") == rates(tmp_path / "whole")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_state_of_another_optimiser_is_refused_whatever_is_allowed(tmp_path):
    run_small(tmp_path, "experiment=vanilla")
    sgd = ("~optimizer", "+optimizer={_target_: torch.optim.SGD, _partial_: true, lr: 0.1}")
    with pytest.raises(UserError, match="holds the state of another optimizer"):
        run_small(tmp_path, "experiment=vanilla", *sgd, "trainer.max_iterations=3", ALLOWED)


def test_what_the_state_belongs_to_is_refused_whatever_is_allowed(tmp_path, caplog):
    run_small(tmp_path, "experiment=vanilla", "trainer.max_iterations=1")
    with pytest.raises(UserError, match=r"another optimizer, .*\n  optimizer\.amsgrad: None -> True\n"):
        run_small(tmp_path, "experiment=vanilla", "+optimizer.amsgrad=true", "optimizer.lr=0.5", ALLOWED)
    betas = ("optimizer.betas=[0.5,0.6]", "optimizer.eps=0.001", "model.seed=7")
    run_small(tmp_path, "experiment=vanilla", *betas, ALLOWED)
    (state,) = torch.load(tmp_path / "checkpoints/iteration-000002/state.ckpt", weights_only=True)["optimizer_states"]
    assert {(*group["betas"], group["eps"]) for group in state["param_groups"]} == {(0.5, 0.6, 0.001)}
    assert "the weights are the checkpoint's" in caplog.text


class Counting(torch.optim.SGD):
    """Counts its steps in its groups, where schedule-free optimisers keep theirs."""

    def __init__(self, params, lr: float) -> None:
        super().__init__(params, lr)
        self.defaults["steps"] = 0
        for group in self.param_groups:
            group["steps"] = 0

    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] += 1
        return super().step(closure)


def test_what_an_optimiser_counts_in_its_groups_goes_on(tmp_path):
    counting = "+optimizer={_target_: test_run_directory.Counting, _partial_: true, lr: 0.1}"
    settings = ("experiment=vanilla", "~optimizer", counting, "allowed_targets=[test_run_directory]")
    for iterations in (1, 3):
        run_small(tmp_path, *settings, f"trainer.max_iterations={iterations}")
    (state,) = torch.load(tmp_path / "checkpoints/iteration-000003/state.ckpt", weights_only=True)["optimizer_states"]
    assert [group["steps"] for group in state["param_groups"]] == [3]  # one an iteration


def test_a_refused_run_without_a_table_keeps_its_config_and_its_status(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "metrics.csv").unlink()
    (run / "summary.json").unlink()
    write_status(run, "stopped")
    before = files(run)
    with pytest.raises(UserError, match="other settings"):
        run_small(run, "experiment=vanilla", "optimizer.lr=0.5")
    assert files(run) == before


def test_a_checkout_that_moved_goes_on(tmp_path, monkeypatch):
    rates_of = "data.correctness_rates='${asset:tiny_base/correctness_rates.json}'"
    run = run_small(tmp_path / "run", "experiment=vanilla", rates_of, "trainer.max_iterations=1")
    manifest = (run / "checkpoints" / "iteration-000001" / "manifest.json").read_text()
    assert '"correctness_rates": "${asset:tiny_base/correctness_rates.json}"' in manifest
    assert str(REPO) not in manifest
    moved = shutil.copytree(REPO / "edge_grpo" / "assets", tmp_path / "moved" / "edge_grpo" / "assets")
    with monkeypatch.context() as patch:
        patch.setattr(resolvers, "PACKAGE", moved.parent)
        patch.setattr(small_runs, "config_dir", lambda: REPO / "conf")
        run_small(run, "experiment=vanilla", rates_of, "trainer.max_iterations=2")
    assert str(moved) in (run / "config.yaml").read_text()
    assert len(rates(run)) == 2
    with pytest.raises(UserError, match=r"data\.correctness_rates: .*asset:tiny_base.* -> None"):
        run_small(run, "experiment=vanilla", "trainer.max_iterations=3")


def test_a_changed_data_file_is_noticed(tmp_path, caplog):
    path = tmp_path / "mine.jsonl"
    rows = [{"id": str(i), "question": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("experiment=vanilla", "data=file", "data/template=question", f"data.path={path}")
    run = tmp_path / "run"

    def go(*more: str) -> Path:
        return run_file(run, *settings, "data.held_out_count=2", "data.problems_per_iteration=2", *more)

    go()
    rows[0]["answer"] = "7"
    rows[1]["answer"] = "7"
    rows[2]["answer"] = "7"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=rf"the training problems .*are not those of .*come from data\.path={path}"):
        go("trainer.max_iterations=3")
    go("trainer.max_iterations=3", ALLOWED)
    assert "going on all the same" in caplog.text


def test_a_changed_benchmark_is_noticed(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1 + 1 = ?", "answer": "2"}\n')
    benchmark = ("experiment=vanilla", "evaluation=file", f"evaluation.benchmarks.file.path={path}")
    run_small(tmp_path / "run", *benchmark, "trainer.max_iterations=1")
    path.write_text('{"question": "1 + 2 = ?", "answer": "3"}\n')
    with pytest.raises(UserError, match=r"the problems of evaluation\.benchmarks\.file are not those of"):
        run_small(tmp_path / "run", *benchmark)


def run_file(folder: Path, *settings: str) -> Path:
    """`run_small` without what only the embedded problems have."""
    kept = tuple(s for s in SMALL_GRPO if s not in ("data.train_count=8", "data.correctness_rates=null"))
    before, small_runs.SMALL_GRPO = small_runs.SMALL_GRPO, kept
    try:
        return run_small(folder, *settings)
    finally:
        small_runs.SMALL_GRPO = before
