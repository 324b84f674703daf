"""What the dashboard shows: panels by section, each with what it says about advantage collapse.

Names only; `build.py` makes W&B's panels of them. tests/test_dashboard.py looks every name up in loggers/metrics.py.
"""

from dataclasses import dataclass
from typing import Literal

ITERATION = "iteration"
ROLLOUTS = "train/num_rollouts"


@dataclass(frozen=True)
class Lines:
    """Metrics over the run, one line an arm: the mean of its runs, with a band from the lowest to the highest.

    Args:
        title: of the panel.
        metrics: logged names; a `*` stands for one variable part, and then there is one metric only.
        says: what to read off it.
        x: the axis.
        smooth: whether neighbouring iterations are averaged; not where a value is exact or rare.
    """

    title: str
    metrics: tuple[str, ...]
    says: str
    x: str = ITERATION
    smooth: bool = True


@dataclass(frozen=True)
class Bars:
    """One number a run, a bar an arm: the mean of its runs.

    Args:
        title: of the panel.
        metric: logged name.
        summary: which of the metric's summaries; its definition must keep it.
        says: what to read off it.
    """

    title: str
    metric: str
    summary: Literal["last", "max", "mean"]
    says: str


Panel = Lines | Bars


@dataclass(frozen=True)
class Section:
    """A heading, what it is about, and its panels in order."""

    name: str
    about: str
    panels: tuple[Panel, ...]


