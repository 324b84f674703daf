"""Where modules that a user names are found, besides `sys.path`. No torch: the command line and graders import it."""

import importlib
import os
import sys


def search_in(folder: str) -> None:
    """Find modules in this folder too, behind all of `sys.path`: nothing installed is hidden by it."""
    if folder not in (entry or os.getcwd() for entry in sys.path):
        sys.path.append(folder)
    importlib.invalidate_caches()
