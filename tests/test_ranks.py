"""Several processes of one run: who they are, how they agree, and how they end."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from omegaconf import OmegaConf

from edge_grpo.errors import Stopped, UserError
from edge_grpo.ranks import group, lead, start, watch
from edge_grpo.ranks.asked import Asked, asked_of, check_order, check_started
from edge_grpo.ranks.group import JobOver, Ranks, Several, differing
from edge_grpo.ranks.lead import follow, leading, on_ranks
from edge_grpo.ranks.meeting import Meeting
from edge_grpo.ranks.place import Place, place_of
from edge_grpo.ranks.start import alone_on_this_machine
from edge_grpo.rewards.pool import KillablePool
from edge_grpo.rollouts.vllm_engine import Engine

MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
OF_FOUR = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "123456",
         "SLURM_NODELIST": "gpu[07-08]"}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"LOCAL_RANK": "0"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),  # a batch script, or one task that starts its ranks itself
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, None),
        (
            {
                "RANK": "3",
                "WORLD_SIZE": "4",
                "LOCAL_RANK": "1",
                "GROUP_RANK": "1",
                "TORCHELASTIC_RUN_ID": "x",
                **MASTER,
            },
            Place("torchrun", 3, 4, 1, 1, "10.0.0.1", 29500),
        ),
        (
            {**OF_FOUR, "NODE_RANK": "1", **SLURM, **MASTER},
            Place("the launcher", 3, 4, 1, 1, "10.0.0.1", 29500),
        ),
        (SLURM, Place("srun", 5, 8, 1, 1, "gpu07", 15000 + 3456)),
        ({**SLURM, **MASTER}, Place("srun", 5, 8, 1, 1, "10.0.0.1", 29500)),
        ({"NODE_RANK": "0", **MASTER}, Place("NODE_RANK", 0, None, 0, 0, "10.0.0.1", 29500)),
        ({"NODE_RANK": "2", **MASTER}, Place("NODE_RANK", None, None, 0, 2, "10.0.0.1", 29500)),
    ],
)
def test_a_process_knows_its_place_by_its_variables(environment, expected):
    assert place_of(environment) == expected


def test_the_first_process_is_the_first_of_the_first_node():
    nodes = [place_of({"NODE_RANK": node, **MASTER}) for node in ("0", "1")]
    tasks = [place_of({**SLURM, "SLURM_PROCID": task, "SLURM_LOCALID": "0"}) for task in ("0", "4")]
    assert [place.is_first for place in nodes + tasks] == [True, False, True, False]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR is not set"),
        ({"RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER}, "RANK=one: the launcher must give a number"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
    ],
)
def test_half_a_place_is_refused(environment, words):
    with pytest.raises(UserError, match=words):
        place_of(environment)


@pytest.fixture
def two(monkeypatch):
    """The meetings of two ranks of this process, with signs of life in quick succession."""
    monkeypatch.setattr(watch, "BEAT_S", 0.02)
    first = alone_on_this_machine(2)
    return Meeting(first), Meeting(first._replace(rank=1, local_rank=1))


def both(two, work, **options):
    """What `work(ranks)` comes to on two ranks: a value or an exception of each."""
    prefix = two[0].call({"devices": 2})
    assert two[1].await_job()[0] == prefix
    found = {}

    def run(meeting):
        ranks = Several(meeting, prefix, meeting.place.rank, 2, {}, **options)
        try:
            with ranks.together():
                found[ranks.rank] = work(ranks)
        except BaseException as error:
            found[ranks.rank] = error

    threads = [threading.Thread(target=run, args=(meeting,)) for meeting in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found[0], found[1]


def test_ranks_with_the_same_findings_go_on_and_end_together(two):
    assert both(two, lambda ranks: ranks.agree({"data": {"train": "a"}}) or ranks.rank) == (0, 1)
    # The next job has keys of its own.
    first, other = both(two, lambda ranks: ranks.agree({"data": ranks.rank}))
    assert isinstance(first, UserError)
    assert isinstance(other, JobOver)


def test_other_findings_are_told_by_rank_0_alone(two):
    first, other = both(two, lambda ranks: ranks.agree({"packages": {"torch": f"2.1{ranks.rank}", "x": "1"}}))
    assert isinstance(first, UserError)
    assert "rank 1 on" in str(first)
    assert str(first).endswith("packages: torch is 2.11, here 2.10")
    assert isinstance(other, JobOver)


def test_what_a_rank_lacks_is_told_by_rank_0(two):
    def work(ranks):
        if ranks.rank:
            raise UserError("no such folder")
        ranks.agree({})

    first, other = both(two, work)
    assert isinstance(first, UserError)
    assert "rank 1 on" in str(first)
    assert "no such folder" in str(first)
    assert str(other) == "no such folder"


def test_a_failure_of_rank_0_ends_the_others(two):
    def work(ranks):
        if not ranks.rank:
            raise UserError("mend it")
        ranks.agree({})

    first, other = both(two, work)
    assert str(first) == "mend it"
    assert (type(other), str(other)) == (JobOver, "mend it")


def test_a_signal_that_ends_all_is_no_failure(two):
    def work(ranks):
        raise Stopped(15)

    assert [type(ended) for ended in both(two, work)] == [Stopped, Stopped]
    assert not two[0].has("0/stop")


def test_an_error_of_a_collective_is_told_as_the_death_behind_it(two, monkeypatch):
    monkeypatch.setattr(watch, "SILENCE_S", 0.3)
    prefix = two[0].call({})
    ranks = Several(two[0], prefix, 0, 2, {})
    two[1].store.set(f"{prefix}beat/1", "7 node-b")  # one sign of life
    with pytest.raises(UserError, match=r"rank 1 on node-b has given no sign of life for"), ranks.together():
        raise RuntimeError("[gloo] Connection closed by peer")


def test_a_rank_that_waits_for_a_dead_one_is_ended_from_outside(two, monkeypatch):
    monkeypatch.setattr(watch, "GRACE_S", 0.1)
    ended = []
    monkeypatch.setattr(watch.os, "_exit", ended.append)
    child = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    told = []
    prefix = two[0].call({})
    watching = watch.Watch(two[0], prefix, 0, 2, {1: child}, told.append)
    watching.start()
    watching.join(10)
    assert ended == [1]
    assert told == ["rank 1 has ended by signal 9"]
    assert two[1].store.get(f"{prefix}stop") == b"rank 1 has ended by signal 9"


def test_a_rank_that_does_not_come_is_waited_for_no_longer(two, monkeypatch):
    monkeypatch.setattr(watch, "ARRIVAL_S", 0.2)
    with pytest.raises(UserError, match=r"rank 1 has not come within 0 s"), on_job(two[0]).together():
        on_job.ranks.agree({})


def on_job(meeting):
    on_job.ranks = Several(meeting, meeting.call({}), 0, 2, {})
    return on_job.ranks


def test_a_process_that_is_done_may_be_silent(two, monkeypatch):
    monkeypatch.setattr(watch, "SILENCE_S", 0.2)

    def work(ranks):
        if not ranks.rank:
            time.sleep(0.6)  # writes results while the other has ended
        return ranks._watch.lost

    assert both(two, work) == (None, None)


def test_rank_0_ends_after_all_others(two):
    def work(ranks):
        time.sleep(0.5 * ranks.rank)

    began = time.monotonic()
    prefix = two[0].call({})
    other = threading.Thread(target=_at_work, args=(Several(two[1], prefix, 1, 2, {}), work))
    other.start()
    _at_work(Several(two[0], prefix, 0, 2, {}), work)
    assert two[0].has(f"{prefix}done/1")
    assert time.monotonic() - began >= 0.5
    other.join(10)


def _at_work(ranks, work):
    with ranks.together():
        work(ranks)


def test_followers_do_what_they_are_called_to_until_nothing_comes():
    place = alone_on_this_machine(2)._replace(launcher="torchrun")
    jobs, codes = [], []

    def work(job, ranks):
        jobs.append((job["name"], ranks.rank, ranks.world))
        ranks.agree({"name": job["name"]})

    other = threading.Thread(
        target=lambda: codes.append(follow(place._replace(rank=1, local_rank=1), work)), daemon=True
    )
    other.start()
    with leading(place):
        for name in ("first", "second"):
            with on_ranks(Asked(2, 1), {"name": name}, print) as ranks:
                assert (ranks.is_first, ranks.world) == (True, 2)
                assert ranks.plugins[0].world_size() == 2
                ranks.agree({"name": name})
    other.join(10)
    assert jobs == [("first", 1, 2), ("second", 1, 2)]
    assert codes == [0]


def test_a_program_that_is_refused_sends_the_others_home():
    place, codes = alone_on_this_machine(2), []
    other = threading.Thread(target=lambda: codes.append(follow(place._replace(rank=1, local_rank=1), print)))
    other.start()
    with pytest.raises(SystemExit), leading(place):
        raise SystemExit(2)
    other.join(10)
    assert codes == [1]


@pytest.mark.parametrize("ended", [[], [1]])
def test_that_rank_0_is_gone_is_told_once(monkeypatch, capsys, ended):
    """By the job that ended with it, or by who waits for one."""
    codes = iter(ended)

    class Lost:
        def __init__(self, place):
            pass

        def await_job(self):
            if next(jobs, None) is None:
                raise ConnectionError
            return "1/", {"devices": 1}

    jobs = iter(ended)
    monkeypatch.setattr(lead, "Meeting", Lost)
    monkeypatch.setattr(lead, "_follow", lambda *_: next(codes))
    assert follow(Place("srun", 1, 2, 0, 1, "a", 1), print) == 1
    assert capsys.readouterr().err == ("" if ended else "error: rank 1 has lost rank 0\n")


@pytest.mark.parametrize(
    ("settings", "place", "words"),
    [
        ({"devices": 2, "num_nodes": 2}, None, "make 4|started alone"),
        (
            {"devices": 2, "num_nodes": 1},
            Place("torchrun", 0, 1, 0, 0, "a", 1),
            "but torchrun has started 1",
        ),
        (
            {"devices": "auto", "num_nodes": 1},
            Place("srun", 0, 8, 0, 0, "a", 1),
            "make 2 ranks, but srun",
        ),
    ],
)
def test_a_launcher_starts_as_many_as_the_settings_ask_for(settings, place, words):
    with pytest.raises(UserError, match=words):
        check_started(Asked(2, settings["num_nodes"]), OmegaConf.create(settings), place)


@pytest.mark.parametrize(("devices", "expected"), [(3, 3), ("2", 2), ("auto", 1)])
def test_devices_are_counted_as_lightning_does(devices, expected):
    settings = OmegaConf.create({"accelerator": "cpu", "devices": devices, "num_nodes": 2})
    assert asked_of(settings) == (expected, 2)


def test_ranks_are_counted_node_by_node():
    check_order(Place("srun", 3, 4, 1, 1, "a", 1), 3, 2)
    with pytest.raises(UserError, match=r"is rank 2 and not 1, .*--distribution=block"):
        check_order(Place("srun", 2, 4, 1, 0, "a", 1), 2, 2)


def test_one_process_needs_no_meeting():
    lead.share_node(2)  # a job before it
    assert KillablePool.sharers == 2
    with on_ranks(Asked(1, 1), {}, print) as ranks:
        assert KillablePool.sharers == 1
        assert type(ranks) is Ranks
        ranks.agree({"anything": 1})
        assert ranks.plugins == []


def test_an_engine_ends_before_the_group_that_it_is_in(monkeypatch):
    order = []
    monkeypatch.setattr(Engine, "end_with_group", lambda: order.append("engine"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: order.append("group"))
    lead._end_group()
    assert order == ["engine", "group"]


def test_a_missing_finding_is_a_difference():
    assert differing({"data": "x", "frozen": None}, {"data": "x"}) == ""
    assert differing({"data": "x"}, {}) == "data is None, here x"


def test_errors_that_another_process_may_be_behind():
    assert group._is_of_collectives(RuntimeError("NCCL communicator was aborted"))
    assert not group._is_of_collectives(ValueError("connection"))
    assert not group._is_of_collectives(RuntimeError("out of memory"))


def test_children_are_told_who_they_are(monkeypatch):
    started = []
    monkeypatch.setattr(start.subprocess, "Popen", lambda command, env, stdin: started.append(env))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of another")
    place = Place("NODE_RANK", None, None, 0, 1, "10.0.0.1", 29500)
    start.start_others(place, devices=3, world=6, job=2)
    places = [place_of(environment) for environment in started]
    assert places == [Place("the launcher", 3 + i, 6, i, 1, "10.0.0.1", 29500) for i in (1, 2)]
    assert [environment["EDGE_GRPO_JOB"] for environment in started] == ["2", "2"]
    assert os.environ["TORCHELASTIC_RUN_ID"] == "of another"
