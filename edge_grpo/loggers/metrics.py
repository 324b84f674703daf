"""Every logged name with its unit and estimator.

The step of every metric is the number of updates the policy has had (iteration i logs at step i, the evaluation of
the updated policy at step i + 1). So steps count from 0, and the console's line of iteration i, which counts iterations
that have ended, begins with i + 1. W&B has the step as `iteration`, the x-axis of every metric.

Where TRL's GRPOTrainer logs the same quantity the name is TRL's behind `train/`, so a dashboard made for TRL shows a
run of ours. What differs from TRL:

- `train/reward*`, `train/rewards/*` and `train/frac_reward_zero_std` are after correction, which TRL does not have;
  `train/completions/*` and `train/entropy` are of the responses as sampled.
- `train/reward_group_std`, which the advantage divides by, is not in TRL.
- `train/clip_ratio/*` are means over update epochs of the iteration, and over the rows that are computed; TRL's are
  over all rows, of which those of groups without an advantage are never clipped.
- `train/num_tokens` counts the response tokens that were trained on; TRL's counts all tokens, with the prompts.
- TRL's `step_time` is `timing_s/total`.
- A metric over nothing is absent, such as `train/completions/*terminated_length` if every response was cut; TRL
  logs 0.

The column *summary* says what W&B keeps of a run: `last` is the plain value under the metric's own name; of
`max`, `min` and `mean` W&B keeps `<name>.max` (and so on) beside `<name>.last`. The column *ranks* says how the values
of several ranks become one; metrics that are of all ranks already say so.

A strategy defines what it reports itself, in its attribute `metrics` (`edge_grpo/types/metric.py`); those names follow
the table. `python -m edge_grpo.programs.metrics_page` prints docs/metrics.md.
"""

import fnmatch

from edge_grpo.types.metric import Metric

