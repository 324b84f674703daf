"""Rollout -> tensors -> micro-batches."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edge_grpo.types.responses import Provenance
from edge_grpo.types.rollouts import Rollout
from edge_grpo.types.update import UpdateBatch


def to_update_batch(
    rollout: Rollout,
    rows: Sequence[int],
    *,
    token_weight: Mapping[Provenance, float],
    pad_id: int,
    device: torch.device,
) -> UpdateBatch:
    """The given rows of a rollout as an `UpdateBatch` on `device`.

    Args:
        token_weight: loss weight of a token by who wrote it.
    """
    prompts = [torch.tensor(rollout.prompt_of(row), dtype=torch.long) for row in rows]
    keys: dict[tuple[int, ...], int] = {}
    prompt_keys = [keys.setdefault(rollout.prompt_of(row), len(keys)) for row in rows]
    responses = [rollout.responses[row] for row in rows]
    prompt_lengths = torch.tensor([len(p) for p in prompts])
    response_lengths = torch.tensor([len(r) for r in responses])
    tokens = torch.full((len(prompts), int((prompt_lengths + response_lengths).max())), pad_id)
    weights = torch.zeros(len(prompts), int(response_lengths.max()), dtype=torch.float32)
    sampled = torch.zeros(weights.shape, dtype=torch.bool)
    logprobs = torch.zeros(weights.shape, dtype=torch.float32)
    weight_of = torch.tensor([token_weight[p] for p in Provenance], dtype=torch.float32)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        tokens[i, : len(prompt)] = prompt
        tokens[i, len(prompt) : len(prompt) + len(response)] = response.token_ids
        weights[i, : len(response)] = 0.0 if response.advantage == 0 else weight_of[response.provenance.long()]
        sampled[i, : len(response)] = response.provenance == Provenance.SAMPLED
        logprobs[i, : len(response)] = response.sampling_logprobs
    return UpdateBatch(
        tokens=tokens.to(device),
        prompt_lengths=prompt_lengths.to(device),
        response_lengths=response_lengths.to(device),
        token_weights=weights.to(device),
        sampled_mask=sampled.to(device),
        row_ids=torch.tensor(list(rows), device=device),
        problem_ids=torch.tensor([row // rollout.num_generations for row in rows], device=device),
        prompt_keys=torch.tensor(prompt_keys, device=device),
        sampling_logprobs=logprobs.to(device),
        off_policy=torch.tensor([response.off_policy for response in responses], device=device),
        shaping=torch.tensor([response.shaping for response in responses], dtype=torch.float32, device=device),
        fixed_advantages=torch.tensor(
            [torch.nan if response.advantage is None else response.advantage for response in responses],
            dtype=torch.float32,
            device=device,
        ),
        pad_id=pad_id,
    )


def packed_microbatches(
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[int],
    prompt_keys: Sequence[int],
    problem_ids: Sequence[int],
    max_tokens: int,
) -> list[Tensor]:
    """Cut rows into micro-batches of at most `max_tokens` tokens, each prompt of a group counted once.

    The rows of a group stay together, unless they alone exceed the bound.

    Args:
        prompt_lengths, response_lengths, prompt_keys, problem_ids: of each of N rows.
        max_tokens: a single longer row makes a micro-batch of its own.

    Returns:
        Row indices, every row exactly once, ascending within a micro-batch.

    >>> [m.tolist() for m in packed_microbatches([2] * 4, [3, 4, 5, 9], [0, 0, 1, 1], [0, 0, 1, 1], max_tokens=16)]
    [[2, 3], [0, 1]]
    """
    groups: dict[int, list[int]] = {}
    for row, problem in enumerate(problem_ids):
        groups.setdefault(problem, []).append(row)
    parts: list[list[int]] = []
    sizes: list[int] = []
    for rows in groups.values():
        prompts: set[int] = set()  # of the part
        for i, row in enumerate(sorted(rows, key=lambda row: -response_lengths[row])):
            more = response_lengths[row] + (0 if prompt_keys[row] in prompts else prompt_lengths[row])
            if not i or sizes[-1] + more > max_tokens:
                parts.append([])
                sizes.append(0)
                prompts = set()
                more = response_lengths[row] + prompt_lengths[row]
            parts[-1].append(row)
            sizes[-1] += more
            prompts.add(prompt_keys[row])
    batches: list[list[int]] = []
    used = max_tokens
    # Similar lengths together: attention is padded within a micro-batch.
    for i in sorted(range(len(parts)), key=lambda i: -response_lengths[parts[i][0]]):
        used += sizes[i]
        if used > max_tokens:
            batches.append([])
            used = sizes[i]
        batches[-1] += parts[i]
    return [torch.tensor(sorted(batch)) for batch in batches]


def microbatches(lengths: Tensor, max_tokens: int, max_padding: float = 0.1) -> list[Tensor]:
    """Cut rows into micro-batches of at most `max_tokens` padded tokens, similar lengths together.

    Args:
        lengths: [N] prompt + response tokens of each row.
        max_tokens: bound on rows x longest row; a single longer row makes a micro-batch of its own.
        max_padding: share of a micro-batch that may be padding.

    Returns:
        Row indices, every row exactly once.

    >>> [m.tolist() for m in microbatches(torch.tensor([3, 9, 3, 8]), max_tokens=18)]
    [[1, 3], [0, 2]]
    """
    order = torch.argsort(lengths, descending=True, stable=True).tolist()
    batches: list[list[int]] = []
    padding = 0
    for row in order:
        length = int(lengths[row])
        if batches:
            longest, rows = int(lengths[batches[-1][0]]), len(batches[-1]) + 1
            padding += longest - length
            if rows * longest <= max_tokens and padding <= max_padding * rows * longest:
                batches[-1].append(row)
                continue
        batches.append([row])
        padding = 0
    return [torch.tensor(batch) for batch in batches]


def group_microbatches(lengths: Tensor, num_generations: int, max_tokens: int) -> list[Tensor]:
    """Like `microbatches`, but a group of G consecutive rows is never cut and keeps its order, whatever its padding.

    >>> [m.tolist() for m in group_microbatches(torch.tensor([2, 9, 3, 8]), num_generations=2, max_tokens=18)]
    [[0, 1], [2, 3]]
    """
    longest = lengths.view(-1, num_generations).amax(dim=1)
    within = torch.arange(num_generations)
    batches = microbatches(longest * num_generations, max_tokens, max_padding=1.0)
    return [(batch.sort().values[:, None] * num_generations + within).flatten() for batch in batches]
