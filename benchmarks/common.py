"""What the benchmarks share: models, lengths, alternation, and the report."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

SIZES: dict[str, dict[str, Any]] = {
    "3M": {
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "vocab_size": 100,
    },
    "30M": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1408,
        "vocab_size": 8192,
    },
}
PROMPT_TOKENS = 40
LONGEST = 256


def qwen2(size: str, dtype: torch.dtype) -> Qwen2ForCausalLM:
    """A randomly initialised model that `generate` decodes without an EOS."""
    fixed = {"max_position_embeddings": 1024, "tie_word_embeddings": True, "bos_token_id": None, "pad_token_id": 0}
    config = Qwen2Config(**(fixed | SIZES[size]))
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(dtype)
    model.generation_config.eos_token_id = None
    return model


class EndlessTokenizer:
    """Only what `Policy` asks of one; no token is EOS, so that lengths are as wanted."""

    eos_token_id = -1
    pad_token_id = 0

    def __len__(self) -> int:
        return 1


def prompts(n: int, vocab_size: int) -> list[tuple[int, ...]]:
    """n different prompts of PROMPT_TOKENS tokens."""
    generator = torch.Generator().manual_seed(1)
    return [tuple(row) for row in torch.randint(3, vocab_size, (n, PROMPT_TOKENS), generator=generator).tolist()]


def lengths(shape: str, n: int) -> list[int]:
    """Response lengths: "64", "256", or "geometric" with mean 64, cut at 256 and reaching it."""
    if shape != "geometric":
        return [int(shape)] * n
    u = torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = (torch.log1p(-u) / torch.log(torch.tensor(1 - 1 / 64))).ceil().clamp(1, LONGEST).int().tolist()
    return [LONGEST, *drawn[1:]]


class Clock:
    """Seconds of the wall, or of this process's processor time, which a busy neighbour disturbs less."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[name]


def alternate(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Seconds of each way, run in turn (A B A B ...); a way that returns a float has measured them itself."""
    now = (clock or Clock("wall")).now
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = now()
            own = way()
            seconds[name].append(own if isinstance(own, float) else now() - start)
    return seconds


@torch.no_grad()
def matrix_products(model: Any, prompts: Sequence[Sequence[int]], wanted: Sequence[int]) -> None:
    """What of a rollout is linear layers, and nothing else: the floor of its time.

    One prefill of each different prompt, and for each further token a product of every layer with as many rows as live.
    """
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    head = model.get_output_embeddings()
    different = {tuple(prompt) for prompt in prompts}
    first, steps = sum(map(len, different)), [sum(n > t for n in wanted) for t in range(1, max(wanted))]
    inputs = {n: torch.zeros(max(first, *steps, 1), n) for n in {layer.in_features for layer in layers}}
    for rows in (first, *steps):
        for layer in layers:
            x = inputs[layer.in_features][: len(different) if layer is head and rows == first else rows]
            layer(x.to(layer.weight.dtype))


class VllmPeer:
    """vLLM in a process of its own, kept for all rounds.

    Args:
        python: of an environment with vLLM (`vllm_environment.sh`).
        model: whose config and weights it gets.
        longest: prompt and response, in tokens.
        clock: which of its seconds are returned.
    """

    def __init__(self, python: str, model: Any, longest: int, clock: Clock) -> None:
        self.clock, self.folder = clock, tempfile.TemporaryDirectory()
        model.save_pretrained(self.folder.name)
        # Without this repository's path: its packages are of another environment.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        worker = Path(__file__).with_name("vllm_worker.py")
        self.process = subprocess.Popen(
            [python, str(worker), self.folder.name, str(longest)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, prompts: Sequence[Sequence[int]], wanted: Sequence[int]) -> float:
        """Seconds of one generation."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = json.dumps({"prompts": [*map(list, prompts)], "budgets": list(wanted)})
        print(asked, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"vLLM has ended with {self.process.wait()}; its messages are above")
        return float(json.loads(answer)[self.clock.name])

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.folder.cleanup()


def median(values: list[float]) -> float:
    return statistics.median(values)


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small shapes, under 50 s")
    made.add_argument("--gpu", action="store_true", help="a random Qwen2.5-1.5B in bfloat16 on a GPU (see gpu.py)")
    made.add_argument("--rehearse", action="store_true", help="with --gpu: the same at a tiny size on the CPU")
    made.add_argument("--json", type=Path, help="file for the figures; default outputs/benchmarks/<name>.json")
    return made


def rollout_options(options: argparse.ArgumentParser) -> None:
    """What `rollout.py` and `iteration.py` share."""
    options.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM, to run it beside")
    options.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="what all times here are of")


def machine() -> dict[str, Any]:
    """Where and when; the load tells whether a neighbour disturbed the run."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def report(name: str, rows: list[dict[str, Any]], result: Mapping[str, float], path: Path | None) -> None:
    """Print the rows as a table, write everything as JSON, and print the result as the last line."""
    where = machine()
    print("  ".join(f"{key}={value}" for key, value in where.items()))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    path = path or Path("outputs") / "benchmarks" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": where, "rows": rows, "result": dict(result)}, indent=2) + "\n")
    print(
        " ".join(
            f"{key}={value:.2f}" if isinstance(value, float) else f"{key}={value}" for key, value in result.items()
        )
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
