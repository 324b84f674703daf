"""A whole GRPO iteration against TRL's GRPOTrainer, and the cost of a GEC iteration over a vanilla one.

    pip install -e '.[benchmark]'
    python benchmarks/iteration.py [--quick] [--size 30M] [--rounds 3] [--peer-batch 32] [--peer-bf16]

Both train the same randomly initialised model on the same prompts (32 x 8) with the same reward, AdamW and loss
(grpo, beta 0), responses of 64 tokens each or of geometric lengths up to 256. TRL generates with transformers and
cuts its update into micro-batches of `--peer-batch` rows without gradient checkpointing; its log-probs come from
its own fused head. A round trains each for three iterations, the first of which is not counted; the ratio is TRL's
time over ours, the smallest over the model sizes in the last line. `gec_per_token` is the time of an iteration with
guided error correction over one without, each divided by the response tokens that it trained on.

`floor_share` and `ratio_vllm` are of the rollout stage, see `rollout.py`.
"""

import itertools
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "WANDB_MODE": "offline"}

import on_gpu
import pytorch_lightning as pl
import torch
from common import (
    LONGEST,
    PROMPT_TOKENS,
    SIZES,
    Clock,
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
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from edge_grpo.advantages.vanilla import Vanilla
from edge_grpo.algorithms.grpo import GRPOModule
from edge_grpo.allocations.uniform import Uniform
from edge_grpo.corrections.guided import GuidedCorrection
from edge_grpo.corrections.keep import Keep
from edge_grpo.group_filters.keep_all import KeepAll
from edge_grpo.importance_corrections.uncorrected import Uncorrected
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.policy.base import Policy
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rollouts import native
from edge_grpo.token_filters.keep_all import KeepAllTokens
from edge_grpo.types.problems import Problem, ProblemBatch

G = 8
LEARNING_RATE = 1e-6


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One token a word `t<id>`; the last one is EOS."""
    words = {f"t{i}": i for i in range(vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="t0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=f"t{vocab_size - 1}", pad_token="t0")


def reward(texts: Sequence[str]) -> list[float]:
    """Half of all responses are right, by a hash that both sides compute."""
    return [float(sum(map(ord, text)) % 2) for text in texts]


# --- ours ----------------------------------------------------------------------------------------------------------


class WantedLengths(native.NativeRollout):
    """Row i of a rollout gets exactly `wanted[i]` tokens; reflections keep their budgets."""

    wanted: list[int]
    clock: Clock
    seconds = 0.0

    def generate(self, policy: Any, prefixes: Any, budgets: Any, sampling: Any, generator: Any) -> Any:
        start = self.clock.now()
        whole = len(prefixes) == len(self.wanted) and set(budgets) == {self.max_new_tokens}
        made = super().generate(policy, prefixes, self.wanted if whole else budgets, sampling, generator)
        self.seconds += self.clock.now() - start
        return made


class Parity:
    """`reward` as an accuracy reward."""

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tensor:
        return torch.tensor(reward(texts))


class Problems(pl.LightningDataModule):
    """The same problems in every iteration."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__()
        self.problems = problems

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            [ProblemBatch(self.problems, lambda i: self.problems[i % len(self.problems)])],
            batch_size=None,
        )


class Stopwatch(pl.Callback):
    """Seconds and trained tokens of every iteration."""

    def __init__(self, clock: Clock) -> None:
        self.now, self.start = clock.now, 0.0
        self.seconds: list[float] = []
        self.rollouts: list[float] = []
        self.stages: list[dict[str, float]] = []
        self.tokens: list[float] = []
        self.engine: WantedLengths

    def on_train_batch_start(self, *_: Any) -> None:
        self.start, self.engine.seconds = self.now(), 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seconds.append(self.now() - self.start)
        self.rollouts.append(self.engine.seconds)
        self.stages.append(dict(pl_module.metrics))
        self.tokens.append(pl_module.metrics["train/num_tokens"])


