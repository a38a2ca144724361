"""Which keys each row sees, as the kernels take it: a band, an interval for each row, a list of blocks, booleans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """The keys [low, high) that each row sees of `seq_kv`, and the key on its diagonal.

    listed: int32 [3, batch or 1, seq_q].
    """

    listed: Tensor
    seq_kv: int


class Blocks(NamedTuple):
    """A block-sparse mask: which blocks of `block_q` rows and `block_kv` keys see each other.

    counts: int32 [batch or 1, heads or 1, tiles of rows]; indices: int32 [batch or 1, heads or 1, tiles of rows, most],
    the blocks of keys that a tile of rows sees, in rising order. The `key_` pair is the same, seen from the keys.
    """

    counts: Tensor
    indices: Tensor
    key_counts: Tensor
    key_indices: Tensor
    block_q: int
    block_kv: int


@dataclass(frozen=True)
class Keys:
    """All conditions of a call; they hold together."""

    left: int  # keys before the diagonal one
    right: int  # and behind it
    rows: Rows | None = None  # holds the band too
    blocks: Blocks | None = None
    shown: Tensor | None = None  # bool [batch or 1, heads or 1, seq_q, seq_kv]

    def hides(self, seq_q: int, seq_kv: int) -> bool:
        """Whether a row may not see all keys between the ends, so that edges need a mask."""
        return self.rows is not None or self.left < seq_kv - 1 or self.right < seq_q - 1


def band(causal: bool, window: Any, seq_q: int, seq_kv: int) -> tuple[int, int]:
    """Keys that a row sees before and after its diagonal; no more than there can be."""
    most = seq_q + seq_kv
    sides = (-1, -1) if window is None else window if isinstance(window, tuple) else (window, window)
    if len(sides) != 2 or any(type(side) is not int or side < -1 for side in sides):
        raise ValueError(f"window={window!r}: a number of keys, or two (before, after), each at least 0, or -1 for all")
    left, right = (most if side == -1 else min(side, most) for side in sides)
    return left, 0 if causal else right


def rows_of(low: Tensor, high: Tensor, left: int, right: int, seq_kv: int, diagonal: Tensor | None = None) -> Rows:
    """Rows from intervals [batch or 1, seq_q] and a band about the diagonal keys, by default that of the last row."""
    seq_q = low.shape[-1]
    if diagonal is None:
        diagonal = torch.arange(seq_q, device=low.device) + (seq_kv - seq_q)
    diagonal = diagonal.expand_as(low)
    low = torch.maximum(low.clamp(min=0), diagonal - left)
    high = torch.minimum(high.clamp(max=seq_kv), diagonal + right + 1)
    return Rows(torch.stack([low, high, diagonal]).to(torch.int32).contiguous(), seq_kv)


def packed_rows(cu_seqlens_q: Tensor, cu_seqlens_kv: Tensor, seq_q: int, seq_kv: int, left: int, right: int) -> Rows:
    """Rows of packed sequences: row r of sequence s sees the keys of s, its diagonal aligned to the end of s.

    cu_seqlens: int [sequences + 1], the first token of every sequence and the end of the last; tokens behind see none.
    """
    token = torch.arange(seq_q, device=cu_seqlens_q.device)
    owner = torch.searchsorted(cu_seqlens_q, token, right=True) - 1
    inside = owner < cu_seqlens_q.shape[0] - 1
    owner = owner.clamp(max=cu_seqlens_q.shape[0] - 2)
    low = cu_seqlens_kv[owner]
    high = torch.where(inside, cu_seqlens_kv[owner + 1], 0)
    diagonal = token + cu_seqlens_kv[owner + 1] - cu_seqlens_q[owner + 1]
    return rows_of(low[None], high[None], left, right, seq_kv, diagonal[None])


def blocks_of(visible: Tensor, block_q: int, block_kv: int) -> Blocks:
    """The lists of a block-sparse mask; visible: bool [batch or 1, heads or 1, tiles of rows, tiles of keys]."""
    counts, indices = _listed(visible)
    key_counts, key_indices = _listed(visible.transpose(2, 3))
    return Blocks(counts, indices, key_counts, key_indices, block_q, block_kv)


def blocks_around(shown: Tensor, block: int = 128) -> Blocks:
    """The blocks that hold any pair that is shown; shown: bool [batch or 1, heads or 1, seq_q, seq_kv]."""
    seq_q, seq_kv = shown.shape[2:]
    filled = torch.nn.functional.pad(shown, (0, -seq_kv % block, 0, -seq_q % block))
    return blocks_of(filled.unflatten(3, (-1, block)).unflatten(2, (-1, block)).any(5).any(3), block, block)


def _listed(visible: Tensor) -> tuple[Tensor, Tensor]:
    counts = visible.sum(-1, dtype=torch.int32)
    most = max(1, int(counts.max()) if counts.numel() else 1)
    # A stable sort puts the visible ones first and keeps their order.
    order = torch.sort(visible.to(torch.int8), dim=-1, descending=True, stable=True).indices
    return counts.contiguous(), order[..., :most].to(torch.int32).contiguous()
