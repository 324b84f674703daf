"""A preallocated KV cache with one place a row, which models take for transformers' own."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Stored = list[tuple[Tensor, Tensor]]
"""keys and values [K, S, D] of one prefix, layer by layer"""

SHARE = 4
"""the cache may take one part in so many of a device's memory, where nothing else is asked"""


def cache_bytes(memory: int) -> int:
    """What the cache may take of a device with so many bytes. Of all and not of those that are free: a call then
    decodes the same rows together whenever it is made."""
    return memory // SHARE


@torch.no_grad()
def token_bytes(model: Any) -> int:
    """Bytes of the keys and values of one token in all layers, as the model makes them now (under autocast, say).

    At least 1, for models that keep no keys and values.
    """
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    made = getattr(model(input_ids=ids, use_cache=True), cache_name(model), None)
    tensors = [getattr(layer, name, None) for layer in getattr(made, "layers", ()) for name in ("keys", "values")]
    return max(sum(x.numel() * x.element_size() for x in tensors if x is not None), 1)


def cache_name(model: Any) -> str:
    """What the model calls its cache, as an argument and in its output: older releases of transformers have another
    name, and newer ones will not know that."""
    adapted = getattr(model, "get_base_model", None)  # peft's forward takes anything
    forward = (adapted() if adapted is not None else model).forward
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def reads_transposed(key: Tensor) -> bool:
    """Whether keys lie in memory as [D, tokens], the order in which a product with few queries reads them fastest.

    In float32 on a CPU, where `RowsLayout` makes that product itself.
    """
    return key.device.type == "cpu" and key.dtype is torch.float32


class RowCache:
    """Keys and values of up to `num_places` rows; nothing is concatenated or reallocated while rows grow.

    The model calls `update` in each layer. After `prefill_at` it hands over flat keys [1, K, M, D], which are copied
    to the places of the rows that share them and given back; after `decode_at` one token a row, [1, K, n, D], which
    is written behind the row, and the rows' whole part of the cache is returned.

    Args:
        num_places: rows at once.
        num_tokens: of the longest row, prompt and response.
    """

    def __init__(self, num_places: int, num_tokens: int) -> None:
        self.num_places, self.num_tokens = num_places, num_tokens
        self.keys: list[Tensor] = []
        """[places, K, tokens, D] of each layer, made at its first update"""
        self.values: list[Tensor] = []
        self._decoding = False
        self._width = 0
        self._source = self._place = self._position = torch.empty(0, dtype=torch.long)

    def prefill_at(self, source: Tensor, place: Tensor, position: Tensor) -> None:
        """Flat token `source[i]` of the next forward goes to `position[i]` of `place[i]`; each [X]."""
        self._decoding = False
        self._source, self._place, self._position = source, place, position

    def decode_at(self, position: Tensor, width: int) -> None:
        """The next forward brings one token for each of the first n places: [n] positions, below `width`."""
        self._decoding, self._width = True, width
        self._place = torch.arange(len(position), device=position.device)
        self._position = position

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        if layer_idx == len(self.keys):
            keys = self._buffer(key_states)
            if reads_transposed(key_states):
                keys = keys.view(*keys.shape[:2], keys.shape[3], keys.shape[2]).transpose(2, 3)
            self.keys.append(keys)
            self.values.append(self._buffer(value_states))
        key, value = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        if not self._decoding:
            key, value = key[self._source], value[self._source]
        self.keys[layer_idx][self._place, :, self._position] = key
        self.values[layer_idx][self._place, :, self._position] = value
        if not self._decoding:
            return key_states, value_states
        n, width = len(self._position), self._width
        return self.keys[layer_idx][:n, :, :width], self.values[layer_idx][:n, :, :width]

    def move(self, sources: Tensor, holes: Tensor, width: int) -> None:
        """Copy the first `width` tokens of places `sources` [m] into places `holes` [m]."""
        for buffer in (*self.keys, *self.values):
            buffer[holes, :, :width] = buffer[sources, :, :width]

    def read(self, place: int, length: int) -> Stored:
        """A copy of the first `length` tokens of a place."""
        return [
            (k[place, :, :length].clone(), v[place, :, :length].clone())
            for k, v in zip(self.keys, self.values, strict=True)
        ]

    def write(self, places: Sequence[int], stored: Stored) -> None:
        """Begin these places with a stored prefix."""
        index = torch.tensor(places)
        for layer, (key, value) in enumerate(stored):
            self.keys[layer][index, :, : key.shape[1]] = key
            self.values[layer][index, :, : value.shape[1]] = value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given, so models have no use for it."""
        return self._width if self._decoding else 0

    def _buffer(self, states: Tensor) -> Tensor:
        """Zeros, because what stands behind a row is weighted by 0, and 0 times an old infinity is not 0.

        On the CPU they come from the system page by page as they are touched: a tail that few rows reach costs nothing.
        """
        _, heads, _, dim = states.shape
        shape = (self.num_places, heads, self.num_tokens, dim)
        if states.device.type != "cpu":
            return states.new_zeros(shape)
        pages = np.zeros(math.prod(shape) * states.element_size(), dtype=np.uint8)
        return torch.from_numpy(pages).view(states.dtype).view(shape)
