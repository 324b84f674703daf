"""Load a policy from a folder or the hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.policy.four_bit import check_four_bit, quantization
from edge_grpo.policy.generation_settings import ignore_settings, refuse_settings
from edge_grpo.policy.lora import Lora, base_of, is_adapter, merge_adapter
from edge_grpo.policy.memory import is_out_of_memory


def load_policy(
    path: str,
    dtype: Literal["float32", "bfloat16"],
    attn_implementation: str,
    gradient_checkpointing: bool,
    trust_remote_code: bool,
    revision: str | None,
    ignored_generation_settings: Sequence[str] = (),
    lora: Lora | None = None,
    load_in_4bit: bool = False,
) -> Policy:
    """Any Hugging Face causal language model with its tokenizer.

    Args:
        path: folder or hub name; in the folder of an adapter lies none, so its model is loaded and it is merged.
        dtype: of the weights. With bfloat16 weights AdamW loses updates below 1/512 of a weight: for small
            learning rates keep float32 weights and set `trainer.precision=bf16-mixed`, or choose
            `optimizer=adamw_offload` or `adamw_kahan`. There is no float16: its gradients underflow without loss
            scaling.
        attn_implementation: as transformers', for example "sdpa" or "flash_attention_2".
        gradient_checkpointing: the update keeps the inputs of layers only and runs each layer again in the backward
            pass: a second forward for most of the activation memory.
        trust_remote_code: run code that comes with the model; only if you read it.
        revision: branch, tag or commit on the hub.
        ignored_generation_settings: names in the model's generation config that are dropped, and not exported with
            the trained model: see `refuse_settings`.
        lora: adapters to train in place of the weights; None for none.
        load_in_4bit: keep the weights of linear layers but the head in 4 bits (nf4, double quantisation), for adapters
            to be trained on (QLoRA); the others have `dtype`. Needs CUDA and the extra `quantized`.

    Raises:
        UserError: nothing loadable there, no causal head, weights that are missing or of another shape than the config
            says, a generation setting that the rollout does not know, or, with 4 bits, see `check_four_bit`.
    """
    folder = Path(path).expanduser()
    if load_in_4bit:
        check_four_bit(adapters=lora is not None and lora.r is not None)
    if path.startswith((".", "/", "~")) and not folder.is_dir():
        raise UserError(f"model.path={path}: no such folder")
    if load_in_4bit and is_adapter(folder):
        raise UserError(
            f"model.path={path} is an adapter, and model.load_in_4bit=true would round it away where it is merged: "
            "take the merged model beside it, or the model that it was trained on"
        )
    where = base_of(folder) if is_adapter(folder) else str(folder) if path.startswith("~") else path
    # A quantization_config of None would hide the model's own.
    in_four_bits = {"quantization_config": quantization(getattr(torch, dtype))} if load_in_4bit else {}
    try:
        tokenizer = _load_tokenizer(where, revision=revision, trust_remote_code=trust_remote_code)
        model, report = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_refuse_partial` tells of them
            **in_four_bits,
        )
    except Exception as error:  # foreign files make transformers, tokenizers and safetensors raise all kinds
        if is_out_of_memory(error):
            raise
        raise UserError(f"model.path={path}: {_reason(error, where, revision)}") from error
    _refuse_partial(path, report)
    if is_adapter(folder):
        model = merge_adapter(model, folder)
    try:
        ignore_settings(model, ignored_generation_settings)
        refuse_settings(model)
    except UserError as error:
        raise UserError(f"model.path={path}: {error}") from error
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(model=model, tokenizer=tokenizer)
    return policy if lora is None else lora.adapt(policy)


def _refuse_partial(path: str, report: Mapping[str, Any]) -> None:
    """Refuse weights that transformers has drawn at random, because the files lack them or hold others.

    Tied weights and buffers that a file need not hold are not in the report.

    Raises:
        UserError: names the first of them.
    """
    missing, other = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if missing:
        raise UserError(
            f"model.path={path}: {len(missing)} weights that its config.json asks for are not in the files, the first "
            f"is {missing[0]}, and would be random: get the whole checkpoint, or the config.json that belongs to it"
        )
    if other:
        name, there, asked = other[0]
        raise UserError(
            f"model.path={path}: {len(other)} weights have another shape than its config.json says, the first is "
            f"{name}, {tuple(there)} in the files and {tuple(asked)} by the config: get the config.json that belongs "
            "to the weights"
        )


def _reason(error: Exception, where: str, revision: str | None) -> str:
    """Why a model cannot be loaded, in one line with the way out where it is known."""
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, ImportError):
        quantised = _quantisation(where, revision)
        if quantised:
            return f"its config asks for {quantised} quantisation ({told}): install that, or take a model without"
        return f"needs a package that is not here ({told}): install it, or choose another model.attn_implementation"
    if "support an attention implementation" in told or "support Flash Attention" in told:
        return f"{told.partition('. ')[0].removesuffix('.')}: set model.attn_implementation=eager"
    if type(error).__name__ == "SafetensorError":
        return f"a file of its weights is cut off or damaged ({told}): get it again"
    return f"cannot be loaded as a causal language model: {told}"


def _quantisation(where: str, revision: str | None) -> str | None:
    config, _ = PretrainedConfig.get_config_dict(where, revision=revision)
    return (config.get("quantization_config") or {}).get("quant_method")


def _load_tokenizer(where: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer that the files describe.

    For a generic class AutoTokenizer takes the model family's own instead, which may normalise text (Qwen2's applies
    NFC) or add tokens that the model's embedding does not have.
    """
    declared = get_tokenizer_config(where, revision=revision).get("tokenizer_class")
    if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return PreTrainedTokenizerFast.from_pretrained(where, revision=revision)
    return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