def ours(
    size: str,
    rows: list[tuple[int, ...]],
    wanted: list[int],
    iterations: int,
    clock: Clock,
    *,
    gec: bool = False,
    accelerator: str = "cpu",
    precision: str = "32-true",
    microbatch_tokens: int = 4096,
    chunk_tokens: int = 512,
) -> Stopwatch:
    # No token ends a row.
    native.Ends = lambda policy, stops: lambda tokens, rows, counts: torch.zeros_like(rows, dtype=torch.bool)
    policy = Policy(qwen2(size, torch.float32), tokenizer(SIZES[size]["vocab_size"]))
    engine = WantedLengths(max(wanted), 1.0, 1.0, 0, 0.0, (), None)
    engine.wanted, engine.clock = wanted, clock
    reference = tuple(rows[0][i % len(rows[0])] for i in range(64))
    problems = [
        Problem(str(i), "?", ("t7",), "?", prompt_ids=row, solution_ids=reference) for i, row in enumerate(rows)
    ]
    guided = GuidedCorrection(
        {"reflect": 0.5, "answer": 0.25, "solution": 0.25},
        " t8 t9 t10 t11 t12",
        " t8 t9 t10 {answer}",
        "every_wrong",
        64,
        None,
        True,
        {"sampled": 1.0, "injected": 1.0, "reference": 1.0},
    )
    module = GRPOModule(
        allocation=Uniform(),
        correction=guided if gec else Keep(),
        group_filter=KeepAll(),
        advantage=Vanilla(1e-4),
        loss=ClippedLoss(
            aggregation="grpo", epsilon_low=0.2, epsilon_high=0.2, beta=0.0, kl="k3", max_response_tokens=LONGEST
        ),
        token_filter=KeepAllTokens(),
        importance_correction=Uncorrected(),
        num_generations=G,
        update_epochs=1,
        minibatch_rows=None,
        mask_truncated=False,
        balance_batch=False,
        rollout=engine,
        rewards=WeightedRewards({"accuracy": Parity()}, {"accuracy": 1.0}),
        optimizer=partial(torch.optim.AdamW, lr=LEARNING_RATE),
        scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        max_grad_norm=1.0,
        microbatch_tokens=microbatch_tokens,
        chunk_tokens=chunk_tokens,
        packing=True,
        seed=0,
    )
    module.adopt(policy)
    watch = Stopwatch(clock)
    watch.engine = engine
    trainer = pl.Trainer(
        accelerator=accelerator,
        precision=precision,
        devices=1,
        max_epochs=iterations,
        limit_val_batches=0,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Problems(problems))
    return watch


# --- TRL -----------------------------------------------------------------------------------------------------------


class ForcedLengths(LogitsProcessor):
    """EOS exactly at each row's length, never before."""

    def __init__(self, wanted: list[int], eos: int, prompt: int) -> None:
        self.wanted, self.eos, self.prompt = torch.tensor(wanted), eos, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        last = self.wanted == input_ids.shape[1] - self.prompt + 1
        ended = scores[:, self.eos].clone()
        scores[:, self.eos] = -torch.inf
        scores[last] = -torch.inf
        scores[last, self.eos] = ended[last]
        return scores


