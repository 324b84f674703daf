"""Colours that mean the same in every figure; safe for the colour-blind."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

RIGHT, MIXED, WRONG = "#029e73", "#56b4e9", "#d55e00"
KINDS = {"all_wrong": WRONG, "mixed": MIXED, "all_right": RIGHT}
"""of groups"""
INJECTED, REFERENCE = "#ffd97d", "#a8d4ff"
"""grounds under dark text, by who wrote it"""
HEAT = "#cc78bc"
"""the most of what a heat map shows; white is none"""

# Okabe and Ito (2008) without their yellow, which a white page hides, and wine.
COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#882255")
DASHES = ((), (4, 1.6), (1, 1.3), (6, 1.5, 1, 1.5), (10, 2.5), (6, 1.5, 1, 1.5, 1, 1.5))
"""on, off, on, ... in line widths; () is solid"""

# The arms of the experiments and of multirun_scripts/cures.txt; each has the look of its place: eight colours solid,
# then dashed. A new one is added at the end, so that the others keep theirs.
KNOWN = (
    *("vanilla", "edge_grpo", "eda", "gec", "force_r", "force_r_eda", "sft", "ngrpo"),
    *("dr_grpo", "edge_grpo_ngrpo", "eda_ngrpo", "hints_gec_eda", "avspo", "eda_avspo", "hpt", "rl_zvp"),
    *("nsr", "edge_grpo_official", "dynamic_eda", "reference_row", "dynamic", "dynamic_edge", "lope", "maxrl"),
    *("pass_at_k", "w_reinforce", "entropy_bonus", "replay_group", "greso", "sage", "mopps", "hint_cascade"),
    *("unlikeliness", "real", "gvpo", "exgrpo", "speed", "clip_cov", "dcpo_sas", "top_entropy"),
    *("adaptive_entropy", "reinforce_ada", "difficulty_pools"),
)


@dataclass(frozen=True)
class Look:
    """How an arm's line is drawn: a colour as #rrggbb and dashes as in `DASHES`."""

    colour: str
    dash: tuple[float, ...]


LOOKS = tuple(Look(colour, dash) for dash in DASHES for colour in COLOURS)


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """A look a name, the same in every report, and no two alike among at most `len(LOOKS)` names.

    A name in `KNOWN` has its place there; another one that of its hash or, where an arm of this report has that look
    already, the next free one. So an unknown name's look depends on other names only where two would be alike.

    >>> looks_of(["vanilla"])["vanilla"] == looks_of(["edge_grpo", "vanilla"])["vanilla"] == LOOKS[0]
    True
    >>> looks_of(["mine"])["mine"] == looks_of(["another", "mine"])["mine"]
    True
    >>> len(set(looks_of([f"arm{i}" for i in range(48)]).values()))
    48
    """
    places = {name: KNOWN.index(name) for name in names if name in KNOWN}
    for name in sorted(set(names) - set(places)):
        first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % len(LOOKS)
        tries = [(first + i) % len(LOOKS) for i in range(len(LOOKS))]
        places[name] = next((place for place in tries if place not in places.values()), first)
    return {name: LOOKS[places[name]] for name in names}
