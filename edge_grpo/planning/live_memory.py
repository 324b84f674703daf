"""The bytes of tensors that are alive, counted while operators run on tensors without data."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HEAP_BLOCK = 32 * 2**20
"""bytes from which on glibc maps every block by itself and unmaps it when it is freed"""


class LiveMemory(TorchDispatchMode):
    """Inside, every storage that an operator makes counts from its making until nothing refers to it.

    On the meta device and with fake tensors no storage has data, so a model of any size costs nothing; the sizes, and
    which of them live at the same time, are those of a real run of the same operators. Scratch space within one
    operator is not seen.

    >>> import torch
    >>> with torch.device("meta"), LiveMemory() as memory:
    ...     x = torch.empty(100, 10)  # 4,000 bytes
    ...     y = (x + 1).sum()  # 4,000 that are freed, 4 that stay
    >>> memory.bytes, memory.peak
    (4004, 8004)

    What is made inside `apart()` counts too; `peak_without` is the peak of all the rest, and `heap` how much of that is
    in blocks of less than `HEAP_BLOCK`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.peak_without = self.heap = self._in_heap = 0
        self._apart, self._bytes_apart = False, 0
        self._known: dict[int, weakref.ref[Any]] = {}

    @contextmanager
    def apart(self) -> Iterator[None]:
        """See the class."""
        self._apart = True
        try:
            yield
        finally:
            self._apart = False

    def restart(self) -> int:
        """Peaks count from here; the bytes alive now."""
        self.peak = self.peak_without = self.bytes
        self.heap = self._in_heap
        return self.bytes

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors' storages, each once, also those made before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._known:
                continue
            self._known[key] = weakref.ref(storage, partial(self._forget, key, size, self._apart))
            self._add(size, self._apart)
            self.peak = max(self.peak, self.bytes)
            if self.bytes - self._bytes_apart > self.peak_without:
                self.peak_without, self.heap = self.bytes - self._bytes_apart, self._in_heap

    def _add(self, size: int, apart: bool) -> None:
        self.bytes += size
        self._bytes_apart += size if apart else 0
        self._in_heap += size if abs(size) < HEAP_BLOCK and not apart else 0

    def _forget(self, key: int, size: int, apart: bool, _: Any) -> None:
        del self._known[key]
        self._add(-size, apart)
