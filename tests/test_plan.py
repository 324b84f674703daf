"""The plan: its numbers by hand, and held against what torch really allocates."""

import json
import logging
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_runs import REPO, SMALL_MODEL, composed
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, Qwen2Config, Qwen2ForCausalLM

from edge_grpo.command_line.check import check_config
from edge_grpo.errors import UserError
from edge_grpo.planning import plan as plan_module
from edge_grpo.planning.advice import lowered
from edge_grpo.planning.live_memory import HEAP_BLOCK, LiveMemory
from edge_grpo.planning.model_config import SHAPES, read_config
from edge_grpo.planning.passes import UpdatePass, copied_weights, optimizer_step, rollout_pass, update_pass, weights
from edge_grpo.planning.plan import EVALUATION, PHASES, ROLLOUT, STEP, UPDATE, decoded_at_once, make_plan
from edge_grpo.planning.run_settings import RunSettings, run_settings
from edge_grpo.planning.skeleton import Adapters, ModelPlan
from edge_grpo.planning.stand_ins import Microbatch
from edge_grpo.planning.text import summary, table, verdict
from edge_grpo.policy import packed_linear
from edge_grpo.policy.base import Policy
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.policy.kv_cache import RowCache, token_bytes
from edge_grpo.policy.tiny import byte_tokenizer
from edge_grpo.programs import plan_run
from edge_grpo.programs.train import INJECTED
from edge_grpo.rollouts.native import NativeRollout
from edge_grpo.types.update import UpdateBatch

