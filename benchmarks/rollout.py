"""The native rollout engine against transformers' `generate`.

    python benchmarks/rollout.py [--quick] [--dtype bfloat16] [--size 30M] [--rounds 3] [--clock cpu]

256 responses (32 prompts x 8), prompts of 40 tokens, sampled at temperature 1: 64 tokens each, 256 each, and geometric
lengths up to 256. `generate` runs with its defaults (sdpa attention, growing cache), stops each row at its length and
the batch when its longest row has ended; only the wanted tokens are counted. The last line holds, for each shape, the
smallest ratio over the model sizes.

`floor_share` is our tokens/s over those of the linear layers' products alone (`F.linear` on as many rows as live in
each step; no attention, nothing else), `ratio_vllm` our tokens/s over vLLM's on the same model, prompts and lengths, in
float32; both the smallest over shapes and sizes:

    bash benchmarks/vllm_environment.sh FOLDER
    OMP_NUM_THREADS=1 python benchmarks/rollout.py --vllm FOLDER/bin/python --model DIR --groups 8 --lengths 48
"""

from functools import partial
from pathlib import Path
from typing import Any

import on_gpu
import torch
from common import (
    LONGEST,
    PROMPT_TOKENS,
    SIZES,
    Clock,
    EndlessTokenizer,
    VllmPeer,
    alternate,
    lengths,
    matrix_products,
    median,
    parser,
    prompts,
    qwen2,
    report,
    rollout_options,
)
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM, StoppingCriteria, StoppingCriteriaList

from edge_grpo.policy.base import Policy
from edge_grpo.rollouts.native import NativeRollout


class _Lengths(StoppingCriteria):
    def __init__(self, wanted: list[int]) -> None:
        self.wanted = torch.tensor(wanted)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return input_ids.shape[1] - PROMPT_TOKENS >= self.wanted.to(input_ids.device)


def generate(model: Qwen2ForCausalLM, rows: list[tuple[int, ...]], wanted: list[int]) -> None:
    ids = torch.tensor(rows, device=model.device)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(wanted),
        stopping_criteria=StoppingCriteriaList([_Lengths(wanted)]),
        pad_token_id=0,
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--size", choices=list(SIZES), help="one model size only")
    options.add_argument("--model", type=Path, help="folder of a model, in place of the random ones")
    options.add_argument("--groups", type=int, help="of 8 rows; 32, with --quick 16")
    options.add_argument("--lengths", nargs="+", default=["64", "256", "geometric"])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--skip-generate", action="store_true", help="native and its floor alone")
    rollout_options(options)
    args = options.parse_args()
    if args.gpu:
        on_gpu.rollout(on_gpu.Setting(rehearse=args.rehearse), generate, args.json)
        return
    groups, rounds = args.groups or (16 if args.quick else 32), 1 if args.quick else args.rounds
    sizes = [str(args.model)] if args.model else [args.size] if args.size else ["3M"] if args.quick else list(SIZES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock, rows, ratios = Clock(args.clock), [], {}
    for size in sizes:
        made = qwen2(size, getattr(torch, args.dtype)) if args.model is None else _loaded(args.model, args.dtype)
        model = made.eval().to(device)
        policy = Policy(model, EndlessTokenizer())
        engine = NativeRollout(LONGEST, 1.0, 1.0, 0, 0.0, (), None)
        prefixes = [p for p in prompts(groups, model.config.vocab_size) for _ in range(8)]
        peer = VllmPeer(args.vllm, model, PROMPT_TOKENS + LONGEST, clock) if args.vllm else None

        def native(wanted: list[int], policy=policy, engine=engine, prefixes=prefixes) -> None:
            made = engine.generate(policy, prefixes, wanted, engine.sampling, torch.Generator().manual_seed(0))
            assert [len(response) for response in made] == wanted

        native([4] * len(prefixes))  # warm-up
        if peer is not None:
            peer(prefixes, [4] * len(prefixes))
        for shape in args.lengths:
            wanted = lengths(shape, len(prefixes))
            ways = {
                "native": partial(native, wanted),
                "floor": partial(matrix_products, model, prefixes, wanted),
            }
            if not args.skip_generate:
                ways["generate"] = partial(generate, model, prefixes, wanted)
            if peer is not None:
                ways["vllm"] = partial(peer, prefixes, wanted)
            seconds = alternate(ways, rounds, clock)
            found = {
                name: median([other / ours for other, ours in zip(seconds[way], seconds["native"], strict=True)])
                for name, way in (("ratio", "generate"), ("floor_share", "floor"), ("ratio_vllm", "vllm"))
                if way in seconds
            }
            for name, value in found.items():
                ratios.setdefault(f"ratio_{shape}" if name == "ratio" else name, []).append(value)
            speeds = {f"{way} tokens/s": sum(wanted) / median(taken) for way, taken in seconds.items()}
            shapes = {"lengths": shape, "responses": len(prefixes), "tokens": sum(wanted)}
            rows.append({"model": Path(size).name, "dtype": args.dtype, **shapes, **speeds, **found})
        if peer is not None:
            peer.close()
    report("rollout", rows, {name: min(values) for name, values in ratios.items()}, args.json)


def _loaded(folder: Path, dtype: str) -> Any:
    """A model that `generate` decodes without an EOS."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    return model


if __name__ == "__main__":
    main()
