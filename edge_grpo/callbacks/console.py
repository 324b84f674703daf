"""A run as it is watched: a progress display on a terminal, plain lines everywhere else, and now and then a sample."""

import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.callbacks.samples import describe_row
from edge_grpo.callbacks.telling import Telling, telling_row
from edge_grpo.errors import UserError
from edge_grpo.loggers.samples import marked
from edge_grpo.loggers.terminal import files_only, printable, shortened, shortened_styled, shown, terminal
from edge_grpo.runs.stopping import expected_iterations, is_last

log = logging.getLogger(__name__)

WRITERS = {"sampled": "", "injected": "black on #ffd97d", "reference": "black on #a8d4ff"}
"""who wrote a piece of a response -> its style, the colours of the pages that trackers show"""
COLUMNS = {
    "loss": ("sft/loss", ".3f"),
    "reward": ("train/reward", ".3f"),
    "right": ("train/accuracy", ".1%"),
    "corrected": ("train/accuracy_corrected", ".1%"),
    "collapsed": ("collapse/before/zero_variance", ".0%"),
    "no advantage": ("collapse/no_advantage", ".0%"),
    "entropy": ("train/entropy", ".3f"),
    "tokens/s": ("perf/rollout_tokens_per_s", ",.0f"),
    "s": ("timing_s/total", ".2f"),
}


class ConsoleProgress(pl.Callback):
    """Shows iteration, reward, collapse, entropy, speed and the time left; the first rank alone does.

    On a terminal this is a bar that is redrawn, and the lines go to the run's log file only; elsewhere they are all
    there is. "collapsed" are groups of equal rewards as sampled, "no advantage" those that teach nothing after
    correction, filter and advantage.

    Args:
        title: of the run, beside the bar.
        every_n_iterations: of the lines, at least 1; the last iteration has one too.
        sample_every_n_iterations: of the samples, each a telling row of its iteration (see `telling_row`); 0 for none.
            An algorithm that samples nothing (SFT) has none to show.

    Raises:
        UserError: a number out of range.
    """

    def __init__(self, title: str, every_n_iterations: int, sample_every_n_iterations: int) -> None:
        if every_n_iterations < 1 or sample_every_n_iterations < 0:
            raise UserError(
                f"callbacks.console.every_n_iterations={every_n_iterations} must be at least 1, "
                f"sample_every_n_iterations={sample_every_n_iterations} at least 0"
            )
        self.title, self.every_n_iterations = title, every_n_iterations
        self.sample_every_n_iterations = sample_every_n_iterations
        self._display = ExitStack()
        self._made = Iteration({})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._console = terminal()
        self._progress = IterationProgress(self.title, trainer.max_epochs, self._console)
        if self._console is not None:
            self._display.enter_context(files_only(log))
            self._display.enter_context(shown(self._progress))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._progress.show(stage="training", completed=trainer.current_epoch)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.is_global_zero:
            self._progress.show(stage="training")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Mapping[str, Iteration], *args: Any
    ) -> None:
        if trainer.is_global_zero:
            self._made = outputs["iteration"]
            self._progress.figures = figures(outputs["iteration"].metrics)
            self._progress.show(stage="evaluating")  # which is over at once where none is due

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # After the evaluation of the same iteration, before its checkpoint: the order in programs/train_run.py.
        if not trainer.is_global_zero:
            return
        done, total = trainer.current_epoch + 1, expected_iterations(trainer, pl_module)
        self._progress.show(stage="saving", completed=done, total=total)
        if done % self.every_n_iterations == 0 or is_last(trainer):
            parts = [f"{done:{len(str(total))}d}/{total}", *_labelled(self._progress.figures), self._progress.left]
            log.info("%s", "  ".join(filter(None, parts)))
        every = self.sample_every_n_iterations
        if every and trainer.current_epoch % every == 0:
            self._show_sample(done, pl_module.policy.decode)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._progress.show(stage="done")
        self._display.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._display.close()

    def _show_sample(self, iteration: int, decode: Callable[[Tensor], str]) -> None:
        if self._made.sampled is None or self._made.corrected is None:
            return
        telling = telling_row(self._made.sampled, self._made.corrected)
        row = describe_row(self._made.corrected, telling.row, decode)
        title, verdict = f"sample of iteration {iteration}, {told_of(telling)}", verdict_on(row)
        question, response = (
            shortened(printable(text), characters=200, lines=2) for text in (row["question"], marked(row["pieces"]))
        )
        log.info("%s: %s", title, verdict)
        log.info("%s -> %s", question, response)
        if self._console is not None:
            self._console.print(sample_panel(title, verdict, row))


