"""Cost per token of rollout and update as responses a prompt (G), response length (T) and prompts (P) double.

    python benchmarks/scaling.py [--quick] [--size 30M]

No peer: the column `per token` is the time per response token over that of the first row of its sweep, so 1 is linear,
and `doubling` in the last line is the largest factor by which a doubling changes it.
"""

import time
from typing import Any

import torch
from common import SIZES, EndlessTokenizer, median, parser, prompts, qwen2, report

from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.corrections.base import UNIFORM_WEIGHT
from edge_grpo.losses.base import UpdateSize
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.policy.base import Policy
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.rollouts.native import NativeRollout
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import Rollout
from edge_grpo.types.update import Step


def run(policy: Policy, p: int, g: int, t: int) -> tuple[float, float]:
    """Seconds of rollout and of update (log-probs, loss, backward)."""
    rows = prompts(p, policy.model.config.vocab_size)
    engine = NativeRollout(t, 1.0, 1.0, 0, 0.0, (), None)
    start = time.perf_counter()
    prefixes = [row for row in rows for _ in range(g)]
    responses = engine.generate(policy, prefixes, [t] * (p * g), engine.sampling, torch.Generator().manual_seed(0))
    rolled = time.perf_counter() - start
    problems = tuple(Problem(str(i), "?", ("1",), prompt_ids=row) for i, row in enumerate(rows))
    rollout = Rollout(problems, tuple(responses), g)
    batch = to_update_batch(rollout, range(p * g), token_weight=UNIFORM_WEIGHT, pad_id=0, device=torch.device("cpu"))
    start = time.perf_counter()
    update = GRPOUpdate(
        model=policy.model,
        reference=None,
        batch=batch,
        rewards=torch.arange(p * g).remainder(2).float(),
        computed=torch.arange(p * g),
        advantage=Vanilla(1e-4),
        loss=ClippedLoss(
            aggregation="grpo", epsilon_low=0.2, epsilon_high=0.2, beta=0.0, kl="k3", max_response_tokens=t
        ),
        num_generations=g,
        forward=MicrobatchForward(1.0, microbatch_tokens=4096, chunk_tokens=512, packing=True),
    )
    update.prepare()

    def backward(microbatch_losses: Any) -> Step:
        for microbatch_loss in microbatch_losses:
            microbatch_loss().backward()
        return Step(0.0, 0.0)

    update.run(1, [UpdateSize(*size) for size in update.sizes()], backward)
    return rolled, time.perf_counter() - start


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=list(SIZES), default="3M")
    args = options.parse_args()
    policy = Policy(qwen2(args.size, torch.float32), EndlessTokenizer())
    doublings = 1 if args.quick else 3
    base = {"prompts": 8, "G": 8, "T": 64}
    rows: list[dict[str, Any]] = []
    worst = {"rollout": 0.0, "update": 0.0}
    run(policy, *base.values())
    for swept in base:
        previous: tuple[float, float] | None = None
        first: tuple[float, float] | None = None
        for doubling in range(doublings + 1):
            shape = base | {swept: base[swept] * 2**doubling}
            tokens = shape["prompts"] * shape["G"] * shape["T"]
            rounds = [run(policy, shape["prompts"], shape["G"], shape["T"]) for _ in range(1 if args.quick else 3)]
            cost = (median([r for r, _ in rounds]) / tokens, median([u for _, u in rounds]) / tokens)
            first = first or cost
            for i, stage in enumerate(worst):
                if previous:
                    worst[stage] = max(worst[stage], cost[i] / previous[i])
            previous = cost
            rows.append(
                {
                    "swept": swept,
                    **shape,
                    "rollout tokens/s": 1 / cost[0],
                    "per token (rollout)": cost[0] / first[0],
                    "update tokens/s": 1 / cost[1],
                    "per token (update)": cost[1] / first[1],
                }
            )
    report("scaling", rows, {f"doubling_{stage}": value for stage, value in worst.items()}, args.json)


if __name__ == "__main__":
    main()
