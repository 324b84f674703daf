"""Reward functions as somebody would write them for edge_grpo, for TRL and for verl."""

import re


def exact(answer, response):
    """edge_grpo, a response at a time: 1 if the last number of the response is the gold answer."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", response)
    return 1.0 if numbers and numbers[-1] == answer else 0.0


def in_time(responses, finish_reasons):
    """edge_grpo, all responses at once: 1 for each that the budget did not cut off."""
    return [0.0 if reason == "length" else 1.0 for reason in finish_reasons]


def correct_reward(prompts, completions, answer, **kwargs):
    """TRL."""
    return [1.0 if str(a) in completion else 0.0 for a, completion in zip(answer, completions)]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """verl."""
    return {"score": float(str(ground_truth) in solution_str), "chars": len(solution_str)}
