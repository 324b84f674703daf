"""Logits that no token can be drawn from, said in words that help."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from edge_grpo.errors import UserError


class NotFiniteError(ArithmeticError):
    """The largest logit of a row is NaN or infinite."""


def check_finite(top: Tensor) -> None:
    """Hold the largest logit of every row to be finite (NaN wins a maximum; other tokens may be at -inf).

    Raises:
        NotFiniteError: it is not.
    """
    if not top.isfinite().all():
        raise NotFiniteError


@contextmanager
def finite_logits(model: Any) -> Iterator[None]:
    """Inside, `NotFiniteError` becomes one that names the model and what it may come from.

    Raises:
        UserError: instead of `NotFiniteError`.
    """
    try:
        yield
    except NotFiniteError as error:
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        raise UserError(
            f"{name}: its logits are NaN or infinite, so no token can be drawn. Likely causes: damaged weights (get "
            "the model again), numbers too large for half precision (model.dtype=float32 and trainer.precision=32-true "
            "or bf16-mixed), or a training that diverged (lower optimizer.lr)"
        ) from error
