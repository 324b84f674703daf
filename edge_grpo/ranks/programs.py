"""A command that a launcher may start several times for one run.

Imported by the command line, so it must stay light: no torch.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from edge_grpo.command_line.run import AroundSweep, Check, Task, run
from edge_grpo.errors import UserError
from edge_grpo.ranks.place import place_of


def run_on_ranks(
    task: Task,
    follow: Callable[[Mapping[str, Any], Any], None],
    config_name: str,
    injected: Mapping[str, frozenset[str]],
    check_directory: Check,
    around_sweep: AroundSweep,
) -> None:
    """`command_line.run.run` on rank 0, which alone reads the command line; the others do what it says.

    Args:
        task, config_name, injected, check_directory, around_sweep: see there.
        follow: what the other ranks do with a job of rank 0.
    """
    try:
        place = place_of(os.environ)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if place is None:
        run(task, config_name, injected, check_directory, around_sweep)
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told in a line, without frames of C++
    # Imported here: only several ranks need torch before the command line is read.
    from edge_grpo.ranks import lead

    if not place.is_first:
        raise SystemExit(lead.follow(place, follow))
    try:
        with lead.leading(place):
            run(task, config_name, injected, check_directory, around_sweep)
    except UserError as error:  # the port is taken
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
