"""What each branch of guided error correction (GEC) is used for, what it achieves, and what it trains on."""

import pandas as pd

from edge_grpo.analysis.finding import Finding, Row, Table, Unit, show
from edge_grpo.analysis.source import Source
from edge_grpo.statistics.bootstrap import Bootstrap

TITLE = "What does each branch of correction do?"
MEASURED = """\
The rows are the responses that were wrong as sampled. Success: right after correction. `answer` and `solution` are
given the answer, so their success says whether the grader agrees; that of `reflect` is the policy's own. Tokens not
sampled: response tokens that the policy never drew (injected phrases, reference solutions). Of tokens in updates: over
the tokens of all rows, right or wrong, whose group entered an update. With a gradient: of rows whose advantage is not
0. A token counts as one, whatever correction.loss_weights makes of it."""
BRANCHES = {"reflect": "reflect", "answer": "answer", "solution": "solution", "no_room": "no room", "": "left alone"}
UNCHANGED = ("", "no_room", "no_reference", "unsolved", "dropped")
"""branches that leave the text as it was sampled"""
COLUMNS: dict[str, Unit] = {
    "branch": "text",
    "rows": "count",
    "of wrong rows": "share",
    "success": "share",
    "tokens before": "number",
    "tokens after": "number",
    "tokens not sampled": "count",
    "of its tokens": "share",
    "of tokens in updates": "share",
    "of tokens with a gradient": "share",
}


def branches(source: Source, bootstrap: Bootstrap) -> Finding:
    """Use, success and unsampled tokens per branch (2507.21848, GEC)."""
    if source.kind == "evaluation":
        why = "Branches are not available, because an evaluation corrects nothing: analyze the run itself."
        return Finding("branches", TITLE, MEASURED, notes=[why])
    frame = source.frame
    wrong = frame[~frame["correct"]]
    if not frame["branch"].any():
        why = "Branches are not available, because no response was corrected: use correction=guided."
        return Finding("branches", TITLE, MEASURED, notes=[why])
    names = in_order(wrong)
    rows = [_row(source, name, bootstrap) for name in names]
    corrected = [row for row, name in zip(rows, names, strict=True) if name not in UNCHANGED]
    success = "; ".join(f"{row['branch']} {show(row['success'], 'share')}" for row in corrected)
    everywhere = _all_row(source, bootstrap)
    statements = [
        *([f"Success: {success}."] if success else []),
        f"The policy never sampled {show(everywhere['of tokens in updates'], 'share')} of the tokens in updates, and "
        f"{show(everywhere['of tokens with a gradient'], 'share')} of those with a gradient.",
    ]
    table = Table("Wrong responses by branch.", COLUMNS, [*rows, everywhere])
    return Finding("branches", TITLE, MEASURED, statements, {"branches": table})


def in_order(frame: pd.DataFrame) -> list[str]:
    """The branches that rows took: those of `BRANCHES` first, other corrections' by name."""
    taken = set(frame["branch"])
    return [name for name in (*BRANCHES, *sorted(taken - set(BRANCHES))) if name in taken]


def not_sampled(frame: pd.DataFrame) -> pd.Series:
    """[N] response tokens of each row after correction that the policy did not sample."""
    return frame["tokens_after"] - frame["sampled_tokens_after"]


def _row(source: Source, branch: str, bootstrap: Bootstrap) -> Row:
    frame = source.frame
    wrong = ~frame["correct"]
    taken = wrong & (frame["branch"] == branch)
    return {
        "branch": BRANCHES.get(branch, branch),
        "rows": int(taken.sum()),
        "of wrong rows": bootstrap.ratio(taken, wrong, source.questions),
        "success": bootstrap.ratio(taken & frame["correct_after"], taken, source.questions),
        **_tokens(source, taken, bootstrap),
    }


def _all_row(source: Source, bootstrap: Bootstrap) -> Row:
    """All rows that were wrong."""
    wrong = ~source.frame["correct"]
    return {
        "branch": "all wrong rows",
        "rows": int(wrong.sum()),
        "success": bootstrap.ratio(wrong & source.frame["correct_after"], wrong, source.questions),
        **_tokens(source, wrong, bootstrap),
    }


def _tokens(source: Source, taken: pd.Series, bootstrap: Bootstrap) -> Row:
    """Lengths and unsampled tokens of the rows `taken`, [N]."""
    frame = source.frame
    unsampled, length = not_sampled(frame) * taken, frame["tokens_after"]
    in_update, moves = frame["advantage"].notna(), frame["advantage"].fillna(0) != 0
    return {
        "tokens before": float(frame["tokens"][taken].mean()),
        "tokens after": float(length[taken].mean()),
        "tokens not sampled": int(unsampled.sum()),
        "of its tokens": bootstrap.ratio(unsampled, length * taken, source.questions),
        "of tokens in updates": bootstrap.ratio(unsampled * in_update, length * in_update, source.questions),
        "of tokens with a gradient": bootstrap.ratio(unsampled * moves, length * moves, source.questions),
    }
