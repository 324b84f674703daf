"""The parts of `gpu.py` that compute: what has to be equal, and the `--gpu` side of three benchmarks.

    python benchmarks/on_gpu.py layouts|engines|offload|four_bit [--rehearse]

`--rehearse` does the same on the CPU at a tiny size. Ceilings are measured in the same process: a square matrix product
in bfloat16 and a copy within the device's memory.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import PROMPT_TOKENS, SIZES, Clock, EndlessTokenizer, prompts, qwen2, report
from torch import Tensor

G = 8
LARGE, TINY = "Qwen2.5-1.5B", "rehearsal"
# Published shapes are in edge_grpo/assets/model_shapes.json; this one is Qwen2.5-1.5B's, with random weights.
SHAPES: dict[str, dict[str, Any]] = {
    LARGE: {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
        "max_position_embeddings": 4096,
    },
    TINY: {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 300,
    },
}


class Setting:
    """Where and at what size.

    Args:
        rehearse: on the CPU, tiny.
    """

    def __init__(self, *, rehearse: bool) -> None:
        if not rehearse and not torch.cuda.is_available():
            sys.exit("torch sees no GPU (--rehearse does this at a tiny size on the CPU)")
        SIZES.update(SHAPES)
        self.rehearse = rehearse
        self.size, self.device = (TINY, "cpu") if rehearse else (LARGE, "cuda")
        self.groups, self.new_tokens = (2, 8) if rehearse else (8, 1024)

    def done(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, way: Callable[[], object]) -> float:
        """Wall time of one call."""
        self.done()
        start = time.perf_counter()
        way()
        self.done()
        return time.perf_counter() - start

    def ceilings(self) -> tuple[float, float]:
        """FLOP/s of a product and bytes/s of a copy (read and written), the best of five."""
        n, size = (256, 1 << 20) if self.rehearse else (8192, 1 << 30)
        a = torch.randn(n, n, device=self.device, dtype=torch.bfloat16)
        x = torch.zeros(size, device=self.device, dtype=torch.uint8)
        y = torch.empty_like(x)
        product = min(self.seconds(lambda: a @ a) for _ in range(5))
        copied = min(self.seconds(lambda: y.copy_(x)) for _ in range(5))
        return 2 * n**3 / product, 2 * size / copied

    def free(self) -> None:
        """Give the allocator's memory back to the device."""
        if self.device == "cuda":
            torch.cuda.empty_cache()


# --- equality ------------------------------------------------------------------------------------------------------


def layouts(setting: Setting) -> None:
    """Flat tokens against padded rows: log-probs, entropies and gradients, in float32 and in bfloat16 autocast."""
    from edge_grpo.policy import token_stats as module
    from edge_grpo.policy.packed_attention import TreesLayout, packed_attention
    from edge_grpo.policy.varlen_attention import VarlenLayout, kernel

    model = qwen2("30M" if setting.device == "cuda" else TINY, torch.float32).to(setting.device).train()
    batch = _batch(setting.device, model.config.vocab_size)
    ways = {"padded": None, "trees": TreesLayout}
    if kernel(torch.device(setting.device)) is not None:
        ways["varlen"] = VarlenLayout
    else:
        print("varlen: this device has no kernel for it")
    rows, worst = [], 0.0
    for autocast, bound in ((False, 1e-3), (True, 0.1)):
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name, layout in ways.items():
            model.zero_grad()
            if layout is not None:
                module.trees_layout = layout
            packed = layout is not None
            with packed_attention(model, packed), torch.autocast(setting.device, torch.bfloat16, enabled=autocast):
                stats = module.token_stats(model, batch, temperature=1.0, chunk_tokens=64, packing=packed)
                stats.logprobs.sum().backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            found[name] = stats.logprobs.detach(), stats.entropy.detach(), gradient / gradient.norm()
        for name in found.keys() - {"padded"}:
            off = [float((a - b).abs().max()) for a, b in zip(found[name], found["padded"], strict=True)]
            worst = max(worst, *(number / bound for number in off))
            rows.append({"layout": name, "bf16": autocast, "log-prob": off[0], "entropy": off[1], "gradient": off[2]})
    report("gpu_layouts", rows, {"worst_over_bound": worst}, None)
    if not worst < 1:
        sys.exit(f"a layout differs from padded rows by {worst:.2f} of what is allowed")


