"""Load a policy from a folder or the hub."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy


def load_policy(
    path: str,
    dtype: Literal["float32", "bfloat16", "float16"],
    attn_implementation: str,
    gradient_checkpointing: bool,
    trust_remote_code: bool,
    revision: str | None,
) -> Policy:
    """Any Hugging Face causal language model with its tokenizer.

    Args:
        path: folder or hub name.
        dtype: of the weights. With bfloat16 weights AdamW loses updates below 1/256 of a weight: for small
            learning rates keep float32 weights and set `trainer.precision=bf16-mixed`.
        attn_implementation: as transformers', for example "sdpa" or "flash_attention_2".
        gradient_checkpointing: trade a second forward for activation memory.
        trust_remote_code: run code that comes with the model; only if you read it.
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: nothing loadable there, or no causal head.
    """
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise UserError(f"model.path={path}: no such folder")
    where = str(Path(path).expanduser()) if path.startswith("~") else path
    try:
        tokenizer = _load_tokenizer(where, revision=revision, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.path={path}: cannot be loaded as a causal language model: {reason}") from error
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Policy(model=model, tokenizer=tokenizer)


def _load_tokenizer(where: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer that the files describe.

    For a generic class AutoTokenizer takes the model family's own instead, which may normalise text (Qwen2's applies
    NFC) or add tokens that the model's embedding does not have.
    """
    declared = get_tokenizer_config(where, revision=revision).get("tokenizer_class")
    if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return PreTrainedTokenizerFast.from_pretrained(where, revision=revision)
    return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
