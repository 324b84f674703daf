"""What a run shows: plain lines without a terminal, a display on one, and neither markup nor escapes of a model."""

import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.text import Text

from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.callbacks.console import COLUMNS, ConsoleProgress, sample_panel
from edge_grpo.callbacks.telling import telling_row
from edge_grpo.corrections.base import Corrected
from edge_grpo.errors import UserError
from edge_grpo.loggers import terminal as terminal_module
from edge_grpo.loggers.metrics import describe
from edge_grpo.loggers.terminal import printable, shortened, shortened_styled, terminal
from edge_grpo.runs.summary_table import show_summary
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance, Response
from edge_grpo.types.rollouts import Rollout, ScoredRollout, Scores

METRICS = {
    "train/reward": 0.5,
    "train/accuracy": 0.25,
    "collapse/before/zero_variance": 0.75,
    "collapse/no_advantage": 0.125,
    "train/entropy": 0.6931,
    "perf/rollout_tokens_per_s": 5150.7,
    "train/loss": 3.0,  # is not shown
}
HOSTILE = "\x1b[2J[red]1 + 1 = 3[/red]\n\\boxed{3}\u202e"


class Screen(io.StringIO):
    """Standard output that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def corrected(text: str) -> Corrected:
    """One wrong response of four tokens that reflected."""
    kinds = torch.full((4,), Provenance.SAMPLED, dtype=torch.int8)
    response = Response(torch.zeros(4, dtype=torch.long), torch.zeros(4), torch.zeros(4), kinds, "stop")
    rollout = Rollout((Problem("p", "1 + 1 = ?", ("2",)),), (response,), 1)
    parts = {"accuracy": torch.tensor([0.0]), "format": torch.tensor([1.0])}
    return Corrected(
        ScoredRollout(rollout, (text,), Scores(torch.tensor([1.0]), parts, torch.tensor([False]))), ("reflect",)
    )


class Run:
    """Calls a callback as Lightning does."""

    def __init__(self, callback: ConsoleProgress, total: int, done: int = 0, rank: int = 0, text: str = "3") -> None:
        self.callback, self.total, self.done = callback, total, done
        self.trainer = SimpleNamespace(is_global_zero=rank == 0, max_epochs=total, current_epoch=0, should_stop=False)
        self.module = SimpleNamespace(policy=SimpleNamespace(decode=lambda ids: text))
        self.made = Iteration(METRICS, sampled=corrected(text).scored, corrected=corrected(text))

    def start(self) -> None:
        self.callback.on_fit_start(self.trainer, self.module)
        self.trainer.current_epoch = self.done
        self.callback.on_train_start(self.trainer, self.module)

    def iteration(self) -> None:
        self.callback.on_train_batch_start(self.trainer, self.module, None, 0)
        self.callback.on_train_batch_end(self.trainer, self.module, {"iteration": self.made}, None, 0)
        self.callback.on_train_epoch_end(self.trainer, self.module)
        self.trainer.current_epoch += 1

    def whole(self) -> None:
        self.start()
        for _ in range(self.done, self.total):
            self.iteration()
        self.callback.on_fit_end(self.trainer, self.module)


Terminal = Callable[[], tuple[Screen, Path]]


@pytest.fixture
def on_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Puts a terminal in the place of standard output, and Hydra's handlers to log to it and to a file: both."""
    root, handlers = logging.getLogger(), []
    level = root.level

    def begin() -> tuple[Screen, Path]:  # in the test itself: pytest puts its own standard output back before it
        for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "stdout", screen := Screen())
        handlers[:] = logging.StreamHandler(screen), logging.FileHandler(tmp_path / "run.log")
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(logging.INFO)
        return screen, tmp_path / "run.log"

    yield begin
    root.setLevel(level)
    for handler in handlers:
        root.removeHandler(handler)
        handler.close()


def test_every_column_is_a_metric() -> None:
    assert [name for name, _ in COLUMNS.values() if describe(name) is None] == []


def test_without_a_terminal_there_are_plain_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Run(ConsoleProgress("vanilla", every_n_iterations=4, sample_every_n_iterations=0), total=10).whole()
    figures = "reward 0.500  right 25.0%  collapsed 75%  no advantage 12%  entropy 0.693  tokens/s 5,151"
    lines = [record.getMessage().partition("  left ") for record in caplog.records]
    # Every fourth and the last; there is a speed, and so a time left, once two iterations are done.
    assert [line for line, _, _ in lines] == [f" 4/10  {figures}", f" 8/10  {figures}", f"10/10  {figures}"]
    assert [re.sub(r"\d", "0", left) for _, _, left in lines] == ["0:00:00"] * 3
    assert lines[-1][2] == "0:00:00"


