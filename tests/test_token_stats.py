"""Log-probs and entropies against the naive computation on full logits in float64."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from edge_grpo.policy import token_stats as module
from edge_grpo.policy.token_stats import token_stats
from edge_grpo.types import UpdateBatch

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 23}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=23)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, sliding_window=4)
    ),
}


def batch(pad_id=0):
    generator = torch.Generator().manual_seed(0)
    prompts, responses = torch.tensor([3, 5, 2]), torch.tensor([4, 1, 6])
    mask = torch.arange(6)[None] < responses[:, None]
    return UpdateBatch(
        tokens=torch.randint(1, 23, (3, 8), generator=generator),
        prompt_lengths=prompts,
        response_lengths=responses,
        token_weights=mask.float(),
        sampled_mask=mask,
        row_ids=torch.arange(3),
        pad_id=pad_id,
    )


def naive(model, rows, temperature):
    """Row by row, no padding, full logits."""
    logprobs, entropy = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.float64)
    for i in range(3):
        s, t = int(rows.prompt_lengths[i]), int(rows.response_lengths[i])
        ids = rows.tokens[i : i + 1, : s + t]
        logp = torch.log_softmax(model(ids).logits[0, s - 1 : s + t - 1] / temperature, dim=-1)
        logprobs[i, :t] = logp.gather(1, ids[0, s:, None]).squeeze(1)
        entropy[i, :t] = -(logp.exp() * logp).sum(-1)
    return logprobs, entropy


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1024, 3])
def test_equals_naive_values_and_gradients(name, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    torch.manual_seed(0)
    model, rows = MODELS[name]().double().eval(), batch()
    stats = token_stats(model, rows, temperature=0.7, entropy_grad=True)
    logprobs, entropy = naive(model, rows, 0.7)
    torch.testing.assert_close(stats.logprobs, logprobs, atol=1e-10, rtol=0)
    torch.testing.assert_close(stats.entropy, entropy, atol=1e-10, rtol=0)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((stats.logprobs * 0.3 + stats.entropy.square()).sum(), parameters)
    theirs = torch.autograd.grad((logprobs * 0.3 + entropy.square()).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        # Gemma2 normalises in float32 whatever its weights are.
        tolerance = 1e-6 if name == "gemma2" else 1e-10
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_entropy_has_no_graph_unless_asked():
    model = MODELS["llama"]()
    assert not token_stats(model, batch(), temperature=1.0).entropy.requires_grad
    assert token_stats(model, batch(), temperature=1.0).logprobs.requires_grad


def test_every_position_reaches_past_the_end():
    stats = token_stats(MODELS["llama"](), batch(), temperature=1.0, every_position=True)
    assert (stats.entropy > 0).all()  # an untrained model is never certain


def test_selected_rows_keep_their_numbers():
    model, rows = MODELS["llama"]().eval(), batch()
    whole = token_stats(model, rows, temperature=1.0).logprobs
    part = token_stats(model, rows.select(torch.tensor([2, 0])), temperature=1.0).logprobs
    torch.testing.assert_close(part, whole[[2, 0]], atol=1e-6, rtol=1e-5)
