"""Corrections one after the other: a hint first, say, and guided error correction on what is still wrong."""

from collections.abc import Mapping

import torch

from edge_grpo.corrections.base import Corrected, Correction, CorrectionTools, Encode
from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Provenance
from edge_grpo.types.rollouts import ScoredRollout


class Chain:
    """Each step corrects what the one before it left; this project's own way to put corrections together.

    A row's branch is that of the last step that edited or tried it. Reports are those of all steps. A step that
    continues a row (`guided`) does so under the row's own prompt, with a hint if it was drawn with one. Assumes that
    the steps can act on edited rows; `guided_official` cannot.

    Degenerate case: a step that finds nothing to do changes nothing, so a chain of one step is that step.

    Args:
        steps: name -> correction, in this order.

    Raises:
        UserError: no steps, or two that do not go together: other token weights, or the same metrics.
    """

    def __init__(self, steps: Mapping[str, Correction]) -> None:
        if not steps:
            raise UserError("correction.steps is empty: name at least one correction")
        self.steps = dict(steps)
        for name, step in self.steps.items():
            if reason := getattr(step, "refuses_chain", ""):
                raise UserError(f"correction.steps.{name}: {reason}")
        self.token_weight = _shared_weights(self.steps)
        self.metrics = _joined_metrics(self.steps)

    @property
    def required_fields(self) -> frozenset[str]:
        """Of any step."""
        return frozenset[str]().union(*(step.required_fields for step in self.steps.values()))

    @property
    def refuses_reference(self) -> str:
        """The first step's that has a reason."""
        reasons = (getattr(step, "refuses_reference", "") for step in self.steps.values())
        return next(filter(None, reasons), "")

    def longest_response(self, problem: Problem, max_new_tokens: int, encode: Encode) -> int:
        """See `Correction.longest_response`: a step may lengthen what the one before it lengthened."""
        longest = max_new_tokens
        for step in self.steps.values():
            bound = getattr(step, "longest_response", None)
            longest = longest if bound is None else max(longest, bound(problem, longest, encode))
        return longest

    def __call__(self, scored: ScoredRollout, tools: CorrectionTools) -> Corrected:
        """Every step in turn; see `Correction`."""
        branches: tuple[str | None, ...] = (None,) * scored.rollout.num_rows
        reports: dict[str, torch.Tensor] = {}
        for step in self.steps.values():
            done = step(scored, tools)
            scored = done.scored
            branches = tuple(new or old for new, old in zip(done.branches, branches, strict=True))
            reports |= done.reports
        return Corrected(scored, branches, reports)


def _shared_weights(steps: Mapping[str, Correction]) -> Mapping[Provenance, float]:
    (first, weights), *others = ((name, step.token_weight) for name, step in steps.items())
    for name, other in others:
        if dict(other) != dict(weights):
            raise UserError(
                f"correction.steps.{first} and correction.steps.{name} weigh tokens differently "
                f"({_shown(weights)}; {_shown(other)}): a token has one weight, set loss_weights alike"
            )
    return weights


def _shown(weights: Mapping[Provenance, float]) -> str:
    return ", ".join(f"{provenance.name.lower()} {weight:g}" for provenance, weight in weights.items())


def _joined_metrics(steps: Mapping[str, Correction]) -> StrategyMetrics:
    joined: dict[str, StrategyMetric] = {}
    of: dict[str, str] = {}
    for name, step in steps.items():
        for metric, definition in getattr(step, "metrics", {}).items():
            if metric in joined:
                raise UserError(f"correction.steps.{of[metric]} and correction.steps.{name} both report {metric}")
            joined[metric], of[metric] = definition, name
    return joined
