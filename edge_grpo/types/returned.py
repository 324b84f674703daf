"""What strategies return, held against what their Protocols say: a strategy that is wrong is told of by its class."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from edge_grpo.errors import UserError

PAIR = "and a dictionary of what it reports, which may be empty"


def who(stage: str, strategy: Any) -> str:
    """The stage and class of a strategy, as an error names it.

    >>> who("advantage", UserError())
    'advantage edge_grpo.errors.UserError'
    """
    return f"{stage} {type(strategy).__module__}.{type(strategy).__qualname__}"


def described(value: Any) -> str:
    """
    >>> import torch
    >>> described(torch.zeros(2, 3)), described((1, 2)), described(None)
    ('a tensor of shape (2, 3) of float32', 'a tuple of 2', 'None')
    """
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def pair(strategy: str, returned: Any, first: str) -> tuple[Any, Mapping[str, Tensor]]:
    """What a strategy returned, as its result and what it reports.

    Args:
        strategy: see `who`.
        first: what the result should be.

    Raises:
        UserError: it is no such pair.
    """
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
        raise UserError(f"{strategy} returned {described(returned)}, expected a pair: {first}, {PAIR}")
    return returned


def check_tensor(
    strategy: str, name: str, value: Any, shapes: Mapping[str, tuple[int, ...]], dtype: str, like: Tensor | None = None
) -> None:
    """Hold a tensor against its shape, type and device; its values are not read.

    Args:
        strategy: see `who`.
        name: of what it holds.
        shapes: in letters -> in numbers, each of which is right.
        dtype: `float`, of any width, `bool` or `any`.
        like: a tensor on the device on which it must be; None where any will do.

    Raises:
        UserError: it is another one.
    """
    known = " or ".join(f"{letters} = {shape}" if shape else letters for letters, shape in shapes.items())
    expected = f"expected {name} as a {'' if dtype == 'any' else f'{dtype} '}tensor of shape {known}"
    if not isinstance(value, Tensor) or tuple(value.shape) not in shapes.values():
        raise UserError(f"{strategy} returned {described(value)}, {expected}")
    kinds = {"float": value.is_floating_point(), "bool": str(value.dtype) == "torch.bool", "any": True}
    if not kinds[dtype]:
        raise UserError(f"{strategy} returned {described(value)}, {expected}")
    if like is not None and value.device != like.device:
        raise UserError(f"{strategy} returned {described(value)} on {value.device}, {expected} on {like.device}")
