"""`make cluster`: every way to start a run of two ranks or a sweep of four jobs, on this machine; minutes.

What ends as it shall says `ok`; else the reason is told. All ways give the same weights, bit for bit, in one run
folder. Nodes are simulated: processes with a host name of their own (`unshare --uts`, where that is permitted), and
variables as srun and torchrun set them. The last line is `cluster=N ok=N`; anything less exits with 1, but for what is
skipped because vllm is not installed.

`--only PART` runs the cases whose names contain it, and those that they are compared with.
"""

import argparse
import csv
import functools
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from small_runs import REPO, SHORT, SMALL_GRPO

TRAIN = ("-m", "edge_grpo.programs.train")
RUN = (*SMALL_GRPO, *SHORT, "trainer.strategy=ddp", "trainer.max_iterations=3")
TWO, NODES = "trainer.devices=2", ("trainer.devices=1", "trainer.num_nodes=2")
RENAMED = ("unshare", "--user", "--map-root-user", "--uts", "--mount")
LONGEST_S = 900.0
ENDING_S = 30.0
"""in which all processes are gone once one is"""

Case = Callable[[Path], None]
Command = tuple[Sequence[str], Mapping[str, str]]
"""arguments of Python, and variables"""
CASES: dict[str, Case] = {}


class Wrong(Exception):
    """What did not end as it shall."""


class Absent(Exception):
    """What a case needs is not installed."""


def case(function: Case) -> Case:
    """Add a case: called with an empty folder, it raises `Wrong` or any exception of its own."""
    CASES[function.__name__] = function
    return function


class Started:
    """Processes of one run, each with its own session; all that is left of them ends with the block.

    Args:
        folder: where they start, and where their output goes.
        commands: see `Command`.
        hosts: a host name for each; none for this machine's own.
    """

    def __init__(self, folder: Path, commands: Sequence[Command], hosts: Sequence[str] = ()) -> None:
        self.folder = folder
        self.processes = []
        for i, (arguments, variables) in enumerate(commands):
            command = [sys.executable, *arguments]
            if hosts and _can_rename():
                script = f'hostname {hosts[i]} && exec "$@"'
                command = [
                    "unshare",
                    "--user",
                    "--map-root-user",
                    "--uts",
                    "--mount",
                    "sh",
                    "-c",
                    script,
                    "-",
                    *command,
                ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPO}:{REPO / 'tests'}", **variables}
            with (folder / f"process-{i}.log").open("ab") as output:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        cwd=folder,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)

    def end(self, seconds: float = LONGEST_S) -> list[int]:
        """Wait for all; their exit codes."""
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > deadline:
                raise Wrong(f"still at work after {seconds:.0f} s\n{self.output()}")
            time.sleep(0.05)
        return [process.returncode for process in self.processes]

    def alive(self) -> list[int]:
        """What is alive of their sessions, W&B's service aside."""
        sessions, found = {process.pid for process in self.processes}, []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                command = (stat.parent / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) in sessions and fields[0] != "Z" and "wandb" not in command:
                found.append(int(stat.parent.name))
        return found

    def of_rank(self, rank: int) -> int:
        """The process that has this rank by its variables."""
        for pid in self.alive():
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            is_agent = b"torch.distributed.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
            if not is_agent and {f"RANK={rank}".encode(), f"SLURM_PROCID={rank}".encode()} & set(variables):
                return pid
        raise Wrong(f"no process of rank {rank}")

    def output(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("process-*.log")))

    def must_end(self, code: int | None = 0, seconds: float = LONGEST_S) -> None:
        """Wait for all, which end with this code (None: any but 0), and leave nothing behind."""
        codes = self.end(seconds)
        if any(found != code if code is not None else found == 0 for found in codes):
            raise Wrong(f"exit codes {codes}, not {'other than 0' if code is None else code}\n{self.output()}")
        deadline = time.monotonic() + ENDING_S
        while left := self.alive():
            if time.monotonic() > deadline:
                raise Wrong(f"processes {left} are left")
            time.sleep(0.05)