def test_a_sample_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Run(ConsoleProgress("", 100, sample_every_n_iterations=3), total=5, text=HOSTILE).whole()
    samples = [record.getMessage() for record in caplog.records][:-1]
    verdict = "reward 1 (accuracy 0, format 1), wrong, reflect, 4 tokens"
    text = r"1 + 1 = ? -> \x1b[2J[red]1 + 1 = 3[/red]\n\boxed{3}\u202e"
    # Iterations 1 and 4: every third, the first included.
    heads = [f"sample of iteration {i}, collapsed group, rewards 1: {verdict}" for i in (1, 4)]
    assert samples == [heads[0], text, heads[1], text]


def test_an_algorithm_without_samples_shows_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = Run(ConsoleProgress("", 100, sample_every_n_iterations=1), total=2)
    run.made = Iteration(METRICS)
    run.whole()
    assert len(caplog.records) == 1  # the last iteration's line


def test_on_a_terminal_the_lines_give_way_to_a_bar(on_terminal: Terminal) -> None:
    screen, log_file = on_terminal()
    run = Run(ConsoleProgress("vanilla, seed 0", 1, sample_every_n_iterations=0), total=3, done=1)
    run.start()
    run.iteration()
    logging.getLogger("edge_grpo.programs.train_run").info("said by another")
    run.iteration()
    run.callback.on_fit_end(run.trainer, run.module)
    shown = screen.getvalue()
    assert "said by another\n" in shown
    last = shown.rpartition("vanilla, seed 0")[2]
    assert all(part in last for part in ("3/3", "done", "reward", "0.500", "no advantage", "12%"))
    assert "2/3  reward" not in shown
    assert [line[:11] for line in log_file.read_text().splitlines()] == ["2/3  reward", "said by ano", "3/3  reward"]


def test_the_terminal_is_left_as_it_was_whatever_ends_the_run(on_terminal: Terminal) -> None:
    screen, _ = on_terminal()
    handler = next(h for h in logging.getLogger().handlers if getattr(h, "stream", None) is screen)
    run = Run(ConsoleProgress("vanilla", 1, 0), total=3)
    run.start()
    assert sys.stdout is not screen  # what is printed goes above the bar
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")  # a kill would leave it so
    run.callback.on_exception(run.trainer, run.module, KeyboardInterrupt())
    assert sys.stdout is screen
    assert (handler.stream, handler.filters) == (screen, [])
    before = len(screen.getvalue())
    logging.getLogger("edge_grpo.callbacks.console").info("a later run's line")
    assert screen.getvalue()[before:] == "a later run's line\n"


def test_a_models_text_reaches_the_terminal_as_text(on_terminal: Terminal) -> None:
    screen, _ = on_terminal()
    Run(ConsoleProgress("[b]", 1, sample_every_n_iterations=1), total=1, text=HOSTILE).whole()
    shown = screen.getvalue()
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert r"\x1b[2J[red]1 + 1 = 3[/red]" in shown
    assert "[b]" in shown


