"""How fast problems are evaluated, and how long the rest takes."""

import math
import time
from datetime import timedelta


class Pace:
    """Counts from its making on.

    Args:
        problems: that are left to do.
    """

    def __init__(self, problems: int) -> None:
        self._problems, self._begun = problems, time.monotonic()
        self._done = self._tokens = 0

    def after(self, problems: int, tokens: int) -> str:
        """So many more are done; tokens a second so far, and the time that the rest takes at the pace so far."""
        self._done, self._tokens = self._done + problems, self._tokens + tokens
        seconds = time.monotonic() - self._begun
        left = timedelta(seconds=math.ceil(seconds / self._done * (self._problems - self._done)))
        return f"{self._tokens / max(seconds, 1e-9):,.0f} tokens/s  left {left}"
