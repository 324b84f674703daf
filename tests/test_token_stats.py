"""Log-probs and entropies against the naive computation on full logits in float64."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from edge_grpo.errors import UserError
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.policy.forward import MicrobatchForward, hold_whole_groups
from edge_grpo.policy.head import Head
from edge_grpo.policy.packed_attention import packed_attention
from edge_grpo.policy.support import check_head
from edge_grpo.policy.token_stats import token_stats
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import Rollout
from edge_grpo.types.update import UpdateBatch

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 23}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=23)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0)
    ),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
    "phi (bias in the head)": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
}
# Normalised in float32 whatever the weights are.
FLOAT32_INSIDE = ("llama", "gemma2", "cohere", "granite")


def batch(pad_id=0):
    """The first two rows share their prompt."""
    generator = torch.Generator().manual_seed(0)
    prompts, responses = torch.tensor([3, 3, 2, 5]), torch.tensor([4, 1, 6, 2])
    mask = torch.arange(6)[None] < responses[:, None]
    tokens = torch.randint(1, 23, (4, 8), generator=generator)
    tokens[1, :3] = tokens[0, :3]
    return UpdateBatch(
        tokens=tokens,
        prompt_lengths=prompts,
        response_lengths=responses,
        token_weights=mask.float(),
        sampled_mask=mask,
        row_ids=torch.arange(4),
        problem_ids=torch.tensor([0, 0, 1, 2]),
        prompt_keys=torch.tensor([0, 0, 1, 2]),
        sampling_logprobs=torch.zeros(mask.shape),
        off_policy=torch.zeros(4, dtype=torch.bool),
        shaping=torch.zeros(4),
        fixed_advantages=torch.full((4,), torch.nan),
        pad_id=pad_id,
    )


def naive(model, rows, temperature):
    """Row by row, no padding, full logits."""
    n, longest = rows.token_weights.shape
    logprobs, entropy = torch.zeros(n, longest).double(), torch.zeros(n, longest).double()
    for i in range(n):
        s, t = int(rows.prompt_lengths[i]), int(rows.response_lengths[i])
        ids = rows.tokens[i : i + 1, : s + t]
        logp = torch.log_softmax(model(ids).logits[0, s - 1 : s + t - 1] / temperature, dim=-1)
        logprobs[i, :t] = logp.gather(1, ids[0, s:, None]).squeeze(1)
        entropy[i, :t] = -(logp.exp() * logp).sum(-1)
    return logprobs, entropy


def stats_of(model, rows, temperature=1.0, chunk_tokens=4, packing=True, **options):
    with packed_attention(model, packing):
        return token_stats(model, rows, temperature=temperature, chunk_tokens=chunk_tokens, packing=packing, **options)


def backward(model, loss):
    """Gradients as `backward` leaves them, in place of the head's included."""
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [512, 3])
def test_equals_naive_values_and_gradients(name, chunk, packing):
    torch.manual_seed(0)
    model, rows = MODELS[name]().double().eval(), batch()
    logprobs, entropy = naive(model, rows, 0.7)
    theirs = backward(model, (logprobs * 0.3 + entropy.square()).sum())
    stats = stats_of(model, rows, 0.7, chunk, packing, entropy_grad=True)
    tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-10
    torch.testing.assert_close(stats.logprobs, logprobs, atol=tolerance, rtol=0)
    torch.testing.assert_close(stats.entropy, entropy, atol=tolerance, rtol=0)
    ours = backward(model, (stats.logprobs * 0.3 + stats.entropy.square()).sum())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def hinted_rollout():
    """Two groups of three; in the first two rows have prompts of their own, and one of them is the second problem's."""
    generator = torch.Generator().manual_seed(2)
    problems = tuple(Problem(name, "?", ("1",), prompt_ids=ids) for name, ids in (("a", (1, 2, 3)), ("b", (4, 5))))

    def response(length, prompt_ids=None):
        ids = torch.randint(1, 23, (length,), generator=generator)
        zeros = torch.zeros(length)
        return Response(ids, zeros, zeros, torch.zeros(length, dtype=torch.int8), "stop", prompt_ids)

    hinted = (response(3), response(4, (1, 2, 3, 9, 9)), response(2, (4, 5)))
    return Rollout(problems, (*hinted, response(2), response(1), response(5)), 3)


