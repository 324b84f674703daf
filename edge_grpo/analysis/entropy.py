"""Whether entropy tells right responses from wrong ones: over all responses, and within one question."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from edge_grpo.analysis.finding import Finding, Row, Table, Unit, show
from edge_grpo.analysis.source import MORE_SAMPLES, Source
from edge_grpo.statistics.auroc import wins_and_pairs
from edge_grpo.statistics.bootstrap import Bootstrap, Floats, divide, unit_sums

TITLE = "Does entropy tell right responses from wrong ones?"
MEASURED = """\
The entropy of a response is the mean over its tokens of the policy's full-vocabulary entropy, in nats, at
{temperature}. AUROC is the chance that a wrong response has a higher one than a right response (ties count half): 0.5
tells nothing. Over all responses entropy may tell right from wrong only because hard questions have high entropy.
Within {group} the hardness is the same, and EDA compares only there."""
QUARTILES = {"25 %": 0.25, "median": 0.5, "75 %": 0.75}
LEVEL_COLUMNS: dict[str, Unit] = {
    "compared": "text",
    "AUROC, over pairs": "number",
    "AUROC, mean over groups": "number",
    "groups with both": "count",
    "pairs": "count",
}


def entropy(source: Source, bootstrap: Bootstrap) -> Finding:
    """Distributions and AUROC of the mean token entropy of right and wrong responses (2507.21848, Eq. 3)."""
    run = source.kind == "run"
    measured = MEASURED.format(
        temperature="the rollout's temperature, before correction" if run else "temperature 1",
        group="a question (and one iteration)" if run else "a question",
    )
    frame = source.frame[source.frame["entropy"].notna()]
    right = frame["correct"].to_numpy()
    notes = []
    if len(frame) < len(source.frame):
        notes.append(f"{len(source.frame) - len(frame)} responses have no entropy and are left out.")
    if not right.any() or right.all():
        both = "has no entropies" if frame.empty else f"holds no {'wrong' if right.all() else 'right'} response"
        notes.append(f"A comparison is not available, because {source.path} {both}.")
        return Finding("entropy", TITLE, measured, notes=notes)
    whole = _Compared(frame, bootstrap)
    levels = [whole.pooled("all responses", np.zeros(len(frame), dtype=np.intp))]
    coarse = "step" if run else "benchmark"
    if frame[coarse].nunique() > 1:
        codes = frame.groupby(coarse).ngroup().to_numpy(dtype=np.intp)
        levels.append(whole.pooled("within iteration" if run else "within benchmark", codes))
    levels.append(whole.within_question())
    if not levels[-1]["pairs"]:
        notes.append(
            f"The comparison {levels[-1]['compared']} is not available, because no group has both right and wrong "
            "responses" + ("." if run else ": sample more often, " + source.hint(MORE_SAMPLES))
        )
    tables = {
        "entropy": Table("Entropy of responses, nats.", _columns(), list(_distributions(frame, bootstrap))),
        "auroc": Table(
            "AUROC of entropy for wrong against right. Over pairs: every pair counts once. Mean over groups: every "
            "group that has right and wrong responses counts once.",
            LEVEL_COLUMNS,
            levels,
        ),
    }
    statements = [
        f"AUROC of entropy for wrong against right: {show(levels[0]['AUROC, over pairs'], 'number')} over all "
        f"responses, {show(levels[-1]['AUROC, mean over groups'], 'number')} {levels[-1]['compared']}."
    ]
    return Finding("entropy", TITLE, measured, statements, tables, notes)


def _columns() -> dict[str, Unit]:
    return {"responses": "text", "number": "count", "mean": "number", **dict.fromkeys(QUARTILES, "number")}


def _distributions(frame: pd.DataFrame, bootstrap: Bootstrap) -> Iterator[Row]:
    """A row for right and one for wrong responses."""
    _, clusters = np.unique(frame["question"], return_inverse=True)
    for name, part in (("right", frame["correct"]), ("wrong", ~frame["correct"])):
        values = frame["entropy"][part]
        mean = bootstrap.ratio(frame["entropy"] * part, part, clusters)
        quartiles = {label: float(values.quantile(level)) for label, level in QUARTILES.items()}
        yield {"responses": name, "number": int(part.sum()), "mean": mean, **quartiles}


class _Compared:
    """Entropies of right and wrong responses, question by question.

    Args:
        frame: [N] rows with an entropy.
    """

    def __init__(self, frame: pd.DataFrame, bootstrap: Bootstrap) -> None:
        self.values = frame["entropy"].to_numpy(dtype=np.float64)
        self.wrong = ~frame["correct"].to_numpy()
        _, self.questions = np.unique(frame["question"], return_inverse=True)
        _, self.groups = np.unique(frame["group"], return_inverse=True)
        self.num_questions = int(self.questions.max()) + 1
        self.bootstrap = bootstrap

    def pooled(self, compared: str, strata: NDArray[Any]) -> Row:
        """Pairs within strata, across questions too.

        A question that is drawn w times brings its own pairs w times, not w^2: its copies are not compared with each
        other, or resamples would hold more pairs of one question than the data do.
        """
        _, cells = np.unique(strata * self.num_questions + self.questions, return_inverse=True)
        question = np.empty(cells.max() + 1, dtype=np.intp)
        question[cells] = self.questions
        own = [unit_sums(found[0], question) for found in wins_and_pairs(self.values, self.wrong, cells)]

        def over_pairs(weights: Floats) -> Floats:
            found = wins_and_pairs(self.values, self.wrong, strata, weights[:, self.questions])
            wins, pairs = (total.sum(1) - (weights**2 - weights) @ of for total, of in zip(found, own, strict=True))
            return divide(wins, pairs)

        _, pairs = wins_and_pairs(self.values, self.wrong, strata)
        auroc = self.bootstrap.estimate(over_pairs, self.num_questions, width=4 * len(self.values))
        return {"compared": compared, "AUROC, over pairs": auroc, "pairs": int(pairs.sum())}

    def within_question(self) -> Row:
        """Pairs of one group only: one question, one policy.

        A question that is drawn twice is two questions, without pairs between its copies.
        """
        wins, pairs = (found[0] for found in wins_and_pairs(self.values, self.wrong, self.groups))
        question = np.empty(len(wins), dtype=np.intp)
        question[self.groups] = self.questions
        aurocs = divide(wins, pairs)
        both = pairs > 0
        return {
            "compared": "within question",
            "AUROC, over pairs": self.bootstrap.ratio(wins, pairs, question),
            "AUROC, mean over groups": self.bootstrap.ratio(np.nan_to_num(aurocs), both, question),
            "groups with both": int(both.sum()),
            "pairs": int(pairs.sum()),
        }
