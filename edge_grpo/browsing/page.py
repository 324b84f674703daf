"""The page: one file that shows groups in a browser and fetches nothing."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edge_grpo.browsing.filters import FILTERS
from edge_grpo.browsing.groups import Group, Response, Version
from edge_grpo.browsing.keys import KEYS
from edge_grpo.browsing.recordings import Recording
from edge_grpo.errors import UserError
from edge_grpo.statistics import palette

HERE = Path(__file__).resolve().parent
_IN_A_BROWSER = {"right": "ArrowRight", "left": "ArrowLeft", "up": "ArrowUp", "down": "ArrowDown"} | {
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "slash": "/",
    "question_mark": "?",
}
_AT_THE_TERMINAL_ONLY = ("text_down", "text_up", "reload", "quit")


def write_page(
    out: Path, recordings: Sequence[Recording], max_mb: float, sections: Sequence[int] | None = None
) -> list[str]:
    """Write the page.

    Args:
        out: the file.
        recordings: what it shows; they share the bound.
        max_mb: of the groups' data, in 1e6 bytes. Iterations are taken evenly over the run as long as they fit.
        sections: iterations to take, of runs; None for all.

    Returns:
        For each recording, which part of it the page has.

    Raises:
        UserError: iterations that no run has.
    """
    if sections is not None:
        has = {section for recording in recordings for section in recording.sections if recording.kind == "run"}
        if not has & set(sections):
            raise UserError(
                f"--iterations: none of the runs has one of {sorted(sections)[:10]}; they have {min(has)} to {max(has)}"
                if has
                else "--iterations is for runs, an evaluation has none: remove it"
            )
        without = [r.name for r in recordings if r.kind == "run" and not {*sections} & {*r.sections}]
        if without:
            raise UserError(f"--iterations: {without[0]} has none of {sorted(sections)[:10]}: leave it out")
    each = max_mb * 1e6 / len(recordings)
    data = {
        "filters": [{"name": name, **of._asdict()} for name, of in FILTERS.items()],
        "keys": {_IN_A_BROWSER.get(key, key): of.action for of in _shown_keys() for key in of.keys.split(",")},
        "help": [[of.shown, of.meaning] for of in _shown_keys()],
        "recordings": [_recording(recording, each, sections) for recording in recordings],
    }
    environment = Environment(
        loader=PackageLoader("edge_grpo.browsing", "."), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template("page.html.jinja").render(
        title=f"rollouts: {', '.join(recording.name for recording in recordings)}",
        style=Markup(_style()),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        data=Markup(embedded(data)),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [f"{of['name']}: {of['note']}" for of in data["recordings"]]


def embedded(data: Any) -> str:
    r"""JSON for a script element: no text in it can end the element or begin a comment.

    >>> embedded({"text": "</script><!--"})
    '{"text":"\\u003c/script>\\u003c!--"}'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def spaced(count: int) -> Iterator[int]:
    """The numbers 0 to count - 1, so that the first few of them are spread evenly: ends, middle, quarters, ...

    >>> list(spaced(9))
    [0, 8, 4, 2, 6, 1, 3, 5, 7]
    """
    seen: set[int] = set()
    parts = 1
    while len(seen) < count:
        for i in range(parts + 1):
            number = round(i * (count - 1) / parts)
            if number not in seen:
                seen.add(number)
                yield number
        parts *= 2


def _shown_keys() -> list[Any]:
    return [key for key in KEYS if key.action not in _AT_THE_TERMINAL_ONLY]


def _style() -> str:
    colours = {name.lower(): getattr(palette, name) for name in ("RIGHT", "MIXED", "WRONG", "INJECTED", "REFERENCE")}
    return Template((HERE / "page.css").read_text(encoding="utf-8")).substitute(colours, heat=palette.HEAT)


def _recording(recording: Recording, max_bytes: float, wanted: Sequence[int] | None) -> dict[str, Any]:
    """The groups that fit, in order, and what is left out."""
    sections = recording.sections
    if wanted is not None and recording.kind == "run":
        sections = [section for section in sections if section in set(wanted)]
    of_section = {s: recording.index.index[recording.index["section"] == s] for s in sections}
    taken: dict[int, dict[str, Any]] = {}
    left = max_bytes
    for section in (sections[i] for i in spaced(len(sections))):
        for i in of_section[section].tolist():
            group = _group(recording.group(i))
            left -= len(embedded(group).encode("utf-8", errors="backslashreplace"))
            if left < 0 and taken:
                break
            taken[i] = group
        # Half an iteration is shown of the first alone, half a benchmark of any.
        whole = all(i in taken for i in of_section[section])
        if left < 0 and not whole and recording.kind == "run" and len({g["section"] for g in taken.values()}) > 1:
            taken = {i: group for i, group in taken.items() if group["section"] != section}
        if left < 0:
            break
    groups = [taken[i] for i in sorted(taken)]
    shown = list(dict.fromkeys(group["section"] for group in groups))
    return {
        "name": recording.name,
        "kind": recording.kind,
        "section_name": recording.section_name,
        "embedded": shown,
        "groups": groups,
        "note": _note(recording, shown, len(groups)),
    }


def _note(recording: Recording, shown: Sequence[Any], groups: int) -> str:
    every, name = len(recording.sections), recording.section_name
    count = f"{groups:,} of {len(recording):,} groups"
    if groups == len(recording):
        return f"all {every} {name}s, {count}"
    listed = ", ".join(map(str, shown[:40])) + (", ..." if len(shown) > 40 else "")
    return f"{count}, of {len(shown)} of {every} {name}s: {listed}. More with --max-mb, others with --iterations"


def _group(group: Group) -> dict[str, Any]:
    return {
        "section": group.section,
        "problem": group.problem,
        "question": group.question,
        "answers": group.answers,
        "marks": [name for name in FILTERS if name in group.marks],
        "replaced": group.replaced_by,
        "responses": [_response(response) for response in group.responses],
    }


def _response(response: Response) -> dict[str, Any]:
    return {
        "row": response.row,
        "before": _version(response.before),
        "after": None if response.after is None else _version(response.after),
        "branch": response.branch,
        "base": _rounded(response.base_advantage),
        "advantage": _rounded(response.advantage),
        "multiplier": _rounded(response.multiplier),
        "clamped": response.clamped,
    }


def _version(version: Version) -> dict[str, Any]:
    tokens = bool(version.characters and version.entropies)
    return {
        "correct": version.correct,
        "unparsed": version.unparsed,
        "reward": _rounded(version.reward),
        "parts": {name: _rounded(value) for name, value in version.parts.items()},
        "tokens": version.tokens,
        "finish_reason": version.finish_reason,
        "answer": version.answer,
        "pieces": version.pieces,
        "characters": version.characters if tokens else None,
        "entropies": _hundredths(version.entropies) if tokens else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _hundredths(nats: Sequence[float | None]) -> list[int | None]:
    return [None if value is None else round(100 * value) for value in nats]
