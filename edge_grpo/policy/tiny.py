"""A decoder small enough to learn on two CPU cores, and a tokenizer that loses no byte.

The architecture is Qwen2's (grouped-query attention, SwiGLU, tied embeddings), so what runs on it runs on
Qwen2.5-Math unchanged.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from edge_grpo.policy.base import Policy
from edge_grpo.policy.lora import Lora

# The padding token bears the name that transformers' Qwen2 tokenizer would otherwise add as a token of its own.
SYSTEM, USER, ASSISTANT, END, PAD = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"

# One token a role: a byte-level "<|im_start|>assistant\n" would cost more than most questions.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte plus five special tokens (261 in all); `decode(encode(text)) == text` for any text.

    >>> tokenizer = byte_tokenizer()
    >>> len(tokenizer), tokenizer.decode(tokenizer("\\\\frac{½}")["input_ids"])
    (261, '\\\\frac{½}')
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def random_tiny_policy(
    seed: int,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    intermediate_size: int = 384,
    context_length: int = 4096,
    lora: Lora | None = None,
) -> Policy:
    """An untrained Qwen2-shaped policy, 0.82 M parameters by default.

    Args:
        seed: of the initial weights.
        hidden_size: width of a layer's input.
        num_layers: decoder layers.
        num_heads: attention heads, a divisor of hidden_size.
        num_kv_heads: heads of keys and values, a divisor of num_heads.
        intermediate_size: width inside an MLP.
        context_length: in tokens, prompt and response together.
        lora: adapters to train in place of the weights; None for none.
    """
    tokenizer = byte_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    policy = Policy(model=model, tokenizer=tokenizer)
    return policy if lora is None else lora.adapt(policy)
