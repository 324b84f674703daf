"""No correction: the rollout as it was sampled."""

from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected, CorrectionTools
from edge_grpo.types import ScoredRollout


class Keep:
    """Returns the rollout untouched (vanilla GRPO)."""

    token_weight = UNIFORM_WEIGHT
    required_fields: frozenset[str] = frozenset()

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        return Corrected(scored=scored, branches=(None,) * scored.rollout.num_rows)