CONFIG = Qwen2Config(
    vocab_size=100,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
# Embedding 100 * 8. A layer: q 8*8 + 8, k and v 8*4 + 4 each, o 8*8, MLP 3 * 8*12, two norms of 8; a last norm.
PARAMETERS = 800 + 2 * (72 + 2 * 36 + 64 + 288 + 16) + 8


def model_plan(config=CONFIG, **changes) -> ModelPlan:
    settings = {"dtype": "float32", "autocast": False, "gradient_checkpointing": False} | changes
    return ModelPlan(config=config, **settings)


# By hand


def test_weights_by_hand():
    of = weights(model_plan())
    assert (of.parameters, of.bytes, of.trained, of.vocabulary) == (PARAMETERS, 4 * PARAMETERS, PARAMETERS, 100)
    assert weights(model_plan(dtype="bfloat16")).bytes == 2 * PARAMETERS


def test_adapters_count_r_times_in_and_out():
    # r * (in + out): q 8 + 8, o 8 + 8 of each layer; 4 bytes each, beside weights of 2.
    of = weights(model_plan(dtype="bfloat16", adapters=Adapters(3, 0.0, ("q_proj", "o_proj"), "float32")))
    assert of.trained == 2 * 3 * (16 + 16)
    assert (of.parameters, of.trained_bytes) == (PARAMETERS + of.trained, 4 * of.trained)
    assert of.bytes == 2 * PARAMETERS + 4 * of.trained
    # All: q 16, k and v 12, o 16, gate, up and down 20; never the head, which is the embedding.
    every = weights(model_plan(adapters=Adapters(1, 0.0, None, "float32")))
    assert every.trained == 2 * (16 + 12 + 12 + 16 + 3 * 20)


def test_targets_that_match_nothing_are_refused_with_the_names_there_are():
    with pytest.raises(UserError, match=r"model.lora.targets=\['query'\] match no linear layer: there are down_proj, "):
        weights(model_plan(adapters=Adapters(1, 0.0, ("query",), "float32")))


def test_cache_of_a_token_by_hand():
    # 2 layers, keys and values of 2 heads of 8 / 4 numbers.
    assert rollout_pass(model_plan(), 5, 3).kv == 2 * 2 * 2 * 2 * 4
    # Under autocast a cache holds keys in float32, because the rotation gives them so, and values in bfloat16.
    assert rollout_pass(model_plan(autocast=True), 5, 3).kv == 2 * 2 * 2 * (4 + 2)


def test_state_of_optimizers_by_hand():
    adam = optimizer_step(model_plan(), partial(torch.optim.AdamW, lr=1e-3), on_gpu=False)
    steps = adam.state - 2 * 4 * PARAMETERS  # a number a tensor, on the CPU: 26 tensors of 4 bytes
    assert steps == 4 * (1 + 2 * 12 + 1)
    # One by one, the square root of the largest tensor and its quotient; all together, a root of each.
    assert adam.moment == 2 * 4 * 800
    together = optimizer_step(model_plan(), partial(torch.optim.AdamW, lr=1e-3), on_gpu=True)
    assert together.moment == pytest.approx(4 * PARAMETERS, rel=0.05)
    sgd = optimizer_step(model_plan(), partial(torch.optim.SGD, lr=1e-3), on_gpu=False)
    assert sgd.state == 0


def test_a_chunk_of_logits_is_what_the_head_adds():
    # 8 rows of 4 tokens: 32 states. The head's buffer is chunk * V in float32, and three blocks as large beside it.
    config = Qwen2Config(**CONFIG.to_dict() | {"vocab_size": 50_000})
    taken = {
        chunk: update_pass(model_plan(config), Microbatch(8, 1, 4, 4, False), chunk, later=True, in_place=True)
        for chunk in (8, 16, 1000)
    }
    logits = {chunk: taken[chunk].activations + taken[chunk].logits for chunk in taken}
    assert logits[16] - logits[8] == 4 * 8 * 50_000 * 4
    # More than there are states adds no more; blocks are at most 2 ** 20 entries.
    assert logits[1000] - logits[16] == 16 * 50_000 * 4 + 3 * 4 * ((1 << 20) - 16 * 50_000)


def test_the_masks_are_of_one_group_or_of_every_row():
    one, two = Microbatch(8, 1, 10, 6, False), Microbatch(8, 2, 10, 6, False)
    assert one.mask_bytes(4, softcap=False) == 4 * (10 * 10 + 6 * 16)
    assert two.mask_bytes(4, softcap=False) == 4 * (10 * 10 + 8 * 6 * 16)
    on_gpu = replace(one, on_gpu=True)
    assert on_gpu.mask_bytes(2, softcap=False) == 0  # in half precision sequences are told apart without
    assert on_gpu.mask_bytes(4, softcap=False) == 2 * on_gpu.mask_bytes(2, softcap=True) > 0
    assert (one.tokens, one.keys) == (10 + 48, 10 + 8 * 16)


def test_what_lives_at_the_same_time_counts():
    with torch.device("meta"), LiveMemory() as memory:
        a = torch.empty(1000, dtype=torch.uint8)
        view = a[10:]
        b = a + view.sum().to(torch.uint8)
        with memory.apart():
            c = torch.empty(500, dtype=torch.uint8)
        del a, view
        assert memory.bytes == 1500
        del c
    assert (len(b), memory.bytes) == (1000, 1000)
    # a, b and the sum, which is one byte by then; later a, b and c.
    assert (memory.peak_without, memory.peak) == (2001, 2500)


def test_what_of_the_peak_lies_in_the_heap():
    with torch.device("meta"), LiveMemory() as memory:
        before = torch.empty(10, dtype=torch.uint8)
        assert (memory.restart(), memory.heap) == (10, 10)
        mapped = torch.empty(HEAP_BLOCK, dtype=torch.uint8)
        held = torch.empty(HEAP_BLOCK - 1, dtype=torch.uint8)
        with memory.apart():
            apart = torch.empty(5, dtype=torch.uint8)
        del mapped, held, apart
        later = torch.empty(7, dtype=torch.uint8)  # below the peak
    assert memory.heap == 10 + HEAP_BLOCK - 1
    assert (len(before), len(later)) == (10, 7)


# Against what torch allocates, on a model of 6.6 M parameters (27 MB)

MEDIUM = Qwen2Config(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def allocated(work: Callable[[], object]) -> int:
    """Peak of what torch's CPU allocator hands out during `work`, above what there was."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as taken:
        work()
    events = [event for event in taken.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def update_batch(prompts: int, prompt_lengths: list[int], response_lengths: list[int], group: int) -> UpdateBatch:
    """Groups of `group` rows, with prompts and responses of these lengths in turn."""
    n = prompts * group
    s = torch.tensor([prompt_lengths[row // group % len(prompt_lengths)] for row in range(n)])
    t = torch.tensor([response_lengths[row % len(response_lengths)] for row in range(n)])
    mask = torch.arange(int(t.max()))[None] < t[:, None]
    problems = torch.arange(n) // group
    tokens = torch.randint(0, 4096, (n, int((s + t).max())), generator=torch.Generator().manual_seed(0))
    return UpdateBatch(
        tokens=tokens[problems * group],
        prompt_lengths=s,
        response_lengths=t,
        token_weights=mask.float(),
        sampled_mask=mask,
        row_ids=torch.arange(n),
        problem_ids=problems,
        prompt_keys=problems,
        sampling_logprobs=torch.zeros(mask.shape),
        off_policy=torch.zeros(n, dtype=torch.bool),
        shaping=torch.zeros(n),
        fixed_advantages=torch.full((n,), torch.nan),
        pad_id=0,
    )


@pytest.mark.parametrize(
    ("checkpointing", "autocast", "later", "chunk", "prompts"),
    [
        pytest.param(False, False, True, 64, 1, id="activations"),
        pytest.param(True, False, True, 64, 1, id="checkpointed"),
        pytest.param(True, False, True, 512, 1, id="logits"),
        pytest.param(False, True, True, 64, 1, id="autocast"),
        pytest.param(False, False, False, 64, 2, id="first micro-batch, two groups"),
    ],
)
def test_the_update_takes_what_was_planned(checkpointing, autocast, later, chunk, prompts):
    model = Qwen2ForCausalLM(MEDIUM)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters() if later else ():
        parameter.grad = torch.zeros_like(parameter)
    forward = MicrobatchForward(1.0, 10**9, chunk, packing=True)
    batch = update_batch(prompts, [48], [64, 72, 80, 72], group=8)

    def update() -> None:
        with (
            forward.on(model, training=True),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False),
        ):
            forward(model, batch).logprobs.sum().backward()

    plan = model_plan(MEDIUM, autocast=autocast, gradient_checkpointing=checkpointing)
    taken = update_pass(plan, Microbatch(8 * prompts, prompts, 48, 72, False), chunk, later=later, in_place=True)
    planned = taken.activations + taken.logits + (0 if later else weights(plan).trained_bytes)
    assert planned == pytest.approx(allocated(update), rel=0.15)


def deep_plan(*, adapted: bool) -> ModelPlan:
    """Activations are most of what this model's update takes."""
    wider = {
        "hidden_size": 384,
        "intermediate_size": 1152,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "layer_types": None,
    }
    config = Qwen2Config(**MEDIUM.to_dict() | wider)
    return model_plan(config, adapters=Adapters(16, 0.0, None, "float32") if adapted else None)


def print_resident_growth(*, adapted: bool) -> None:
    """Called in a process of its own: by how many bytes six micro-batches raise the peak of its resident set."""
    from edge_grpo.policy.lora import Lora

    policy = Policy(Qwen2ForCausalLM(deep_plan(adapted=adapted).config), byte_tokenizer())
    model = Lora(r=16 if adapted else None).adapt(policy).model
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    forward = MicrobatchForward(1.0, 10**9, 64, packing=True)
    before = plan_module.resident_bytes()
    for rows, prompt, lengths in (
        (8, 340, [100]),
        (5, 333, [60, 90]),
        (7, 326, [90]),
        (8, 330, [80, 100]),
        (6, 340, [9]),
    ):
        with forward.on(model, training=True):
            forward(model, update_batch(1, [prompt], lengths, group=rows)).logprobs.sum().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [True, False])
def test_a_process_grows_by_what_was_planned_and_its_holes(adapted):
    run = settings("data.problems_per_iteration=1", config=deep_plan(adapted=adapted).config)
    run = replace(run, model=deep_plan(adapted=adapted), prompt_tokens=340, response_tokens=100, chunk_tokens=64)
    plan = make_plan(run)
    assert plan.settings.microbatch.tokens == 340 + 8 * 100
    planned = sum(bytes_of(plan, part)[UPDATE] for part in ("activations", "logits", "holes in the heap"))
    code = f"import test_plan; test_plan.print_resident_growth(adapted={adapted})"
    grown = subprocess.run([sys.executable, "-c", code], cwd=REPO / "tests", capture_output=True, text=True, check=True)
    assert planned == pytest.approx(int(grown.stdout), rel=0.15)


def test_the_optimizer_takes_what_was_planned():
    model = Qwen2ForCausalLM(MEDIUM)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make = partial(torch.optim.AdamW, lr=1e-3)
    taken = optimizer_step(model_plan(MEDIUM), make, on_gpu=False)
    assert sum(taken) == pytest.approx(allocated(lambda: make(model.parameters()).step()), rel=0.02)


def test_a_rollout_takes_what_was_planned(monkeypatch):
    made = []  # tensors of the cache of 28 rows: the model's self-check has smaller ones
    buffer = RowCache._buffer

    def recorded(cache: RowCache, states: torch.Tensor) -> torch.Tensor:
        made.append(buffer(cache, states))
        return made[-1]

    monkeypatch.setattr(RowCache, "_buffer", recorded)
    model = Qwen2ForCausalLM(MEDIUM)
    policy = Policy(model, byte_tokenizer())
    engine = NativeRollout(4, 1.0, 1.0, 0, 0.0, [], None)
    prompts = [[row % 7 + 1] * 200 for row in range(28)]  # 7 of them
    generator = torch.Generator().manual_seed(0)
    decoding = allocated(lambda: engine.generate(policy, prompts, [4] * 28, engine.sampling, generator))
    one = rollout_pass(model_plan(MEDIUM), 7 * 200, 28)
    assert (
        sum(cache.nbytes for cache in made if len(cache) == 28) == 28 * 204 * one.kv
    )  # numpy's, which torch does not count
    assert one.activations + copied_weights(model_plan(MEDIUM)) == pytest.approx(decoding, rel=0.15)


# The settings of a run

GPU = ("trainer=gpu", "data=file", "data.path=problems.jsonl", "model=qwen2.5_math_1.5b")
FULL = (*GPU, "trainer.precision=32-true")  # on the meta device, which is faster than fake tensors


def settings(*overrides: str, config=CONFIG, memory=None) -> RunSettings:
    cfg, _ = composed("plan", *overrides)
    return run_settings(cfg, config, memory)


def test_lengths_and_rows_follow_from_the_config():
    run = settings("data.problems_per_iteration=6", "algorithm.num_generations=4", "rollout.max_new_tokens=100")
    assert (run.problems, run.rows, run.sampled_tokens, run.prompt_tokens) == (6, 24, 100, 64)
    assert run.response_tokens == 100 + 32 + 256  # and a reflection of guided correction, behind its phrase
    assert run.tokens_of(24) == 6 * 64 + 24 * 388
    assert settings("correction=none").response_tokens == 128
    assert settings("correction.max_response_tokens=200").response_tokens == 200
    chain = settings("correction=chain")  # a hint, then guided: the node of a step counts
    assert chain.response_tokens == 128 + 32 + 256


def test_a_row_stays_within_the_models_context():
    config = Qwen2Config(**CONFIG.to_dict() | {"max_position_embeddings": 100})
    run = settings(config=config)
    assert (run.prompt_tokens, run.response_tokens) == (64, 36)


def test_the_largest_micro_batch_by_hand():
    run = settings("correction=none", "rollout.max_new_tokens=100", "data.problems_per_iteration=3")
    # A group takes 64 + 8 * 100 = 864 tokens, all three 2,592.
    assert run.microbatch == Microbatch(24, 3, 64, 100, False)
    assert not run.several_microbatches
    cut = replace(run, microbatch_tokens=1000)  # a group, and a row of another in what it leaves
    assert cut.microbatch == Microbatch(9, 2, 64, 96, False)
    # A group of which 500 tokens are taken at once: 436 of them for five rows.
    assert replace(run, microbatch_tokens=500).microbatch == Microbatch(5, 1, 64, 87, False)
    assert cut.several_microbatches
    # Less than a row is a row; a loss of whole groups takes a group.
    assert replace(run, microbatch_tokens=10).microbatch == Microbatch(1, 1, 64, 100, False)
    assert replace(run, microbatch_tokens=10, whole_groups=True).microbatch == Microbatch(8, 1, 64, 100, False)
    # Padded, every row has its prompt.
    assert replace(run, microbatch_tokens=500, packing=False).microbatch == Microbatch(3, 3, 64, 100, False)
    # Minibatches of one group leave one micro-batch a step.
    one = replace(run, step_rows=8)
    assert (one.microbatch.rows, one.several_microbatches) == (8, False)


def test_ranks_share_problems_and_hold_everything():
    run = settings("trainer.devices=2", "trainer.strategy=ddp", "data.problems_per_iteration=6")
    assert (run.ranks, run.problems) == (2, 3)
    alone, shared = make_plan(replace(run, ranks=1)), make_plan(run)
    assert shared.total(STEP) - alone.total(STEP) == pytest.approx(0, abs=2_000_000)
    of_gradients = [next(p for p in plan.parts if p.name == "gradients").bytes for plan in (alone, shared)]
    # DDP's buckets stay through the rollout.
    assert [{*of} for of in of_gradients] == [{UPDATE, STEP}, {*PHASES}]


def test_sharded_ranks_hold_their_part_and_all_weights_while_they_decode():
    whole, sharded = (make_plan(settings("trainer.devices=4", f"trainer.strategy={s}")) for s in ("ddp", "fsdp2"))
    parts = [{part.name: part.bytes for part in plan.parts} for plan in (whole, sharded)]
    for name in ("weights", "gradients", "optimizer"):
        assert parts[1][name][UPDATE] == pytest.approx(parts[0][name][UPDATE] / 4, abs=4)
    weights, gathered = parts[0]["weights"][UPDATE], parts[1]["gathered weights"]
    assert gathered[ROLLOUT] == gathered[EVALUATION] == weights
    assert gathered[UPDATE] <= 2 * weights
    assert STEP not in gathered
    assert sharded.weights == parts[1]["weights"][UPDATE] + max(weights, gathered[UPDATE])
    assert whole.checkpoint == sharded.checkpoint


def test_sharded_ranks_gather_one_tensor_after_the_other_for_an_engine_of_its_own():
    sharded = ("trainer.devices=4", "trainer.strategy=fsdp2", "rollout=vllm")
    config = Qwen2Config(**{**CONFIG.to_dict(), "num_hidden_layers": 8, "layer_types": None})
    plan = make_plan(settings(*sharded, config=config))
    gathered = {part.name: part.bytes for part in plan.parts}["gathered weights"]
    assert gathered[ROLLOUT] == gathered[EVALUATION] == CONFIG.vocab_size * CONFIG.hidden_size * 4
    # All of them at once between rollout and update, and for the export.
    assert gathered[UPDATE] < gathered[STEP] == plan.parameters * 4


def test_types_follow_from_precision_and_dtype():
    def types(*overrides: str) -> tuple[str, bool]:
        model = settings(*GPU, *overrides).model
        return model.dtype, model.autocast

    assert types() == ("float32", True)
    assert types("trainer.precision=bf16-true") == ("bfloat16", False)
    assert types("model.dtype=bfloat16", "trainer.precision=32-true") == ("bfloat16", False)


def test_lora_of_the_config():
    run = settings(*GPU, "++model.lora={r: 4, alpha: 8, dropout: 0.1, targets: all-linear}")
    assert run.can_adapt
    assert run.model.adapters == Adapters(4, 0.1, None, "float32")
    assert settings(*GPU, "++model.lora={r: 4, targets: [q_proj]}").model.adapters.targets == ("q_proj",)
    assert settings(*GPU, "++model.lora={r: null, alpha: 8}").model.adapters is None


def test_the_step_of_an_optimizer_is_counted_once_for_all_runs_with_its_settings():
    first, again, other = settings(), settings("optimizer.fused=true"), settings("optimizer.lr=0.5")
    assert first.optimizer is again.optimizer
    assert [run.optimizer([torch.zeros(1)]).defaults["lr"] for run in (first, other)] == [4e-5, 0.5]


def test_supervised_fine_tuning_has_no_groups():
    cfg, _ = composed("plan", "experiment=sft")
    run = run_settings(cfg, CONFIG, None)
    assert (run.generations, run.rows, run.reference, run.whole_groups) == (1, 16, False, False)


def test_what_evaluation_decodes_at_once():
    assert settings("evaluation.num_samples=1").evaluated_rows == 256
    assert settings("evaluation.limit=10").evaluated_rows == 10
    assert settings("evaluation=arithmetic").evaluated_rows == 256 * 4  # held out more than a benchmark
    unknown = settings("evaluation=file", "evaluation.benchmarks.file.path=x.jsonl")
    assert unknown.evaluated_rows is None
    assert "give plan.memory_gb, or set rollout.kv_cache_gb" in table(make_plan(unknown), "")
    assert "rollout.kv_cache_gb" not in table(make_plan(replace(unknown, max_batch_rows=8)), "")


def test_the_bound_on_the_cache_bounds_rollout_and_evaluation():
    lengths = ("rollout.max_new_tokens=64", "correction=none", "evaluation.max_new_tokens=192", "trainer=cpu")
    file = ("evaluation=file", "evaluation.benchmarks.file.path=x.jsonl")
    # A token takes 2 layers * 2 heads * 2 * 8 bytes: 6,400 tokens of cache. A row has 64 + 64 or 64 + 192 tokens.
    assert settings(*lengths, "rollout.kv_cache_gb=null", memory=4 * 6400 * 64).cache_bound == 6400 * 64
    for memory, given in ((4 * 6400 * 64, "null"), (None, 6400 * 64 / 2**30)):
        run = settings(*lengths, *file, f"rollout.kv_cache_gb={given}", memory=memory)
        assert decoded_at_once(run) == (50, 25)
        assert bytes_of(make_plan(run), "KV cache")["evaluation"] == 25 * 256 * 64
        assert "give plan.memory_gb" not in table(make_plan(run), "")
    assert decoded_at_once(replace(run, max_batch_rows=30)) == (30, 25)
    assert decoded_at_once(replace(run, evaluated_rows=10, problems=2)) == (16, 10)
    assert decoded_at_once(replace(run, problems=1)) == (8, 25)
    assert decoded_at_once(replace(run, cache_bound=1)) == (1, 1)


@pytest.mark.parametrize("autocast", [False, True])
def test_an_engine_counts_a_token_of_the_cache_as_the_plan_does(autocast):
    model = Qwen2ForCausalLM(CONFIG).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert token_bytes(model) == rollout_pass(model_plan(autocast=autocast), 1, 1).kv


# The plan


def bytes_of(plan, name: str) -> dict[str, int]:
    return dict(next(part.bytes for part in plan.parts if part.name == name))


def test_parts_and_phases_by_hand():
    run = settings(*GPU, "rollout.max_batch_rows=4", "data.problems_per_iteration=2")
    plan, p = make_plan(run), PARAMETERS
    assert bytes_of(plan, "weights") == dict.fromkeys(PHASES, 4 * p)
    assert bytes_of(plan, "gradients") == dict.fromkeys((UPDATE, STEP), 4 * p)  # a rollout has their memory
    state = bytes_of(plan, "optimizer")[STEP]
    assert 8 * p <= state <= 8 * p + 200
    # Four rows of the sixteen, of 1,152 + 128 + 32 + 256 tokens, and the prompts that the others will share; a token of
    # a row takes 2 layers * 2 heads * 2 * (4 + 2) bytes under autocast.
    assert bytes_of(plan, "KV cache")[ROLLOUT] == (4 * 1568 + 2 * 1152) * 48
    assert bytes_of(plan, "KV cache")["evaluation"] == 4 * (1152 + 128) * 48
    assert bytes_of(plan, "weights in bfloat16") == dict.fromkeys((ROLLOUT, "evaluation"), 2 * p)
    assert plan.tokens == 2 * 1152 + 16 * 416
    assert plan.checkpoint == 4 * p + state
    assert plan.disk == 3 * plan.checkpoint + 4 * p
    assert plan.total(UPDATE) == sum(part.bytes.get(UPDATE, 0) for part in plan.parts)
    assert plan.peak == max(map(plan.total, PHASES))


def test_holes_lie_between_the_blocks_of_the_heap_on_a_cpu(monkeypatch):
    monkeypatch.setattr(plan_module, "update_pass", lambda *_, **__: UpdatePass(1000, 0, 700))
    adapted = model_plan(adapters=Adapters(2, 0.0, None, "float32"))
    cpu = settings()
    for run, holes in ((cpu, 140), (replace(cpu, model=adapted), 630), (settings(*FULL), 0)):
        assert bytes_of(make_plan(run), "holes in the heap") == {UPDATE: holes}


def test_the_weights_that_a_rollout_copies_by_hand(monkeypatch):
    monkeypatch.setattr(packed_linear, "_wins", lambda dtype: True)  # whatever this processor is
    # q, k, v, gate and up of both layers; all others are too small to be packed.
    assert copied_weights(model_plan()) == 2 * (64 + 2 * 32 + 2 * 96) * 4
    # In bfloat16 o and down too, and the head, which has a copy of its own although it is tied.
    assert copied_weights(model_plan(dtype="bfloat16")) == (2 * (2 * 64 + 2 * 32 + 3 * 96) + 800) * 2
    # Adapters keep the layers as they are; what is under them is packed.
    adapted = model_plan(dtype="bfloat16", adapters=Adapters(2, 0.0, None, "bfloat16"))
    assert copied_weights(adapted) > (2 * (2 * 64 + 2 * 32 + 3 * 96) + 800) * 2
    run = settings()
    copied = copied_weights(run.model)
    assert bytes_of(make_plan(run), "packed weights") == dict.fromkeys((ROLLOUT, "evaluation"), copied)
    for changes in ("rollout=hf", "trainer.precision=bf16-mixed", "trainer.accelerator=gpu"):
        assert not settings(changes).fused_layers, changes


def test_a_reference_is_a_second_model_unless_it_is_the_adapter_switched_off():
    run = settings(*FULL, "loss.beta=0.1")
    assert bytes_of(make_plan(run), "reference") == dict.fromkeys(PHASES, 4 * PARAMETERS)
    adapted = replace(run, model=replace(run.model, adapters=Adapters(2, 0.0, None, "float32")))
    plan = make_plan(adapted)
    assert "reference" not in [part.name for part in plan.parts]
    assert plan.checkpoint == 4 * plan.trained + bytes_of(plan, "optimizer")[STEP]  # of trained tensors only
    assert (plan.base, plan.exported) == (4 * PARAMETERS, 4 * (PARAMETERS + plan.trained))
    assert f" ({plan.checkpoint / PARAMETERS / 4:.2%} of the model)".replace("%", " %") in table(plan, "")


def test_an_engine_of_its_own_sleeps_while_the_policy_is_trained():
    run = settings(*FULL, "rollout=vllm", "rollout.kv_cache_gb=2.5")
    plan = make_plan(run)
    assert bytes_of(plan, "engine: KV cache") == dict.fromkeys((ROLLOUT, "evaluation"), 5 * 2**29)
    assert bytes_of(plan, "engine: weights")[ROLLOUT] == 2 * PARAMETERS
    merged = replace(run, model=replace(run.model, adapters=Adapters(2, 0.0, None, "float32")))
    assert bytes_of(make_plan(merged), "engine: weights")[ROLLOUT] == 2 * PARAMETERS
    assert "KV cache" not in [part.name for part in plan.parts]


def test_a_fused_optimizer_needs_nothing_besides_its_state():
    assert bytes_of(make_plan(settings(*FULL)), "work of the step")[STEP] > 3 * PARAMETERS
    assert bytes_of(make_plan(settings(*FULL, "optimizer.fused=true")), "work of the step")[STEP] == 0


def test_advice_is_no_more_than_it_takes():
    run = settings(*FULL, "data.problems_per_iteration=64", "algorithm.microbatch_tokens=2048")
    plan = make_plan(run)
    # 512 rows of 1,568 tokens, 64 bytes each, are 51 MB of cache: without 10 MB, 256 rows are what fits.
    memory = plan.peak - 10_000_000
    changes, smaller = lowered(plan, memory)
    assert [change.setting for change in changes] == ["rollout.max_batch_rows=256"]
    assert changes[0].saved == plan.peak - smaller.peak
    assert smaller.peak <= memory
    assert "with these" in verdict(plan, memory, changes, smaller)


def test_advice_where_nothing_helps_says_so():
    plan = make_plan(settings(*FULL))
    changes, smaller = lowered(plan, 1_000_000_000)  # CUDA alone takes more
    assert smaller.peak > 1_000_000_000
    told = verdict(plan, 1_000_000_000, changes, smaller)
    assert "GB too much" in told
    assert "take a larger card" in told


def test_lora_is_advised_last_and_only_where_the_loader_knows_it():
    # 7 M parameters: weights, gradients and moments are 16 bytes each whatever else is lowered.
    small = Qwen2Config(**CONFIG.to_dict() | {"vocab_size": 20_000, "hidden_size": 256, "intermediate_size": 1024})
    run = settings(*FULL, "++model.lora={r: null}", "rollout.max_new_tokens=8", "correction=none", config=small)
    plan, memory = make_plan(run), plan_module.GPU_PROGRAM + 130_000_000  # 116 MB of them, and activations
    changes, smaller = lowered(plan, memory)
    assert changes[-1].setting == "model.dtype=bfloat16 model.lora.r=16"
    assert smaller.peak <= memory
    without, larger = lowered(make_plan(replace(run, can_adapt=False)), memory)
    assert not any("lora" in change.setting for change in without)
    assert larger.peak > memory
    # With a little more memory the adapters fit alone: what was tried before them and helped too is not advised.
    run = settings(
        *FULL,
        "++model.lora={r: null}",
        "rollout.max_new_tokens=8",
        "correction=none",
        "data.problems_per_iteration=1",
        config=small,
    )
    alone, _ = lowered(make_plan(run), memory + 20_000_000)
    assert [change.setting for change in alone] == ["model.dtype=bfloat16 model.lora.r=16"]


# Where the shape comes from


def test_a_folder_and_a_preset_need_no_hub(tmp_path):
    LlamaConfig(hidden_size=64).save_pretrained(tmp_path)
    read = read_config(str(tmp_path), None, trust_remote_code=False)
    assert (read.config.hidden_size, read.source) == (64, f"{tmp_path}/config.json")
    read = read_config("Qwen/Qwen2.5-Math-7B", None, trust_remote_code=False)
    assert read.config.hidden_size == 3584
    assert "published shape" in read.source


def test_every_preset_of_the_hub_has_its_published_size():
    # As the publishers give them: 1.54 B, 7.61 B and 3.21 B.
    published = {"Qwen/Qwen2.5-Math-1.5B": 1.54, "Qwen/Qwen2.5-Math-7B": 7.62, "meta-llama/Llama-3.2-3B-Instruct": 3.21}
    assert published.keys() == json.loads(SHAPES.read_text()).keys()
    for path, billions in published.items():
        config = read_config(path, None, trust_remote_code=False).config
        assert weights(model_plan(config)).parameters == pytest.approx(billions * 1e9, abs=5e6)


def test_a_model_without_a_config_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"model\.path=\./none: no such folder"):
        read_config("./none", None, trust_remote_code=False)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=f"model.path={tmp_path}: its config.json cannot be read"):
        read_config(str(tmp_path), None, trust_remote_code=False)


