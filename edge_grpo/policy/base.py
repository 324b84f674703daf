"""The policy: a causal language model with its tokenizer."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edge_grpo.errors import UserError


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

    def save(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` loads: safetensors, tokenizer, generation config."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
