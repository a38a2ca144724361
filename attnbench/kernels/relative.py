"""Biases that follow from the distance of a key from the diagonal alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def t5_buckets(buckets: int, seq_q: int, seq_kv: int, bidirectional: bool, max_distance: int) -> Tensor:
    """The bucket of every distance from -(seq_kv - 1) to seq_q - 1, int64 [seq_q + seq_kv - 1]."""
    ahead = torch.arange(-(seq_kv - 1), seq_q)  # of the diagonal
    behind = -ahead
    first = torch.zeros_like(ahead)
    if bidirectional:
        buckets //= 2
        first = (ahead > 0) * buckets
        behind = behind.abs()
    behind = behind.clamp(min=0)
    single = buckets // 2
    growth = (buckets - single) / math.log(max_distance / single)
    # In float32, as T5 itself computes it: a bucket more exactly placed would be another one at its edges.
    far = single + (torch.log(behind.clamp(min=1).float() / single) * growth).long()
    return first + torch.where(behind < single, behind, far.clamp(max=buckets - 1))
