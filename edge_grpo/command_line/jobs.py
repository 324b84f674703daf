"""What the jobs of a sweep say of themselves: with the command they share nothing but the folder of the sweep."""

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

JobState = Literal["running", "finished", "failed"]


class Job(NamedTuple):
    """A job of a sweep.

    Attributes:
        num: Hydra's number of it.
        state: as it said last; a job that was killed says "running" for ever.
        overrides: what it was given, `key=value`.
        folder: its directory.
        error: of a failed job.
    """

    num: int
    state: JobState
    overrides: Sequence[str]
    folder: str
    error: str | None = None

    @property
    def title(self) -> str:
        return f"#{self.num} {' '.join(self.overrides)}"


class Jobs:
    """The jobs that one command runs, a small file each in the folder of the sweep, which other commands may share.

    Args:
        sweep: the folder of the sweep.
    """

    def __init__(self, sweep: Path) -> None:
        self.sweep = sweep.absolute()
        self._files = self.sweep / f".jobs-{uuid.uuid4().hex[:8]}"

    def forget(self) -> None:
        """Remove the files, which are of use while the sweep runs."""
        shutil.rmtree(self._files, ignore_errors=True)

    def say(self, job: Job) -> None:
        """Put the job's state down; where the disk is full it stays as it was, as the job itself matters more."""
        path = self._files / f"{job.num}.json"
        whole = path.with_suffix(f".{os.getpid()}")  # a reader never meets half a file
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            whole.write_text(json.dumps(job._asdict()), encoding="utf-8")
            whole.replace(path)

    def read(self) -> list[Job]:
        """All jobs that have begun, by number."""
        found = [Job(**json.loads(path.read_text("utf-8"))) for path in self._files.glob("*.json")]
        return sorted(found, key=lambda job: job.num)