def _batch(device: str, vocabulary: int) -> Any:
    """Two prompts of three uneven responses each."""
    from edge_grpo.types.update import UpdateBatch

    generator = torch.Generator().manual_seed(0)
    prompt_lengths, response_lengths = torch.tensor([9] * 3 + [17] * 3), torch.tensor([12, 1, 7, 5, 30, 30])
    mask = torch.arange(30)[None] < response_lengths[:, None]
    tokens = torch.randint(1, vocabulary, (6, 47), generator=generator)
    tokens[1:3, :9], tokens[4:, :17] = tokens[0, :9], tokens[3, :17]
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    batch = UpdateBatch(
        tokens=tokens,
        prompt_lengths=prompt_lengths,
        response_lengths=response_lengths,
        token_weights=mask.float(),
        sampled_mask=mask,
        row_ids=torch.arange(6),
        problem_ids=groups,
        prompt_keys=groups,
        sampling_logprobs=torch.zeros(mask.shape),
        off_policy=torch.zeros(6, dtype=torch.bool),
        shaping=torch.zeros(6),
        fixed_advantages=torch.full((6,), torch.nan),
        pad_id=0,
    )
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            object.__setattr__(batch, name, value.to(device))
    return batch


def engines(setting: Setting) -> None:
    """Greedy tokens of the embedded model by every engine, in float32, and the log-probs of what they sampled."""
    from edge_grpo.policy.load import load_policy
    from edge_grpo.rollouts.base import Sampling
    from edge_grpo.rollouts.hf import HFRollout
    from edge_grpo.rollouts.native import NativeRollout

    folder = Path(__file__).resolve().parent.parent / "edge_grpo" / "assets" / "tiny_base"
    policy = load_policy(str(folder), "float32", "sdpa", False, False, None, [], None)
    policy.model.to(setting.device)
    made: dict[str, Any] = {
        "native": NativeRollout(48, 1.0, 1.0, 0, 0.0, (), None),
        "hf": HFRollout(48, 1.0, 1.0, 0, 0.0, (), None),
    }
    if find_spec("vllm"):
        from edge_grpo.rollouts.vllm import VLLMRollout

        made["vllm"] = VLLMRollout(48, 1.0, 1.0, 0, 0.0, (), None, 512, 0.25, "float32", True)
    prefixes = [policy.encode(f"<|user|>{i} + {7 * i} = ?<|assistant|>") for i in range(1, 17)]
    rows, greedy = [], {}
    for name, engine in made.items():
        budgets, draws = [48] * len(prefixes), torch.Generator().manual_seed(0)
        out = engine.generate(policy, prefixes, budgets, Sampling(temperature=0), draws)
        greedy[name] = [response.token_ids.tolist() for response in out]
        sampled = engine.generate(policy, prefixes, budgets, Sampling(), torch.Generator().manual_seed(0))
        off = max(_logprob_error(policy, p, r) for p, r in zip(prefixes, sampled, strict=True))
        equal = sum(a == b for a, b in zip(greedy[name], greedy["native"], strict=True))
        rows.append({"engine": name, "greedy equal to native": equal, "of": len(prefixes), "log-prob off by": off})
    report("gpu_engines", rows, {row["engine"]: row["greedy equal to native"] for row in rows}, None)
    if any(row["greedy equal to native"] < len(prefixes) or not row["log-prob off by"] < 1e-2 for row in rows):
        sys.exit("engines differ: " + str(rows))


@torch.no_grad()
def _logprob_error(policy: Any, prefix: Any, response: Any) -> float:
    """Largest difference of a response's recorded log-probs to the model's own forward."""
    ids = torch.tensor([[*prefix, *response.token_ids.tolist()]], device=policy.model.device)
    logits = policy.model(input_ids=ids).logits[0, len(prefix) - 1 : -1].float()
    own = logits.log_softmax(-1).gather(1, ids[0, len(prefix) :, None]).squeeze(1).cpu()
    return float((own - response.sampling_logprobs).abs().max())