LEARNING = Section(
    "Learning",
    "Does the policy get better, on problems that it does not train on? A corrected reward rises by itself, because "
    "correction writes right answers into wrong rows: only evaluation and the accuracy as sampled are the policy's.",
    (
        Lines("Evaluation, avg@n", ("eval/*/avg@*",), "the result: right answers in each set", smooth=False),
        Bars("Held-out avg@1, highest", "eval/held_out/avg@1", "max", "arms side by side, at their best"),
        Lines("Right as sampled", ("train/accuracy",), "what the policy itself gets right in training"),
        Lines("Right after correction", ("train/accuracy_corrected",), "the gap to the panel before is correction's"),
        Lines("Reward after correction", ("train/reward",), "what advantages are taken over"),
        Lines("Gradient norm", ("train/grad_norm",), "0 in an iteration whose groups have all collapsed"),
    ),
)
COLLAPSE = Section(
    "Collapse",
    "A group whose rewards are all equal has advantages of exactly 0 and teaches nothing. On hard problems groups are "
    "all wrong from the start; on easy ones they become all right. EDA rescales what a group has and cannot revive a "
    "collapsed one; correction can, and can also collapse a mixed group by repairing all of it.",
    (
        Lines("All wrong, as sampled", ("collapse/before/all_wrong",), "how hard the problems are for this policy"),
        Lines("All right, as sampled", ("collapse/before/all_right",), "what it has nothing more to learn from"),
        Lines(
            "No advantage, as sampled",
            ("collapse/before/zero_variance",),
            "groups that plain GRPO would have learnt nothing from",
        ),
        Lines(
            "Phantom groups, as sampled",
            ("collapse/phantom",),
            "all wrong or all right, yet with unequal rewards: they teach the format and not the answer",
        ),
        Lines(
            "No advantage, after correction",
            ("collapse/after/zero_variance",),
            "groups that taught nothing all the same: below the panel before where correction pays",
        ),
        Lines(
            "Revived and created",
            ("collapse/revived_by_correction", "collapse/created_by_correction"),
            "what correction gave and what it took; high created: correction.trigger=leave_one_wrong",
        ),
        Bars(
            "No advantage over the run",
            "collapse/after/zero_variance",
            "mean",
            "the share of all groups that were sampled for nothing",
        ),
        Lines("Variance of advantages", ("train/advantage_var",), "the paper's measure: falls towards 0 in collapse"),
        Lines("Rows with an advantage", ("train/effective_rows",), "the share of responses that move the policy"),
    ),
)
CORRECTION = Section(
    "Correction",
    "What became of wrong responses. A reflection is continued by the policy and may fail; the answer and solution "
    "branches put right text there that the policy did not sample, so their success is no achievement of the policy.",
    (
        Lines(
            "Rows by branch",
            tuple(f"correction/{branch}/count" for branch in ("reflect", "answer", "solution", "no_room")),
            "how many rows took each branch; no_room: none fitted the length budget",
        ),
        Lines(
            "Reflections that succeed",
            ("correction/reflect/success_rate",),
            "how often a prompted reflection repairs a wrong response: the policy's own doing",
        ),
        Lines(
            "Right after the other branches",
            ("correction/answer/success_rate", "correction/solution/success_rate"),
            "should be 1: anything less is a grading or a data problem",
        ),
        Lines("Tokens not sampled", ("correction/tokens_not_sampled",), "how far off policy the update is"),
        Lines("Length after correction", ("correction/mean_length",), "what correction adds to the responses"),
    ),
)
ENTROPY = Section(
    "Entropy",
    "Entropy of the policy over the tokens that it sampled. A policy whose entropy falls to nothing answers a question "
    "the same way every time, and its groups collapse. EDA divides an advantage by the response's entropy relative to "
    "its group, so that confident errors cost more.",
    (
        Lines("Policy entropy", ("train/entropy",), "the paper's figure: Force-R falls, EDGE-GRPO stays up"),
        Lines(
            "Entropy of right and wrong responses",
            ("train/entropy_correct", "train/entropy_wrong"),
            "EDA assumes that they differ: wrong above right",
        ),
        Lines("EDA multiplier, mean", ("eda/multiplier_mean",), "how much EDA scales advantages up (at least 1)"),
        Lines(
            "EDA multiplier, spread",
            ("eda/multiplier_p05", "eda/multiplier_p50", "eda/multiplier_p95"),
            "how unlike the responses of a group are; all at 1: EDA does nothing",
        ),
        Lines("EDA multipliers at the clamp", ("eda/clamped",), "often: advantage.clamp decides, not the entropy"),
        Lines("KL to the reference", ("train/kl",), "only where loss.beta is above 0"),
    ),
)
MISMATCH = Section(
    "Mismatch",
    "The rollout engine draws tokens and the trainer learns from them as if it had drawn them itself. Where their "
    "probabilities differ, the gradient is another policy's; importance_correction weighs tokens by the difference.",
    (
        Lines(
            "Trainer against engine, |log w|",
            ("mismatch/abs_log_ratio_mean", "mismatch/abs_log_ratio_max"),
            "the size of rounding where both compute alike; a jump: the engine has other weights than the trainer",
            smooth=False,
        ),
        Lines(
            "Effective samples",
            ("mismatch/effective_samples",),
            "the share of tokens that is left of the update where each is weighed by w",
        ),
        Lines(
            "What the correction does",
            ("mismatch/weight_mean", "mismatch/capped"),
            "1 and 0 without one; many capped: the bounds decide what is learned",
        ),
    ),
)
COST = Section(
    "Cost",
    "An iteration is not a unit of work: correction samples more and longer responses. Compare arms over the responses "
    "sampled, too.",
    (
        Lines(
            "Right as sampled, over responses sampled",
            ("train/accuracy",),
            "learning for the same number of responses (of evaluations: see edge-grpo-report)",
            x=ROLLOUTS,
        ),
        Lines("Seconds an iteration", ("timing_s/total",), "the price of an iteration"),
        Bars("Seconds an iteration, mean", "timing_s/total", "mean", "arms side by side"),
        Lines(
            "Seconds by stage",
            tuple(f"timing_s/{stage}" for stage in ("rollout", "reward", "correction", "update", "evaluation")),
            "where the time goes",
        ),
        Lines(
            "Response length as sampled",
            ("train/completions/mean_length",),
            "longer responses cost more, and reach their budget",
        ),
        Lines(
            "Responses cut by their budget", ("train/completions/clipped_ratio",), "high: raise rollout.max_new_tokens"
        ),
        Lines(
            "Tokens a second",
            ("perf/rollout_tokens_per_s", "perf/update_tokens_per_s"),
            "throughput of sampling and of the update",
        ),
        Lines("Peak memory", ("perf/peak_memory_gb",), "room for larger micro-batches", smooth=False),
    ),
)
SECTIONS = (LEARNING, COLLAPSE, CORRECTION, ENTROPY, MISMATCH, COST)
