"""The native rollout engine against transformers' `generate`.

    python benchmarks/rollout.py [--quick] [--dtype bfloat16] [--size 30M] [--rounds 3]

256 responses (32 prompts x 8), prompts of 40 tokens, sampled at temperature 1: 64 tokens each, 256 each, and geometric
lengths up to 256. `generate` runs with its defaults (sdpa attention, growing cache), stops each row at its length and
the batch when its longest row has ended; only the wanted tokens are counted. The last line holds, for each shape, the
smallest ratio over the model sizes.
"""

import torch
from common import (
    LONGEST,
    PROMPT_TOKENS,
    SIZES,
    EndlessTokenizer,
    alternate,
    lengths,
    median,
    parser,
    prompts,
    qwen2,
    report,
)
from transformers import Qwen2ForCausalLM, StoppingCriteria, StoppingCriteriaList

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
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    groups, rounds = (16, 1) if args.quick else (32, args.rounds)
    sizes = [args.size] if args.size else ["3M"] if args.quick else list(SIZES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, ratios = [], {}
    for size in sizes:
        model = qwen2(size, getattr(torch, args.dtype)).eval().to(device)
        policy = Policy(model, EndlessTokenizer())
        engine = NativeRollout(LONGEST, 1.0, 1.0, 0, 0.0, (), None)
        prefixes = [p for p in prompts(groups, SIZES[size]["vocab_size"]) for _ in range(8)]

        def native(wanted: list[int], policy=policy, engine=engine, prefixes=prefixes) -> None:
            made = engine.generate(policy, prefixes, wanted, engine.sampling, torch.Generator().manual_seed(0))
            assert [len(response) for response in made] == wanted

        native([4] * len(prefixes))  # warm-up
        for shape in ("64", "256", "geometric"):
            wanted = lengths(shape, len(prefixes))
            seconds = alternate(
                {
                    "generate": lambda wanted=wanted, model=model, prefixes=prefixes: generate(model, prefixes, wanted),
                    "native": lambda wanted=wanted, native=native: native(wanted),
                },
                rounds,
            )
            ratio = median([g / n for g, n in zip(seconds["generate"], seconds["native"], strict=True)])
            ratios.setdefault(f"ratio_{shape}", []).append(ratio)
            rows.append(
                {
                    "model": size,
                    "dtype": args.dtype,
                    "lengths": shape,
                    "responses": len(prefixes),
                    "tokens": sum(wanted),
                    "generate tokens/s": sum(wanted) / median(seconds["generate"]),
                    "native tokens/s": sum(wanted) / median(seconds["native"]),
                    "ratio": ratio,
                }
            )
    report("rollout", rows, {name: min(values) for name, values in ratios.items()}, args.json)


if __name__ == "__main__":
    main()