def offload(setting: Setting) -> None:
    """Steps of `optimizer=adamw_offload` against torch's AdamW on float32 weights, from float32 and bfloat16 ones."""
    from edge_grpo.algorithms.offloaded import OffloadedAdamW

    settings: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    shapes = [(64, 48), (7,), (96, 64)] if setting.rehearse else [(8192, 2048), (2048,), (2048, 8192), (50_000, 2048)]
    rows, worst = [], 0.0
    for dtype in (torch.float32, torch.bfloat16):
        setting.free()
        generator = torch.Generator().manual_seed(0)
        start = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        ours = [x.to(setting.device, copy=True).requires_grad_() for x in start]
        theirs = [x.to(setting.device, torch.float32, copy=True).requires_grad_() for x in start]
        standing = torch.cuda.memory_allocated() if setting.device == "cuda" else 0
        optimizer, expected = OffloadedAdamW(**settings)(ours), torch.optim.AdamW(theirs, **settings)
        seconds, kept = [], 0
        for _ in range(5):
            for mine, other in zip(ours, theirs, strict=True):
                mine.grad = torch.randn(mine.shape, generator=generator).to(setting.device, dtype)
                other.grad = mine.grad.float()
            seconds.append(setting.seconds(optimizer.step))
            gradients = sum(x.grad.nbytes for x in (*ours, *theirs) if x.grad is not None)
            if setting.device == "cuda" and not expected.state:
                kept = torch.cuda.memory_allocated() - standing - gradients
            expected.step()
        off = max(
            float(((a - b.to(dtype)).abs() / b.abs().clamp(min=1e-3)).max()) for a, b in zip(ours, theirs, strict=True)
        )
        bound = 1e-4 if dtype is torch.float32 else 2**-7  # a place of bfloat16, where both round differently
        worst = max(worst, off / bound)
        rows.append({"weights": str(dtype), "off by": off, "s a step": min(seconds), "bytes on the device": kept})
    report("gpu_offload", rows, {"worst_over_bound": worst}, None)
    if not worst <= 1:
        sys.exit(f"offloaded steps differ from AdamW's by {worst:.2f} of what is allowed")


def four_bit(setting: Setting) -> None:
    """The embedded model in 4 bits with adapters: its checks, engines, and logits and gradients of what it exports."""
    from edge_grpo.policy import four_bit as module
    from edge_grpo.policy.load import load_policy
    from edge_grpo.policy.lora import Lora
    from edge_grpo.policy.support import check_head, check_packed
    from edge_grpo.rollouts.base import Sampling
    from edge_grpo.rollouts.hf import HFRollout
    from edge_grpo.rollouts.native import NativeRollout

    if setting.rehearse:
        module._sees_gpu = lambda: True  # bitsandbytes computes on a CPU too
    folder = Path(__file__).resolve().parent.parent / "edge_grpo" / "assets" / "tiny_base"
    plain = load_policy(str(folder), "float32", "sdpa", False, False, None)
    policy = load_policy(str(folder), "float32", "sdpa", False, False, None, lora=Lora(8), load_in_4bit=True)
    policy.model.to(setting.device)
    generator = torch.Generator().manual_seed(0)
    for p in policy.model.parameters():
        if p.requires_grad:
            p.data.copy_(torch.randn(p.shape, generator=generator) / 30)
    check_head(policy.model, 64)
    check_packed(policy.model)
    before = policy.frozen_digest()
    plain.model.load_state_dict(dict(policy.named_weights()), strict=False)
    plain.model.to(setting.device)
    ids = torch.randint(1, 200, (4, 40), generator=generator).to(setting.device)
    with torch.no_grad():
        off = float((policy.model.eval()(input_ids=ids).logits - plain.model.eval()(input_ids=ids).logits).abs().max())
    policy.model.train()(input_ids=ids).logits.logsumexp(-1).mean().backward()
    moved = all(
        p.grad is not None and bool(p.grad.abs().max() > 0) for p in policy.model.parameters() if p.requires_grad
    )
    prefixes = [policy.encode(f"<|user|>{i} + {7 * i} = ?<|assistant|>") for i in range(1, 9)]
    greedy = []
    for kind in (NativeRollout, HFRollout):
        made = kind(24, 1.0, 1.0, 0, 0.0, (), None)
        draws = torch.Generator().manual_seed(0)
        out = made.generate(policy, prefixes, [24] * len(prefixes), Sampling(temperature=0), draws)
        greedy.append([response.token_ids.tolist() for response in out])
    equal = sum(a == b for a, b in zip(*greedy, strict=True))
    same = policy.frozen_digest() == before
    result = {"logits_off": off, "greedy_equal": equal, "of": len(prefixes), "gradients": moved, "frozen": same}
    report("gpu_four_bit", [result], result, None)
    if not (off < 1e-2 and moved and same and equal >= len(prefixes) - 1):
        sys.exit(f"weights of 4 bits: {result}")