# The program and the line at the start of a run


@pytest.mark.parametrize("experiment", [f"qwen2.5_math_{n}gb" for n in ("1.5b_24", "1.5b_80", "7b_24", "7b_80")])
def test_a_preset_fits_the_card_that_it_names(experiment, capsys):
    cfg, _ = composed("plan", f"experiment={experiment}")
    assert plan_run.print_plan(cfg) < cfg.plan.memory_gb
    printed = capsys.readouterr().out
    assert f" of {cfg.plan.memory_gb:.2f} GB: fits" in printed
    assert "published shape" in printed
    # The paper's budgets.
    assert "8 responses to 1 problems" in printed
    assert "a prompt of 512 tokens with a response of 1,312" in printed  # 1,024 and 256 behind the phrase


def test_the_program_plans_what_it_is_given(capsys):
    cfg, _ = composed("plan", *SMALL_MODEL, "plan.memory_gb=0.000001")
    check_config(cfg, INJECTED)
    assert plan_run.print_plan(cfg) > 0
    assert "as its loader makes it" in (printed := capsys.readouterr().out)
    assert "GB too much" in printed
    cfg.plan.memory_gb = 0
    for given in ("inf", "nan"):
        with pytest.raises(UserError, match=rf"plan\.memory_gb={given} must be above 0 and finite"):
            plan_run.print_plan(composed("plan", *SMALL_MODEL, f"plan.memory_gb={given}")[0])
    with pytest.raises(UserError, match=r"plan\.memory_gb=0 must be above 0"):
        plan_run.print_plan(cfg)


