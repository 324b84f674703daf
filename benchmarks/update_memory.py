"""Peak memory and time of log-probs + entropy + backward through a large head.

    pip install -e '.[benchmark]'
    python benchmarks/update_memory.py [--quick] [--rounds 3] [--chunk-tokens 512]

Vocabulary 151,936, hidden 1,536, 2,048 tokens, float32 (`--quick`: 256 tokens, "later" only). Every measurement is a
process of its own. What counts is the peak above what the model itself has: the weight, and its gradient, which exists
from the second micro-batch on ("later"); for the first one ("first") the gradient has to be made and is counted.

    naive        log_softmax of all logits
    TRL logits   TRL 1.16's selective_log_softmax_and_entropy on all logits
    TRL fused    TRL 1.16's ChunkedLogProbFunction, which its GRPOTrainer uses
    ours         `policy.head.Head`

The last line compares with TRL fused; the `_logits` figures with TRL logits.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import on_gpu
import torch
from common import median, parser, report
from torch import Tensor

from edge_grpo.policy.head import Head

VOCABULARY, HIDDEN = 151_936, 1_536
WAYS = ("naive", "TRL logits", "TRL fused", "ours")


def _naive(states: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    logp = torch.log_softmax(states @ weight.T, -1)
    with torch.no_grad():
        -(logp.exp() * logp).sum(-1)
    return logp.gather(-1, ids[:, None]).squeeze(-1)


def _trl_logits(states: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    from trl.trainer.utils import selective_log_softmax_and_entropy

    return selective_log_softmax_and_entropy(states @ weight.T, ids, entropy_requires_grad=False)[0]


def _trl_fused(states: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    tile = 32_768  # as its trainer.utils passes
    return ChunkedLogProbFunction.apply(states, weight, None, ids, 1.0, tile, None, 1.0, ("entropy",))[0]


def _ours(states: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    head = Head(weight, None, multiplier=1.0, softcap=None, temperature=1.0, chunk_tokens=chunk)
    return head(states, ids, entropy_grad=False, in_place=True)[0]


RUN: dict[str, Callable[..., Tensor]] = dict(zip(WAYS, (_naive, _trl_logits, _trl_fused, _ours), strict=True))


def measure(way: str, tokens: int, chunk: int, later: bool) -> dict[str, float]:
    """In a process of its own: seconds, peak GB above the model's own, and a checksum."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).div_(30).requires_grad_()
    states = torch.randn(tokens, HIDDEN, generator=generator).requires_grad_()
    ids = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    RUN[way](states[:8], weight[:64].detach(), ids[:8] % 64, chunk)  # imports
    if later:
        weight.grad = torch.zeros_like(weight)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    start = time.perf_counter()
    logprobs = RUN[way](states, weight, ids, chunk)
    logprobs.sum().backward()
    seconds = time.perf_counter() - start
    peak = (_status("VmHWM") - before) * 1024 / 1e9
    assert weight.grad is not None
    return {
        "seconds": seconds,
        "gb": peak,
        "sum": float(logprobs.detach().double().sum()),
        "grad": float(weight.grad.double().norm()),
    }


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def _spawn(way: str, args: argparse.Namespace, tokens: int, later: bool) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--way",
        way,
        "--tokens",
        str(tokens),
        "--chunk-tokens",
        str(args.chunk_tokens),
    ]
    out = subprocess.run([*command, *(["--later"] if later else [])], check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--chunk-tokens", type=int, default=512)
    options.add_argument("--tokens", type=int)
    options.add_argument("--way", choices=WAYS, help="measure in this process and print JSON")
    options.add_argument("--later", action="store_true")
    args = options.parse_args()
    if args.gpu:
        on_gpu.update_memory(on_gpu.Setting(rehearse=args.rehearse), RUN, args.json)
        return
    tokens = args.tokens or (256 if args.quick else 2048)
    if args.way:
        print(json.dumps(measure(args.way, tokens, args.chunk_tokens, args.later)))
        return
    ways = WAYS[2:] if args.quick else WAYS
    states = (True,) if args.quick else (True, False)
    found: dict[tuple[str, bool], list[dict[str, float]]] = {}
    for _ in range(1 if args.quick else args.rounds):
        for later in states:
            for way in ways:
                found.setdefault((way, later), []).append(_spawn(way, args, tokens, later))
    figure = {key: {name: median([run[name] for run in runs]) for name in runs[0]} for key, runs in found.items()}
    rows = [
        {
            "way": way,
            "tokens": tokens,
            **{
                f"{name} {'later' if later else 'first'}": figure[way, later][key]
                for later in states
                for name, key in (("GB", "gb"), ("s", "seconds"))
            },
            "sum of log-probs": figure[way, True]["sum"],
            "norm of gradient": figure[way, True]["grad"],
        }
        for way in ways
    ]
    result = {}
    for suffix, peer in (("", "TRL fused"), ("_logits", "TRL logits")):
        if peer in ways:
            result[f"memory_ratio{suffix}"] = figure[peer, True]["gb"] / figure["ours", True]["gb"]
            result[f"time_ratio{suffix}"] = figure[peer, True]["seconds"] / figure["ours", True]["seconds"]
            if False in states:
                result[f"memory_ratio_first{suffix}"] = figure[peer, False]["gb"] / figure["ours", False]["gb"]
    report("update_memory", rows, result, args.json)


if __name__ == "__main__":
    main()
