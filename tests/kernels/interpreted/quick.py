"""A few checks of the kernels, small enough to run once for every seeded bug. Exits with 1 at the first mismatch."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import attnbench
from attnbench import kernels
from attnbench.kernels import Tiling
from tests.kernels.interpreted.cached import LENGTHS, assert_decoded, paged, poisoned
from tests.kernels.interpreted.formula import EVERYTHING, Shape, assert_right, band, inputs, normal
from tests.kernels.interpreted.overflow import look_for_overflow
from tests.kernels.interpreted.ragged import assert_requests, cascaded, decoded, latent
from tests.kernels.interpreted.ragged import packed as packed_requests
from tests.kernels.interpreted.ragged import paged as paged_requests
from tests.kernels.interpreted.speed import patch_once


def check_masks() -> None:
    """No mask, causal and windows over unequal lengths, shared heads, heads inside and outside of rows."""
    assert_right(Shape(seq_q=20, seq_kv=25), band(20, 25))
    shape = Shape(1, 4, 2, 25, 45, 16, 24)
    apart = tuple(t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs(shape))
    assert_right(shape, band(25, 45, right=0), given=apart, causal=True)  # type: ignore[arg-type]
    assert_right(Shape(seq_q=40, seq_kv=25), band(40, 25, right=0), through_lse=True, causal=True)
    assert_right(Shape(seq_q=40, seq_kv=45), band(40, 45, 7, EVERYTHING), window=(7, -1))


def check_blocks() -> None:
    """A list that is not its own transpose."""
    tiles = torch.tensor([[True, True, False], [False, True, False]])
    visible = tiles.repeat_interleave(16, 0).repeat_interleave(16, 1)[:30, :40]
    assert_right(Shape(seq_q=30), visible, mask=kernels.blocks(tiles[None, None], 16, 16))


def check_listed() -> None:
    """Intervals of every row and booleans of every pair, of each sequence and head."""
    row = torch.arange(33)  # the last one is the first of its tile
    low, high = torch.stack([row // 2, row // 3]), torch.stack([row + 9, row + 20])
    key = torch.arange(40)
    visible = (key >= low[..., None]) & (key < high[..., None])
    assert_right(Shape(2, heads=1, seq_q=33), visible[:, None], mask=kernels.rows(low, high, seq_kv=40))
    shown = torch.rand(2, 2, 20, 30, generator=torch.Generator().manual_seed(3)) < 0.3
    assert_right(Shape(2, seq_q=20, seq_kv=30), shown, bias=normal(1, 1, 20, 30), mask=shown)


def check_scores() -> None:
    """Softcap, slopes, biases, sinks, dropout."""
    visible = band(20, 30, right=0)
    shape = Shape(1, 2, 1, 20, 30)
    assert_right(shape, visible, causal=True, scores={"softcap": 2.0, "alibi_slopes": torch.tensor([0.5, 0.1])})
    assert_right(shape, visible, causal=True, bias=normal(2, 49), sinks=normal(2))
    assert_right(shape, visible, causal=True, scores={"dropout": 0.4, "seed": 7})


def check_decoding() -> None:
    """Splits, sinks, pages, packed heads."""
    made = inputs(Shape(3, 4, 2, 2, 200))
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    (k, table), (v, _) = paged(poisoned(made[1], LENGTHS), 16), paged(poisoned(made[2], LENGTHS), 16)
    tiling = Tiling(path="decode", block_q=16, block_kv=32, warps=4, stages=1, splits=3)
    options = {"kv_lengths": lengths, "page_table": table, "sinks": normal(4), "return_lse": True, "tiling": tiling}
    assert_decoded(kernels.decode(made[0], k, v, **options), made, LENGTHS, sinks=normal(4))


def check_requests() -> None:
    """A prefill beside decodes, in pages and packed; a latent cache; a shared prefix."""
    for make in (paged_requests, packed_requests):
        batch = make(((1, 37), (19, 30), (2, 2)), Shape(heads=4, kv_heads=2))
        tiling = Tiling(path="decode", block_q=16, block_kv=32, warps=4, stages=1, splits=2)
        assert_requests(decoded(batch, tiling=tiling), batch)
    cached = latent(packed_requests(((3, 20),), Shape(heads=4, kv_heads=1, head_dim=24)), 16)
    assert_requests(decoded(cached, tiling=tiling), cached)
    shared = cascaded(((1, 5), (2, 9)), Shape(heads=4, kv_heads=2), 16)
    assert_requests(decoded(shared, shared_prefix=16, tiling=tiling), shared)


def check_an_empty_cache() -> None:
    """Splits without keys, beside splits with some."""
    made = inputs(Shape(2, 2, 1, 1, 40))
    tiling = Tiling(path="decode", block_q=16, block_kv=16, warps=4, stages=1, splits=5)
    found = kernels.decode(*made, kv_lengths=torch.tensor([40, 3], dtype=torch.int32), return_lse=True, tiling=tiling)
    assert_decoded(found, made, (40, 3))


# From quick to slow: most bugs show in the first.
CHECKS = (
    check_an_empty_cache, check_blocks, check_decoding, check_requests, check_scores, check_listed, check_masks
)  # fmt: skip


def main(first: str = "") -> int:
    """Run them all, `first` before the others; 0 if all is right."""
    assert Path(attnbench.__file__).is_relative_to(Path.cwd())  # the copy, not what is installed
    look_for_overflow(False)
    patch_once()
    for check in sorted(CHECKS, key=lambda check: check.__name__ != f"check_{first}"):
        try:
            check()
        except AssertionError as wrong:
            print(f"{check.__name__}: {wrong}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