def test_without_a_gpu_there_is_no_verdict_on_one(capsys):
    cfg, _ = composed("plan", "trainer=gpu", "trainer.precision=32-true")
    plan_run.print_plan(cfg)
    assert "no GPU is here: plan.memory_gb=24" in capsys.readouterr().out


def test_a_run_says_its_plan_in_one_line(caplog):
    caplog.set_level(logging.INFO)
    cfg, _ = composed("train")
    before = torch.get_rng_state()
    assert plan_run.tell_plan(cfg)
    assert torch.equal(torch.get_rng_state(), before)  # the run draws what it would have drawn
    (line,) = caplog.messages
    assert "\n" not in line
    assert "memory planned" in line
    assert "54,272 tokens an iteration" in line  # 16 * 64 + 128 * (128 + 32 + 256)


def test_a_run_beyond_the_device_warns_and_goes_on(caplog, monkeypatch):
    monkeypatch.setattr(plan_run, "device_memory", lambda on_gpu: 500_000_000)
    cfg, _ = composed("train", "data.problems_per_iteration=160")
    assert plan_run.tell_plan(cfg)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "GB too much" in record.message


def test_a_gpu_that_does_not_hold_the_weights_is_refused_before_they_are_loaded(monkeypatch):
    monkeypatch.setattr(plan_run, "device_memory", lambda on_gpu: 3_000_000)
    cfg, _ = composed("train", "trainer=gpu", "trainer.precision=32-true")
    with pytest.raises(UserError, match=r"the weights alone take 0.0 GB and the GPU has 0.0: take a smaller model"):
        plan_run.tell_plan(cfg)


def test_a_model_that_cannot_be_planned_trains_all_the_same(caplog):
    cfg, _ = composed("train", *SMALL_MODEL)
    assert not plan_run.tell_plan(cfg)  # before it is made there is nothing to read
    assert plan_run.tell_plan(cfg, object())
    assert not caplog.records


def test_the_line_has_the_peak_and_the_parts():
    plan = make_plan(settings(*FULL))
    line = summary(plan, 24_000_000_000)
    assert line.startswith(f"memory planned: {plan.peak / 1e9:.2f} of 24.00 GB at the peak ({plan.peak_phase}): ")
    assert "CUDA 1.50" in line
    assert plan_module.resident_bytes() > 10**8
