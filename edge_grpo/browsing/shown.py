"""Groups as rows of a table and texts as coloured text, for a terminal."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.color import Color
from rich.style import Style
from rich.text import Text

from edge_grpo.browsing.groups import Group, Response, Version
from edge_grpo.loggers.terminal import printable
from edge_grpo.statistics.palette import HEAT, INJECTED, REFERENCE, RIGHT, WRONG

# Colour and another mark: bold and underlined, or italic and underlined twice.
WRITERS = {
    "sampled": Style(),
    "injected": Style(color="black", bgcolor=INJECTED, bold=True, underline=True),
    "reference": Style(color="black", bgcolor=REFERENCE, italic=True, underline2=True),
}
HOTTEST, SURE = 3.0, 0.15  # nats; a share of the scale, 0.07 nats
Cells = Callable[[Response], Text | str]


def number(value: float | None, digits: int = 2) -> str:
    """With a proper minus sign.

    >>> number(-1.5), number(None)
    ('−1.50', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def short(value: float | None) -> str:
    """Without trailing zeros."""
    return "–" if value is None else f"{round(value, 3):g}".replace("-", "−")


def columns(group: Group) -> dict[str, Cells]:
    """Title -> the cell of a response, of the columns that the group has something for."""
    rows = group.responses

    def there(of: Callable[[Response], object]) -> bool:
        return any(of(row) is not None for row in rows)

    found: dict[str, Cells] = {"": lambda r: str(r.row), "right": _verdicts, "answer": _answers}
    if there(lambda r: r.before.reward):
        found["reward"] = lambda r: _change(r, lambda v: short(v.reward))
    eda = there(lambda r: r.multiplier)
    if there(lambda r: r.base_advantage):
        found["before\nEDA" if eda else "before\nentropy"] = lambda r: number(r.base_advantage)
    if eda:
        found["multi-\nplier"] = lambda r: number(r.multiplier) + (" max" if r.clamped else "")
    if there(lambda r: r.advantage):
        found["advan-\ntage"] = lambda r: number(r.advantage)
    found["branch"] = lambda r: r.branch or "–"
    found["tokens"] = lambda r: _change(r, lambda v: f"{v.tokens}{' cut' if v.finish_reason == 'length' else ''}")
    for part in rows[0].before.parts:  # last: a narrow terminal shows them over the text alone
        found[part] = lambda r, part=part: _change(r, lambda v: short(v.parts[part]))  # type: ignore[misc]
    return found


def through_training(groups: Iterable[Group]) -> list[dict[str, str]]:
    """A row for each time that a problem was drawn."""
    return [
        {
            "iteration": str(group.section),
            "right as sampled": _share([r.before for r in group.responses]),
            "right after": _share([r.trained for r in group.responses]),
            "mean reward": short(_mean([r.before.reward for r in group.responses])),
            "mean tokens": number(_mean([r.before.tokens for r in group.responses]), 1),
            "branches": _counted(r.branch for r in group.responses if r.branch),
        }
        for group in groups
    ]


def texts_of(responses: Sequence[Response], *, heat: bool) -> tuple[Text, Text]:
    """What the responses are as sampled, and those that correction changed after it, each under its title."""
    before = [(r.before, f"response {r.row} as sampled") for r in responses]
    after = [(r.after, f"response {r.row} after correction ({r.branch or 'replay'})") for r in responses if r.after]
    gap = Text("\n\n")
    return (
        gap.join(Text("\n").join([title(version, said), text_of(version, heat=heat)]) for version, said in before),
        gap.join(Text("\n").join([title(version, said), text_of(version, heat=heat)]) for version, said in after),
    )


def title(version: Version, when: str) -> Text:
    """What stands over a text."""
    parts = ", ".join(f"{name} {short(value)}" for name, value in version.parts.items())
    found = [f"reward {short(version.reward)} ({parts})"] if parts else []
    found += [f"{version.tokens} tokens"]
    found += ["cut at the length limit"] if version.finish_reason == "length" else []
    found += ["no answer that the grader can read"] if version.unparsed else []
    return Text.assemble((when, "bold"), (f"  {', '.join(found)}", "dim"))


def text_of(version: Version, *, heat: bool) -> Text:
    """The text with who wrote it, and on demand the entropies of sampled tokens; control characters as escapes."""
    if version.pieces is None:
        return Text("the text was dropped (callbacks.rollouts.keep_gb)", "dim italic")
    if not heat:
        return Text.assemble(*((printable(text, keep="\n"), WRITERS[by]) for by, text in version.pieces))
    parts = ((printable(text, keep="\n"), _heat(nats) or WRITERS[by]) for by, text, nats in version.tokens_of_text())
    return Text.assemble(*parts)


def legend(*, heat: bool) -> Text:
    """What the colours mean."""
    made = Text.assemble("sampled  ", ("injected by the correction", WRITERS["injected"]), "  ")
    made.append("from the reference solution", WRITERS["reference"])
    if heat:
        made.append("  entropy in nats ")
        for nats in (0.1, 0.5, 1.0, 2.0, 3.0):
            made.append(f" {nats:g} ", _heat(nats))
    return made


def _heat(nats: float | None) -> Style | None:
    """Ground from pale to the hottest; None for a token that the policy was sure of, or did not sample."""
    share = 0.0 if nats is None else min(max(nats, 0.0) / HOTTEST, 1.0) ** 0.5
    if share < SURE:
        return None
    share = 0.25 + 0.75 * share  # white would be the most striking on a dark terminal
    hot = Color.parse(HEAT).get_truecolor()
    red, green, blue = (round(255 + share * (channel - 255)) for channel in hot)
    return Style(color="black", bgcolor=Color.from_rgb(red, green, blue))


def _verdicts(response: Response) -> Text:
    made = _verdict(response.before)
    if response.after is not None and response.after.correct != response.before.correct:
        made = Text.assemble(made, "→", _verdict(response.after))
    return made


def _verdict(version: Version) -> Text:
    if version.correct is None:
        return Text("–")
    return Text("✓", f"bold {RIGHT}") if version.correct else Text("✗", f"bold {WRONG}")


def _answers(response: Response) -> Text:
    made = _change(response, lambda version: printable(version.answer or "none"))
    return Text(made if len(made) <= 24 else f"{made[:23]}…")


def _change(response: Response, of: Callable[[Version], str]) -> str:
    before, after = of(response.before), of(response.trained)
    return before if before == after else f"{before}→{after}"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(names).items())


def _share(versions: Sequence[Version]) -> str:
    return f"{sum(bool(version.correct) for version in versions)} of {len(versions)}"


def _mean(values: Sequence[Any]) -> float | None:
    return None if any(value is None for value in values) else float(sum(values)) / len(values)
