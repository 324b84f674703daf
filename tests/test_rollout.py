"""Both engines against `generate`, the sampler against the softmax, and what is refused."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.rollout.base import Sampling, choose, token_distribution
from edge_grpo.rollout.hf import HFRollout
from edge_grpo.rollout.native import NativeRollout
from edge_grpo.seeding import stage_generator

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 261}


def engine(kind=NativeRollout, max_batch_rows=None, **sampling):
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0} | sampling
    return kind(max_new_tokens=12, max_batch_rows=max_batch_rows, **settings)


def model_named(name, policy):
    torch.manual_seed(1)
    make = {
        "qwen2": lambda: policy.model,
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, hidden_size=32, num_key_value_heads=1)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=261)),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**SMALL, hidden_size=32, num_key_value_heads=1, head_dim=16, sliding_window=6)
        ),
    }
    model = make[name]().eval()
    # Large weights: an untrained model is otherwise so flat that rounding decides its argmax.
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 3
    return Policy(model=model, tokenizer=policy.tokenizer)


PROMPTS = ["1 + 2 = ?", "12 + 45 - 7 = ?", "1 + 2 = ?", "9"]


@pytest.mark.parametrize("kind", [NativeRollout, HFRollout])
@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2", "gemma2"])
def test_greedy_equals_generate(name, kind, policy):
    policy = model_named(name, policy)
    prefixes = [policy.encode(p) for p in PROMPTS]
    out = engine(kind).generate(policy, prefixes, [12] * 4, Sampling(temperature=0), stage_generator(0, "test"))
    for prefix, response in zip(prefixes, out, strict=True):
        expected = policy.model.generate(
            torch.tensor([prefix]), max_new_tokens=12, do_sample=False, eos_token_id=list(policy.eos_ids)
        )[0, len(prefix) :]
        assert response.token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 5}, {"min_p": 0.05}])
def test_behaviour_logprobs_are_those_of_the_sampling_distribution(policy, sampling):
    made = engine(**sampling)
    prefixes = [policy.encode(p) for p in PROMPTS]
    out = made.generate(policy, prefixes, [12, 5, 8, 1], made.sampling, stage_generator(3, "test"))
    for prefix, response, budget in zip(prefixes, out, [12, 5, 8, 1], strict=True):
        assert 1 <= len(response) <= budget
        ids = torch.tensor([[*prefix, *response.token_ids.tolist()]])
        logits = policy.model(ids).logits[0, len(prefix) - 1 : -1]
        probabilities = token_distribution(logits, made.sampling)
        expected = probabilities.gather(1, response.token_ids[:, None]).squeeze(1).log()
        torch.testing.assert_close(response.behaviour_logprobs, expected, atol=1e-4, rtol=1e-4)


def test_engines_share_seed_tokens_and_logprobs(policy):
    prefixes = [policy.encode(p) for p in PROMPTS]
    runs = [
        made.generate(policy, prefixes, [12] * 4, made.sampling, stage_generator(0, "test"))
        for made in (engine(), engine(HFRollout), engine(max_batch_rows=3))
    ]
    for rows in zip(*runs, strict=True):
        assert len({tuple(r.token_ids.tolist()) for r in rows}) == 1
        assert len({r.finish_reason for r in rows}) == 1
        torch.testing.assert_close(rows[0].behaviour_logprobs, rows[1].behaviour_logprobs, atol=1e-4, rtol=1e-4)


def test_a_row_ends_with_its_eos(policy):
    # Every token but a few is as likely to end the row: make half of the vocabulary EOS.
    policy.model.generation_config.eos_token_id = list(range(0, 256, 2))
    out = engine().generate(policy, [[65]] * 32, [12] * 32, engine().sampling, stage_generator(0, "test"))
    for response in out:
        ends = [token in policy.eos_ids for token in response.token_ids.tolist()]
        assert not any(ends[:-1])
        assert (response.finish_reason == "stop") == ends[-1]
    assert {r.finish_reason for r in out} == {"stop"}


def test_sampled_frequencies_match_the_softmax():
    # Chi-squared with 9 degrees of freedom: below 27.9 with probability 0.999; the seed is fixed.
    logits = torch.linspace(-1, 2, 10)
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    tokens, _ = choose(logits.expand(20_000, 10), uniforms, Sampling())
    expected = 20_000 * logits.softmax(-1)
    statistic = ((tokens.bincount(minlength=10) - expected) ** 2 / expected).sum()
    assert statistic < 27.9


def test_truncations_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    close = torch.testing.assert_close
    close(token_distribution(logits, Sampling(top_k=2)), torch.tensor([[0.625, 0.375, 0, 0]]))
    close(token_distribution(logits, Sampling(top_p=0.7)), torch.tensor([[0.625, 0.375, 0, 0]]))
    close(token_distribution(logits, Sampling(min_p=0.5)), torch.tensor([[0.625, 0.375, 0, 0]]))


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_the_ends_of_the_cdf_pick_possible_tokens(uniform):
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    token, logprob = choose(logits, torch.tensor([uniform]), Sampling())
    assert token.item() in (1, 2)
    assert torch.isfinite(logprob).all()


def test_what_cannot_be_generated_is_refused(policy):
    made, generator = engine(), stage_generator(0, "test")
    with pytest.raises(UserError, match="budget of 0"):
        made.generate(policy, [[65]], [0], made.sampling, generator)
    with pytest.raises(UserError, match="exceed the model's context of 4096"):
        made.generate(policy, [[65] * 4090], [12], made.sampling, generator)
    assert made.generate(policy, [], [], made.sampling, generator) == []


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0}, {"top_k": -1}])
def test_sampling_out_of_range_is_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)
