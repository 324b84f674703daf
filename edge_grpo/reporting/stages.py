"""Which strategy a run had at every stage, and in which an arm differs from the baseline."""

from collections.abc import Mapping, Sequence

from edge_grpo.reporting.runs import Run
from edge_grpo.reporting.scores import Member

STAGES = (
    "algorithm",
    "allocation",
    "correction",
    "group_filter",
    "advantage",
    "token_filter",
    "importance_correction",
    "loss",
)
SEVERAL = "combinations"


def option_of(run: Run, stage: str) -> str:
    """The option of a config group, with those inside it; "" where Hydra's record does not say or it is null.

    >>> choices = {"advantage": "entropy_driven", "advantage@advantage.base": "ngrpo"}
    >>> option_of(Run("", {}, (), "finished", choices=choices), "advantage")
    'entropy_driven(ngrpo)'
    """
    inside = [option for name, option in sorted(run.choices.items()) if name.startswith(f"{stage}@{stage}.")]
    own = run.choices.get(stage, "")
    return f"{own}({', '.join(inside)})" if own and inside else own


def options_of_arms(members: Sequence[Member]) -> dict[str, dict[str, str]]:
    """arm -> stage -> option, of the arms of which Hydra's record is there."""
    first = {member.arm: member.run for member in reversed(members)}
    known = {arm: run for arm, run in first.items() if run.choices}
    return {arm: {stage: option_of(run, stage) for stage in STAGES} for arm, run in known.items()}


def families(options: Mapping[str, Mapping[str, str]], baseline: str) -> dict[str, list[str]]:
    """Stage in which an arm alone differs from the baseline -> arms; those that differ in several are `SEVERAL`.

    An arm that differs in none of `STAGES` is in no family; without the baseline there are none.

    >>> families({"a": {"loss": "grpo"}, "b": {"loss": "gspo"}}, "a")
    {'loss': ['b']}
    """
    found: dict[str, list[str]] = {}
    for arm, own in options.items() if baseline in options else ():
        differing = [stage for stage, option in own.items() if option != options[baseline][stage]]
        if differing:
            # Another algorithm has none of the stages.
            family = "algorithm" if "algorithm" in differing else differing[0] if len(differing) == 1 else SEVERAL
            found.setdefault(family, []).append(arm)
    return found
