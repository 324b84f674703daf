"""The terminal program: the same views, filters and keys as the page."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Static

from edge_grpo.browsing.filters import Query
from edge_grpo.browsing.groups import Group
from edge_grpo.browsing.keys import KEYS
from edge_grpo.browsing.opening import Recordings
from edge_grpo.browsing.panels import Asked, Help, Panel, asked_of
from edge_grpo.browsing.recordings import Recording, counterpart
from edge_grpo.browsing.shown import legend, through_training
from edge_grpo.errors import UserError
from edge_grpo.loggers.terminal import printable

HINT = "↓↑ response  ←→ group  [ ] iteration  1-8 filters  / text  e entropy  t training  c side by side  ? keys  q end"


class Reading(Screen[None]):
    """The views: one group, two runs side by side, one problem through training."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key.keys, key.action, key.meaning, show=False) for key in KEYS),
        Binding("enter", "open", show=False),
        Binding("escape", "leave", show=False),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (130, "-wide")]  # noqa: RUF012

    def __init__(self, recordings: Recordings) -> None:
        super().__init__()
        self.recordings = recordings
        self.at, self.other = 0, min(1, len(recordings) - 1)
        self.group, self.response, self.line = 0, 0, 0
        self.query_of_groups, self.passing = Query(), list(range(len(recordings[0])))
        self.view, self.heat, self.every = "group", False, False

    @property
    def recording(self) -> Recording:
        return self.recordings[self.at]

    def compose(self) -> ComposeResult:
        yield Static(id="where")
        with Container(id="panels"):
            yield Panel(id="left")
            yield Panel(id="right")
        with VerticalScroll(id="training", can_focus=False):
            yield Static(id="problem")
            table: DataTable[Any] = DataTable(cursor_type="row")
            table.can_focus = False
            yield table
        yield Static(id="legend")
        yield Static(HINT, id="hint")

    def on_mount(self) -> None:
        self.draw()

    def draw(self) -> None:
        """All of the screen."""
        self.query_one("#where", Static).update(self._where())
        self.query_one("#legend", Static).update(legend(heat=self.heat))
        training = self.view == "training" and bool(self.passing)
        self.query_one("#training").display, self.query_one("#panels").display = training, not training
        self.query_one("#right").display = self.view == "compare"
        left = self.query_one("#left", Panel)
        if not self.passing:
            left.show("no group passes these filters; 0 takes them away", None, 0, heat=False)
            return
        try:
            if training:
                self._draw_training()
            else:
                self._draw_groups()
        except UserError as error:  # a resumed run has dropped what it writes again
            left.show(f"{error}; u reads again", None, 0, heat=False)

    def _draw_groups(self) -> None:
        shown: dict[str, tuple[Recording, int | None]] = {"#left": (self.recording, self.group)}
        if self.view == "compare":
            other = self.recordings[self.other]
            shown["#right"] = other, counterpart(self.recording, self.group, other)
        for panel, (recording, i) in shown.items():
            group = None if i is None else recording.group(i)
            label = self._label(recording, group)
            self.query_one(panel, Panel).show(label, group, self.response, heat=self.heat, every=self.every)

    def _label(self, recording: Recording, group: Group | None) -> str:
        if group is None:
            return f"{recording.name}\nnot drawn in this run"
        return f"{recording.name}, {recording.section_name} {group.section}"

    def _where(self) -> Text:
        recording = self.recording
        made = Text.assemble((recording.name, "bold"))
        if len(self.recordings) > 1:
            made.append(f" ({self.at + 1} of {len(self.recordings)})", "dim")
        if self.passing:
            section = recording.index["section"].iat[self.group]
            sections = recording.sections
            made.append(f"   {recording.section_name} ").append(str(section), "bold")
            made.append(f" ({sections.index(section) + 1} of {len(sections)})", "dim")
            made.append("   group ").append(f"{self.passing.index(self.group) + 1} of {len(self.passing)}", "bold")
        made.append(f"   only: {printable(str(self.query_of_groups))}" if str(self.query_of_groups) else "", "italic")
        return made

    def _draw_training(self) -> None:
        group = self.recording.group(self.group)
        self.query_one("#problem", Static).update(asked_of(self.recording.name, group))
        table: DataTable[Any] = self.query_one("#training DataTable", DataTable)
        table.clear(columns=True)
        rows = through_training(map(self.recording.group, self._lines()))
        table.add_columns(*rows[0])
        for row in rows:
            table.add_row(*row.values())
        table.move_cursor(row=self.line)

    def _lines(self) -> list[int]:
        return self.recording.of_problem(str(self.recording.index["problem"].iat[self.group]))

    # Keys

    def _move(self, by: int) -> None:
        if not self.passing:
            return
        if self.view == "training":
            self.line = min(max(self.line + by, 0), len(self._lines()) - 1)
            self.query_one("#training DataTable", DataTable).move_cursor(row=self.line)
            return
        self.response = min(max(self.response + by, 0), self._responses(self.group) - 1)
        self.draw()

    def _responses(self, group: int) -> int:
        return int(self.recording.index["size"].tolist()[group])

    def action_next_response(self) -> None:
        self._move(1)

    def action_previous_response(self) -> None:
        self._move(-1)

    def go(self, group: int) -> None:
        """To another group."""
        self.group, self.response = group, min(self.response, self._responses(group) - 1)
        self.view = "group" if self.view == "training" else self.view
        self.draw()

    def action_next_group(self) -> None:
        if after := [i for i in self.passing if i > self.group]:
            self.go(after[0])

    def action_previous_group(self) -> None:
        if before := [i for i in self.passing if i < self.group]:
            self.go(before[-1])

    def _go_section(self, by: int) -> None:
        """To the same place in the next section that has groups which pass."""
        of_group = self.recording.index["section"].tolist()
        sections = [s for s in self.recording.sections if any(of_group[i] == s for i in self.passing)]
        if not self.passing or not 0 <= (at := sections.index(of_group[self.group]) + by) < len(sections):
            return
        here, there = ([i for i in self.passing if of_group[i] == s] for s in (of_group[self.group], sections[at]))
        self.go(there[min(here.index(self.group), len(there) - 1)])

    def action_next_section(self) -> None:
        self._go_section(1)

    def action_previous_section(self) -> None:
        self._go_section(-1)

    def action_text_down(self) -> None:
        for panel in self.query(Panel):
            panel.scroll_texts(1)

    def action_text_up(self) -> None:
        for panel in self.query(Panel):
            panel.scroll_texts(-1)

    def action_all(self) -> None:
        self.every = not self.every
        self.draw()

    def action_heat(self) -> None:
        self.heat = not self.heat
        self.draw()

    def action_training(self) -> None:
        self.view = "group" if self.view == "training" else "training"
        self.line = self._lines().index(self.group) if self.passing else 0
        self.draw()

    def action_compare(self) -> None:
        if len(self.recordings) == 1:
            self.notify("give two runs to lay them side by side: edge-grpo-browse RUN OTHER_RUN")
            return
        self.view = "group" if self.view == "compare" else "compare"
        self._read(lambda: self.recordings[self.other])

    def action_open(self) -> None:
        if self.view == "training" and self.passing:
            self.go(self._lines()[self.line])

    def action_leave(self) -> None:
        self.view = "group"
        self.draw()

    def action_next_recording(self) -> None:
        count = len(self.recordings)
        if self.view == "compare":
            self.other = next(i % count for i in range(self.other + 1, self.other + count + 1) if i % count != self.at)
            self._read(lambda: self.recordings[self.other])
        elif count > 1:
            self._read(lambda: self._pick((self.at + 1) % count))

    def _read(self, work: Callable[[], object]) -> None:
        """Do what may meet a run that cannot be read; then draw."""
        try:
            work()
        except UserError as error:
            self.notify(str(error), severity="error", markup=False)
            self.view = "group"
        self.draw()

    def _pick(self, at: int) -> None:
        there = counterpart(self.recording, self.group, self.recordings[at]) if len(self.recording) else None
        if self.other == at:
            self.other = self.at
        self.at, self.group = at, 0 if there is None else there
        self._apply(self.query_of_groups, self.recording.select(self.query_of_groups))

    def action_reload(self) -> None:
        self.recordings.reload(self.at)
        self._read(lambda: self._apply(self.query_of_groups, self.recording.select(self.query_of_groups)))

    def _apply(self, query: Query, passing: list[int]) -> None:
        self.query_of_groups, self.passing = query, passing
        if passing and self.group not in passing:
            self.group = next((i for i in passing if i > self.group), passing[0])
            self.response = 0

    async def _filter(self, query: Query) -> None:
        # Texts of a long run take seconds to search.
        self._apply(query, await asyncio.to_thread(self.recording.select, query))
        self.draw()

    async def action_filter(self, mark: str) -> None:
        await self._filter(self.query_of_groups.toggled(mark))

    async def action_clear(self) -> None:
        await self._filter(Query())

    def action_search(self) -> None:
        query = self.query_of_groups
        self._ask("text in question or response", query.text, lambda text: replace(query, text=text))

    def action_problem(self) -> None:
        query = self.query_of_groups
        self._ask("part of a problem's id", query.problem, lambda problem: replace(query, problem=problem))

    def _ask(self, title: str, value: str, queried: Callable[[str], Query]) -> None:
        async def take(typed: str | None) -> None:
            if typed is not None:
                await self._filter(queried(typed))

        self.app.push_screen(Asked(title, value), take)

    def action_help(self) -> None:
        self.app.push_screen(Help())

    def action_quit(self) -> None:
        self.app.exit()


