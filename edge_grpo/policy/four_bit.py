"""Frozen weights of 4 bits under adapters (QLoRA, 2305.14314), by bitsandbytes, imported when it is used.

Of what peft's `prepare_model_for_kbit_training` does nothing is left to do: adapters freeze the weights, checkpointing
without re-entrance needs no gradient of its inputs, and norms stay in the type that they are loaded in, because they
compute in float32 whatever it is, and weights of float32 would make the layers behind them give float32 to attention.
"""

import importlib.metadata
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from edge_grpo.errors import UserError

LEAST_VERSION = "0.48"
_ASKED = "model.load_in_4bit=true"


def check_four_bit(*, adapters: bool) -> None:
    """Refuse what cannot load or train weights of 4 bits, before any is loaded.

    Args:
        adapters: whether there are any to train.

    Raises:
        UserError: no adapters, bitsandbytes absent or too old, or no CUDA.
    """
    if not adapters:
        raise UserError(f"{_ASKED} freezes the weights, so adapters must be trained: set model.lora.r=16")
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{_ASKED} needs bitsandbytes: pip install 'edge-grpo[quantized,lora]'") from error
    if Version(version) < Version(LEAST_VERSION):
        raise UserError(
            f"{_ASKED} works with bitsandbytes {LEAST_VERSION} or newer, and {version} is installed: pip install "
            "'edge-grpo[quantized,lora]'"
        )
    if not _sees_gpu():
        raise UserError(f"{_ASKED} but torch sees no GPU: set model.load_in_4bit=false")


def _sees_gpu() -> bool:
    return torch.cuda.is_available()


def quantization(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with constants that are quantised too; `dtype` is what layers compute in until `compute_in`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def compute_in(model: Any, precision: str) -> None:
    """Let the layers of 4 bits compute as the trainer's precision says: in bfloat16 under bf16-mixed and bf16-true."""
    for _, layer in _layers(model):
        layer.compute_dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32


def is_four_bit(model: Any) -> bool:
    """Whether any of its layers has weights of 4 bits."""
    return any(True for _ in _layers(model))


def plain_weight(layer: Any, name: str) -> Tensor:
    """A parameter of a layer as the plain model has it: of 4 bits a new tensor, in the type that it was loaded in."""
    parameter = getattr(layer, name)
    if not _of_four_bits(parameter):
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, parameter.quant_state)


def is_turned(layer: Any) -> bool:
    """Whether a layer of 4 bits has the transpose of the weight that the model's files have (GPT-2's)."""
    return issubclass(getattr(layer, "source_cls", torch.nn.Linear), Conv1D)


def constants(model: Any) -> dict[str, Tensor]:
    """What the 4 bits are scaled by, under its names in the model's state."""
    return {
        f"{name}.weight.{constant}": value
        for name, layer in _layers(model)
        for constant, value in layer.weight.quant_state.as_dict(packed=True).items()
    }


def quantisation_states(model: Any) -> dict[int, Any]:
    """Identity -> object of what a copy of the model is to share besides its tensors, as `deepcopy` takes it."""
    states = [layer.weight.quant_state for _, layer in _layers(model)]
    return {id(state): state for state in states}


def plain_config(model: Any) -> Any:
    """The config of the model that `named_weights` describes: not quantised."""
    if getattr(model.config, "quantization_config", None) is None:
        return model.config
    config = deepcopy(model.config)
    del config.quantization_config
    return config


def bare(model: Any) -> Any:
    """The plain model of the same class, type and generation config, without data."""
    with torch.device("meta"):
        made = type(model)(plain_config(model)).to(model.dtype)
    made.generation_config = model.generation_config
    return made


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if _of_four_bits(module._parameters.get("weight")):  # adapters show their base's as an attribute of their own
            yield name, module


def _of_four_bits(parameter: Any) -> bool:
    return getattr(parameter, "quant_state", None) is not None
