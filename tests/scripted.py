"""A rollout engine that says what it is told: batches that do not depend on the policy, its seed or the ranks."""

import re
from collections import Counter

import torch

from edge_grpo.rollouts.base import Sampling
from edge_grpo.types.responses import Provenance, Response


class Scripted:
    """Response g to a prompt is text (g + tokens of the prompt) mod n; `{answer}` stands for the right one.

    Args:
        texts: n responses; one that ends in "..." was cut by its budget.
        max_new_tokens: read by the run.
        sampling: what the native engine takes besides, and a script does not read.
    """

    def __init__(self, texts: list[str], max_new_tokens: int, **sampling) -> None:
        self.texts, self.max_new_tokens, self.sampling = texts, max_new_tokens, Sampling()

    def generate(self, policy, prefixes, budgets, sampling, generator):
        seen = Counter()
        responses = []
        for prefix in map(tuple, prefixes):
            text = self.texts[(seen[prefix] + len(prefix)) % len(self.texts)]
            seen[prefix] += 1
            responses.append(self._response(policy, prefix, text))
        return responses

    def _response(self, policy, prefix, text):
        question = policy.decode(torch.tensor(prefix))
        terms = re.findall(r"(-?) ?(\d+)", question.partition("=")[0])
        answer = sum(int(number) * (-1 if sign else 1) for sign, number in terms)
        cut = text.endswith("...")
        ids = [
            *policy.encode(text.removesuffix("...").replace("{answer}", str(answer))),
            *([] if cut else policy.eos_ids[:1]),
        ]
        n = len(ids)
        return Response(
            torch.tensor(ids, dtype=torch.long),
            torch.zeros(n),
            torch.full((n,), 0.5),
            torch.full((n,), Provenance.SAMPLED, dtype=torch.int8),
            "length" if cut else "stop",
        )