class IterationProgress(Progress):
    """A bar over iterations, the last figures under it. It keeps the time where there is no terminal, too.

    Args:
        title: of the run.
        total: iterations.
        console: the terminal; None where there is none, and `start` is not called.
    """

    def __init__(self, title: str, total: int, console: Console | None) -> None:
        self.figures: dict[str, str] = {}
        super().__init__(
            TextColumn("{task.description}", markup=False, style="bold"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[stage]}"),
            console=console,
            refresh_per_second=4,
            redirect_stderr=sys.stderr.isatty(),
            speed_estimate_period=math.inf,  # iterations may take minutes
        )
        self._iterations = self.add_task(printable(title), total=total, stage="evaluating")

    def show(self, stage: str, completed: int | None = None, total: int | None = None) -> None:
        """Say what the run is at, how many iterations it has done, and how many it is expected to have."""
        self.update(self._iterations, stage=stage, completed=completed, total=total)

    @property
    def left(self) -> str:
        """The time left, at the mean speed so far; "" where there is no speed yet."""
        seconds = self.tasks[0].time_remaining
        return "" if seconds is None else f"left {timedelta(seconds=math.ceil(seconds))}"

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar and the figures."""
        yield from super().get_renderables()
        yield Columns([Text.assemble((label, "dim"), " ", value) for label, value in self.figures.items()], (0, 2))


def figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """Label -> formatted value, of those in `COLUMNS` that there are."""
    return {label: format(metrics[name], f) for label, (name, f) in COLUMNS.items() if name in metrics}


def _labelled(found: Mapping[str, str]) -> list[str]:
    return [f"{label} {value}" for label, value in found.items()]


def verdict_on(row: Mapping[str, Any]) -> str:
    """What a row of `describe_row` earned, and for what."""
    parts = ", ".join(f"{key.removeprefix('reward_')} {row[key]:g}" for key in row if key.startswith("reward_"))
    branch = f", {row['branch']}" if row["branch"] else ""
    right = "right" if row["correct"] else "wrong"
    return f"reward {row['reward']:g} ({parts}), {right}{branch}, {row['tokens']} tokens"


def told_of(telling: Telling) -> str:
    """The group of a sample.

    >>> told_of(Telling(1, "revived", [0.0, 0.0], [0.0, 2.0]))
    'revived group, rewards 0 0 -> 0 2'
    """
    before, after = (" ".join(f"{reward:g}" for reward in rewards) for rewards in (telling.before, telling.after))
    return f"{telling.kind} group, rewards {before}{f' -> {after}' * (before != after)}"


def sample_panel(title: str, verdict: str, row: Mapping[str, Any]) -> Panel:
    """A row of `describe_row` for a terminal, coloured by who wrote what.

    Its texts are a model's: neither markup nor control characters.
    """
    kinds = dict.fromkeys(kind for kind, _ in row["pieces"] if kind != "sampled")
    legend = Text("  ").join(Text(f" {kind} ", WRITERS[kind]) for kind in kinds)
    pieces = [(printable(text, keep="\n"), WRITERS[kind]) for kind, text in row["pieces"]]
    texts = Text(printable(row["question"], keep="\n"), "bold"), Text.assemble(*pieces)
    question, response = (shortened_styled(text, characters=1200, lines=16) for text in texts)
    colour = "green" if row["correct"] else "red"
    said = Text.assemble(question, "\n\n", response, "\n\n", legend, "\n" if kinds else "")
    graded = Text.assemble((f"gold {printable(row['gold'])}  ", "dim"), (verdict, colour))
    return Panel(said + graded, title=Text(title), title_align="left", border_style="dim")
