"""LoRA: low-rank adapters are trained, the weights under them are frozen. By peft, imported when it is used."""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy, causal_head
from edge_grpo.policy.four_bit import bare, constants, is_four_bit, is_turned, plain_weight, quantisation_states

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
ADAPTER = "adapter"
"""folder of the adapter alone, in that of the exported model"""
_CONFIG = "adapter_config.json"
_NAME = "default"  # peft's, of a model's only adapter


@dataclass(frozen=True)
class Lora:
    """W h becomes W h + alpha / r * B A dropout(h): A [r, in] and B [out, r] are trained, W is frozen (2106.09685).

    A is drawn at random and B is 0, so the policy starts as the model that it adapts. A and B are float32 where W is
    bfloat16. Biases, norms, embeddings and the head stay as they are.

    Args:
        r: rank, at least 1; None trains the weights, without adapters.
        alpha: the adapters are scaled by alpha / r; above 0.
        dropout: share of their inputs that is dropped, in [0, 1), in the update alone.
        targets: "all-linear", every linear layer but the head; or names of linear layers, whole or from a dot on, such
            as `q_proj` or `layers.0.mlp.up_proj`.
        seed: of the initial values of A; B begins at 0.

    Raises:
        UserError: a value out of range, or peft is not installed.
    """

    r: int | None
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | Sequence[str] = ALL_LINEAR
    seed: int = 0

    def __post_init__(self) -> None:
        if self.r is None:
            return
        if self.r < 1:
            raise UserError(f"model.lora.r={self.r} must be at least 1 (null trains the weights)")
        if self.alpha <= 0:
            raise UserError(f"model.lora.alpha={self.alpha} must be above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.lora.dropout={self.dropout} must be at least 0 and below 1")
        _require_peft(f"model.lora.r={self.r}")

    def adapt(self, policy: Policy) -> Policy:
        """The policy with adapters; the model's layers are replaced in place.

        Raises:
            UserError: a target that is no linear layer of the model.
        """
        if self.r is None:
            return policy
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self._chosen(policy.model),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = get_peft_model(policy.model, config)
        config.base_model_name_or_path = _place(policy.model.name_or_path)
        trained, total = model.get_nb_trainable_parameters()
        log.info("LoRA trains %s of %s parameters (%.2g %%)", f"{trained:,}", f"{total:,}", 100 * trained / total)
        return LoraPolicy(model=model, tokenizer=policy.tokenizer)

    def _chosen(self, model: Any) -> str | list[str]:
        """`targets`, each of which is there."""
        head = causal_head(model)
        linear = [
            name
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Linear | Conv1D) and part is not head
        ]
        if self.targets == ALL_LINEAR:
            return ALL_LINEAR
        targets = [self.targets] if isinstance(self.targets, str) else list(self.targets)
        unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
        if unknown or not targets:
            there = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            raise UserError(
                f"model.lora.targets={self.targets}: {', '.join(unknown) or 'nothing'} names no linear layer of "
                f"{type(model).__name__}, which has {there}; {ALL_LINEAR} takes them all"
            )
        return targets


@dataclass(frozen=True)
class LoraPolicy(Policy):
    """A policy whose `model` is a `PeftModel`: adapters on frozen weights."""

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Policy.named_weights`: merged weights, and those of 4 bits, are new tensors, made one at a time."""
        plain = self.model.get_base_model()
        for name, _ in plain.named_parameters():
            if ".lora_" in name:
                continue
            place, _, own = name.rpartition(".")
            holder, layer = plain.get_submodule(place), place.removesuffix(".base_layer")
            weight = plain_weight(holder, own)
            if layer != place and own == "weight":
                weight = _merged(plain.get_submodule(layer), weight)
            yield f"{layer}.{own}", weight.T.contiguous() if own == "weight" and is_turned(holder) else weight

    def frozen(self) -> dict[str, Tensor]:
        """See `Policy.frozen`: of weights of 4 bits what scales them too."""
        return {**super().frozen(), **constants(self.model)}

    def initial(self) -> Callable[[], Any]:
        """See `Policy.initial`: the model without its adapters, whose weights are the frozen ones themselves."""
        return self._plain

    def save(self, folder: Path) -> None:
        """The merged model, which loads without peft, and in `adapter/` the adapters alone.

        Weights of 4 bits become those of the type that they were loaded in, in RAM.
        """
        folder.mkdir(parents=True, exist_ok=True)
        plain = self._plain()
        merged = {**plain.state_dict(), **dict(self.named_weights())}
        if is_four_bit(plain):
            plain, all_of_it = bare(plain), merged
            merged = {name: all_of_it[name].cpu() for name in plain.state_dict()}
        plain.save_pretrained(folder, state_dict=merged, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        # Otherwise peft asks the hub whether the embedding has grown.
        self.model.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
        (folder / ADAPTER / "README.md").unlink()  # a form that nobody has filled in

    def _plain(self) -> Any:
        """The model as it was before adapters: modules of its own, the same tensors."""
        shared = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return deepcopy(self.model, {**shared, **quantisation_states(self.model)}).unload()


def is_adapter(folder: Path) -> bool:
    """Whether an adapter lies there, which is no model by itself."""
    return (folder / _CONFIG).is_file()


def base_of(adapter: Path) -> str:
    """Folder or hub name of the model that the adapter in a folder was trained on.

    Raises:
        UserError: the folder does not tell, that model is not there, or peft is not installed.
    """
    _require_peft(f"model.path={adapter}")
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if not base or (base.startswith("/") and not Path(base).is_dir()):
        raise UserError(
            f"model.path={adapter}: the model that this adapter belongs to, {base or 'which has no name'}, is not "
            f"there: set base_model_name_or_path in its {_CONFIG}, or take the merged model beside it"
        )
    return str(base)


def merge_adapter(model: Any, adapter: Path) -> Any:
    """The model with the adapter in a folder added to its weights."""
    from peft import PeftModel

    # peft has frozen the weights and leaves them so.
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().requires_grad_(True)


def _require_peft(what: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{what} needs peft: pip install 'edge-grpo[lora]'")


def _place(model: str) -> str:
    """A folder from the root on, for a program that starts elsewhere; a hub's name, or none, as it is."""
    return str(Path(model).absolute()) if model and Path(model).is_dir() else model


@torch.no_grad()
def _merged(layer: Any, weight: Tensor) -> Tensor:
    """W + alpha / r * B A, rounded once."""
    return (weight + layer.get_delta_weight(_NAME)).to(weight.dtype)
