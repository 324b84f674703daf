"""The strategies that keep something from one iteration to the next, wherever they stand."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from edge_grpo.advantages.base import UpdateGroups
from edge_grpo.errors import UserError


def parts_of(strategies: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every strategy with its name, and those inside: a wrapper keeps them as `base`, or as a mapping `steps`.

    >>> from types import SimpleNamespace as Of
    >>> [name for name, _ in parts_of({"advantage": Of(base=Of()), "correction": Of(steps={"a": Of(), "b": Of()})})]
    ['advantage', 'advantage.base', 'correction', 'correction.steps.a', 'correction.steps.b']
    """
    for name, strategy in strategies.items():
        yield name, strategy
        inside = {f"{name}.base": strategy.base} if hasattr(strategy, "base") else {}
        steps = getattr(strategy, "steps", None)
        inside |= {f"{name}.steps.{step}": part for step, part in steps.items()} if isinstance(steps, Mapping) else {}
        yield from parts_of(inside)


def observe(strategies: Mapping[str, Any], groups: UpdateGroups) -> None:
    """Show all groups of an update to the strategies that have a method `observe`, once, before the update."""
    for _, part in parts_of(strategies):
        if hasattr(part, "observe"):
            part.observe(groups)


def strategy_states(strategies: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> state of those that have a `state_dict`, which gives a snapshot."""
    return {name: part.state_dict() for name, part in _stateful(strategies)}


def load_strategy_states(strategies: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Hand every strategy the state that it had.

    Raises:
        UserError: the checkpoint has none for a strategy that needs one.
    """
    for name, part in _stateful(strategies):
        if name not in states:
            raise UserError(
                f"the checkpoint has no state of {name} ({type(part).__name__}): set it as it was, or resume=never"
            )
        part.load_state_dict(states[name])


def _stateful(strategies: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """An nn.Module is left out: the LightningModule that holds it saves it."""
    return ((n, p) for n, p in parts_of(strategies) if hasattr(p, "state_dict") and not isinstance(p, nn.Module))
