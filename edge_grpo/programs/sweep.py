"""A sweep of training runs as it is watched: one line for all jobs, and at the end what the arms came to.

Nothing here imports torch: jobs run in other processes, or import it themselves.
"""

import json
import math
import shlex
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from edge_grpo.command_line.again import again
from edge_grpo.command_line.compose import Checked
from edge_grpo.command_line.jobs import Job, Jobs
from edge_grpo.errors import Stopped
from edge_grpo.loggers.terminal import terminal

POLL_S = 2.0


@contextmanager
def around_sweep(jobs: Jobs, checked: Checked) -> Iterator[None]:
    """While the jobs run, say how many are done; afterwards show the arms and how to compare them."""
    begun, over = time.monotonic(), threading.Event()
    watch = threading.Thread(target=_watch, args=(jobs, checked.jobs, begun, over), daemon=True)
    if checked.side_by_side:  # jobs that follow each other tell of themselves
        watch.start()
    stopped = False
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        stopped = True
        raise
    finally:
        over.set()
        if watch.ident is not None:
            watch.join()
        show_arms(jobs)
        if stopped:
            print(f"to go on with the sweep: {again()}", flush=True)


def _watch(jobs: Jobs, total: int | None, begun: float, over: threading.Event) -> None:
    console, said = terminal(), ""
    while not over.wait(POLL_S):
        begun_jobs = jobs.read()
        line = progress_line(begun_jobs, total)
        left = time_left(begun_jobs, total, time.monotonic() - begun)
        if console is not None:
            console.print(Text(f"{line}{left}"), end="\r", overflow="ellipsis", no_wrap=True)
        elif line != said:
            print(f"{line}{left}", flush=True)
        said = line
    if console is not None:
        console.print()


def progress_line(jobs: Sequence[Job], total: int | None) -> str:
    """How the jobs of a sweep stand.

    >>> done, busy = (Job(i, state, [], "") for i, state in enumerate(["finished", "running"]))
    >>> progress_line([done, busy], 4), progress_line([done], None)
    ('sweep: 1 of 4 jobs finished, 1 running', 'sweep: 1 job finished')
    """
    count = {state: sum(job.state == state for job in jobs) for state in ("finished", "running", "failed")}
    of = f" of {total} jobs" if total is not None else " job" if count["finished"] == 1 else " jobs"
    others = "".join(f", {count[state]} {state}" for state in ("running", "failed") if count[state])
    return f"sweep: {count['finished']}{of} finished{others}"


def time_left(jobs: Sequence[Job], total: int | None, elapsed_s: float) -> str:
    """The time that the rest takes at the pace so far; "" where there is none."""
    ended = sum(job.state != "running" for job in jobs)
    if total is None or not 0 < ended < total:
        return ""
    return f", left {timedelta(seconds=math.ceil(elapsed_s / ended * (total - ended)))}"


def show_arms(jobs: Jobs) -> None:
    """Print what each arm came to, over its seeds, and the command that compares them; nothing without a result."""
    begun = jobs.read()
    rows = arms(begun)
    if not rows:
        return
    console = terminal()
    if console is None:
        for name, figures in rows.items():
            print(f"{name}: {', '.join(figures.values())}")
    else:
        table = Table("arm", *next(iter(rows.values())))
        for name, figures in rows.items():
            table.add_row(Text(name), *figures.values())
        console.print(table)
    for line in same_runs(begun):
        print(line)
    print(f"compare: edge-grpo-report runs={shlex.quote(str(_relative(jobs.sweep)))}", flush=True)


def arms(jobs: Sequence[Job]) -> dict[str, dict[str, str]]:
    """Arm -> figures of its finished runs: their number, the held-out accuracy before and after, its deviation.

    An arm is what was typed for a job, without its seed and without what was typed for all jobs. Jobs of one folder
    are one run.
    """
    common = set.intersection(*(set(job.overrides) for job in jobs)) if jobs else set()
    found: dict[str, list[Any]] = {}
    for job in _by_folder(jobs).values():
        # Of a job that did not finish there may be a summary of an earlier time, when the run was to be shorter.
        summary = _summary(Path(job.folder)) if job.state == "finished" else None
        if summary is not None:
            own = [text for text in job.overrides if text not in common and not text.startswith("seed=")]
            found.setdefault(" ".join(own) or str(summary["name"]), []).append(summary["accuracy"])
    return {name: _figures(accuracies) for name, accuracies in found.items()}


def same_runs(jobs: Sequence[Job]) -> list[str]:
    """A line for each folder that several jobs have, since the same settings were typed twice.

    >>> same_runs([Job(num, "finished", ["seed=3"], "sweep/seed=3") for num in (0, 1)])
    ['#0 seed=3, #1 seed=3 are the same run, sweep/seed=3, and count once']
    """
    titles: dict[str, list[str]] = {}
    for job in jobs:
        titles.setdefault(job.folder, []).append(job.title)
    of_several = {folder: same for folder, same in titles.items() if len(same) > 1}
    return [f"{', '.join(same)} are the same run, {folder}, and count once" for folder, same in of_several.items()]


def _by_folder(jobs: Sequence[Job]) -> dict[str, Job]:
    """The job of each folder; of several there a finished one, since the others may have met it at work."""
    found: dict[str, Job] = {}
    for job in jobs:
        if job.folder not in found or job.state == "finished":
            found[job.folder] = job
    return found


def _figures(accuracies: Sequence[Any]) -> dict[str, str]:
    before, after = ([100 * accuracy[when] for accuracy in accuracies] for when in ("before", "after"))
    spread = f" ± {statistics.stdev(after):.1f}" if len(after) > 1 else ""
    runs = f"{len(after)} run{'s' if len(after) > 1 else ''}"
    accuracy = f"{statistics.mean(before):.1f} -> {statistics.mean(after):.1f}{spread} %"
    return {"finished": runs, "held-out accuracy": accuracy}


def _summary(folder: Path) -> Any:
    try:
        return json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _relative(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