@pytest.mark.parametrize("whole", [None, 3], ids=["cut", "whole groups"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_rows_of_one_group_with_different_prompts_equal_naive_in_every_cut(packing, whole):
    torch.manual_seed(0)
    model, rollout = MODELS["llama"]().double().eval(), hinted_rollout()
    weight = dict.fromkeys(Provenance, 1.0)
    rows = to_update_batch(rollout, range(6), token_weight=weight, pad_id=0, device=torch.device("cpu"))
    assert rows.prompt_lengths.tolist() == [3, 5, 2, 2, 2, 2]
    assert rows.prompt_keys.tolist() == [0, 1, 2, 2, 2, 2]
    expected = naive(model, rows, 0.7)
    # A group's rows and prompts are 3 + 4 + 2 and 3 + 5 + 2 = 19 tokens, or 2 + 1 + 5 and 2 = 10.
    for limit, groups_meet in ((1, False), (19, False), (1000, True)):
        forward = MicrobatchForward(0.7, microbatch_tokens=limit, chunk_tokens=4, packing=packing)
        cut = forward.microbatches(rows, torch.arange(6), whole)
        assert sorted(torch.cat(cut).tolist()) == list(range(6))
        if whole:
            assert hold_whole_groups(cut, 3)
            assert len(cut) == (1 if groups_meet else 2)
        stats = forward.over(model, rows, cut)
        torch.testing.assert_close(stats.logprobs, expected[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(stats.entropy, expected[1], atol=1e-6, rtol=0)


def head(weight, bias=None, **options):
    settings = {"multiplier": 1.0, "softcap": None, "temperature": 0.7, "chunk_tokens": 3} | options
    return Head(weight, bias, **settings)


@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}, {"multiplier": 0.3}, {"softcap": 2.0, "multiplier": 3.0}])
def test_gradcheck_of_the_head(options):
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((5, 4), (7, 4), (7,))
    )
    ids = torch.tensor([0, 6, 3, 3, 1])

    def stats(states, weight, bias):
        return head(weight, bias, **options)(states, ids, entropy_grad=True, in_place=False)

    assert torch.autograd.gradcheck(stats, (states, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_accumulates_in_float32(dtype):
    # Vocabulary and magnitude as in a real head: rounding the logits to bfloat16 would cost 1e-2.
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 64, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(20_000, 64, generator=generator).div(4).to(dtype).requires_grad_()
    ids = torch.randint(0, 20_000, (40,), generator=generator)
    logprobs, entropies = head(weight, chunk_tokens=16)(states, ids, entropy_grad=False, in_place=False)
    logprobs.sum().backward()
    wide_states, wide_weight = (x.detach().double().requires_grad_() for x in (states, weight))
    logp = torch.log_softmax(wide_states @ wide_weight.T / 0.7, -1)
    logp.gather(1, ids[:, None]).sum().backward()
    torch.testing.assert_close(logprobs.double(), logp.gather(1, ids[:, None]).squeeze(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), -(logp.exp() * logp).sum(-1), atol=1e-5, rtol=1e-5)
    # A gradient is kept in the type of its tensor: bfloat16 has 8 bits.
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    for ours, exact in ((states.grad, wide_states.grad), (weight.grad, wide_weight.grad)):
        torch.testing.assert_close(ours.double(), exact, atol=tolerance, rtol=tolerance)


def test_mixed_precision_has_half_precision_states_and_a_float32_weight():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(9, 8, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(30, 8, generator=generator).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = head(weight)(states, torch.arange(9), entropy_grad=False, in_place=False)
    assert logprobs.dtype == torch.float32
    exact = torch.log_softmax(states.detach().double() @ weight.detach().double().T / 0.7, -1).diagonal()
    torch.testing.assert_close(logprobs.double(), exact, atol=1e-5, rtol=1e-5)
    logprobs.sum().backward()
    assert (states.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)


def test_in_place_the_heads_gradient_adds_to_what_is_there():
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(6, 4, generator=generator), torch.randn(9, 4, generator=generator).requires_grad_()
    ids = torch.arange(6)
    grads = []
    for in_place in (False, True):
        weight.grad = torch.ones_like(weight)
        before = weight.grad.data_ptr()
        logprobs, _ = head(weight)(states, ids, entropy_grad=False, in_place=in_place)
        logprobs.sum().backward()
        assert weight.grad.data_ptr() == before or not in_place
        grads.append(weight.grad)
    torch.testing.assert_close(*grads)


def test_logits_exist_for_a_chunk_at_a_time():
    """The largest tensor that forward and backward allocate is [chunk, V]."""
    states, weight = torch.randn(64, 4, requires_grad=True), torch.randn(5000, 4, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out._base is None:
                largest = max(largest, out.numel())
            return out

    with Watch():
        logprobs, _ = head(weight, chunk_tokens=8)(states, torch.arange(64), entropy_grad=False, in_place=True)
        logprobs.sum().backward()
    assert largest == 8 * 5000


def test_entropy_has_no_graph_unless_asked():
    model = MODELS["llama"]()
    stats = stats_of(model, batch())
    assert not stats.entropy.requires_grad
    assert stats.logprobs.requires_grad


def test_every_position_reaches_past_the_end():
    stats = stats_of(MODELS["llama"](), batch(), packing=False, every_position=True)
    assert (stats.entropy > 0).all()  # an untrained model is never certain
    with pytest.raises(ValueError, match="no positions past"):
        stats_of(MODELS["llama"](), batch(), packing=True, every_position=True)


def test_positions_past_the_end_are_those_of_the_row_padded_alone():
    # The last row has the longest prompt (5) and two tokens; T = 6, so its padding reaches to 5 + 6 > 8 tokens.
    model, rows = MODELS["llama"]().double(), batch(pad_id=7)
    rows = replace(rows, tokens=torch.where(rows.attention_mask.bool(), rows.tokens, 7))
    stats = stats_of(model, rows, packing=False, every_position=True)
    for row in range(4):
        s, t = int(rows.prompt_lengths[row]), int(rows.response_lengths[row])
        ids = torch.cat([rows.tokens[row, : s + t], torch.full((6 - t,), 7)])[None]
        shown = (torch.arange(s + 6) < s + t).long()[None]
        logp = model(ids, attention_mask=shown).logits[0, s - 1 : s + 5].log_softmax(-1)
        torch.testing.assert_close(stats.entropy[row], -(logp.exp() * logp).sum(-1), atol=1e-6, rtol=0)


def test_selected_rows_keep_their_numbers():
    model, rows = MODELS["llama"]().eval(), batch()
    whole = stats_of(model, rows).logprobs
    part = stats_of(model, rows.select(torch.tensor([2, 0]))).logprobs
    torch.testing.assert_close(part, whole[[2, 0]], atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_inside_the_context_changes_nothing():
    torch.manual_seed(0)
    model, rows = MODELS["llama"]().double().train(), batch()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with packed_attention(model):
            stats = token_stats(model, rows, temperature=1.0, chunk_tokens=4, packing=True)
            grads.append(backward(model, stats.logprobs.sum()))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_logits_that_are_changed_in_an_unknown_way_are_refused():
    model = MODELS["llama"]()
    model.lm_head.weight.data *= 30
    check_head(model, 4)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 0.5)
    with pytest.raises(UserError, match="its log-probs come out wrong"):
        check_head(model, 4)


def test_heads_that_are_no_plain_linear_map_are_refused():
    model = MODELS["llama"]()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(UserError, match="head is a Sequential, not a linear map"):
        stats_of(model, batch())
    model.lm_head = None
    with pytest.raises(UserError, match="no causal language-model head"):
        stats_of(model, batch())
