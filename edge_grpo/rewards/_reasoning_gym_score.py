"""reasoning_gym's own scorers, as run inside a grading worker. Imported there, so it must stay light: no torch."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from reasoning_gym.factory import DATASETS, get_score_answer_fn

_scorer = lru_cache(maxsize=None)(get_score_answer_fn)


def is_generator(name: object) -> bool:
    """Whether reasoning_gym knows a generator of that name."""
    return name in DATASETS


def score(item: tuple[str, Mapping[str, Any], str]) -> float:
    """The score in [0, 1] that the named generator gives an answer to one of its entries."""
    generator, entry, answer = item
    return float(_scorer(generator)(answer, entry))
