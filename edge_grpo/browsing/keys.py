"""What each key does: the same at the terminal and in the page."""

from typing import NamedTuple

from edge_grpo.browsing.filters import FILTERS


class Key(NamedTuple):
    """Args:
    keys: as a terminal names them, separated by commas.
    shown: for people.
    action: of the programs.
    meaning: for the help.
    """

    keys: str
    shown: str
    action: str
    meaning: str


KEYS = (
    Key("down,j", "↓ j", "next_response", "next response of the group"),
    Key("up,k", "↑ k", "previous_response", "response before"),
    Key("right,n", "→ n", "next_group", "next group that passes the filters"),
    Key("left,p", "← p", "previous_group", "group before"),
    Key("right_square_bracket", "]", "next_section", "next iteration (or benchmark), the same place in it"),
    Key("left_square_bracket", "[", "previous_section", "iteration before"),
    Key("pagedown,space", "PgDn", "text_down", "further down in the texts (terminal only)"),
    Key("pageup", "PgUp", "text_up", "further up (terminal only)"),
    Key("a", "a", "all", "the texts of all responses of the group, or of the chosen one"),
    Key("e", "e", "heat", "token entropies as a heat map, on or off"),
    Key("t", "t", "training", "this problem through training; Enter opens a line, Escape goes back"),
    Key("c", "c", "compare", "two runs side by side, at the same iteration and problem"),
    Key("r", "r", "next_recording", "next run of those that were given; beside another, the run on the right"),
    *(Key(f.key, f.key, f"filter('{name}')", f"filter: {f.meaning}") for name, f in FILTERS.items()),
    Key("0", "0", "clear", "no filter"),
    Key("slash", "/", "search", "filter: a text in question or response; Enter applies it"),
    Key("i", "i", "problem", "filter: a part of the problem's id"),
    Key("u", "u", "reload", "read again: a run that trains has gone on (terminal only)"),
    Key("question_mark", "?", "help", "this list"),
    Key("q", "q", "quit", "end (terminal only)"),
)
