"""The released EDGE-GRPO code's grader, for comparison only."""

import importlib.util
from collections.abc import Sequence

from edge_grpo.errors import UserError
from edge_grpo.rewards._grade import Verdict
from edge_grpo.rewards.verifier import MathVerifier


class OfficialVerifier(MathVerifier):
    r"""The verdict of the released grader: MATH's normalised strings, PRM800K's SymPy, or math-verify.

    It counts right what any of them does, so a fragment of what cannot be read too. Among others an answer in
    `\text{}`, behind `x =`, with units, percent or dollar signs, or in another case equals the gold answer without
    them. Each answer has a process of its own, since it is evaluated. What differs is listed under "Not reproduced" in
    docs/departures.md.

    Args:
        workers, timeout_s, max_answer_chars, memory_limit_gb: see `MathVerifier`.

    Raises:
        UserError: the extra `official` is not installed.
    """

    _items_per_process = 1

    def __init__(self, workers: int, timeout_s: float, max_answer_chars: int, memory_limit_gb: float) -> None:
        for package in ("mathruler", "pylatexenc"):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"reward=official needs {package}: pip install 'edge-grpo[official]'")
        from edge_grpo.rewards._official_grade import grade

        self._grade = grade
        super().__init__(workers, timeout_s, max_answer_chars, memory_limit_gb)

    def unreadable(self, golds: Sequence[str]) -> list[bool]:
        """None: it compares anything."""
        return [False] * len(golds)

    def _without_worker(self, answer: str | None, golds: tuple[str, ...]) -> Verdict | None:
        """The same text is right, no answer unparsed; numbers go to the worker like everything else."""
        if answer is None or len(answer) > self.max_answer_chars:
            return "unparsed"
        return "right" if answer in golds else None
