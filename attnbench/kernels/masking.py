"""Masks in the form that the kernels take: a band, an interval for each row, a list of blocks, booleans; T5 buckets."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """The keys [low, high) that each row sees of `seq_kv`, and the key on its diagonal.

    listed: int32 [3, batch or 1, seq_q].
    """

    listed: Tensor
    seq_kv: int


class BlockMask(NamedTuple):
    """A block-sparse mask: which blocks of `block_q` rows and `block_kv` keys see each other.

    counts: int32 [batch or 1, heads or 1, tiles of rows]; indices: int32 [batch or 1, heads or 1, tiles of rows,
    width], the blocks of keys that a tile of rows sees, in ascending order. The `key_` pair lists, for each tile of
    keys, the tiles of rows that see it.
    """

    counts: Tensor
    indices: Tensor
    key_counts: Tensor
    key_indices: Tensor
    block_q: int
    block_kv: int


@dataclass(frozen=True)
class KeyConditions:
    """All conditions on the keys that a row sees; they hold together."""

    left: int  # keys before the diagonal one
    right: int  # and behind it
    rows: Rows | None = None  # includes the band
    blocks: BlockMask | None = None
    visible: Tensor | None = None  # bool [batch or 1, heads or 1, seq_q, seq_kv]

    def hides(self, seq_q: int, seq_kv: int) -> bool:
        """Whether a row may not see all keys, so that tiles at the edges need a mask."""
        return self.rows is not None or self.left < seq_kv - 1 or self.right < seq_q - 1


def band(causal: bool, window: int | tuple[int, int] | None, seq_q: int, seq_kv: int) -> tuple[int, int]:
    """The numbers of keys that a row sees before and after its diagonal, at most seq_q + seq_kv."""
    unbounded = seq_q + seq_kv
    sides = (-1, -1) if window is None else window if isinstance(window, tuple) else (window, window)
    if len(sides) != 2 or any(type(side) is not int or side < -1 for side in sides):
        raise ValueError(
            f"window={window!r}: must be a number of keys, or two (before, after), each at least 0, or -1 for all"
        )
    left, right = (unbounded if side == -1 else min(side, unbounded) for side in sides)
    return left, 0 if causal else right


def rows_of(low: Tensor, high: Tensor, left: int, right: int, seq_kv: int, diagonal: Tensor | None = None) -> Rows:
    """Rows from intervals [batch or 1, seq_q] and a band around the diagonal, by default aligned to the ends."""
    seq_q = low.shape[-1]
    if diagonal is None:
        diagonal = torch.arange(seq_q, device=low.device) + (seq_kv - seq_q)
    diagonal = diagonal.expand_as(low)
    low = torch.maximum(low.clamp(min=0), diagonal - left)
    high = torch.minimum(high.clamp(max=seq_kv), diagonal + right + 1)
    return Rows(torch.stack([low, high, diagonal]).to(torch.int32).contiguous(), seq_kv)


def packed_rows(cu_seqlens_q: Tensor, cu_seqlens_kv: Tensor, seq_q: int, seq_kv: int, left: int, right: int) -> Rows:
    """Rows of packed sequences: a row sees the keys of its sequence, its diagonal aligned to the end of it.

    cu_seqlens: int [sequences + 1], the first token of every sequence and the end of the last; later tokens see no key.
    """
    token = torch.arange(seq_q, device=cu_seqlens_q.device)
    owner = torch.searchsorted(cu_seqlens_q, token, right=True) - 1
    inside = owner < cu_seqlens_q.shape[0] - 1
    owner = owner.clamp(max=cu_seqlens_q.shape[0] - 2)
    low = cu_seqlens_kv[owner]
    high = torch.where(inside, cu_seqlens_kv[owner + 1], 0)
    diagonal = token + cu_seqlens_kv[owner + 1] - cu_seqlens_q[owner + 1]
    return rows_of(low[None], high[None], left, right, seq_kv, diagonal[None])


def blocks_of(visible: Tensor, block_q: int, block_kv: int) -> BlockMask:
    """The lists of a block-sparse mask; visible: bool [batch or 1, heads or 1, tiles of rows, tiles of keys]."""
    counts, indices = _listed(visible)
    key_counts, key_indices = _listed(visible.transpose(2, 3))
    return BlockMask(counts, indices, key_counts, key_indices, block_q, block_kv)


def blocks_around(visible: Tensor, block: int = 128) -> BlockMask:
    """The blocks that hold any pair that is visible; visible: bool [batch or 1, heads or 1, seq_q, seq_kv]."""
    seq_q, seq_kv = visible.shape[2:]
    filled = torch.nn.functional.pad(visible, (0, -seq_kv % block, 0, -seq_q % block))
    return blocks_of(filled.unflatten(3, (-1, block)).unflatten(2, (-1, block)).any(5).any(3), block, block)


def _listed(visible: Tensor) -> tuple[Tensor, Tensor]:
    counts = visible.sum(-1, dtype=torch.int32)
    width = max(1, int(counts.max()) if counts.numel() else 1)
    # A stable sort puts the visible ones first and keeps their order.
    order = torch.sort(visible.to(torch.int8), dim=-1, descending=True, stable=True).indices
    return counts.contiguous(), order[..., :width].to(torch.int32).contiguous()


def t5_buckets(buckets: int, seq_q: int, seq_kv: int, bidirectional: bool, max_distance: int) -> Tensor:
    """The bucket of every distance from -(seq_kv - 1) to seq_q - 1, int64 [seq_q + seq_kv - 1]."""
    ahead = torch.arange(-(seq_kv - 1), seq_q, device="cpu")  # of the diagonal
    behind = -ahead
    first = torch.zeros_like(ahead)
    if bidirectional:
        buckets //= 2
        first = (ahead > 0) * buckets
        behind = behind.abs()
    behind = behind.clamp(min=0)
    single = buckets // 2
    growth = (buckets - single) / math.log(max_distance / single)
    # float32, as in T5: higher precision would choose other buckets at the edges.
    far = single + (torch.log(behind.clamp(min=1).float() / single) * growth).long()
    return first + torch.where(behind < single, behind, far.clamp(max=buckets - 1))