def trl(
    size: str, rows: list[tuple[int, ...]], wanted: list[int], iterations: int, batch: int, bf16: bool, clock: Clock
) -> list[float]:
    """Seconds of every iteration."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    vocab_size = SIZES[size]["vocab_size"]
    model = qwen2(size, torch.float32)
    generate: Callable[..., Any] = model.generate
    processors = LogitsProcessorList([ForcedLengths(wanted, vocab_size - 1, len(rows[0]))])
    model.generate = lambda *args, **kwargs: generate(*args, logits_processor=processors, **kwargs)
    seconds: list[float] = []

    class StepTimes(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = clock.now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(clock.now() - self.start)

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=len(wanted) // batch,
            num_generations=G,
            max_completion_length=max(wanted),
            temperature=1.0,
            top_k=0,
            beta=0.0,
            loss_type="grpo",
            scale_rewards="group",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            max_grad_norm=1.0,
            max_steps=iterations,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=bf16,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            shuffle_dataset=False,
            seed=0,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: reward(completions),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [" ".join(f"t{i}" for i in row) for row in rows]}),
            processing_class=tokenizer(vocab_size),
            callbacks=[StepTimes()],
        )
        trainer.train()
    return seconds


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=list(SIZES), help="one model size only")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--peer-batch", type=int, default=32)
    options.add_argument("--peer-bf16", action="store_true", help="TRL in bf16 mixed precision")
    rollout_options(options)
    args = options.parse_args()
    for name in ("pytorch_lightning", "lightning", "trl", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if args.gpu:
        on_gpu.iteration(on_gpu.Setting(rehearse=args.rehearse), ours, trl, args.json)
        return
    clock = Clock(args.clock)
    groups, rounds = (8, 1) if args.quick else (32, args.rounds)
    iterations = 2 if args.quick else 3
    sizes = [args.size] if args.size else ["3M"] if args.quick else list(SIZES)
    table: list[dict[str, Any]] = []
    ratios: dict[str, list[float]] = {}
    gec: list[float] = []
    for size in sizes:
        rows = prompts(groups, SIZES[size]["vocab_size"] - 1)
        model = qwen2(size, torch.float32)
        prefixes = [row for row in rows for _ in range(G)]
        peer = VllmPeer(args.vllm, model, PROMPT_TOKENS + LONGEST, clock) if args.vllm else None
        for name, shape in (("fixed_64", "64"), ("geometric", "geometric")):
            wanted = lengths(shape, groups * G)
            native_s: list[float] = []
            peer_s: list[float] = []
            rollouts: list[float] = []
            ways = {"floor_share": partial(matrix_products, model, prefixes, wanted)}
            if peer is not None:
                ways["ratio_vllm"] = partial(peer, prefixes, wanted)
            others: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                peer_s += trl(size, rows, wanted, iterations, args.peer_batch, args.peer_bf16, clock)[1:]
                watch = ours(size, rows, wanted, iterations, clock)
                native_s += watch.seconds[1:]
                rollouts += watch.rollouts[1:]
                for way, seconds in alternate(ways, 2, clock).items():  # the first warms up
                    others[way] += seconds[1:]
            found = {f"ratio_{name}": median(peer_s) / median(native_s)}
            found |= {way: median(seconds) / median(rollouts) for way, seconds in others.items()}
            for key, value in found.items():
                ratios.setdefault(key, []).append(value)
            table.append(
                {
                    "model": size,
                    "lengths": name,
                    "responses": len(wanted),
                    "TRL s": median(peer_s),
                    "ours s": median(native_s),
                    "of it rollout": median(rollouts),
                    "ratio": found.pop(f"ratio_{name}"),
                    **found,
                }
            )
        if peer is not None:
            peer.close()
        per_token: dict[bool, list[float]] = {False: [], True: []}
        wanted = lengths("64", groups * G)
        for _ in range(rounds):
            for with_gec in (False, True):
                watch = ours(size, rows, wanted, iterations, clock, gec=with_gec)
                per_token[with_gec] += [
                    s / t for s, t in zip(watch.seconds[1:], _increments(watch.tokens), strict=True)
                ]
        gec.append(median(per_token[True]) / median(per_token[False]))
        table.append({"model": size, "lengths": "GEC, per token", "ratio": gec[-1]})
    result = {name: min(values) for name, values in ratios.items()} | {"gec_per_token": max(gec)}
    report("iteration", table, result, args.json or Path("outputs/benchmarks/iteration.json"))


def _increments(totals: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(totals)]


if __name__ == "__main__":
    main()
