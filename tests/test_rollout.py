"""Both engines against `generate`, the sampler against the softmax, and what is refused."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.policy.finite import NotFiniteError, check_finite
from edge_grpo.policy.kv_cache import RowCache, token_bytes
from edge_grpo.policy.packed_attention import packed_attention
from edge_grpo.policy.support import check_head, check_packed
from edge_grpo.rollouts import base, native
from edge_grpo.rollouts.base import Rows, Sampling, check_rows, choose, token_distribution
from edge_grpo.rollouts.hf import HFRollout
from edge_grpo.rollouts.native import NativeRollout, _Decoding
from edge_grpo.seeding import stage_generator

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 261}


def engine(kind=NativeRollout, max_batch_rows=None, stop_strings=(), **sampling):
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0} | sampling
    return kind(max_new_tokens=12, stop_strings=stop_strings, max_batch_rows=max_batch_rows, **settings)


def model_named(name, policy):
    torch.manual_seed(1)
    make = {
        "qwen2": lambda: policy.model,
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, hidden_size=32, num_key_value_heads=1)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=261)),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(
                **SMALL,
                hidden_size=32,
                num_key_value_heads=1,
                head_dim=16,
                sliding_window=6,
                final_logit_softcapping=5.0,
                attn_logit_softcapping=2.0,
            )
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
def test_sampling_logprobs_are_those_of_the_sampling_distribution(policy, sampling):
    made = engine(**sampling)
    prefixes = [policy.encode(p) for p in PROMPTS]
    out = made.generate(policy, prefixes, [12, 5, 8, 1], made.sampling, stage_generator(3, "test"))
    for prefix, response, budget in zip(prefixes, out, [12, 5, 8, 1], strict=True):
        assert 1 <= len(response) <= budget
        ids = torch.tensor([[*prefix, *response.token_ids.tolist()]])
        logits = policy.model(ids).logits[0, len(prefix) - 1 : -1]
        probabilities = token_distribution(logits, made.sampling)
        expected = probabilities.gather(1, response.token_ids[:, None]).squeeze(1).log()
        torch.testing.assert_close(response.sampling_logprobs, expected, atol=1e-4, rtol=1e-4)
        full = torch.log_softmax(logits / made.sampling.temperature, -1)
        torch.testing.assert_close(response.entropies, -(full.exp() * full).sum(-1), atol=1e-4, rtol=1e-4)


def test_engines_share_seed_tokens_and_logprobs(policy):
    prefixes = [policy.encode(p) for p in PROMPTS]
    runs = [
        made.generate(policy, prefixes, [12] * 4, made.sampling, stage_generator(0, "test"))
        for made in (engine(), engine(HFRollout), engine(max_batch_rows=3), engine(HFRollout, max_batch_rows=3))
    ]
    for rows in zip(*runs, strict=True):
        assert len({tuple(r.token_ids.tolist()) for r in rows}) == 1
        assert len({r.finish_reason for r in rows}) == 1
        torch.testing.assert_close(rows[0].sampling_logprobs, rows[1].sampling_logprobs, atol=1e-4, rtol=1e-4)


def test_a_row_ends_with_its_eos(policy):
    # Every token but a few is as likely to end the row: make half of the vocabulary EOS.
    policy.model.generation_config.eos_token_id = list(range(0, 256, 2))
    out = engine().generate(policy, [[65]] * 32, [12] * 32, engine().sampling, stage_generator(0, "test"))
    for response in out:
        ends = [token in policy.eos_ids for token in response.token_ids.tolist()]
        assert not any(ends[:-1])
        assert (response.finish_reason == "stop") == ends[-1]
    assert {r.finish_reason for r in out} == {"stop"}


class Prefills:
    """Counts how often each prefix is forwarded."""

    def __init__(self, monkeypatch):
        self.seen = []
        original = _Decoding._prefill

        def prefill(decoding, prefixes, places):
            self.seen += prefixes
            return original(decoding, prefixes, places)

        monkeypatch.setattr(_Decoding, "_prefill", prefill)


AT_ONCE = [1, 2, 5]


@pytest.mark.parametrize("at_once", AT_ONCE)
@pytest.mark.parametrize("max_batch_rows", [None, 1, 3, 20, 1000])
def test_waiting_rows_are_admitted_and_each_prefix_is_prefilled_once(policy, max_batch_rows, at_once, monkeypatch):
    """Ragged prompts, budgets and ends; the batch must change no row and no prefix must be computed twice."""
    monkeypatch.setattr(native, "_steps_at_once", lambda device: at_once)
    policy.model.generation_config.eos_token_id = list(range(0, 256, 9))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 256, (n,), generator=generator).tolist() for n in (3, 9, 1, 6, 4)]
    prefixes = [prompt for prompt in prompts for _ in range(8)]
    prefixes = prefixes[:20] + prefixes[32:] + prefixes[20:32]  # the rows of one prompt need not be neighbours
    budgets = torch.randint(1, 13, (40,), generator=generator).tolist()
    expected = engine(HFRollout).generate(policy, prefixes, budgets, Sampling(), stage_generator(5, "test"))
    prefills = Prefills(monkeypatch)
    out = engine(max_batch_rows=max_batch_rows).generate(
        policy, prefixes, budgets, Sampling(), stage_generator(5, "test")
    )
    assert sorted(prefills.seen) == sorted(map(tuple, prompts))
    assert {r.finish_reason for r in out} == {"stop", "length"}
    for ours, theirs in zip(out, expected, strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert ours.finish_reason == theirs.finish_reason
        torch.testing.assert_close(ours.sampling_logprobs, theirs.sampling_logprobs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.entropies, theirs.entropies, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "at_once"), [(HFRollout, 1), *((NativeRollout, n) for n in AT_ONCE)])
def test_a_stop_string_ends_a_row_with_the_token_that_completes_it(policy, kind, at_once, monkeypatch):
    monkeypatch.setattr(native, "_steps_at_once", lambda device: at_once)
    rows, budgets = [[65]] * 16, [12] * 16
    free = engine(kind).generate(policy, rows, budgets, Sampling(), stage_generator(1, "test"))
    # Pairs of characters, a token each, that stand somewhere in a row.
    texts = [policy.tokenizer.decode(r.token_ids.tolist()) for r in free]
    stops = tuple(sorted({t[i : i + 2] for t in texts for i in range(3, len(t) - 2) if t[i : i + 2].isascii()}))
    out = engine(kind, stop_strings=stops).generate(policy, rows, budgets, Sampling(), stage_generator(1, "test"))
    ended = 0
    for before, after in zip(free, out, strict=True):
        text = [policy.tokenizer.decode(before.token_ids[:n].tolist()) for n in range(1, len(before) + 1)]
        hits = [n for n, t in enumerate(text, start=1) if any(t.endswith(stop) for stop in stops)]
        length = min([*hits, len(before)])
        assert after.token_ids.tolist() == before.token_ids[:length].tolist()
        assert after.finish_reason == ("stop" if hits else before.finish_reason)
        ended += bool(hits)
    assert ended >= 3


def test_the_same_seed_gives_the_same_rows_twice_and_another_seed_does_not(policy):
    runs = [
        engine().generate(policy, [[65]] * 9, [12] * 9, Sampling(), stage_generator(seed, "test")) for seed in (0, 0, 1)
    ]
    rows = [[r.token_ids.tolist() for r in run] for run in runs]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_a_long_finished_row_leaves_nothing_behind_for_the_row_that_takes_its_place(policy):
    # With one place the second row is decoded where the first one was; alone it must give the same.
    long, short = [65] * 40, [66, 67]
    both = engine(max_batch_rows=1).generate(
        policy, [long, short], [12, 12], Sampling(temperature=0), stage_generator(0, "test")
    )
    alone = engine().generate(policy, [short], [12], Sampling(temperature=0), stage_generator(0, "test"))
    assert both[1].token_ids.tolist() == alone[0].token_ids.tolist()


@pytest.mark.parametrize(("kind", "at_once"), [(HFRollout, 1), *((NativeRollout, n) for n in AT_ONCE)])
def test_the_bound_on_the_cache_bounds_the_rows_at_once_and_changes_no_row(policy, kind, at_once, monkeypatch):
    """Ten prompts of 4 to 13 tokens with 12 new ones at most: a row of the call may have 25."""
    monkeypatch.setattr(native, "_steps_at_once", lambda device: at_once)
    prefixes = [list(range(65, 65 + n)) for n in range(4, 14)]
    runs, rows_at_once = [], []
    forward = type(policy.model).forward

    def noted(self, *args, **kwargs):
        rows_at_once.append(_rows_of(kwargs))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(policy.model), "forward", noted)
    token = token_bytes(policy.model)
    for rows in (10, 3, 1, 0):  # one row is decoded however little there is
        bounded = kind(12, 1.0, 1.0, 0, 0.0, (), None, kv_cache_gb=(25 * token * rows + 100) / 2**30)
        assert bounded._places(policy.model, Rows(prefixes, [12] * 10, None, Sampling())) == max(rows, 1)
        rows_at_once.clear()
        runs.append(bounded.generate(policy, prefixes, [12] * 10, Sampling(), stage_generator(0, "test")))
        assert max(rows_at_once) == max(rows, 1)
    for other in runs[1:]:
        assert [r.token_ids.tolist() for r in other] == [r.token_ids.tolist() for r in runs[0]]


def _rows_of(inputs):
    """Rows of a decoding step: flat tokens on a cache of their own, or a batch."""
    cache, ids = inputs.get("cache", inputs.get("past_key_values")), inputs["input_ids"]
    return ids.shape[1] if isinstance(cache, RowCache) and cache._decoding else ids.shape[0]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {"top_p": 0.9, "top_k": 5, "min_p": 0.05}])
def test_a_decoding_step_waits_for_no_number(policy, sampling):
    """On the device `meta` there is none: whoever reads one there, or copies one to the CPU, fails."""
    rows = Rows([[65], [66, 67], [68]], [12, 9, 1], torch.zeros(3, 12), Sampling(**sampling))
    ends = base.Ends(policy, ["no such text"])
    decoding = _Decoding(Policy(policy.model.to("meta"), policy.tokenizer), rows, ends, num_places=2)
    with packed_attention(policy.model), torch.no_grad():
        decoding.rows, decoding.width = torch.arange(2, device="meta"), 3
        for _ in range(12):
            decoding._step()
        assert decoding.width == 13  # the cache has no more
        for wait in (lambda: decoding.books.look(decoding.rows), decoding.books.responses):
            with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
                wait()


def test_the_books_are_looked_at_at_each_token_on_a_cpu_and_seldom_elsewhere(policy, monkeypatch):
    looks, steps = [], []
    original = _Decoding._leave, _Decoding._step
    monkeypatch.setattr(_Decoding, "_leave", lambda self: (looks.append(0), original[0](self)))
    monkeypatch.setattr(_Decoding, "_step", lambda self: (steps.append(0), original[1](self)))
    policy.model.generation_config.eos_token_id = 260  # no row ends before its budget
    made = engine()
    made.generate(policy, [[65], [66, 67]], [12, 9], made.sampling, stage_generator(0, "test"))
    assert (len(steps), len(looks)) == (11, 12)  # the first tokens come with the prefill
    assert native._steps_at_once(torch.device("cpu")) == 1 < native._steps_at_once(torch.device("cuda"))
    looks.clear()
    steps.clear()
    monkeypatch.setattr(native, "_steps_at_once", lambda device: 8)
    made.generate(policy, [[65], [66, 67]], [12, 9], made.sampling, stage_generator(0, "test"))
    assert (len(steps), len(looks)) == (11, 3)  # no step more than the longest budget wants


class Casts(TorchDispatchMode):
    """Counts what becomes of half precision, by shape."""

    def __init__(self):
        super().__init__()
        self.shapes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            self.shapes[tuple(out.shape)] += 1
        return out


def test_under_autocast_a_weight_is_cast_once_a_rollout_and_the_next_one_has_the_new_weight(policy):
    down = policy.model.model.layers[0].mlp.down_proj.weight
    layers, draws = len(policy.model.model.layers), lambda: stage_generator(0, "test")
    check_packed(policy.model)

    def generate():
        with Casts() as casts, torch.autocast("cpu", torch.bfloat16):
            out = engine(max_batch_rows=1).generate(policy, [[65, 66]] * 2, [6] * 2, Sampling(), draws())
            product = torch.nn.functional.linear(torch.ones(1, down.shape[1]), down)
        return out, casts.shapes[tuple(down.shape)], product

    before, casts, _ = generate()
    assert casts == layers + 1  # and one after it, which finds no copy
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(3)
    after, _, product = generate()
    assert any(not torch.equal(a.sampling_logprobs, b.sampling_logprobs) for a, b in zip(before, after, strict=True))
    (product.sum()).backward()
    assert down.grad is not None  # no copy without a graph is left behind


def test_without_a_bound_the_cache_may_take_a_quarter_of_the_memory(policy, monkeypatch):
    monkeypatch.setattr(base, "device_memory", lambda device: 4 * 5 * 20 * token_bytes(policy.model))
    prefixes, budgets = [[65] * 8, [65] * 2] * 4, [2, 18] * 4  # no row is longer than 20
    rows = Rows(prefixes, budgets, None, Sampling())
    assert engine()._places(policy.model, rows) == 5
    assert engine(max_batch_rows=3)._places(policy.model, rows) == 3
    with pytest.raises(UserError, match=r"rollout\.kv_cache_gb=0 must be above 0"):
        NativeRollout(12, 1.0, 1.0, 0, 0.0, (), None, kv_cache_gb=0)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_names_the_settings_that_lower_it(policy, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(_Decoding, "_step", fail)
    with pytest.raises(UserError, match=r"rollout\.kv_cache_gb, rollout\.max_batch_rows, rollout\.max_new_tok"):
        engine().generate(policy, [[65]], [12], Sampling(), stage_generator(0, "test"))


@pytest.mark.parametrize("kind", [NativeRollout, HFRollout])
def test_a_model_without_a_causal_head_is_refused(policy, kind, monkeypatch):
    monkeypatch.setattr(type(policy.model), "get_output_embeddings", lambda self: None)
    with pytest.raises(UserError, match="has no causal language-model head"):
        engine(kind).generate(policy, [[65]], [12], Sampling(), stage_generator(0, "test"))


def test_sampled_frequencies_match_the_softmax():
    # Chi-squared with 9 degrees of freedom: below 27.9 with probability 0.999; the seed is fixed.
    logits = torch.linspace(-1, 2, 10)
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    tokens, *_ = choose(logits.expand(20_000, 10), uniforms, Sampling())
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
    token, logprob, *_ = choose(logits, torch.tensor([uniform]), Sampling())
    assert token.item() in (1, 2)
    assert torch.isfinite(logprob).all()


def test_what_cannot_be_generated_is_refused(policy):
    made, generator = engine(), stage_generator(0, "test")
    with pytest.raises(UserError, match="budget of 0"):
        made.generate(policy, [[65]], [0], made.sampling, generator)
    with pytest.raises(UserError, match="exceed the model's context of 4096"):
        made.generate(policy, [[65] * 4090], [12], made.sampling, generator)
    assert made.generate(policy, [], [], made.sampling, generator) == []
    check_rows(policy, [[65] * 4084], [12])  # fits exactly


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0}, {"top_k": -1}])
def test_sampling_out_of_range_is_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)


REFUSED = {
    "suppress_tokens": [3],
    "begin_suppress_tokens": [3],
    "bad_words_ids": [[3, 4]],
    "sequence_bias": [[[3], 1.0]],
    "forced_eos_token_id": 7,
    "min_length": 3,
    "min_new_tokens": 3,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 2,
    "stop_strings": ["a"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_generation_setting_that_changes_the_logits_is_refused_by_both_engines(policy, name):
    setattr(policy.model.generation_config, name, REFUSED[name])
    told = set()
    for kind in (NativeRollout, HFRollout):
        with pytest.raises(UserError, match=rf"sets {name}=.*model\.ignored_generation_settings=\[{name}\]") as caught:
            engine(kind).generate(policy, [[65]], [12], Sampling(), stage_generator(0, "test"))
        told.add(str(caught.value))
    assert len(told) == 1


def test_how_the_model_would_draw_by_itself_is_read_by_no_engine(policy):
    prefixes = [policy.encode(p) for p in PROMPTS]

    def tokens(kind):
        out = engine(kind).generate(policy, prefixes, [12] * 4, Sampling(), stage_generator(0, "test"))
        return [r.token_ids.tolist() for r in out]

    expected = tokens(NativeRollout)
    own = {
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 1,
        "num_beams": 3,
        "max_length": 5,
        "num_return_sequences": 2,
    }
    policy.model.generation_config.update(**own, return_dict_in_generate=True, renormalize_logits=True)
    assert tokens(NativeRollout) == tokens(HFRollout) == expected
    assert policy.model.generation_config.num_beams == 3  # what is exported stays the model's own


@pytest.mark.parametrize("kind", [NativeRollout, HFRollout])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_name_the_model_and_what_they_may_come_from(policy, kind, temperature):
    check_packed(policy.model)  # of the model as it was: here the weights break later
    policy.model.get_input_embeddings().weight.data[70] = torch.nan
    policy.model.config.name_or_path = "models/broken"
    with pytest.raises(UserError, match=r"^models/broken: its logits are NaN or infinite.*optimizer\.lr"):
        engine(kind).generate(policy, [[65], [70]], [2] * 2, Sampling(temperature), stage_generator(0, "test"))


@pytest.mark.parametrize("check", [check_packed, lambda model: check_head(model, chunk_tokens=64)])
def test_a_model_whose_weights_are_not_finite_is_told_so_and_not_that_it_cannot_be_packed(policy, check):
    policy.model.get_input_embeddings().weight.data[70] = torch.nan
    with pytest.raises(UserError, match=r"^Qwen2ForCausalLM: its logits are NaN or infinite"):
        check(policy.model)


def test_single_impossible_tokens_are_fine_and_only_they():
    possible = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert choose(possible, torch.tensor([0.5]), Sampling()).tokens.tolist() == [1]
    for bad in ([0.0, torch.nan, 1.0], [0.0, torch.inf, 1.0], [-torch.inf] * 3):
        drawn = choose(torch.tensor([[0.0, 1.0, 2.0], bad]), torch.tensor([0.5, 0.5]), Sampling())
        assert drawn.top.isfinite().tolist() == [True, False]
        assert 0 <= drawn.tokens[1] < 3  # an index all the same
        with pytest.raises(NotFiniteError):
            check_finite(drawn.top)
