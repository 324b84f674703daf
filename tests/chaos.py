"""`make chaos`: EDGE-GRPO on the embedded default is killed again and again, and must not be the worse for it.

`make chaos ARM="allocation=greso advantage=ngrpo"` does it with another arm: its overrides follow those of the default.
`make chaos RANKS=2` does it on two ranks of which one is killed, and the other must end within half a minute.

SIGKILL falls at random instants: while the run starts, rolls out, grades, updates or writes a checkpoint. Afterwards
the exported weights (SHA-256), metrics.csv (row by row, without what the clock says), rollouts/ (byte by byte) and the
history in W&B's offline file are held against those of a run that nobody killed, and no process of a killed run may be
alive.

The last line is `kills=N identical=true`; anything else exits with 1.
"""

import argparse
import hashlib
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from small_runs import REPO, metrics_rows, offline_history

RUN = ("experiment=edge_grpo", "trainer=cpu", "checkpoint.every_n_iterations=1", "logger.wandb.mode=offline")
START_S = 6.0  # kills while the run starts fall within this time
ITERATION_S = 1.0
GRACE_S = 5.0
ENDING_S = 30.0
"""in which a rank ends whose other was killed"""
OF_RANK_0 = "verifier/cache_hit_rate"
"""of several ranks: a checkpoint holds the verdicts of the first only"""


def start(folder: Path, *settings: str) -> subprocess.Popen[bytes]:
    with (folder.parent / f"{folder.name}.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "edge_grpo.programs.train", *RUN, *settings, f"hydra.run.dir={folder}"],
            env={**os.environ, "PYTHONPATH": str(REPO), "WANDB_SILENT": "true"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def finish(folder: Path, *settings: str) -> None:
    if start(folder, *settings).wait():
        raise SystemExit((folder.parent / f"{folder.name}.log").read_text() + "\nthe run failed")


def iterations(folder: Path) -> int:
    return len(metrics_rows(folder)) if (folder / "metrics.csv").exists() else 0


def kill_once(folder: Path, rng: random.Random, settings: tuple[str, ...], ranks: int = 1) -> tuple[str | None, int]:
    """Start the run and kill it, or one of its ranks; where that was (None if it ended first), and its session."""
    process, before = start(folder, *settings), iterations(folder)
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, START_S))
    else:
        more = rng.choice((1, 1, 2))
        while iterations(folder) < before + more and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, ITERATION_S))
    if process.poll() is not None:
        return None, process.pid
    rank = rng.randrange(ranks)
    os.kill(_of_rank(rank, process.pid), signal.SIGKILL)
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        print(f"rank 0 did not end within {ENDING_S:.0f} s of rank {rank}")
        raise SystemExit(1) from None
    halves = len(list(folder.glob("checkpoints/.*.tmp")))
    return f"rank {rank} at {iterations(folder)} rows, {halves} half-written checkpoints", process.pid


def _of_rank(rank: int, session: int) -> int:
    """The process of this rank; the first one's before it has started the others."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if os.getsid(int(environment.parent.name)) == session:
                variables = environment.read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in variables and b"EDGE_GRPO_JOB=0" in variables:
                    return int(environment.parent.name)
        except OSError:
            continue
    return session


def survivors(session: int) -> list[str]:
    """Command lines of what is alive of a session after a moment, W&B's own service aside, which ends by itself."""
    deadline = time.monotonic() + GRACE_S
    while (found := _alive(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _alive(session: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z" and "wandb" not in command:
            found.append(command)
    return found


def differences(folder: Path, whole: Path, ranks: int = 1) -> list[str]:
    """What is not the same in the two runs."""
    aside = {OF_RANK_0} if ranks > 1 else set()
    digests = [hashlib.sha256((f / "model" / "model.safetensors").read_bytes()).hexdigest() for f in (folder, whole)]
    print(f"weights  {digests[0][:16]} killed\n         {digests[1][:16]} whole")
    found = ["weights"] if digests[0] != digests[1] else []
    rows, expected = (metrics_rows(f, timed=False) for f in (folder, whole))
    print(f"metrics  {len(rows)} rows killed, {len(expected)} whole")
    for row, other in zip(rows, expected, strict=False):
        names = (row.keys() | other.keys()) - aside
        found += [f"step {row['step']}: {name}" for name in names if row.get(name) != other.get(name)]
    if len(rows) != len(expected):
        found.append("number of rows")
    sent = offline_history(folder)
    print(f"W&B      {len(sent)} steps killed")
    for row in sent:
        row.pop("samples", None), row.pop("samples_page", None)
    recorded = [{n: float(v) for n, v in row.items() if v != "" and n != "step"} for row in metrics_rows(folder)]
    found += ["steps in W&B"] if [row.pop("iteration") for row in sent] != list(range(len(expected))) else []
    found += ["numbers in W&B"] if sent != recorded else []
    rollouts = [{path.name: path.read_bytes() for path in (f / "rollouts").iterdir()} for f in (folder, whole)]
    print(f"rollouts {len(rollouts[0])} files killed, {len(rollouts[1])} whole")
    return found + (["rollouts"] if rollouts[0] != rollouts[1] else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--arm", default="", help="overrides, as on the command line")
    args = parser.parse_args()
    rng, settings = random.Random(args.seed), (*shlex.split(args.arm), f"trainer.max_iterations={2 * args.kills}")
    if args.ranks > 1:
        settings += (f"trainer.devices={args.ranks}", "trainer.strategy=ddp")
    with tempfile.TemporaryDirectory() as name:
        killed, whole = Path(name) / "killed", Path(name) / "whole"
        kills, orphans = 0, []
        while kills < args.kills:
            began = time.monotonic()
            where, session = kill_once(killed, rng, settings, args.ranks)
            if where is None:
                print("the run ended before it was killed often enough")
                break
            kills += 1
            orphans += survivors(session)
            print(f"kill {kills:2d} after {time.monotonic() - began:4.1f} s, {where}", flush=True)
        finish(killed, *settings)
        finish(whole, *settings)
        found = differences(killed, whole, args.ranks) + [f"alive: {line}" for line in orphans]
    for line in found:
        print(f"differs: {line}")
    identical = not found and kills == args.kills
    print(f"kills={kills} identical={str(identical).lower()}")
    raise SystemExit(not identical)


if __name__ == "__main__":
    main()
