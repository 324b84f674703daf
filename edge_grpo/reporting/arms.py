"""Arms: runs that differ in their seed only are one arm, and what differs between arms labels them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edge_grpo.reporting.runs import Run
from edge_grpo.runs.settings import FREE, is_free, portable

# What is free to change within a run tells no arms apart either, but for these.
COMPARED = ("name", "trainer.max_iterations", "trainer.max_generated_tokens")
NOT_COMPARED = tuple(key for key in FREE if key not in COMPARED)
SHOWN_SETTINGS = 3
UNKNOWN = "unknown"


def label_arms(runs: Sequence[Run]) -> list[str]:
    """One label a run: runs with the same settings, seeds apart, share it.

    The label is the run's `name` where names differ; where several arms have that name, what was typed and differs
    between arms follows (`edge_grpo, advantage.clamp=4`). Where that does not tell two arms apart (a default changed
    between two versions, say), the settings that differ follow. A run whose settings cannot be read is `UNKNOWN`.

    Labels come from the runs that count. A failed run gets the label of the arm that has its settings; without such an
    arm its label holds all that differs from the other runs.
    """
    counting = [run for run in runs if run.usable and run.settings]
    if not counting or len(counting) == len(runs):
        return _labels(runs)
    known = list(zip(map(_compared, counting), _labels(counting), strict=True))
    labels = []
    for run, among_all in zip(runs, _labels(runs), strict=True):
        own = [label for settings, label in known if run.settings and settings == _compared(run)]
        labels.append(own[0] if own else among_all)
    return labels


def _labels(runs: Sequence[Run]) -> list[str]:
    readable = [run for run in runs if run.settings]
    settings = [_compared(run) for run in readable]
    distinct: list[Mapping[str, Any]] = []
    for one in settings:
        if one not in distinct:
            distinct.append(one)
    members = [[run for run, own in zip(readable, settings, strict=True) if own == one] for one in distinct]
    labels = _typed_labels(distinct, members)
    labels = [_told_apart(i, labels, distinct) for i in range(len(labels))]
    found = iter(settings)
    return [labels[distinct.index(next(found))] if run.settings else UNKNOWN for run in runs]


def _compared(run: Run) -> dict[str, Any]:
    """The settings that define the arm, with seeds that follow the run's and paths of our own files made equal."""
    typed = _typed(run)
    kept = {}
    for key, value in run.settings.items():
        if not _is_compared(key):
            continue
        follows = key.endswith(".seed") and value == run.seed and key not in typed
        kept[key] = "${seed}" if follows else portable(value)
    return kept


def _is_compared(key: str) -> bool:
    return key != "seed" and not is_free(key, NOT_COMPARED)


def _typed(run: Run) -> dict[str, str]:
    """key -> value of what was typed for the run."""
    parts = (text.partition("=") for text in run.overrides)
    return {key.lstrip("+~"): value for key, _, value in parts}


def _typed_labels(distinct: Sequence[Mapping[str, Any]], members: Sequence[Sequence[Run]]) -> list[str]:
    """`name, key=value` with what was typed for all runs of an arm and not for all arms."""
    common = [dict(set.intersection(*({*_typed(run).items()} for run in arm))) for arm in members]
    # In the order in which they were typed.
    order = list(dict.fromkeys(key for arm in members for run in arm for key in _typed(run)))
    differing = [key for key in order if _is_compared(key) and _tells_apart(key, common, distinct)]
    names = [one.get("name", UNKNOWN) for one in distinct]
    named = len(set(names)) > 1
    shown = [key for key in differing if not named or key not in ("experiment", "name")]
    labels = []
    for name, typed in zip(names, common, strict=True):
        alone = named and names.count(name) == 1  # then the name says it all
        parts = [f"{key}={typed[key]}" for key in shown if key in typed and not alone]
        labels.append(", ".join([str(name), *parts] if named or not parts else parts))
    return labels


def _tells_apart(key: str, common: Sequence[Mapping[str, str]], distinct: Sequence[Mapping[str, Any]]) -> bool:
    """Whether arms differ in this key: in the setting or, of a config group, in the option that was typed."""
    if any(key in one for one in distinct):
        return any(one.get(key) != distinct[0].get(key) for one in distinct)
    return any(typed.get(key) != common[0].get(key) for typed in common)


def _told_apart(i: int, labels: Sequence[str], distinct: Sequence[Mapping[str, Any]]) -> str:
    """The label of arm i, with the settings in which it differs from arms of the same label."""
    same = [j for j, label in enumerate(labels) if label == labels[i]]
    if len(same) == 1:
        return labels[i]
    keys = list(dict.fromkeys(key for j in same for key in distinct[j]))
    differing = [key for key in keys if any(distinct[j].get(key) != distinct[same[0]].get(key) for j in same)]
    shown = ", ".join(f"{key}={distinct[i].get(key)}" for key in differing[:SHOWN_SETTINGS])
    # The number keeps labels apart whose differences are not among those shown.
    more = f", #{same.index(i) + 1} of {len(same)}" if len(differing) > SHOWN_SETTINGS else ""
    return f"{labels[i]} ({shown}{more})"


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Setting -> its value in each of the runs, where they differ; "" where a run has no such setting.

    Args:
        runs: one of each arm.
    """
    settings = [_compared(run) for run in runs]
    keys = sorted({key for one in settings for key in one if key != "name"})
    table = [(key, [told(one[key]) if key in one else "" for one in settings]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def told(value: Any) -> str:
    """A setting's value as one types it.

    >>> told(None), told(True), told("${asset:tiny_base}"), told("/home/me/edge_grpo/assets/tiny_base")
    ('null', 'true', 'tiny_base', 'tiny_base')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return re.sub(r"\$\{asset:([^}]*)\}", r"\1", str(portable(value)))


def newest_of_each_seed(runs: Sequence[Run], labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """Positions of the runs that enter the tables, and a note on each finished run that a newer one replaces.

    Of several finished runs with the same arm and seed the newest wins.
    """
    newest: dict[tuple[str, int | None], int] = {}
    notes = []
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        if not run.usable:
            continue
        other = newest.setdefault((label, run.seed), i)
        if other != i:
            kept, left = (i, other) if run.written >= runs[other].written else (other, i)
            newest[label, run.seed] = kept
            notes.append(
                f"{label}, seed {run.seed}: {runs[left].place} is left out, {runs[kept].place} of the same settings "
                "is newer."
            )
    return sorted(newest.values()), notes
