"""No correction: the rollout as it was sampled."""

from edge_grpo.corrections.base import UNIFORM_WEIGHT, Corrected, CorrectionTools, Encode
from edge_grpo.types.problems import Problem
from edge_grpo.types.rollouts import ScoredRollout


class Keep:
    """Returns the rollout untouched (vanilla GRPO)."""

    token_weight = UNIFORM_WEIGHT
    required_fields: frozenset[str] = frozenset()
    changes_rewards = False

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        return Corrected(scored=scored, branches=(None,) * scored.rollout.num_rows)

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`."""
        return max_new_tokens
