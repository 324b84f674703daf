"""The sentences at the top of the page: which arm is best, and how far the intervals support that."""

from collections.abc import Mapping, Sequence

from edge_grpo.reporting.numbers import Arms, Numbers
from edge_grpo.reporting.scores import lookup
from edge_grpo.reporting.tables import MOST_LISTED, heading, percent
from edge_grpo.statistics.bootstrap import Estimate, highest_coverage


def headline(numbers: Numbers, arms: Arms, confidence: float) -> list[str]:
    """The best arm of the first column, the arms whose intervals overlap its own, and its lead over the baseline.

    Where one arm alone has a score there, or all have the same, none is called the highest.
    """
    if not numbers.compared:
        return []
    found, column = lookup(numbers.scores), numbers.compared[0]
    scores = {arm: found[arm, *column] for arm in arms.seeds if (arm, *column) in found}
    if not scores:
        return []
    best = max(scores, key=lambda arm: scores[arm].value)
    what = heading(column, numbers.problems)
    lacking = len(arms.seeds) - len(scores)
    if len(scores) == 1:
        alone = f" {_without(lacking)}: nothing is compared." if lacking else ""
        return [f"{what}: {best}, {_score(scores[best])}.{alone}"]
    if len({score.value for score in scores.values()}) == 1:
        without = f" {_without(lacking)}." if lacking else ""
        return [f"{what}: the same mean for {len(scores)} arms, {percent(scores[best]).text} %.{without}"]
    sentences = [f"Highest {what}: {best}, {_score(scores[best])}. {_rivals(best, scores)}".strip()]
    if lacking:
        sentences.append(f"{_without(lacking)}.")
    difference = lookup(numbers.differences).get((best, *column))
    if best == arms.baseline:
        sentences.append(f"No arm has a higher mean than the baseline, {arms.baseline}.")
    elif difference is not None:
        sentences.append(_against(difference, arms.baseline, confidence))
    return sentences


def _without(lacking: int) -> str:
    return f"{lacking} other arm{'s have' if lacking > 1 else ' has'} no such score"


def _score(estimate: Estimate) -> str:
    return f"{percent(estimate).line} % ({estimate.n} seed{'s' if estimate.n > 1 else ''})"


def _rivals(best: str, scores: Mapping[str, Estimate]) -> str:
    others = [arm for arm in scores if arm != best]
    overlaps = {arm: scores[best].overlaps(scores[arm]) for arm in others}
    sharing = [arm for arm in others if overlaps[arm]]
    unknown = [arm for arm in others if overlaps[arm] is None]
    parts = []
    if sharing:
        parts.append(f"Its interval overlaps {_listed(sharing)}.")
    elif others and not unknown:
        parts.append("Its interval overlaps that of no other arm.")
    if unknown:
        parts.append(f"There is no interval to compare with {_listed(unknown)}.")
    return " ".join(parts)


def _listed(arms: Sequence[str]) -> str:
    """Labels hold commas, so semicolons part them; of many the number says enough."""
    if len(arms) > MOST_LISTED:
        return f"those of {len(arms)} arms"
    return f"that of {arms[0]}" if len(arms) == 1 else f"those of {'; '.join(arms)}"


def _against(difference: Estimate, baseline: str, confidence: float) -> str:
    text = f"Against {baseline}: {percent(difference, signed=True).line} percentage points"
    pairs = f"{difference.n} pair{'s' if difference.n > 1 else ''} of seeds"
    if difference.low is None or difference.high is None:
        return f"{text} ({pairs}: no interval)."
    holds = "includes" if difference.low <= 0 <= difference.high else "excludes"
    covered = highest_coverage(difference.n)
    coarse = f", but of {difference.n} seeds it covers the true value at most {100 * covered:.0f} % of the time"
    return f"{text} ({pairs}); the interval {holds} 0{coarse if covered < confidence else ''}."