@functools.cache
def _can_rename() -> bool:
    """Whether processes may have a host name of their own here."""
    if shutil.which("unshare") is None:
        return False
    test = [*RENAMED, "hostname", "other"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


def run_folder(folder: Path) -> Path:
    """The one run folder below, finished."""
    found = [path.parent for path in folder.rglob(".hydra")]
    if len(found) != 1:
        raise Wrong(f"{len(found)} run folders: {', '.join(map(str, found))}")
    others = [path for path in folder.rglob("metrics.csv") if path.parent != found[0]]
    state = json.loads((found[0] / "status.json").read_text())["state"]
    if others or state != "finished":
        raise Wrong(f"the run is {state}; metrics in {others or 'its folder only'}")
    return found[0]


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()[:16]


def free_port() -> int:
    return random.SystemRandom().randrange(20000, 30000)


def torchrun(*options: str) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", *options)


def srun(task: int, port: int, job: str = "edge") -> dict[str, str]:
    """The variables of a task of `srun --nodes 2 --ntasks-per-node 1`."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": job,
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(task),
        "SLURM_NODELIST": "localhost",
        "MASTER_PORT": str(port),
    }


def refused(started: Started, *words: str, within: float = LONGEST_S) -> None:
    """One error with these words, and all processes end with another code than 0."""
    started.must_end(None, within)
    errors = [line for line in started.output().splitlines() if line.startswith("error: ")]
    if len(errors) != 1 or not all(word in errors[0] for word in words):
        raise Wrong(f"errors {errors}, not one with {words}\n{started.output()}")


@functools.cache
def whole() -> str:
    """The weights of a run that this program starts on both ranks itself."""
    with temporary() as folder, Started(folder, [((*TRAIN, *RUN, TWO), {})]) as started:
        started.must_end()
        return digest(run_folder(folder))


@contextmanager
def temporary():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def same(folder: Path) -> None:
    """The one run below has the weights of `whole`."""
    if (found := digest(run_folder(folder))) != whole():
        raise Wrong(f"weights {found}, not {whole()} as of the run that starts its ranks itself")


@case
def one_command(folder):
    whole()


@case
def torchrun_two_ranks(folder):
    options = torchrun("--nproc-per-node", "2", "--master-port", str(free_port()))
    with Started(folder, [((*options, *TRAIN, *RUN, TWO), {})]) as started:
        started.must_end()
    same(folder)


@case
def torchrun_two_nodes(folder):
    port = str(free_port())
    nodes = [
        torchrun("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node), "--master-addr", "127.0.0.1",
                 "--master-port", port)
        for node in range(2)
    ]  # fmt: skip
    with Started(folder, [((*node, *TRAIN, *RUN, *NODES), {}) for node in nodes], ("node-a", "node-b")) as started:
        started.must_end()
    same(folder)


@case
def slurm_variables(folder):
    port = free_port()
    tasks = [((*TRAIN, *RUN, *NODES), srun(task, port)) for task in range(2)]
    with Started(folder, tasks, ("node-a", "node-b")) as started:
        started.must_end()
    same(folder)


@case
def fsdp2_two_ranks(folder):
    """The weights of DDP, and after an interruption the same bits."""
    command, path = (*TRAIN, *RUN, TWO, "trainer.strategy=fsdp2"), f"hydra.run.dir={folder}/run"
    with Started(folder, [((*command, path), {})]) as started:
        started.must_end()
    same(folder)
    with temporary() as other:
        for iterations in (1, 3):
            parts = (f"hydra.run.dir={other}/run", f"trainer.max_iterations={iterations}")
            with Started(other, [((*command, *parts), {})]) as started:
                started.must_end()
        same(other)


ENGINE = (
    *("rollout=vllm", "rollout.kv_cache_gb=0.25", "rollout.max_model_len=1024", "rollout.enforce_eager=true"),
    # The norm that clips is summed in another order over parts.
    *("model.hidden_size=64", "optimizer.lr=0.01", "algorithm.max_grad_norm=null"),
)


def engine_of_its_own(folder: Path, *settings: str) -> str:
    """A run in which every rank samples by an engine of its own; the weights that it ends with.

    After each update the engines have the trainer's weights: log-probs of the rollout and of the update agree on all
    ranks, by the largest difference of all tokens.
    """
    if importlib.util.find_spec("vllm") is None:
        raise Absent("vllm is not installed: benchmarks/vllm_environment.sh makes an environment that has it")
    with Started(folder, [((*TRAIN, *RUN, TWO, *ENGINE, *settings), {})]) as started:
        started.must_end()
        said = started.output()
    run = run_folder(folder)
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    agrees = [float(row["mismatch/abs_log_ratio_max"]) < 1e-4 for row in rows]
    proved = [float(row["rollout/weights_current"]) == 1 for row in rows]
    moved = [float(row["train/grad_norm"]) > 0 for row in rows]
    if len(rows) != 3 or not all((*agrees, *proved, *moved)) or "Traceback" in said:
        raise Wrong(f"log-probs agree {agrees}, weights proved {proved}, updates {moved}\n{said}")
    return digest(run)


@functools.cache
def engines_of_whole_policies() -> str:
    with temporary() as folder:
        return engine_of_its_own(folder)


@case
def vllm_two_ranks(folder):
    engines_of_whole_policies()


@case
def vllm_fsdp2_two_ranks(folder):
    """The weights of DDP: what was gathered for the engine is the policy; and after an interruption the same bits."""
    if (found := engine_of_its_own(folder, "trainer.strategy=fsdp2")) != engines_of_whole_policies():
        raise Wrong(f"weights {found}, not {engines_of_whole_policies()} as under DDP")
    with temporary() as other:
        for iterations in (1, 3):
            parts = ("trainer.strategy=fsdp2", f"hydra.run.dir={other}/run", f"trainer.max_iterations={iterations}")
            with Started(other, [((*TRAIN, *RUN, TWO, *ENGINE, *parts), {})]) as started:
                started.must_end()
        if (found := digest(other / "run")) != engines_of_whole_policies():
            raise Wrong(f"weights {found} after an interruption, not {engines_of_whole_policies()}")


@case
def vllm_torchrun_two_ranks(folder):
    """Both processes stay for the second job of a sweep, and so do their engines."""
    if importlib.util.find_spec("vllm") is None:
        raise Absent("vllm is not installed: benchmarks/vllm_environment.sh makes an environment that has it")
    options = torchrun("--nproc-per-node", "2", "--master-port", str(free_port()))
    # By their numbers: names of so many settings are cut, and then in no order.
    seeds = ("seed=0,1", "hydra.sweep.subdir=${hydra:job.num}")
    with Started(folder, [((*options, *TRAIN, "-m", *RUN, TWO, *ENGINE, *seeds), {})]) as started:
        started.must_end()
        said = started.output()
    runs = sorted(path.parent for path in folder.rglob("metrics.csv"))
    if len(runs) != 2 or digest(runs[0]) != engines_of_whole_policies() or "Traceback" in said:
        raise Wrong(f"runs in {runs}\n{said}")


@case
def one_process_a_node(folder):
    port = str(free_port())
    nodes = [
        ((*TRAIN, *RUN, *NODES), {"NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        for node in range(2)
    ]
    with Started(folder, nodes, ("node-a", "node-b")) as started:
        started.must_end()
    same(folder)


@case
def two_jobs_of_a_sweep(folder):
    with Started(folder, [((*TRAIN, "-m", *RUN, TWO, "seed=0,1"), {})]) as started:
        started.must_end()
    runs = sorted(path.parent for path in folder.rglob("metrics.csv"))
    if len(runs) != 2 or {run.parent for run in runs} != {runs[0].parent} or digest(runs[0]) != whole():
        raise Wrong(f"runs in {runs}")


@case
def two_jobs_of_a_sweep_under_torchrun(folder):
    options = torchrun("--nproc-per-node", "2", "--master-port", str(free_port()))
    with Started(folder, [((*options, *TRAIN, "-m", *RUN, TWO, "seed=0,1"), {})]) as started:
        started.must_end()
    runs = sorted(path.parent for path in folder.rglob("metrics.csv"))
    if len(runs) != 2 or digest(runs[0]) != whole():
        raise Wrong(f"runs in {runs}")


ALONE = (*SMALL_GRPO, *SHORT, "trainer.max_iterations=3")


@functools.cache
def alone() -> str:
    """The weights of a run of one rank, by itself."""
    with temporary() as folder, Started(folder, [((*TRAIN, *ALONE, "seed=0"), {})]) as started:
        started.must_end()
        return digest(run_folder(folder))


def sweep_of_four(folder: Path, *launcher: str) -> None:
    """Four jobs beside each other, one process each; the first gives the same weights as it would alone."""
    named = ("hydra.sweep.dir=sweep", "hydra.sweep.subdir='${seed}'")
    with Started(folder, [((*TRAIN, "-m", *ALONE, *launcher, "seed=0,1,2,3", *named), {})]) as started:
        started.must_end()
        said = started.output()
    runs = sorted(path.parent for path in folder.rglob("metrics.csv"))
    if len(runs) != 4 or {run.parent for run in runs} != {folder / "sweep"} or digest(runs[0]) != alone():
        raise Wrong(f"runs in {runs}\n{said}")
    if " of 4 jobs finished" not in said or "compare: edge-grpo-report runs=sweep" not in said:
        raise Wrong(said)


@case
def sweep_joblib(folder):
    sweep_of_four(folder, "hydra/launcher=side_by_side")


@case
def sweep_submitit_local(folder):
    sweep_of_four(folder, "hydra/launcher=submitit_local")


@case
def sweep_ray(folder):
    if not (importlib.util.find_spec("ray") and importlib.util.find_spec("hydra_plugins.hydra_ray_launcher")):
        raise Wrong("Ray is not installed: pip install 'edge-grpo[ray]'")
    sweep_of_four(folder, "hydra/launcher=ray", "+hydra.launcher.ray.remote.num_cpus=1")


@contextmanager
def long_run(folder: Path, rows: int, *commands: Command, hosts: Sequence[str] = ()):
    """A run that is at work, past so many iterations."""
    with Started(folder, commands, hosts) as started:
        deadline = time.monotonic() + LONGEST_S
        while not any(len(path.read_text().splitlines()) > rows for path in folder.rglob("metrics.csv")):
            if time.monotonic() > deadline or started.processes[0].poll() is not None:
                raise Wrong(f"it does not get to work\n{started.output()}")
            time.sleep(0.05)
        yield started


LONG = (*SMALL_GRPO, *SHORT, "trainer.strategy=ddp", "trainer.max_iterations=400")


@case
def a_rank_is_killed(folder):
    """The others end, and the run goes on to the same bits."""
    command = ((*TRAIN, *LONG, TWO), {})
    with long_run(folder, 2, command) as started:
        os.kill(started.of_rank(1), signal.SIGKILL)
        refused(started, "rank 1", "signal 9", within=ENDING_S)
    run = next(folder.rglob(".hydra")).parent
    done = len((run / "metrics.csv").read_text().splitlines())
    with Started(folder, [((*TRAIN, f"resume={run}", f"trainer.max_iterations={done + 2}"), {})]) as started:
        started.must_end()
    with temporary() as other, Started(other, [((*TRAIN, *LONG, TWO, f"trainer.max_iterations={done + 2}"), {})]) as st:
        st.must_end()
        if digest(run) != digest(run_folder(other)):
            raise Wrong("other weights after a kill")


@case
def a_task_of_another_node_is_killed(folder):
    port = free_port()
    tasks = [((*TRAIN, *LONG, *NODES), srun(task, port)) for task in range(2)]
    with long_run(folder, 1, *tasks, hosts=("node-a", "node-b")) as started:
        os.kill(started.of_rank(1), signal.SIGKILL)
        refused(started, "rank 1 on", within=ENDING_S)


@case
def rank_0_is_killed(folder):
    port = free_port()
    tasks = [((*TRAIN, *LONG, *NODES), srun(task, port)) for task in range(2)]
    with long_run(folder, 1, *tasks) as started:
        os.kill(started.of_rank(0), signal.SIGKILL)
        refused(started, "rank 0 is gone", within=ENDING_S)


@case
def sigterm_ends_all(folder):
    with long_run(folder, 1, ((*TRAIN, *LONG, TWO), {})) as started:
        started.processes[0].terminate()
        started.must_end(143, ENDING_S)
    if not any(folder.rglob("iteration-*")):
        raise Wrong("no checkpoint")


@case
def a_launcher_starts_too_few(folder):
    options = torchrun("--nproc-per-node", "1", "--master-port", str(free_port()))
    with Started(folder, [((*options, *TRAIN, *RUN, TWO), {})]) as started:
        refused(started, "make 2 ranks, but torchrun has started 1")


@case
def a_node_without_the_disk(folder):
    if not _can_rename():
        raise Wrong("cannot be simulated: unshare is not permitted")
    port, disk = free_port(), folder / "disk"
    disk.mkdir()
    settings = (*TRAIN, *RUN, *NODES, f"hydra.run.dir={disk}/run")
    mount = f"os.system('mount -t tmpfs none {disk}')"
    local = f"import os, sys; {mount}; os.execv(sys.executable, sys.orig_argv[:1] + sys.argv[1:])"
    tasks = [(settings, srun(0, port)), (("-c", local, *settings), srun(1, port))]
    with Started(folder, tasks, ("node-a", "node-b")) as started:
        refused(started, "rank 1 on node-b", "hydra.run.dir")


@case
def another_number_of_ranks_resumes(folder):
    with Started(folder, [((*TRAIN, *RUN, TWO, f"hydra.run.dir={folder}/run"), {})]) as started:
        started.must_end()
    more = ("trainer.devices=auto", "trainer.max_iterations=5")  # one, on a CPU
    with Started(folder, [((*TRAIN, f"resume={folder}/run", *more), {})]) as started:
        refused(started, "was trained by 2 ranks, and here are 1")


@case
def other_packages_on_a_rank(folder):
    """A rank that finds another version of wandb."""
    port, site = free_port(), folder / "site"
    metadata = site / "wandb-0.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 0.1\n")
    tasks = [((*TRAIN, *RUN, *NODES), srun(task, port)) for task in range(2)]
    tasks[1][1]["PYTHONPATH"] = f"{site}:{REPO}"
    with Started(folder, tasks) as started:
        refused(started, "rank 1 on", "packages: wandb is 0.1, here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    chosen = {name: run for name, run in CASES.items() if parser.parse_args().only in name}
    good = skipped = 0
    for name, run in chosen.items():
        began, told = time.monotonic(), "ok"
        try:
            with temporary() as folder:
                run(folder)
            good += 1
        except Absent as error:
            skipped += 1
            told = f"skipped: {error}"
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        print(f"{name:36s} {time.monotonic() - began:5.0f} s  {told}", flush=True)
    if skipped:
        print(f"{skipped} cases skipped, which count neither way")
    print(f"cluster={len(chosen) - skipped} ok={good}")
    raise SystemExit(good + skipped != len(chosen))


if __name__ == "__main__":
    main()
