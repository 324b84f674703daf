"""`edge-grpo-browse`: read rollouts at the terminal, or as one page for a browser."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_grpo.errors import UserError

if TYPE_CHECKING:
    from edge_grpo.browsing.opening import Recordings

DESCRIPTION = """\
Read what was sampled: every group with its responses before and after correction, rewards, advantages and token
entropies. Everything is done by keys; ? lists them.
"""
EXAMPLES = """\
examples:
  edge-grpo-browse outputs/train/<run>                        at the terminal (needs edge-grpo[browse])
  edge-grpo-browse outputs/train/<run> --html rollouts.html   a page that needs nothing but a browser
  edge-grpo-browse RUN OTHER_RUN                              two runs; c lays them side by side
  edge-grpo-browse multirun/<sweep>                           all runs of a sweep; r goes to the next
  edge-grpo-browse RUN/evaluation/<name>/completions.parquet  what an evaluation sampled
"""
MOST_ITERATIONS = 1_000_000  # of a range


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "edge-grpo-browse", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="folder of a run, of a sweep or of an evaluation, or a completions.parquet; several may be given",
    )
    made.add_argument("--html", type=Path, metavar="FILE", help="write a page in place of the terminal program")
    made.add_argument(
        "--iterations",
        type=numbers,
        metavar="LIST",
        help="iterations of the page, as in 0-10,20,40 (default: all that fit, spread evenly)",
    )
    made.add_argument(
        "--max-mb", type=positive, default=20.0, metavar="MB", help="bound on the page's data (default: %(default)g)"
    )
    return made


def numbers(text: str) -> list[int]:
    """Whole numbers and ranges of them.

    >>> numbers("0-2,5")
    [0, 1, 2, 5]
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers and ranges, as in 0-10,20")
        numbers = range(int(first), int(last or first) + 1)
        if not 1 <= len(numbers) <= MOST_ITERATIONS:
            raise argparse.ArgumentTypeError(
                f"{part.strip()}: expected the lower number first, and at most {MOST_ITERATIONS:,} iterations"
            )
        found += numbers
    return found


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def browse(arguments: argparse.Namespace) -> None:
    """Open what was given and show it."""
    if arguments.iterations is not None and arguments.html is None:
        raise UserError("--iterations is for the page: give --html FILE too")
    # Imported here: --help shall not wait for pandas.
    from edge_grpo.browsing.opening import Recordings

    recordings = Recordings(arguments.paths)
    if arguments.html is None:
        show(recordings)
        return
    from edge_grpo.browsing.page import write_page

    try:
        notes = write_page(arguments.html, recordings, arguments.max_mb, arguments.iterations)
    except OSError as error:
        raise UserError(f"--html {arguments.html}: cannot be written: {error.strerror}") from error
    print(*notes, sep="\n")
    print(f"written: {arguments.html} ({arguments.html.stat().st_size / 1e6:.1f} MB)")


def show(recordings: "Recordings") -> None:
    """The terminal program."""
    try:
        from edge_grpo.browsing.terminal import Browser
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise UserError(
            "the terminal program needs the extra `browse` (pip install 'edge-grpo[browse]'); --html FILE needs nothing"
        ) from None
    if not sys.stdout.isatty():
        raise UserError("standard output is no terminal: give --html FILE for a page")
    _ = recordings[0]  # one that cannot be read is told of before the screen changes
    Browser(recordings).run()


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    try:
        browse(arguments)
    except UserError as error:
        print(f"edge-grpo-browse: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
