"""The policy: a causal language model with its tokenizer."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.policy.sharding import is_sharded, whole_state


def causal_head(model: Any) -> Any:
    """The module that turns hidden states into logits.

    Raises:
        UserError: the model has none.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise UserError(f"{type(model).__name__} has no causal language-model head")
    return head


def decoder(model: Any) -> Any:
    """The module that turns tokens into the hidden states that the head reads."""
    found = model.get_decoder()
    return model.model if found is model else found  # Llama 4 calls the whole model its decoder


@contextmanager
def mode(model: Any, *, training: bool) -> Iterator[None]:
    """Inside, in train or in eval mode; afterwards as before, whatever happened.

    Train mode alone has dropout, where the model's config asks for it, and gradient checkpointing.
    """
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def eval_mode(model: Any) -> AbstractContextManager[None]:
    """Inside, without dropout."""
    return mode(model, training=False)


@dataclass(frozen=True)
class Policy:
    """A Hugging Face decoder-only causal model and its tokenizer.

    Args:
        model: any `PreTrainedModel` with a causal head.
        tokenizer: any `PreTrainedTokenizerBase` with an EOS token.

    Raises:
        UserError: no EOS token, or a tokenizer whose ids the model's embedding does not hold.
    """

    model: Any
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise UserError("the model's tokenizer has no EOS token: set one in its tokenizer_config.json")
        size = self.model.get_input_embeddings().num_embeddings
        if len(self.tokenizer) > size:
            raise UserError(f"the tokenizer has {len(self.tokenizer)} tokens but the model's embedding only {size}")

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends a response: the generation config's list and the tokenizer's own EOS."""
        listed = getattr(self.model.generation_config, "eos_token_id", None)
        ids = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
        return tuple(dict.fromkeys([self.tokenizer.eos_token_id, *ids]))

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def context_length(self) -> int | None:
        """Longest prompt + response in tokens; None if the model sets no bound."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def encode(self, text: str) -> tuple[int, ...]:
        """Text -> ids, no special tokens added (those written in the text are recognised)."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Tensor) -> str:
        """[L] ids -> text without special tokens."""
        return self.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """What the policy computes with now, under the plain model's names, one after the other, a tied one once.

        Tensors may be the policy's own: they are read, never written, and hold until the next optimiser step.
        """
        return ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    def initial(self) -> Callable[[], Any]:
        """Keep the policy as it is now; what is returned gives that model, frozen, with the policy's precision then."""
        kept = deepcopy(self.model).eval().requires_grad_(False)
        return lambda: kept.to(device=self.model.device, dtype=next(self.model.parameters()).dtype)

    def frozen(self) -> dict[str, Tensor]:
        """The parameters that training leaves as they are, under their names in `model`; no checkpoint holds them."""
        # A tied one under each of its names.
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: parameter.detach() for name, parameter in named if not parameter.requires_grad}

    def frozen_digest(self) -> str | None:
        """SHA-256 of the names, types, shapes and bits of `frozen`; None where all is trained."""
        frozen, digest = self.frozen(), hashlib.sha256()
        for name in sorted(frozen):
            weight = frozen[name]
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
            digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest() if frozen else None

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of a checkpoint: all of `model` but the frozen ones.

        Raises:
            RuntimeError: names or shapes are others.
        """
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if odd := sorted({*missing} - self.frozen().keys()) + sorted(unexpected):
            raise RuntimeError(f"{odd[0]} is missing or unexpected")

    def save(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` loads: safetensors, tokenizer, generation config.

        A model whose weights are sharded has to be whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = whole_state(self.model) if is_sharded(self.model) else None
        self.model.save_pretrained(folder, safe_serialization=True, state_dict=state)
        self.tokenizer.save_pretrained(folder)
