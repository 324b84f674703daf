"""The byte tokenizer, the policy's checks, and loading what was saved."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.policy.load import load_policy
from edge_grpo.policy.tiny import byte_tokenizer, random_tiny_policy

TOKENIZER = byte_tokenizer()
SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
SETTINGS = {
    "dtype": "float32",
    "attn_implementation": "sdpa",
    "gradient_checkpointing": False,
    "trust_remote_code": False,
    "revision": None,
}


def encode(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@settings(deadline=None)
@given(st.text())
def test_the_byte_tokenizer_loses_nothing(text):
    assert TOKENIZER.decode(encode(text)) == text


@settings(deadline=None)
@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL)))
def test_one_token_a_byte(text):
    assert len(encode(text)) == len(text.encode())


def test_special_tokens_are_one_token_each_and_leave_the_text():
    ids = encode("".join(SPECIAL))
    assert len(ids) == len(set(ids)) == 5
    assert TOKENIZER.decode(encode("a<|end|>"), skip_special_tokens=True) == "a"
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token) == ("<|end|>", "<|endoftext|>")
    assert TOKENIZER.eos_token_id != TOKENIZER.pad_token_id  # padding must not end a response


def test_the_chat_template_opens_the_assistants_turn():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    text = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>s<|user|>q<|assistant|>"


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    small = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 32}
    models = [random_tiny_policy(seed, **small).model.state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    name = "model.embed_tokens.weight"
    assert torch.equal(models[0][name], models[1][name])
    assert not torch.equal(models[0][name], models[2][name])


def test_what_is_saved_is_what_is_loaded(policy, tmp_path):
    policy.save(tmp_path / "model")
    loaded = load_policy(str(tmp_path / "model"), **SETTINGS)
    ours, theirs = policy.model.state_dict(), loaded.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    assert loaded.tokenizer.chat_template == policy.tokenizer.chat_template
    assert (loaded.eos_ids, loaded.pad_id, loaded.context_length) == (policy.eos_ids, policy.pad_id, 4096)
    text = "e\u0301 ½\r\n\\frac{1}{2}<|end|>"  # a decomposed accent: nothing may be normalised
    assert loaded.encode(text) == policy.encode(text)
    assert loaded.decode(torch.tensor(loaded.encode(text))) == text.removesuffix("<|end|>")


def test_no_pickle_is_written(policy, tmp_path):
    policy.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json", ".jinja"}


def test_dtype_and_gradient_checkpointing_are_taken(policy, tmp_path):
    policy.save(tmp_path)
    loaded = load_policy(str(tmp_path), **SETTINGS | {"dtype": "bfloat16", "gradient_checkpointing": True})
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.model.is_gradient_checkpointing


def test_every_eos_ends_a_response(policy):
    policy.model.generation_config.eos_token_id = [7, policy.tokenizer.eos_token_id]
    assert policy.eos_ids == (policy.tokenizer.eos_token_id, 7)  # the tokenizer's own first, none twice
    policy.model.generation_config.eos_token_id = 7
    assert policy.eos_ids == (policy.tokenizer.eos_token_id, 7)
    policy.model.generation_config = GenerationConfig()
    assert policy.eos_ids == (policy.tokenizer.eos_token_id,)


def test_padding_falls_back_to_eos(policy):
    assert policy.pad_id == policy.tokenizer.pad_token_id
    policy.tokenizer.pad_token = None
    assert policy.pad_id == policy.tokenizer.eos_token_id


def test_a_tokenizer_without_eos_is_refused(policy):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"no EOS token: set one in its tokenizer_config\.json"):
        Policy(policy.model, tokenizer)


def test_a_tokenizer_beyond_the_models_vocabulary_is_refused(policy):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|one_more|>"])
    with pytest.raises(UserError, match="the tokenizer has 262 tokens but the model's embedding only 261"):
        Policy(policy.model, tokenizer)


def test_a_saved_vocabulary_mismatch_is_refused_on_loading(policy, tmp_path):
    policy.save(tmp_path)
    policy.tokenizer.add_tokens(["<|one_more|>"])
    policy.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the tokenizer has 262 tokens but the model's embedding only 261"):
        load_policy(str(tmp_path), **SETTINGS)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere", "~/nowhere"])
def test_a_folder_that_is_not_there_is_named(path):
    with pytest.raises(UserError, match=rf"^model\.path={path}: no such folder$"):
        load_policy(path, **SETTINGS)


def test_a_hub_name_that_cannot_be_had_offline_is_one_line():
    with pytest.raises(
        UserError, match=r"^model\.path=nobody/nothing: cannot be loaded as a causal language model: .+"
    ):
        load_policy("nobody/nothing", **SETTINGS)


def broken(name, folder):
    """A saved policy with one thing wrong."""
    config = folder / "config.json"
    if name == "nothing there":
        for path in folder.iterdir():
            path.unlink()
    elif name == "no weights":
        (folder / "model.safetensors").unlink()
    elif name == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif name == "no such architecture":
        config.write_text(json.dumps({"model_type": "perceptron"}))
    elif name == "no causal head":
        config.write_text(json.dumps({"model_type": "t5"}))


@pytest.mark.parametrize(
    "fault", ["nothing there", "no weights", "no tokenizer", "no such architecture", "no causal head"]
)
def test_a_folder_that_holds_no_causal_model_is_refused_in_one_line(policy, tmp_path, fault):
    policy.save(tmp_path)
    broken(fault, tmp_path)
    with pytest.raises(UserError) as caught:
        load_policy(str(tmp_path), **SETTINGS)
    message = str(caught.value)
    assert message.startswith(f"model.path={tmp_path}: cannot be loaded as a causal language model: ")
    assert "\n" not in message


def changed_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def damaged(name, folder):
    """A saved policy (two layers, intermediate size 64, hidden size 32) whose weights are not what its config says."""
    file = folder / "model.safetensors"
    if name == "cut off":
        file.write_bytes(file.read_bytes()[:-100])
    elif name == "empty":
        file.write_bytes(b"")
    elif name == "a weight is missing":
        weights = load_file(file)
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, file, metadata={"format": "pt"})
    elif name == "a layer is missing":
        changed_config(folder, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    elif name == "another shape":
        changed_config(folder, intermediate_size=96)
    elif name == "quantised":
        changed_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    elif name == "tokenizer cut off":
        file = folder / "tokenizer.json"
        file.write_text(file.read_text()[:-100])


DAMAGE = {
    "cut off": r"a file of its weights is cut off or damaged \(.+\): get it again",
    "empty": r"a file of its weights is cut off or damaged \(.+\): get it again",
    "a weight is missing": r"1 weights that its config\.json .* model\.layers\.1\.mlp\.up_proj\.weight, and .*",
    # Query, key and value with biases, output, three of the MLP, two norms: 3 x 2 + 1 + 3 + 2 = 12.
    "a layer is missing": r"12 weights .* first is model\.layers\.2\.input_layernorm\.weight, and would be random.*",
    # gate, up and down of two layers; down maps 64 to 32.
    "another shape": r"6 weights .*layers\.0\.mlp\.down_proj\.weight, \(32, 64\) in the files and \(32, 96\) by.*",
    "quantised": r"its config asks for bitsandbytes quantisation \(.+\): install that, or take a model without",
    "tokenizer cut off": r"cannot be loaded as a causal language model: .+",
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_weights_that_are_not_whole_are_refused_in_one_line(policy, tmp_path, fault):
    policy.save(tmp_path)
    damaged(fault, tmp_path)
    with pytest.raises(UserError, match=rf"^model\.path={re.escape(str(tmp_path))}: {DAMAGE[fault]}$"):
        load_policy(str(tmp_path), **SETTINGS)


def test_tied_weights_need_not_be_in_the_files(policy, tmp_path):
    policy.save(tmp_path)
    assert policy.model.config.tie_word_embeddings
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    head = load_policy(str(tmp_path), **SETTINGS).model.get_output_embeddings().weight
    assert torch.equal(head, policy.model.get_input_embeddings().weight)


def test_a_home_folder_is_found(policy, tmp_path, monkeypatch):
    policy.save(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_policy("~/model", **SETTINGS).model.config.vocab_size == 261


def test_generation_settings_that_no_engine_applies_are_refused_or_dropped(policy, tmp_path):
    policy.model.generation_config.update(repetition_penalty=1.1, temperature=0.7, top_k=20)
    policy.save(tmp_path)
    with pytest.raises(UserError, match=r"repetition_penalty=1\.1, .*\.ignored_generation_settings=\[repetition_p"):
        load_policy(str(tmp_path), **SETTINGS)
    loaded = load_policy(str(tmp_path), **SETTINGS, ignored_generation_settings=["repetition_penalty"])
    assert loaded.model.generation_config.repetition_penalty == 1.0
    assert loaded.model.generation_config.top_k == 20
    with pytest.raises(UserError, match="ignored_generation_settings: top_k is none of suppress_tokens, "):
        load_policy(str(tmp_path), **SETTINGS, ignored_generation_settings=["top_k"])
