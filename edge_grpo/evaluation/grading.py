"""Graded responses as rows of completions.parquet."""

import pandas as pd

from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.types.rollouts import ScoredRollout


def graded(scored: ScoredRollout, rewards: WeightedRewards) -> pd.DataFrame:
    """The columns of `completions.SCHEMA` that grading alone gives, one row a response."""
    rollout = scored.rollout
    problems = [rollout.problem_of(row) for row in range(rollout.num_rows)]
    return pd.DataFrame(
        {
            "problem": [p.id for p in problems],
            "sample": [row % rollout.num_generations for row in range(rollout.num_rows)],
            "question": [p.transcript for p in problems],
            "answers": [list(p.answers) for p in problems],
            "response": scored.texts,
            "tokens": [len(r) for r in rollout.responses],
            "finish_reason": [r.finish_reason for r in rollout.responses],
            "answer": pd.Series([last_boxed(text) for text in scored.texts], dtype=object),
            "correct": scored.scores.correct.numpy(),
            "unparsed": rewards.unparsed(problems, scored.texts),
        }
    )