class Browser(App[None]):
    """Args:
    recordings: what is read; the first is shown.
    """

    TITLE = "edge-grpo-browse"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #where, #legend, #hint { height: auto; padding: 0 1; }
    #where { background: $panel; }
    #hint { background: $panel; color: $text-muted; }
    #panels { layout: horizontal; height: 1fr; }
    .-narrow #panels { layout: vertical; }
    Panel { height: 1fr; padding: 0 1; }
    .asked { height: auto; max-height: 30%; margin: 0 0 1 0; }
    Panel DataTable { height: auto; max-height: 50%; overflow-x: hidden; }
    .texts { layout: horizontal; height: 1fr; }
    .-narrow .texts { layout: vertical; }
    .texts > VerticalScroll { height: 1fr; width: 1fr; border-top: solid $primary; padding: 0 1; }
    #training { height: 1fr; padding: 0 1; }
    #problem { margin: 0 0 1 0; height: auto; }
    #training DataTable { height: auto; }
    Asked, Help { align: center middle; }
    Asked Input { width: 60%; }
    Help VerticalScroll {
        width: 90; max-width: 100%; height: auto; max-height: 90%;
        border: round $primary; background: $surface; padding: 0 1;
    }
    """

    def __init__(self, recordings: Recordings) -> None:
        super().__init__()
        self.recordings = recordings

    def get_default_screen(self) -> Screen[Any]:
        return Reading(self.recordings)
