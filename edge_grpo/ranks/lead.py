"""Start, call and follow: how a program comes to run on several processes."""

import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from edge_grpo.errors import Stopped, UserError
from edge_grpo.ranks.asked import Asked, asked_of, check_order, check_started
from edge_grpo.ranks.group import LEAVE_S, JobOver, Ranks, Several
from edge_grpo.ranks.meeting import JOB, Meeting
from edge_grpo.ranks.place import Place
from edge_grpo.ranks.start import Children, alone_on_this_machine, start_others
from edge_grpo.ranks.watch import BEAT_S, GRACE_S
from edge_grpo.rewards.pool import KillablePool

log = logging.getLogger(__name__)

Follow = Callable[[Mapping[str, Any], Ranks], None]
"""what a rank besides the first does: called with rank 0's job"""

_met: list[Meeting] = []
"""the meeting of processes that a launcher has started"""


def _place() -> Place | None:
    """This process's, where a launcher has started it."""
    return _met[0].place if _met else None


def ranks_asked(settings: Any) -> Asked:
    """How many ranks the trainer's settings ask for.

    Raises:
        UserError: the launcher has started more or fewer.
    """
    asked = asked_of(settings)
    check_started(asked, settings, _place())
    return asked


@contextmanager
def leading(place: Place) -> Iterator[None]:
    """Inside, this process is rank 0 of those that a launcher has started."""
    meeting, failed = Meeting(place), True
    _met.append(meeting)
    try:
        yield
        failed = False
    finally:
        _met.clear()
        # After a job that failed those that live leave at once; before the first one some still import.
        seconds = 2 * BEAT_S if failed and meeting.job else LEAVE_S
        meeting.end(failed=failed)
        meeting.await_leaving(seconds)


def follow(place: Place, work: Follow) -> int:
    """Do what rank 0 says until it says that nothing more comes; the exit code."""
    code = 0
    try:
        meeting = Meeting(place)
        while "failed" not in (found := meeting.await_job())[1]:
            code = max(code, _follow(meeting, *found, work))
            if JOB in os.environ or code > 1:
                return code
        meeting.leave()
        return max(code, int(found[1]["failed"]))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except ConnectionError:
        if not code:  # else it was told when the job ended
            print(f"error: rank {place.rank} has lost rank 0", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


def _follow(meeting: Meeting, prefix: str, job: Mapping[str, Any], work: Follow) -> int:
    place, devices = meeting.place, job["devices"]
    rank = place.node_rank * devices if place.rank is None else place.rank
    by_hand = place.world is None
    children = start_others(place, devices, job["world"], meeting.job - 1) if by_hand else {}
    ranks = Several(meeting, prefix, rank, job["world"], children)
    try:
        with ranks.together():
            check_order(place, rank, devices)
            work(job, ranks)
    except Stopped as error:
        return int(error.code or 0)
    except JobOver as error:
        if not ranks.is_told:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except UserError:  # rank 0 tells
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        _end_children(children, LEAVE_S)
    return 0


@contextmanager
def on_ranks(asked: Asked, job: Mapping[str, Any], on_loss: Callable[[str], None]) -> Iterator[Ranks]:
    """Inside, all processes of a run are at the same job; only rank 0 calls this.

    Args:
        asked: how many there are, see `ranks_asked`.
        job: what the others get, JSON.
        on_loss: see `Watch`.
    """
    devices, world, place = asked.devices, asked.world, _place()
    share_node(devices)
    if world == 1:
        yield Ranks()
        return
    meeting = _met[0] if _met else Meeting(alone_on_this_machine(world))
    by_hand = place is None or place.world is None
    if by_hand:  # those that processes of ours have started leave without a word
        meeting.followers = asked.nodes - 1
    children = start_others(meeting.place, devices, world, meeting.job) if by_hand else {}
    prefix = meeting.call({**job, "devices": devices, "world": world})
    ranks = Several(meeting, prefix, 0, world, children, on_loss)
    seconds = GRACE_S
    try:
        with ranks.together():
            yield ranks
        seconds = LEAVE_S
        if place is None:  # the next job of a sweep has other processes
            _end_group()
    finally:
        _end_children(children, seconds)


def _end_group() -> None:
    """End torch.distributed, after the rollout engine that has groups in it."""
    # Imported here: it takes transformers, which what is refused before a job need not wait for.
    from edge_grpo.rollouts.vllm_engine import Engine

    Engine.end_with_group()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def share_node(devices: int) -> None:
    """Each process of a node gets its part of the grading workers, and of the cores where nobody has said how many."""
    KillablePool.sharers = devices
    if devices > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // devices))


def _end_children(children: Children, seconds: float) -> None:
    """Wait so long for all of them, and kill the rest: those that still import, or wait for one that is gone."""
    deadline = time.monotonic() + seconds
    for child in children.values():
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
        child.kill()
        child.wait()


def log_to(folder: Path, rank: int) -> None:
    """What a rank besides the first logs goes into a file of the run's folder, errors to the terminal too."""
    file, terminal = logging.FileHandler(folder / f"rank-{rank}.log"), logging.StreamHandler()
    terminal.setLevel(logging.ERROR)
    form = f"%(asctime)s %(levelname)s rank {rank} %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", handlers=[file, terminal], force=True)