def rollout(*rewards: float) -> ScoredRollout:
    """Groups of two rows."""
    kinds = torch.full((1,), Provenance.SAMPLED, dtype=torch.int8)
    row = Response(torch.zeros(1, dtype=torch.long), torch.zeros(1), torch.zeros(1), kinds, "stop")
    problems = tuple(Problem(f"p{i}", "?", ("2",)) for i in range(len(rewards) // 2))
    of = torch.tensor(rewards)
    scores = Scores(of, {}, of > 1)
    return ScoredRollout(Rollout(problems, (row,) * len(rewards), 2), ("",) * len(rewards), scores)


@pytest.mark.parametrize(
    ("before", "after", "branches", "row", "kind"),
    [
        # Group 0 stays collapsed, 1 was mixed, 2 is revived: its edited rows are 4 and 5, of which 5 is better.
        ((0, 0, 0, 1, 1, 1), (0, 0, 0, 1, 1, 2), (None, None, None, None, "reflect", "answer"), 5, "revived"),
        # The best of the group is 4, but a correction wrote 5.
        ((0, 0, 0, 1, 1, 1), (0, 0, 0, 1, 2, 0), (None, None, None, None, None, "reflect"), 5, "revived"),
        # Made uniform by correction: what is left is the mixed group, whose better row is 3.
        ((0, 1, 0, 1), (1, 1, 0, 1), ("answer", None, None, None), 3, "mixed"),
        ((0, 0, 1, 1), (0, 0, 1, 1), (None,) * 4, 0, "collapsed"),
    ],
)
def test_the_sample_is_of_a_group_that_tells_something(
    before: tuple[float, ...], after: tuple[float, ...], branches: tuple[str | None, ...], row: int, kind: str
) -> None:
    found = telling_row(rollout(*before), Corrected(rollout(*after), branches))
    assert (found.row, found.kind) == (row, kind)
    group = slice(row // 2 * 2, row // 2 * 2 + 2)
    assert (tuple(found.before), tuple(found.after)) == (before[group], after[group])


def test_who_wrote_what_is_coloured_on_a_terminal() -> None:
    row = {"question": "1 + 1?", "gold": "2", "correct": True}
    row["pieces"] = [["sampled", "3"], ["injected", " Wait!\x1b[2J"], ["reference", "so 2"]]
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system="truecolor", width=80)
    console.print(sample_panel("sample", "reward 2", row))
    shown = screen.getvalue()
    assert "\x1b[30;48;2;255;217;125m Wait!\\x1b[2J\x1b[0m" in shown  # #ffd97d, and no escape of the model's
    assert "\x1b[30;48;2;168;212;255mso 2\x1b[0m" in shown  # #a8d4ff
    assert all(f" {kind} \x1b[0m" in shown for kind in ("injected", "reference"))  # the legend
    plain = sample_panel("sample", "", row | {"pieces": [["sampled", "3"]]}).renderable
    assert str(plain) == "1 + 1?\n\n3\n\ngold 2  "


def test_a_shortened_text_keeps_its_styles() -> None:
    text = shortened_styled(Text.assemble(("aaaa", "bold"), "bbbb", ("cccc", "red")), characters=4, lines=2)
    assert text.plain == "aa[... 8 characters ...]cc"
    assert [(text.plain[s.start : s.end], str(s.style)) for s in text.spans] == [("aa", "bold"), ("cc", "red")]


def test_other_ranks_are_silent(on_terminal: Terminal) -> None:
    screen, log_file = on_terminal()
    Run(ConsoleProgress("", 1, 1), total=2, rank=1).whole()
    assert (screen.getvalue(), log_file.read_text()) == ("", "")


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_a_plain_terminal_is_none(
    name: str, value: str, on_terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_terminal()
    assert terminal() is not None
    monkeypatch.setenv(name, value)
    assert terminal() is None


def test_a_pipe_is_none_even_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal() is None


def test_what_standard_output_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding="latin-1"))
    assert printable("é√\ud800\t") == r"é\u221a\ud800\t"


def test_a_long_text_keeps_both_ends() -> None:
    text = "\n".join(str(i) for i in range(100))
    assert shortened(text, characters=1000, lines=4) == "0\n1\n[... 96 lines ...]\n98\n99"
    assert shortened("a" * 50 + "b" * 50, characters=10, lines=4) == "aaaaa[... 90 characters ...]bbbbb"
    assert shortened(text, characters=len(text), lines=100) == text


@pytest.mark.parametrize(("every", "sample"), [(0, 1), (1, -1)])
def test_a_number_out_of_range_is_refused(every: int, sample: int) -> None:
    with pytest.raises(UserError, match=f"every_n_iterations={every} must be at least 1"):
        ConsoleProgress("", every, sample)


def summary_of(folder: Path) -> dict:
    """A run of two iterations whose groups all collapsed as sampled (mean 1), half of them after correction, and of
    which the advantage leaves a quarter."""
    path = folder / "metrics.csv"
    names = ("before/zero_variance", "after/zero_variance", "no_advantage")
    head = ",".join(["step", *(f"collapse/{name}" for name in names)])
    path.write_text(f"{head}\n0,1,0.75,0.5\n1,1,0.25,0\n2,,,\n")
    places = {"metrics": str(path), "figure": str(folder / "training.png"), "model": str(folder / "model")}
    accuracy = {"before": 0.0117, "after": 0.9453}
    return {"name": "gec", "seed": 3, "accuracy": accuracy, "iterations": 2, "seconds": 61.4, **places}


def test_the_summary_is_lines_without_a_terminal(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    show_summary(summary_of(tmp_path), tmp_path, {"W&B": "wandb sync wandb/latest-run"})
    assert [record.getMessage() for record in caplog.records] == [
        "held-out accuracy 1.2 % -> 94.5 %",
        "iterations   2 in 0:01:01",
        "collapsed    100 % of groups as sampled, 50 % after correction; 25 % have no advantage",
        f"metrics      {tmp_path}/metrics.csv",
        f"figure       {tmp_path}/training.png",
        f"model        {tmp_path}/model",
        f"run          {tmp_path}",
        "W&B          wandb sync wandb/latest-run",
    ]


def test_the_summary_is_a_table_on_a_terminal_and_lines_in_the_log(on_terminal: Terminal, tmp_path: Path) -> None:
    screen, log_file = on_terminal()
    show_summary(summary_of(tmp_path), tmp_path, {"trackio": "trackio show --project [p]"})
    shown = screen.getvalue()
    assert all(
        part in shown
        for part in ("gec, seed 3", "held-out accuracy", "1.2 % -> 94.5 %", "2 in 0:01:01", "show --project [p]")
    )
    assert "held-out accuracy 1.2 %" not in shown
    assert "held-out accuracy 1.2 % -> 94.5 %" in log_file.read_text()
    assert terminal_module._terminal_handlers()[0].filters == []
