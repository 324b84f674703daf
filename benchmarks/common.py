"""What the benchmarks share: models, lengths, alternation, and the report."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
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
    config = Qwen2Config(
        **SIZES[size], max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, pad_token_id=0
    )
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


def alternate(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, run in turn (A B A B ...)."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: list[float]) -> float:
    return statistics.median(values)


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small shapes, under 50 s")
    made.add_argument("--json", type=Path, help="file for the figures; default outputs/benchmarks/<name>.json")
    return made


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