# --- speed ---------------------------------------------------------------------------------------------------------


def rollout(setting: Setting, generate: Callable[..., None], path: Path | None) -> None:
    """Tokens/s of `groups` prompts x 8, and the share of the copy ceiling that reading weights and cache takes."""
    from edge_grpo.policy.base import Policy
    from edge_grpo.policy.kv_cache import token_bytes
    from edge_grpo.rollouts.native import NativeRollout

    model = qwen2(setting.size, torch.bfloat16).eval().to(setting.device)
    policy, engine = Policy(model, EndlessTokenizer()), NativeRollout(setting.new_tokens, 1.0, 1.0, 0, 0.0, (), None)
    prefixes = [p for p in prompts(setting.groups, SIZES[setting.size]["vocab_size"]) for _ in range(G)]
    n, steps = len(prefixes), setting.new_tokens
    wanted = [steps] * n
    _, copy = setting.ceilings()

    def native(budgets: list[int]) -> None:
        engine.generate(policy, prefixes, budgets, engine.sampling, torch.Generator().manual_seed(0))

    native([4] * n)  # warm-up
    seconds = {"native": setting.seconds(lambda: native(wanted))}
    if setting.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
    seconds["generate"] = setting.seconds(lambda: generate(model, prefixes, wanted))
    read = steps * (sum(p.numel() for p in model.parameters()) * 2)
    read += n * token_bytes(model) * sum(PROMPT_TOKENS + t for t in range(steps))
    if find_spec("vllm"):
        seconds["vllm"] = _vllm(setting, model, prefixes)
    rows = [
        {"engine": name, "tokens/s": n * steps / s, "of the copy ceiling": read / s / copy}
        for name, s in seconds.items()
    ]
    result = {f"tokens_s_{name}": n * steps / s for name, s in seconds.items()}
    result |= {"copy_share": read / seconds["native"] / copy, "copy_gb_s": copy / 1e9}
    result |= {"peak_gb": peak} if setting.device == "cuda" else {}
    result |= {"ratio_vllm": seconds["vllm"] / seconds["native"]} if "vllm" in seconds else {}
    report("rollout_gpu", rows, result, path)


def _vllm(setting: Setting, model: Any, prefixes: list[Any]) -> float:
    """Seconds of vLLM alone on the same shape, with dummy weights."""
    import os

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        model.config.architectures = ["Qwen2ForCausalLM"]
        model.config.save_pretrained(folder)
        model.to("cpu")
        setting.free()
        params = SamplingParams(temperature=1.0, max_tokens=setting.new_tokens, ignore_eos=True, detokenize=False)
        engine = LLM(folder, load_format="dummy", dtype="bfloat16", skip_tokenizer_init=True, max_model_len=2048)
        given = [{"prompt_token_ids": list(prefix)} for prefix in prefixes]
        engine.generate(given[:1], params, use_tqdm=False)
        return setting.seconds(lambda: engine.generate(given, params, use_tqdm=False))


