"""What GRPO refuses before a run, and what it says at its start."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from edge_grpo.advantages.base import min_generations
from edge_grpo.algorithms.mismatch import foreign_logprobs
from edge_grpo.algorithms.returned import groups_kept
from edge_grpo.algorithms.states import parts_of
from edge_grpo.corrections.base import Correction
from edge_grpo.errors import UserError
from edge_grpo.group_filters.base import Groups
from edge_grpo.importance_corrections.base import ImportanceCorrection
from edge_grpo.losses.base import Loss
from edge_grpo.rollouts.base import RolloutEngine

log = logging.getLogger(__name__)


def check_settings(
    rollout: RolloutEngine,
    strategies: Mapping[str, Any],
    num_generations: int,
    update_epochs: int,
    minibatch_rows: int | None,
) -> None:
    """See `GRPOModule`.

    Args:
        strategies: by the names of their config groups.

    Raises:
        UserError: one of the settings, or two that do not go together.
    """
    correction, advantage, loss = strategies["correction"], strategies["advantage"], strategies["loss"]
    if num_generations < 2:
        raise UserError(f"algorithm.num_generations={num_generations}: a group needs at least 2 responses")
    if num_generations < (least := min_generations(advantage)):
        raise UserError(
            f"algorithm.num_generations={num_generations}: this advantage needs groups of at least {least} "
            "responses (pass_at_k: more than advantage.k)"
        )
    refuses = getattr(strategies["allocation"], "refuses", None)
    if refuses is not None and (reason := refuses(num_generations)):
        raise UserError(f"algorithm.num_generations={num_generations}: {reason}")
    if update_epochs < 1:
        raise UserError(f"algorithm.update_epochs={update_epochs} must be at least 1")
    if minibatch_rows is not None and (minibatch_rows < 1 or minibatch_rows % num_generations):
        raise UserError(
            f"algorithm.minibatch_rows={minibatch_rows} must be a multiple of "
            f"algorithm.num_generations={num_generations}: a group is never split"
        )
    if rollout.sampling.greedy:
        raise UserError("rollout.temperature=0: greedy responses of a group are all equal, which teaches nothing")
    token_filter = strategies["token_filter"]
    if token_filter.reads_advantages and advantage.inside_update:
        raise UserError(
            f"token_filter ({type(token_filter).__name__}) reads the advantages before the update, and this advantage "
            f"({type(advantage).__name__}) is taken anew inside it (entropy_driven: with advantage.detach=false, "
            "scope=microbatch or refresh=update): choose another of one of them"
        )
    if loss.beta > 0 and (reason := getattr(correction, "refuses_reference", "")):
        raise UserError(f"loss.beta={loss.beta}: {reason}; set loss.beta=0")
    _check_pass_rate(advantage, correction)
    _check_off_policy(rollout, correction)
    _check_importance(strategies["importance_correction"], rollout, loss, correction)
    _check_entropies(rollout, strategies)
    _warn_of_entropy_twice(advantage)


def _check_pass_rate(advantage: Any, correction: Any) -> None:
    """What takes the share of right rows for the policy's own success rate must not read corrected rows."""
    reading = [part for _, part in parts_of({"advantage": advantage}) if getattr(part, "reads_pass_rate", False)]
    if reading and getattr(correction, "changes_rewards", True):
        raise UserError(
            f"advantage ({type(reading[0]).__name__}) estimates the policy's success rate by the share of right rows, "
            f"which correction ({type(correction).__name__}) changes: set correction=none"
        )


def _check_off_policy(rollout: RolloutEngine, correction: Any) -> None:
    """The ratio of an off-policy row is against the log-probs of its sampling, which must be of the same tokens."""
    sampling = rollout.sampling
    truncating = [f"rollout.{field}={getattr(sampling, field)}" for field in sampling.truncating]
    reading = [
        part for _, part in parts_of({"correction": correction}) if getattr(part, "reads_sampling_logprobs", False)
    ]
    if truncating and reading:
        raise UserError(
            f"{', '.join(truncating)}: correction ({type(reading[0]).__name__}) takes importance ratios against the "
            "log-probs of its rows' sampling, which are then of the tokens that truncation keeps, so that the ratio is "
            "below 1 for the same policy: set rollout.top_p=1 rollout.top_k=0 rollout.min_p=0, or another correction"
        )


