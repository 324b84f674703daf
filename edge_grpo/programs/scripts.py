"""`edge-grpo-scripts`: the sweeps and the example strategies, copied out of the package to be changed."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_grpo.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS = {"multirun_scripts": "multirun_scripts", "examples": "tests/examples"}
"""what it is called in the package and where it goes -> where it lies in a clone"""


def source(name: str) -> Path:
    """A folder as it is packed into the wheel, or the clone's."""
    packed = PACKAGE / name
    return packed if packed.is_dir() else PACKAGE.parent / FOLDERS[name]


def copy_scripts(folder: Path) -> list[Path]:
    """Copy all of `FOLDERS` below a folder, which is made if need be.

    Raises:
        UserError: one of them is there already; then nothing is copied.
    """
    targets = {name: folder / name for name in FOLDERS}
    taken = [str(path) for path in targets.values() if path.exists()]
    if taken:
        raise UserError(f"{', '.join(taken)}: there already; nothing is overwritten, choose another folder")
    for name, target in targets.items():
        shutil.copytree(source(name), target, ignore=shutil.ignore_patterns("__pycache__"))
    return list(targets.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="edge-grpo-scripts",
        description="Copy the sweeps (multirun_scripts) and an example strategy of each kind (examples) into a folder.",
        epilog="Then: bash DIR/multirun_scripts/paper_table.sh; DIR/examples/README.md says how to run the examples.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="made if need be; what is there is not overwritten")
    folder = parser.parse_args(arguments).folder
    try:
        for path in copy_scripts(folder):
            print(path)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
