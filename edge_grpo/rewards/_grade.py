"""Mathematical equivalence, as run inside a grading worker. Imported there, so it must stay light: no torch."""

import logging

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

# It warns that its own (SIGALRM) time-outs are off; the pool's replace them.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_EXTRACTION = (LatexExtractionConfig(), ExprExtractionConfig())


def is_equivalent(pair: tuple[str, tuple[str, ...]]) -> bool:
    """Whether the answer equals any of the gold answers, by math-verify."""
    answer, golds = pair
    prediction = _parsed(answer)
    return any(verify(_parsed(gold), prediction, timeout_seconds=None) for gold in golds)


def _parsed(text: str) -> list[object]:
    # One maths environment around the whole text, which is where math-verify reads LaTeX best (percentages fail in
    # \boxed). Dollar signs of its own would split it and leave only its last piece to be graded.
    bare = text.replace(r"\$", "").replace("$", "")
    return parse(f"${bare}$", _EXTRACTION, parsing_timeout=None)