METRICS: dict[str, Metric] = {
    "train/reward": Metric("reward", "mean over rows after correction: what the advantage is taken over"),
    "train/reward_std": Metric("reward", "standard deviation over all rows of all ranks (N - 1), after correction"),
    "train/reward_group_std": Metric(
        "reward", "mean over groups of the standard deviation (G - 1), after correction: what the advantage divides by"
    ),
    "train/frac_reward_zero_std": Metric("share", "groups whose rewards are all equal, after correction"),
    "train/rewards/*/mean": Metric("reward", "mean over rows of one reward before weighting, after correction"),
    "train/rewards/*/std": Metric(
        "reward", "standard deviation over rows (N - 1) of one reward before weighting, after correction"
    ),
    "train/accuracy": Metric("share", "rows that the policy itself got right: before correction", "max"),
    "train/accuracy_corrected": Metric("share", "rows that are right after correction"),
    "train/entropy": Metric(
        "nats", "mean over sampled tokens of the full-vocabulary entropy at the rollout temperature, before correction"
    ),
    "train/entropy_correct": Metric("nats", "as train/entropy, over the tokens of responses that are right as sampled"),
    "train/entropy_wrong": Metric("nats", "as train/entropy, over the tokens of responses that are wrong as sampled"),
    "train/update_entropy": Metric(
        "nats",
        "where the engine records no entropies (rollout=vllm) and train/entropy is absent: mean over the sampled and "
        "trained tokens of computed rows, by the update's own forward passes before the first step",
    ),
    "train/advantage_var": Metric(
        "advantage^2", "population variance over rows of the row's mean token advantage", "mean"
    ),
    "train/effective_rows": Metric("share", "rows whose advantage is not 0 at a trained token", "mean"),
    "train/off_policy/tokens": Metric(
        "share",
        "off-policy tokens among the trained tokens that are computed; train/off_policy/* is absent without any",
    ),
    "train/off_policy/ratio_mean": Metric(
        "1",
        "mean over trained off-policy tokens of the importance ratio: the probability under the policy before the "
        "update over that with which the token was sampled",
    ),
    "train/off_policy/ratio_max": Metric("1", "the largest of them", ranks="max"),
    "train/off_policy/shaped": Metric(
        "share", "trained off-policy tokens that weigh rho / (rho + gamma), whatever the loss"
    ),
    "mismatch/abs_log_ratio_mean": Metric(
        "nats",
        "mean of abs(log w), w = pi / mu: a token's probability under the policy before the update, by the trainer, "
        "over that with which the rollout engine drew it; over the trained tokens that were sampled in this iteration "
        "and computed, all ranks. With top_p, top_k or min_p mu is of the tokens that these keep, and w with it",
        "max",
    ),
    "mismatch/abs_log_ratio_max": Metric("nats", "the largest of them", "max", "max"),
    "mismatch/effective_samples": Metric(
        "share", "(sum w)^2 / (n sum w^2) over the n tokens, all ranks: 1 where every w is the same"
    ),
    "mismatch/capped": Metric(
        "share",
        "tokens of which w, at the level of importance_correction, is out of its bounds, all ranks; 0 without one",
        "mean",
    ),
    "mismatch/weight_mean": Metric(
        "1",
        "mean over the tokens of what importance_correction multiplies their advantage by, all ranks; 1 without one",
    ),
    "train/effective_rows_per_generated": Metric(
        "share",
        "rows with a trained token whose advantage is not 0, over all responses generated in this iteration, those of "
        "corrections and those that were not trained on included; all ranks",
        "mean",
    ),
    "train/distinct_answers": Metric(
        "share",
        "mean over groups of the different boxed answers, compared as texts, over the group's responses; as sampled",
        "mean",
    ),
    "train/cov_advantage_logprob": Metric(
        "nats",
        "covariance of advantage and log-prob before the update, over the trained tokens of computed rows: the entropy "
        "is to rise where it is negative (2505.22617)",
        "mean",
    ),
    "train/completions/mean_length": Metric("tokens", "mean over rows of the response length, before correction"),
    "train/completions/min_length": Metric("tokens", "shortest response, before correction", ranks="min"),
    "train/completions/max_length": Metric("tokens", "longest response, before correction", ranks="max"),
    "train/completions/clipped_ratio": Metric("share", "sampled responses cut by their budget, before correction"),
    "train/completions/mean_terminated_length": Metric(
        "tokens", "mean length of the responses that their budget did not cut, before correction"
    ),
    "train/completions/min_terminated_length": Metric("tokens", "shortest of them", ranks="min"),
    "train/completions/max_terminated_length": Metric("tokens", "longest of them", ranks="max"),
    "train/loss": Metric("loss", "sum of the micro-batch losses, mean over update epochs", ranks="sum"),
    "train/grad_norm": Metric("norm", "global gradient norm before clipping, mean over update epochs"),
    "train/skipped_steps": Metric(
        "steps", "optimiser steps of the iteration that were skipped: loss or gradient not finite", "max"
    ),
    "train/learning_rate": Metric("1", "learning rate of the iteration"),
    "train/num_tokens": Metric("tokens", "response tokens trained on so far, all ranks"),
    "train/num_rollouts": Metric("responses", "responses generated so far, those of corrections included, all ranks"),
    "train/num_generated_tokens": Metric(
        "tokens", "tokens generated so far, those of rows that were not trained on and of corrections too, all ranks"
    ),
    "allocation/candidates": Metric("problems", "problems that were sampled in this iteration", "mean", "sum"),
    "allocation/skipped": Metric(
        "problems", "problems that the allocation took from the stream and passed over", "mean", "sum"
    ),
    "allocation/collapsed": Metric("share", "sampled problems whose rewards are all equal, trained on or not", "mean"),
    "allocation/rounds": Metric("rounds", "rounds of sampling in this iteration", "mean"),
    "allocation/groups": Metric("groups", "groups that were chosen to train on", "mean", "sum"),
    "allocation/rows_drawn": Metric("responses", "responses that the rounds drew", "mean", "sum"),
    "allocation/tokens_drawn": Metric("tokens", "tokens of these responses", "mean", "sum"),
    "allocation/tokens_not_trained": Metric(
        "tokens", "those of them in rows that the allocation did not choose", "mean", "sum"
    ),
    "collapse/acr": Metric(
        "share",
        "advantage collapse rate (2605.21125): sampled groups of equal rewards, trained on or not; all ranks",
        "mean",
    ),
    "collapse/acr_100": Metric("share", "mean of collapse/acr over the first 100 iterations, or over those so far"),
    "collapse/expected_live": Metric(
        "share",
        "mean over sampled problems with a visit before of 1 - p^n - (1 - p)^n, p the share right over their visits, n "
        "the rows drawn: groups that are mixed if rows are independent",
        "mean",
    ),
    "collapse/observed_live": Metric(
        "share", "mixed groups among the same problems; below collapse/expected_live where p has changed", "mean"
    ),
    "collapse/before/all_wrong": Metric("share", "groups without a right response, as sampled", "mean"),
    "collapse/before/all_right": Metric("share", "groups of right responses only, as sampled", "mean"),
    "collapse/before/mixed": Metric("share", "groups with right and wrong responses, as sampled", "mean"),
    "collapse/before/zero_variance": Metric("share", "groups whose rewards are all equal, as sampled", "mean"),
    "collapse/phantom": Metric(
        "share",
        "groups that are all wrong or all right while their rewards differ, as sampled: variance without an outcome",
        "mean",
    ),
    "collapse/after/all_wrong": Metric("share", "groups without a right response, after correction", "mean"),
    "collapse/after/all_right": Metric("share", "groups of right responses only, after correction", "mean"),
    "collapse/after/mixed": Metric("share", "groups with right and wrong responses, after correction", "mean"),
    "collapse/after/zero_variance": Metric("share", "groups whose rewards are all equal, after correction", "mean"),
    "collapse/revived_by_allocation": Metric(
        "share",
        "groups to train on with unequal rewards, as sampled, that are of a problem behind the first P that were "
        "sampled or of one whose first G responses have equal rewards: uniform sampling would not have had them",
        "mean",
    ),
    "collapse/revived_by_correction": Metric(
        "share", "groups with equal rewards before and unequal ones after", "mean"
    ),
    "collapse/revived_by_replay": Metric(
        "share", "those of them in whose place a correction put another problem's group", "mean"
    ),
    "collapse/revived_by_advantage": Metric(
        "share",
        "groups with equal rewards after correction and an advantage that is not 0 at a trained token, over all groups",
        "mean",
    ),
    "collapse/no_advantage": Metric(
        "share",
        "groups that teach nothing in the end: dropped by the filter, or, where the loss reads advantages, without one "
        "at any trained token; an advantage that revives groups has fewer than collapse/after/zero_variance",
        "mean",
    ),
    "collapse/created_by_correction": Metric(
        "share", "groups with unequal rewards before and equal ones after", "mean"
    ),
    "gradient/*/norm": Metric(
        "norm",
        "norm of the part of the update's gradient that comes through sampled, injected or reference tokens, before "
        "clipping, at the policy before the update; the parts add up to the gradient. With callbacks=gradient_shares "
        "only; all ranks",
    ),
    "gradient/*/share": Metric("share", "that norm over the sum of the three", "mean"),
    "correction/*/count": Metric("rows", "rows that took the branch in this iteration", "mean", "sum"),
    "correction/*/success_rate": Metric("share", "rows of the branch that are right afterwards", "mean"),
    "correction/*/tokens_not_sampled": Metric(
        "tokens", "response tokens of the branch's rows that the policy did not sample", "mean", "sum"
    ),
    "correction/tokens_not_sampled": Metric("share", "response tokens that the policy did not sample", "mean"),
    "correction/mean_length": Metric("tokens", "mean over rows of the response length, after correction"),
    "verifier/timeout_rate": Metric(
        "share",
        "gradings that ran out of time, over the answers graded in this iteration (rollout and correction)",
        "max",
    ),
    "verifier/error_rate": Metric(
        "share", "gradings whose worker raised or died, over the answers graded in this iteration", "max"
    ),
    "verifier/unparsed_rate": Metric(
        "share", "answers that are missing, too long or no mathematics, over those graded in this iteration"
    ),
    "verifier/cache_hit_rate": Metric(
        "share", "answers with a known verdict (an equal one before), over those graded in this iteration", "mean"
    ),
    "verifier/not_finite_rate": Metric(
        "share", "reward values of this iteration that were NaN or infinite: taken as 0", "max"
    ),
    "timing_s/*": Metric("s", "wall time of a stage in this iteration", "mean"),
    "rollout/weight_sync_s": Metric(
        "s",
        "copying the policy's weights into an engine of its own (rollout=vllm) and comparing them, since the last "
        "iteration's record, an evaluation's too",
        "mean",
        ranks="max",
    ),
    "rollout/weights_current": Metric(
        "share",
        "calls of that engine before which its tensors were compared with the policy's and were equal: always 1, "
        "because another value ends the run",
        "min",
        ranks="min",
    ),
    "perf/rollout_tokens_per_s": Metric("tokens/s", "tokens of the first rollout over its time", "mean"),
    "perf/update_tokens_per_s": Metric(
        "tokens/s", "response tokens computed (not skipped), times mu, over the update's time", "mean"
    ),
    "perf/idle_share": Metric("share", "the sum of `perf/idle_share/*`; several ranks only", "mean"),
    "perf/idle_share/*": Metric(
        "share",
        "of the iteration, that a rank waits for the slowest in this stage: (maximum - mean over ranks of its seconds) "
        "over the iteration's; of the update the time before the last backward pass of each step, which exchanges "
        "gradients, and nothing under fsdp2, where every layer waits; of all ranks",
        "mean",
    ),
    "perf/token_imbalance/drawn": Metric(
        "share",
        "tokens that the update of the fullest rank would compute of the groups that it drew, over the mean of the "
        "ranks, less 1; with `algorithm.balance_batch` on several ranks only",
        "mean",
    ),
    "perf/token_imbalance/update": Metric("share", "the same of the groups that it does compute", "mean"),
    "perf/skipped_tokens": Metric(
        "tokens",
        "prompt and response tokens of rows without any loss, whose forward and backward were skipped; a prompt counts "
        "for each row, although a packed forward computes it once for a group",
        "mean",
    ),
    "perf/peak_memory_gb": Metric(
        "GB", "peak memory: of the GPU, or the process's resident set on the CPU", "max", "max"
    ),
    "eval/*/avg@*": Metric("share", "right responses: mean over problems of the mean over their n samples", "max"),
    "eval/*/pass@*": Metric(
        "share",
        "mean over problems of 1 - C(n - c, k) / C(n, k), c of n samples right: unbiased (2107.03374)",
        "max",
    ),
    "eval/*/maj@*": Metric(
        "share", "problems whose most frequent answer of n is right; a tie counts as its expected value", "max"
    ),
    "eval/*/mean_length": Metric("tokens", "mean response length"),
    "eval/*/clipped_ratio": Metric("share", "responses cut by their budget"),
    "eval/*/unparsed_rate": Metric("share", "responses whose answer is missing, too long or no mathematics"),
    "eval/*/solved_gain": Metric(
        "share", "problems with a right response among n now and none at step 0, over the set's problems", "max"
    ),
    "eval/*/solved_loss": Metric("share", "problems with a right response among n at step 0 and none now", "max"),
    "eval/*/delta_pass@*": Metric("share", "pass@k minus that at step 0", "max"),
    "sft/loss": Metric("nats", "mean over reference tokens of the cross-entropy", ranks="sum"),
}


def describe(name: str) -> Metric | None:
    """The definition of a logged name, None if there is none."""
    return next((METRICS[pattern] for pattern in METRICS if fnmatch.fnmatchcase(name, pattern)), None)
