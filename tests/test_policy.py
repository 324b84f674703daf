"""The byte tokenizer, the policy's checks, and loading what was saved."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
