"""Is this answer the gold answer? Plain numbers at once, everything else in workers that can be killed."""

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol, get_args

from edge_grpo.errors import UserError
from edge_grpo.rewards._grade import Verdict, grade, is_readable
from edge_grpo.rewards.pool import KillablePool

Pair = tuple[str | None, tuple[str, ...]]
"""An answer (None: the response has none) and the gold answers, any of which makes it right."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3}){1,8}|[0-9]{1,30})(?:\.[0-9]{1,30})?")
# Not between two words or numbers, "1 2" is not "12"; nor behind a comma between digits, "1, 234" is not "1,234".
_IDLE_SPACE = re.compile(r"\s+(?!\w)|(?<!\w)(?<!\d,)\s+")
_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_CACHE_SIZE = 50_000


class AnswerVerifier(Protocol):
    """Pairs of answer and gold answers in, one verdict a pair out, in order.

    It may have `counts`, `known`, `unreadable`, `state_dict` and `load_state_dict`, as `MathVerifier` has.
    """

    def __call__(self, pairs: Sequence[Pair]) -> list[bool]: ...


class MathVerifier:
    """The same answer in mathematics, inside killable workers: see `answers` for what is read and how.

    Decided without a worker: no answer or one that is too long (wrong), the text of a gold answer up to spaces that
    separate nothing (right), and plain decimal numbers, compared exactly. A time-out, a crash or an exception of a
    worker is a wrong answer and is counted. Verdicts are cached; those lost to a time-out or crash are not. May be
    called from several threads; the calls take turns.

    Args:
        workers: number of worker processes; they start with the first pair that needs one.
        timeout_s: seconds a pair may take.
        max_answer_chars: longer answers are wrong unseen.
        memory_limit_gb: address space of a worker in GiB (Linux).
        decimal_tolerance: relative difference from the gold answer that is forgiven where one of two numbers is
            written as a decimal (0.01: 3.14 is pi); None: none, 0.33 is not 1/3.
        plain_numbers: where the gold answer is a plain decimal number, an answer that is none is wrong: 5 + 8 is not
            13, nor is 26/2. Else a policy may be rewarded for putting the question into the box.

    Raises:
        UserError: an argument that is not positive.
    """

    _grade = staticmethod(grade)
    _items_per_process = 2000  # then a fresh one: sympy's caches must not grow into the memory limit

    def __init__(
        self,
        workers: int = 2,
        timeout_s: float = 5.0,
        max_answer_chars: int = 1000,
        memory_limit_gb: float = 2.0,
        decimal_tolerance: float | None = None,
        plain_numbers: bool = False,
    ) -> None:
        if max_answer_chars <= 0:
            raise UserError(f"max_answer_chars must be positive, got {max_answer_chars}")
        if decimal_tolerance is not None and not 0 < decimal_tolerance < 1:
            raise UserError(f"decimal_tolerance must lie between 0 and 1 (null: exact), got {decimal_tolerance}")
        self.decimal_tolerance, self.plain_numbers = decimal_tolerance, plain_numbers
        self.max_answer_chars = max_answer_chars
        self._pool = KillablePool(
            workers, timeout_s, memory_limit_gb, self._items_per_process, preload=(self._grade.__module__,)
        )
        self._cache: OrderedDict[tuple[str, tuple[str, ...]], Verdict] = OrderedDict()
        self._counts = {"total": 0, "fast": 0, "cached": 0, "unparsed": 0}
        self._lock = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        """Pairs so far: `total`, without a worker (`fast`), from memory (`cached`), `unparsed` (no answer, one that is
        too long, or no mathematics where the gold answer is), and lost in a worker (`timeout`, `error`, `crash`).

        A pair that occurs twice in one call is graded once; the second counts as cached, even if the first is lost.
        """
        return {**self._counts, **self._pool.counts}

    def __call__(self, pairs: Sequence[Pair]) -> list[bool]:
        """n verdicts in the order of the n pairs.

        Raises:
            UserError: the workers cannot start.
        """
        with self._lock:
            verdicts = self._verdicts(pairs)
        return [verdict == "right" for verdict in verdicts]

    def known(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """right, wrong or unparsed for each of the n pairs; None for one not graded before, or lost in a worker."""
        return [self._without_worker(a, golds) or self._cache.get((a or "", golds)) for a, golds in pairs]

    def unreadable(self, golds: Sequence[str]) -> list[bool]:
        """Which gold answers are compared as text: they are no mathematics, or cost more than the limits allow.

        Raises:
            UserError: the workers cannot start.
        """
        hard = [gold for gold in dict.fromkeys(golds) if _number(gold) is None]
        found = self._pool.map(is_readable, hard, lambda value: isinstance(value, bool))
        readable = dict(zip(hard, found, strict=True))
        return [not readable.get(gold, True) for gold in golds]

    def state_dict(self) -> dict[str, Any]:
        """The cache, least recently used first, in plain types and safe from later changes.

        Takes no lock: copying the entries is one step of the interpreter, and a grading may take seconds.
        """
        return {"cache": list(self._cache.items())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the cache by the one of `state_dict`."""
        with self._lock:
            self._cache = OrderedDict(state["cache"])

    def close(self) -> None:
        """Kill the workers; the next hard pair starts new ones."""
        self._pool.close()

    def _verdicts(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """One a pair, None where it was lost in a worker."""
        quick = [self._without_worker(answer, golds) for answer, golds in pairs]
        hard = [(a, golds) for (a, golds), known in zip(pairs, quick, strict=True) if known is None and a is not None]
        found: dict[tuple[str, tuple[str, ...]], Verdict | None] = {
            key: self._cache[key] for key in hard if key in self._cache
        }
        new = [key for key in dict.fromkeys(hard) if key not in found]
        items = [(answer, golds, self.decimal_tolerance) for answer, golds in new]
        for key, verdict in zip(new, self._pool.map(self._grade, items, _VERDICTS.__contains__), strict=True):
            found[key] = verdict
            if verdict is not None:
                self._cache[key] = verdict
        self._keep_recent(hard)
        graded = iter(hard)
        verdicts = [found[next(graded)] if known is None else known for known in quick]
        self._counts["total"] += len(pairs)
        self._counts["fast"] += len(pairs) - len(hard)
        self._counts["cached"] += len(hard) - len(new)
        self._counts["unparsed"] += verdicts.count("unparsed")
        return verdicts

    def _without_worker(self, answer: str | None, golds: tuple[str, ...]) -> Verdict | None:
        """The verdict where it needs no mathematics, else None."""
        if answer is None or len(answer) > self.max_answer_chars:
            return "unparsed"
        if _without_spaces(answer) in {_without_spaces(gold) for gold in golds}:
            return "right"
        value, gold_values = _number(answer), [_number(gold) for gold in golds]
        if value is None:
            return "wrong" if self.plain_numbers and None not in gold_values else None
        if value in gold_values:
            return "right"
        return None if None in gold_values or self.decimal_tolerance is not None else "wrong"

    def _keep_recent(self, used: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        for key in used:
            if key in self._cache:
                self._cache.move_to_end(key)
        while len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)


def _without_spaces(text: str) -> str:
    r"""The text without the spaces that separate no words.

    >>> _without_spaces(r" 30 \% "), _without_spaces("1 2")
    ('30\\%', '1 2')
    """
    return _IDLE_SPACE.sub("", text)


def _number(text: str) -> Decimal | None:
    """The value of a plain decimal such as -12, 1,000 or 3.50 (at most 30 digits a side), else None.

    >>> _number(" 1,000.0 ") == _number("1000"), _number("1,00"), _number("1e9")
    (True, None, None)
    """
    stripped = text.strip()
    return Decimal(stripped.replace(",", "")) if _NUMBER.fullmatch(stripped) else None
