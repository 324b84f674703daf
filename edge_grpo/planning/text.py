"""A plan as people read it."""

from collections.abc import Sequence

from edge_grpo.planning.advice import Change
from edge_grpo.planning.plan import PHASES, Plan

_NAME, _NUMBER = 24, 11


def table(plan: Plan, source: str) -> str:
    """All parts in GB (1e9 bytes), a column a phase.

    Args:
        source: where the model's shape comes from.
    """
    run = plan.settings
    lines = [
        f"model      {plan.parameters / 1e6:,.1f} M parameters, {plan.trained / 1e6:,.1f} M trained; {source}",
        f"iteration  {run.rows} responses to {run.problems} problems, at most {plan.tokens:,} tokens, on each of "
        f"{run.ranks} {'GPU' if run.on_gpu else 'process'}(s)",
        f"longest    a prompt of {run.prompt_tokens:,} tokens with a response of {run.response_tokens:,}",
        "",
        _line("GB", [*PHASES]),
    ]
    for part in plan.parts:
        if any(part.bytes.values()):
            numbers = [_gb(part.bytes[phase]) if part.bytes.get(phase) else "" for phase in PHASES]
            lines.append(f"{_line(part.name, numbers)}   {part.note}".rstrip())
    lines += [
        _line("sum", [_gb(plan.total(phase)) for phase in PHASES]),
        "",
        f"disk       {_gb(plan.checkpoint)} GB a checkpoint ({100 * plan.checkpoint / plan.base:.2f} % of the model), "
        f"{run.checkpoints} at once, "
        f"{_gb(plan.exported)} GB exported: {_gb(plan.disk)} GB",
    ]
    if plan.host:
        lines.append(f"RAM        {_gb(plan.host)} GB of this machine's for the optimizer, for each process")
    if run.cache_bound is None and run.max_batch_rows is None and run.engine_cache is None:
        lines.append(
            "rollout    rollout.kv_cache_gb=null bounds the KV cache by a quarter of the card, and none is known here: "
            "give plan.memory_gb, or set rollout.kv_cache_gb"
        )
    return "\n".join(lines)


def verdict(plan: Plan, memory: int | None, changes: Sequence[Change], smaller: Plan) -> str:
    """Whether it fits, and the way out where it does not.

    Args:
        memory: bytes of the device; None where it is not known.
        changes: see `lowered`; `smaller`: the plan with them.
    """
    peak = f"peak       {_gb(plan.peak)} GB ({plan.peak_phase})"
    if memory is None:
        return f"{peak}; no GPU is here: plan.memory_gb=24 holds it against a card of 24 GB"
    if plan.peak <= memory:
        return f"{peak} of {_gb(memory)} GB: fits, {_gb(memory - plan.peak)} GB are left"
    lines = [f"{peak} of {_gb(memory)} GB: {_gb(plan.peak - memory)} GB too much"]
    if changes:
        lines.append("lower, in this order:")
        lines += [f"  {change.setting:50} {_saved(change.saved)}" for change in changes]
    rest = f"{_gb(smaller.peak)} GB ({smaller.peak_phase})"
    if smaller.peak <= memory:
        lines.append(f"with these {rest}: fits")
    else:
        kept = "with these still" if changes else "nothing that leaves the experiment as it is makes it smaller:"
        lines.append(f"{kept} {rest}: take a larger card, a smaller model, or shorter rows (rollout.max_new_tokens)")
    return "\n".join(lines)


def summary(plan: Plan, memory: int | None) -> str:
    """The line at the start of a run."""
    shown = {part.name: max(part.bytes.values()) for part in plan.parts}
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in shown.items() if size >= 5e6)
    of = "" if memory is None else f" of {_gb(memory)}"
    return (
        f"memory planned: {_gb(plan.peak)}{of} GB at the peak ({plan.peak_phase}): {parts}; "
        f"{f'{_gb(plan.host)} GB of RAM for the optimizer; ' if plan.host else ''}"
        f"a checkpoint {_gb(plan.checkpoint)} GB; at most {plan.tokens:,} tokens an iteration"
    )


def _line(name: str, numbers: Sequence[str]) -> str:
    return f"{name:{_NAME}}" + "".join(f"{number:>{_NUMBER}}" for number in numbers)


def _saved(size: int) -> str:
    return f"-{_gb(size)} GB" if size > 0 else "another phase than the largest"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f}"
