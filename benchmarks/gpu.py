"""Everything that wants a GPU, in at most eight minutes: `make gpu`.

    python benchmarks/gpu.py [--cpu] [--only layouts,engines] [--minutes 8]

For a machine with one GPU and no network. Each step is a process of its own with a time limit; it prints `ok`, or why
not, and the last line of its output. What needs a package that is not installed is skipped and not counted.

    layouts            log-probs, entropies and gradients of flat tokens (varlen, trees) against padded rows
    engines            greedy tokens and log-probs of native, transformers and vLLM rollouts
    offload            steps of optimizer=adamw_offload against AdamW's
    four_bit           the embedded model in 4 bits: engines, logits and gradients against what it exports
    run_*              two iterations of the embedded model with each engine, peak memory beside the plan's
    plan               the same of a larger random model, whose peak has to be within 30 % of the plan's
    rollout, iteration, update_memory   `--gpu` of those benchmarks: a random Qwen2.5-1.5B, bfloat16

`--cpu` rehearses every step at a tiny size on the CPU, so that the script is known to work; its figures mean nothing.
Without CUDA and without `--cpu` nothing runs and the status is 2; it is 1 where a step failed.
The last line is `gpu=N ok=N`. Written without a GPU at hand: only rehearsals of its steps have run.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
LARGER = (
    *("model=tiny_random", "model.hidden_size=1024", "model.num_layers=8", "model.num_heads=16"),
    *("model.num_kv_heads=4", "model.intermediate_size=4096"),
)


def steps(*, cpu: bool) -> dict[str, tuple[list[str], int]]:
    """Name -> (command, seconds it may take)."""
    python, trainer = sys.executable, "trainer=cpu" if cpu else "trainer=gpu"
    rehearse = ["--rehearse"] if cpu else []

    def planned(*settings: str) -> list[str]:
        return [python, str(HERE / "plan.py"), trainer, *settings]

    made = {
        "layouts": ([python, str(HERE / "on_gpu.py"), "layouts", *rehearse], 60),
        "engines": ([python, str(HERE / "on_gpu.py"), "engines", *rehearse], 90),
        "offload": ([python, str(HERE / "on_gpu.py"), "offload", *rehearse], 60),
        "four_bit": ([python, str(HERE / "on_gpu.py"), "four_bit", *rehearse], 60),
        "run_native": (planned("model=tiny", "rollout=native"), 60),
        "run_hf": (planned("model=tiny", "rollout=hf"), 60),
        "run_vllm": (planned("model=tiny", "rollout=vllm", "rollout.kv_cache_gb=0.25"), 120),
        "run_offload": (planned("model=tiny", "optimizer=adamw_offload"), 60),
        "run_four_bit": (
            planned("model=tiny", "model.load_in_4bit=true", "model.lora.r=8", "model.dtype=bfloat16"),
            60,
        ),
        "plan": (planned("model=tiny_random") if cpu else planned(*LARGER), 60),
    }
    for name, limit in (("update_memory", 60), ("rollout", 150), ("iteration", 150)):
        made[name] = ([python, str(HERE / f"{name}.py"), "--gpu", *rehearse], limit)
    left_out = set() if find_spec("vllm") else {"run_vllm"}
    left_out |= set() if find_spec("bitsandbytes") and find_spec("peft") else {"four_bit", "run_four_bit"}
    left_out |= {"run_four_bit"} if cpu else set()  # a run refuses it there
    return {name: step for name, step in made.items() if name not in left_out}


def run(command: list[str], seconds: float) -> tuple[bool, str]:
    """Whether it ended well in time, and the last line that it printed."""
    # A session of its own, so that what it has started ends with it and leaves the card.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False, f"not done in {seconds:.0f} s"
    lines = output.strip().splitlines() or [""]
    return process.returncode == 0, lines[-1].strip()


def judged(name: str, ok: bool, line: str, *, cpu: bool) -> tuple[bool, str]:
    """The plan of the larger model has to be right, too; a process on a CPU is mostly Python."""
    ratio = re.search(r"ratio=([\d.]+)", line)
    if name != "plan" or not ok or cpu or ratio is None:
        return ok, line
    return 0.7 < float(ratio[1]) < 1.3, line


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cpu", action="store_true", help="rehearse at a tiny size on the CPU")
    options.add_argument("--only", default="", help="names of steps, with commas")
    options.add_argument("--minutes", type=float, default=8.0, help="for all of them")
    args = options.parse_args()
    import torch

    if not args.cpu and not torch.cuda.is_available():
        print("torch sees no GPU: nothing was run (--cpu rehearses the steps)")
        return 2
    todo, deadline, good = steps(cpu=args.cpu), time.monotonic() + 60 * args.minutes, 0
    if args.only:
        todo = {name: todo[name] for name in args.only.split(",")}
    for package in ("vllm", "bitsandbytes"):
        if not find_spec(package):
            print(f"{package} is not installed: its steps are left out")
    for name, (command, limit) in todo.items():
        start = time.monotonic()
        left = deadline - start
        ok, line = run(command, min(limit * (5 if args.cpu else 1), left)) if left > 1 else (False, "no time was left")
        ok, line = judged(name, ok, line, cpu=args.cpu)
        good += ok
        print(f"{name:14} {'ok' if ok else 'FAILED':7} {time.monotonic() - start:5.0f} s  {line}", flush=True)
    print(f"gpu={len(todo)} ok={good}")
    return 0 if good == len(todo) else 1


if __name__ == "__main__":
    sys.exit(main())