def _check_importance(importance: ImportanceCorrection, rollout: RolloutEngine, loss: Any, correction: Any) -> None:
    """Weights want the probabilities with which the tokens were drawn, and a loss that is linear in the advantages."""
    if not importance.corrects:
        return
    name, sampling = f"importance_correction ({type(importance).__name__})", rollout.sampling
    truncating = [f"{field}={getattr(sampling, field)}" for field in sampling.truncating]
    if truncating:
        raise UserError(
            f"rollout.{', rollout.'.join(truncating)}: {name} compares log-probs of trainer and engine, and the "
            "engine's are then of the tokens that truncation keeps, so that the ratio is the mass of these and no "
            "mismatch: set rollout.top_p=1 rollout.top_k=0 rollout.min_p=0, or importance_correction=none"
        )
    if getattr(loss, "needs_whole_groups", False) or not getattr(loss, "reads_advantages", True):
        raise UserError(
            f"loss ({type(loss).__name__}) is no sum over tokens of something times their advantage, so {name} has "
            "nothing to weigh in it: choose another loss, or set importance_correction=none"
        )
    if foreign_logprobs(correction):
        raise UserError(
            f"correction ({type(correction).__name__}) trains on sampled tokens whose log-prob under their prompt the "
            f"engine never gave, so {name} has nothing to compare: choose another correction (scaf_grpo: "
            "correction.replace_hint_prompt=false), or set importance_correction=none"
        )


def _check_entropies(rollout: RolloutEngine, strategies: Mapping[str, Any]) -> None:
    """What reads the entropies that were recorded with the tokens wants an engine that records them."""
    if getattr(rollout, "records_entropies", True):
        return
    for name, part in parts_of(strategies):
        if getattr(part, "reads_recorded_entropy", False):
            raise UserError(
                f"{name} ({type(part).__name__}) reads the entropies with which tokens were sampled, and this rollout "
                f"({type(rollout).__name__}) records none: set rollout=native, or choose another {name}"
            )


def _warn_of_entropy_twice(advantage: Any) -> None:
    """Tell of an advantage over another one where both read the entropies."""
    reading = [type(part).__name__ for _, part in parts_of({"advantage": advantage}) if part.reads_entropy]
    if len(reading) > 1:
        log.warning(
            "advantage: %s both follow the policy's entropy (or likelihood), which counts twice", " over ".join(reading)
        )


def check_minibatches(minibatch_rows: int | None, num_generations: int, ranks: int) -> None:
    """Refuse minibatches that the ranks cannot share.

    Raises:
        UserError: not a multiple of G times the ranks.
    """
    if minibatch_rows is not None and minibatch_rows % (num_generations * ranks):
        raise UserError(
            f"algorithm.minibatch_rows={minibatch_rows} must be a multiple of algorithm.num_generations="
            f"{num_generations} times the {ranks} ranks: each takes whole groups"
        )


def idle_settings(loss: Loss, correction: Correction, update_epochs: int, minibatch_rows: int | None) -> list[str]:
    """What does nothing, a sentence each; a clip does something with several steps an iteration or off-policy rows."""
    remarks = []
    if not getattr(loss, "reads_advantages", True):
        remarks.append(f"loss ({type(loss).__name__}) reads no advantages: advantage and token_filter do nothing")
    idle = getattr(loss, "idle_at_ratio_one", "")
    off_policy = any(getattr(part, "makes_off_policy", False) for _, part in parts_of({"correction": correction}))
    if not idle or off_policy or update_epochs > 1 or minibatch_rows is not None:
        if (low := getattr(loss, "epsilon_low", 0.0)) > 1:
            remarks.append(f"loss.epsilon_low={low}: no ratio is below 1 - epsilon_low, so nothing is clipped there")
        return remarks
    return [
        *remarks,
        f"update_epochs=1: the importance ratio is exactly 1, so {idle}; several optimiser steps a rollout "
        "(algorithm.update_epochs, algorithm.minibatch_rows) change that",
    ]


def idle_strategies(allocation: Any, group_filter: Any, advantage: Any, num_generations: int) -> list[str]:
    """Strategies that leave each other nothing to do, or a wrong baseline, a sentence each."""
    remarks = []
    parts = [part for _, part in parts_of({"advantage": advantage})]
    if getattr(allocation, "wants_drawn_rewards", False) and not any(getattr(p, "reads_drawn", False) for p in parts):
        remarks.append(
            f"allocation ({type(allocation).__name__}) keeps half right and half wrong responses of those drawn: their "
            f"mean is not the policy's rate, and advantage ({type(advantage).__name__}) sees no others: set "
            "advantage=pool_mean"
        )
    wrong_and_right = torch.tensor([[0.0], [1.0]]).expand(2, num_generations)
    reviving = [type(part).__name__ for part in parts if getattr(part, "revives", False)]
    if reviving and not groups_kept(group_filter, Groups(wrong_and_right, wrong_and_right == 1)).any():
        remarks.append(
            f"group_filter ({type(group_filter).__name__}) drops the groups of equal rewards, so advantage "
            f"({reviving[0]}) has none left to revive: set group_filter=none"
        )
    return remarks
