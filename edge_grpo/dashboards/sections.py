"""What the dashboard shows: panels by section, each with what it says about advantage collapse.

Names only; `build.py` makes W&B's panels of them. tests/test_dashboard.py looks every name up in loggers/metrics.py.
"""

from edge_grpo.dashboards.panels import ROLLOUTS, TOKENS, Bars, Importance, Lines, Pages, Section, Swept

LEARNING = Section(
    "Learning",
    "Does the policy get better, on problems that it does not train on? A corrected reward rises by itself, because "
    "correction writes right answers into wrong rows: only evaluation and the accuracy as sampled are the policy's.",
    (
        Lines("Evaluation, avg@n", ("eval/*/avg@*",), "the result: right answers in each set", smooth=False),
        Bars("Held-out avg@1, highest", "eval/held_out/avg@1", "max", "arms side by side, at their best"),
        Lines(
            "pass@k minus that before training",
            ("eval/*/delta_pass@*",),
            "below 0 for large k: what the base model could reach by sampling is lost",
            smooth=False,
        ),
        Lines(
            "Held-out problems won and lost",
            ("eval/held_out/solved_gain", "eval/held_out/solved_loss"),
            "solved now and not before training, and the other way round: exploration against sharpening",
            smooth=False,
        ),
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
        Lines(
            "Collapse rate",
            ("collapse/acr", "collapse/acr_100"),
            "sampled groups of equal rewards, and their mean over the first 100 iterations: high early, a dead run",
        ),
        Lines("All wrong, as sampled", ("collapse/before/all_wrong",), "how hard the problems are for this policy"),
        Lines("All right, as sampled", ("collapse/before/all_right",), "what it has nothing more to learn from"),
        Lines(
            "Equal rewards, as sampled",
            ("collapse/before/zero_variance",),
            "groups that plain GRPO would have learnt nothing from",
        ),
        Lines(
            "Phantom groups, as sampled",
            ("collapse/phantom",),
            "all wrong or all right, yet with unequal rewards: they teach the format and not the answer",
        ),
        Lines(
            "Equal rewards, after correction",
            ("collapse/after/zero_variance",),
            "below the panel of those as sampled where correction pays",
        ),
        Lines(
            "No advantage",
            ("collapse/no_advantage",),
            "groups that taught nothing all the same, after correction, filter and advantage",
        ),
        Lines(
            "Live groups, expected and observed",
            ("collapse/expected_live", "collapse/observed_live"),
            "of problems seen before; observed below expected: they are being solved, or forgotten",
        ),
        Bars(
            "No advantage over the run",
            "collapse/no_advantage",
            "mean",
            "the share of all groups that were sampled for nothing",
        ),
        Lines("Variance of advantages", ("train/advantage_var",), "the paper's measure: falls towards 0 in collapse"),
        Lines("Rows with an advantage", ("train/effective_rows",), "the share of responses that move the policy"),
        Lines("Different answers of a group", ("train/distinct_answers",), "near 1 / G: every response says the same"),
    ),
)
REVIVAL = Section(
    "Revival",
    "Who gives a dead group its gradient back, and at what price. An allocation trains on other groups, a correction "
    "rewrites rows, a replay brings a group of earlier, an advantage teaches equal rewards.",
    (
        Lines("Revived by the allocation", ("collapse/revived_by_allocation",), "uniform sampling would not have them"),
        Lines(
            "Revived and created by correction",
            ("collapse/revived_by_correction", "collapse/created_by_correction"),
            "what correction gave and what it took; high created: correction.trigger=leave_one_wrong",
        ),
        Lines("Revived by replay", ("collapse/revived_by_replay",), "a stored group in a dead one's place"),
        Lines(
            "Revived by the advantage",
            ("collapse/revived_by_advantage",),
            "equal rewards that teach all the same; always 0 for vanilla and EDA",
        ),
        Bars(
            "Effective rows per generated response",
            "train/effective_rows_per_generated",
            "mean",
            "the price: an arm that samples much to train on little is low",
        ),
        Lines(
            "Effective rows per generated response, over the run",
            ("train/effective_rows_per_generated",),
            "where the price rises: problems are all solved, or all too hard",
        ),
        Lines(
            "Gradient by writer",
            ("gradient/*/share",),
            "only with callbacks=gradient_shares: how much of the gradient is not of the policy's own tokens",
            smooth=False,
        ),
    ),
)
ALLOCATION = Section(
    "Allocation",
    "Which problems were sampled, how often, and what of it was trained on. With allocation=uniform all of it is.",
    (
        Lines(
            "Problems sampled and trained on",
            ("allocation/candidates", "allocation/groups"),
            "the gap is what was sampled to be thrown away",
        ),
        Lines("Problems passed over", ("allocation/skipped",), "taken from the stream and not sampled (greso, pools)"),
        Lines("Rounds of sampling", ("allocation/rounds",), "at its bound: live groups were not found"),
        Lines("Sampled groups of equal rewards", ("allocation/collapsed",), "what a better choice of problems lowers"),
        Lines(
            "Tokens drawn and not trained on",
            ("allocation/tokens_drawn", "allocation/tokens_not_trained"),
            "the price of the choice, in tokens",
        ),
    ),
)
HINTS = Section(
    "Hints",
    "Only with a correction that hints (hint_cascade, sage, scaf_grpo). A group that learns under a hint has learnt "
    "something when it is right without.",
    (
        Lines("Groups with a hint", ("*/hinted",), "all-wrong groups that were due for one", unit="share"),
        Lines(
            "Hint level", ("*/level",), "mean of the last level drawn; rising: weak hints help no more", unit="level"
        ),
        Lines("Hinted groups that were solved", ("*/solved",), "a hinted row was right", unit="share"),
        Lines(
            "Right without a hint",
            ("*/unhinted_accuracy",),
            "problems that were all wrong before: what hints taught",
            unit="share",
        ),
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
        Lines("Off-policy tokens", ("train/off_policy/tokens",), "of trained tokens; absent without any"),
        Lines(
            "Importance ratio of off-policy tokens",
            ("train/off_policy/ratio_mean", "train/off_policy/ratio_max"),
            "far from 1: references or replayed rows that the policy would not write",
        ),
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
        Lines(
            "Covariance of advantage and log-prob",
            ("train/cov_advantage_logprob",),
            "above 0 the step lowers the entropy, below 0 it raises it",
        ),
        Lines("EDA multiplier, mean", ("eda/multiplier_mean",), "how much EDA scales advantages up (at least 1)"),
        Lines(
            "EDA multiplier, spread",
            ("eda/multiplier_p05", "eda/multiplier_p50", "eda/multiplier_p95"),
            "how unlike the responses of a group are; all at 1: EDA does nothing",
        ),
        Lines(
            "EDA multipliers at the clamp",
            ("eda/clamped",),
            "often: advantage.clamp decides, not the entropy",
            unit="share",
        ),
        Lines("KL to the reference", ("train/kl",), "only where loss.beta is above 0", unit="nats"),
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
        Lines(
            "Right as sampled, over tokens generated",
            ("train/accuracy",),
            "learning for the same budget, that of rejected and corrected responses included",
            x=TOKENS,
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
SAMPLES = Section(
    "Samples",
    "What was sampled and what correction made of it. Yellow was injected by it, blue is from the reference.",
    (Pages("Groups of an iteration", "samples_page", "read them before you believe a curve"),),
)
SWEEP = Section(
    "Sweep",
    "Which of the swept settings decides. edge-grpo-dashboard settings=[...] chooses the axes.",
    (
        Swept("Settings and held-out avg@1", "eval/held_out/avg@1", "max", "a line a run: which values end high"),
        Importance("Importance of settings", "eval/held_out/avg@1", "max", "with few runs this is noise"),
    ),
)
SECTIONS = (LEARNING, COLLAPSE, REVIVAL, SAMPLES, ALLOCATION, CORRECTION, HINTS, ENTROPY, MISMATCH, COST, SWEEP)
