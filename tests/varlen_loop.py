"""What torch's `varlen_attn` computes, by a loop over the sequences: for machines without its kernel."""

import torch
import torch.nn.functional as F


def varlen_loop(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """[M, H, D] on [L, K, D], causal by the last key, which stands for the last query's own."""
    assert window_size[1] == 0
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert {cu_q.dtype, cu_k.dtype} == {torch.int32}
    pieces, lengths = [], (cu_q.diff().tolist(), cu_k.diff().tolist())
    assert (max_q, max_k) == (max(lengths[0]), max(lengths[1]))
    for queries, keys, values in zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True):
        n, m = len(queries), len(keys)
        distance = torch.arange(m - n, m)[:, None] - torch.arange(m)
        seen = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] < 0))
        one = (x.transpose(0, 1)[None] for x in (queries, keys, values))
        out = F.scaled_dot_product_attention(*one, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        pieces.append(out[0].transpose(0, 1))
    return torch.cat(pieces)
