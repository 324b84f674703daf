"""The parts of the terminal program's screen."""

from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Input, Static

from edge_grpo.browsing.filters import FILTERS
from edge_grpo.browsing.groups import Group
from edge_grpo.browsing.keys import KEYS
from edge_grpo.browsing.shown import columns, texts_of
from edge_grpo.loggers.terminal import printable


class Panel(Vertical):
    """One group: what was asked, a row a response, and the texts of one of them."""

    def compose(self) -> ComposeResult:
        yield Static(classes="asked")
        table: DataTable[Any] = DataTable(cursor_type="row", header_height=2)
        table.can_focus = False  # all keys are the screen's
        yield table
        with Container(classes="texts"):
            for when in ("before", "after"):
                with VerticalScroll(classes=when, can_focus=False):
                    yield Static()

    def show(self, name: str, group: Group | None, response: int, *, heat: bool, every: bool = False) -> None:
        """Draw a group, or that there is none."""
        asked, table = self.query_one(".asked", Static), self.query_one(DataTable)
        table.clear(columns=True)
        self.query_one(".texts").display = table.display = group is not None
        if group is None:
            asked.update(Text(name))
            return
        asked.update(asked_of(name, group))
        cells = columns(group)
        table.add_columns(*cells)
        for row in group.responses:
            table.add_row(*(of(row) for of in cells.values()))
        self.choose(group, response, heat=heat, every=every)

    def choose(self, group: Group, response: int, *, heat: bool, every: bool = False) -> None:
        """Show the texts of one response, or of all."""
        chosen = min(response, len(group.responses) - 1)
        self.query_one(DataTable).move_cursor(row=chosen)
        texts = texts_of(group.responses if every else group.responses[chosen : chosen + 1], heat=heat)
        for when, text in zip(("before", "after"), texts, strict=True):
            part = self.query_one(f".{when}", VerticalScroll)
            part.display = bool(text)
            part.query_one(Static).update(text)
            part.scroll_home(animate=False)

    def scroll_texts(self, by: int) -> None:
        """By half of what is seen."""
        for part in self.query(VerticalScroll):
            part.scroll_relative(y=by * max(part.size.height // 2, 1), animate=False)


def asked_of(name: str, group: Group) -> Text:
    """The problem: id, gold answers, what filters the group passes, and the question."""
    made = Text.assemble((f"{name}  ", "dim"), (printable(group.problem), "bold"))
    made.append(f"  gold {printable(' | '.join(group.answers)) or '–'}")
    for mark in FILTERS:
        if mark in group.marks:
            made.append(f"  [{FILTERS[mark].title}]", "italic")
    made.append(f"\n{printable(group.question or '–', keep=chr(10))}")
    if group.replaced_by is not None:
        made.append(f"\na replay put {' : '.join(map(printable, group.replaced_by))} in its place", "dim")
    return made


class Asked(ModalScreen[str | None]):
    """A line of text.

    Args:
        title: what is asked for.
        value: what is there.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave")]

    def __init__(self, title: str, value: str) -> None:
        super().__init__()
        self._title, self._value = title, value

    def compose(self) -> ComposeResult:
        field = Input(self._value)
        field.border_title = self._title
        yield field

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_leave(self) -> None:
        self.dismiss(None)


class Help(ModalScreen[None]):
    """What each key does."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,enter", "dismiss")]

    def compose(self) -> ComposeResult:
        lines = [Text.assemble((f"{key.shown:<6}", "bold"), key.meaning) for key in KEYS]
        with VerticalScroll():
            yield Static(Text("\n").join(lines))