def iteration(setting: Setting, ours: Callable[..., Any], trl: Callable[..., list[float]], path: Path | None) -> None:
    """A whole iteration in bf16-mixed, seconds and the share of the matrix ceiling that the update reaches; TRL beside.

    Args:
        ours, trl: of `iteration.py`.
    """
    matrix, _ = setting.ceilings()
    setting.free()
    rows = prompts(setting.groups, SIZES[setting.size]["vocab_size"] - 1)
    wanted = [setting.new_tokens] * (setting.groups * G)
    on = "cpu" if setting.rehearse else "gpu"
    clock = Clock("wall")
    sizes = {"microbatch_tokens": 8192, "chunk_tokens": 2048}
    watch = ours(setting.size, rows, wanted, 2, clock, accelerator=on, precision="bf16-mixed", **sizes)
    stage = watch.stages[-1]
    parameters = sum(p.numel() for p in qwen2_meta(setting.size).parameters())
    flops = 6 * parameters * (sum(wanted) + setting.groups * PROMPT_TOKENS)
    result = {
        "iteration_s": watch.seconds[-1],
        "rollout_s": stage["timing_s/rollout"],
        "update_s": stage["timing_s/update"],
        "tokens_s": sum(wanted) / watch.seconds[-1],
        "matrix_share": flops / stage["timing_s/update"] / matrix,
        "matrix_tflops": matrix / 1e12,
    }
    if setting.device == "cuda":
        result["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    setting.free()
    if find_spec("trl") and find_spec("datasets"):
        result["trl_s"] = trl(setting.size, rows, wanted, 2, G, True, clock)[-1]
        result["ratio"] = result["trl_s"] / result["iteration_s"]
    report("iteration_gpu", [{"model": setting.size, **result}], result, path)


def qwen2_meta(size: str) -> Any:
    """The model without data."""
    with torch.device("meta"):
        return qwen2(size, torch.bfloat16)


def update_memory(setting: Setting, ways: dict[str, Callable[..., Tensor]], path: Path | None) -> None:
    """Peak above weight and gradient, and seconds, of a head of the size's vocabulary in bfloat16, later micro-batches.

    Args:
        ways: of `update_memory.py`.
    """
    shape, tokens = SHAPES[setting.size], 16 if setting.rehearse else 4096
    matrix, _ = setting.ceilings()
    rows, result = [], {}
    for name, way in ways.items():
        if name.startswith("TRL") and not find_spec("trl"):
            print(f"{name}: trl is not installed")
            continue
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(shape["vocab_size"], shape["hidden_size"], generator=generator).div_(30)
        weight = weight.to(setting.device, torch.bfloat16).requires_grad_()
        states = torch.randn(tokens, shape["hidden_size"], generator=generator)
        states = states.to(setting.device, torch.bfloat16).requires_grad_()
        ids = torch.randint(0, shape["vocab_size"], (tokens,), generator=generator).to(setting.device)

        def once(way: Any = way, states: Tensor = states, weight: Tensor = weight, ids: Tensor = ids) -> None:
            way(states, weight, ids, 2048).float().sum().backward()

        once()
        before = 0
        if setting.device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        seconds = setting.seconds(once)
        peak = (torch.cuda.max_memory_allocated() - before) / 1e9 if setting.device == "cuda" else float("nan")
        share = 8 * tokens * weight.numel() / seconds / matrix
        rows.append({"way": name, "tokens": tokens, "GB": peak, "s": seconds, "of the matrix ceiling": share})
        result |= {f"{name.replace(' ', '_').lower()}_s": seconds, f"{name.replace(' ', '_').lower()}_gb": peak}
        del weight, states
        setting.free()
    report("update_memory_gpu", rows, result, path)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["layouts", "engines", "offload", "four_bit"])
    options.add_argument("--rehearse", action="store_true")
    args = options.parse_args()
    parts = {"layouts": layouts, "engines": engines, "offload": offload, "four_bit": four_bit}
    parts[args.what](Setting(rehearse=args.rehearse))


if __name__ == "__main__":
    main()
