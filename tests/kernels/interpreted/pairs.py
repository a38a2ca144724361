"""Features of the kernels in pairs: a cover of a grid of 60 million problems, forward and backward and in decoding.

Started by `test_triton_kernels.py`, in a separate process. The tests of each feature on its own are in the other files
of this folder; those that are marked slow vary one feature at a time over everything.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench import kernels
from attnbench.kernels import Kernel
from attnbench.kernels.tile import INTERPRETED
from tests.kernels.interpreted.cached import LENGTHS, assert_decoded, decode_tiling, paged, poisoned
from tests.kernels.interpreted.formula import (
    DTYPES,
    EVERYTHING,
    Shape,
    assert_right,
    band,
    inputs,
    normal,
    slow,
    small_tilings,
)
from tests.kernels.interpreted.overflow import look_for_overflow
from tests.kernels.interpreted.speed import patch_once
from tests.pairwise import Row, cover

AXES: dict[str, Any] = {
    "mask": ("none", "window", "blocks", "booleans", "intervals"),
    "dtype": tuple(DTYPES),
    "batch": (1, 2),
    "bias": ("none", "pairs", "shared", "by distance"),
    "path": ("portable", "descriptors"),
    "causal": (False, True),
    "softcap": (None, 4.0),
    "slopes": (False, True),
    "sinks": (False, True),
    "dropout": (0.0, 0.3),
    "scale": (None, -0.4),
    "heads": ((2, 1, 1), (4, 2, 1), (4, 1, 2)),  # of queries, of keys, and parts in which dk and dv are summed
    "widths": ((16, 16), (24, 40)),
    "lengths": ((33, 40), (40, 33)),
    "through_lse": (False, True),
}
QUICK = (*range(10), 14)  # rows of each cover; together they notice each seeded bug that the whole covers notice
TILES = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1]]).bool()  # not its own transpose


def served(row: Row) -> bool:
    """Descriptors take 16 bits and no lists of blocks."""
    return row.get("path") != "descriptors" or (row.get("dtype") != "fp32" and row.get("mask") != "blocks")


def named(row: Row) -> str:
    return " ".join(f"{name}={value}" for name, value in row.items() if value not in (None, False, "none", 0.0))


def quick(rows: list[Row]) -> list[Any]:
    """The first rows of a cover hold most pairs; `make test-slow` runs the others."""
    return [row if place in QUICK else slow(row) for place, row in enumerate(rows)]


def test_this_process_interprets() -> None:
    assert INTERPRETED


@pytest.mark.parametrize("row", quick(cover(AXES, served)), ids=named)
def test_every_pair_of_features(row: Row) -> None:
    batch, (seq_q, seq_kv), (heads, kv_heads, parts) = row["batch"], row["lengths"], row["heads"]
    shape = Shape(batch, heads, kv_heads, seq_q, seq_kv, *row["widths"])
    visible = band(seq_q, seq_kv, 13 if row["mask"] == "window" else EVERYTHING, 0 if row["causal"] else EVERYTHING)
    options: dict[str, Any] = {"causal": row["causal"]}
    if row["mask"] == "window":
        options["window"] = (13, 4)
        visible = visible & band(seq_q, seq_kv, 13, 4)
    elif row["mask"] == "blocks":
        options["mask"] = kernels.blocks(TILES[None, None], 16, 16)
        visible = visible & TILES.repeat_interleave(16, 0).repeat_interleave(16, 1)[:seq_q, :seq_kv]
    elif row["mask"] == "booleans":
        options["mask"] = torch.rand(batch, heads, seq_q, seq_kv, generator=torch.Generator().manual_seed(4)) < 0.4
        visible = visible & options["mask"]
    elif row["mask"] == "intervals":
        key, low = torch.arange(seq_kv), torch.stack([torch.arange(seq_q) // (2 + b) for b in range(batch)])
        options["mask"] = kernels.rows(low, low + 12, seq_kv=seq_kv)
        visible = visible & ((key >= low[..., None]) & (key < low[..., None] + 12))[:, None]
    dtype = DTYPES[row["dtype"]]
    sizes = {
        "none": None,
        "pairs": (1, heads, seq_q, seq_kv),
        "shared": (1, 1, seq_q, seq_kv),
        "by distance": (heads, seq_q + seq_kv - 1),
    }[row["bias"]]
    scores = {"scale": row["scale"], "softcap": row["softcap"]}
    if row["slopes"]:
        scores["alibi_slopes"] = torch.tensor([0.5, 0.1, 0.3, 0.2])[:heads]
    if row["dropout"]:
        scores |= {"dropout": row["dropout"], "seed": 5}
    facts: dict[str, Any] = {}
    tilings = small_tilings(path=row["path"])
    assert_right(
        shape, visible, dtype, bias=None if sizes is None else normal(*sizes).to(dtype),
        sinks=normal(heads).to(dtype) if row["sinks"] else None, through_lse=row["through_lse"], facts=facts,
        tilings=tilings | {Kernel.BACKWARD_KV: small_tilings(path=row["path"], parts=parts)[Kernel.BACKWARD_KV]},
        scores=scores, **options,
    )  # fmt: skip
    assert facts["path"] == row["path"]


CACHED: dict[str, Any] = {
    "heads": ((1, 4, 4), (3, 8, 2), (16, 8, 1), (5, 6, 2), (1, 40, 1)),  # queries, and heads of queries and keys
    "page": (None, 16, 48, 256),
    "splits": (1, 3, 7),
    "dtype": tuple(DTYPES),
    "window": (None, (20, 0)),
    "softcap": (None, 3.0),
    "scale": (None, -0.3),
    "slopes": (False, True),
    "sinks": (False, True),
    "causal": (True, False),
    "block_kv": (16, 32),
    "widths": ((24, 40), (16, 16)),
}


def readable(row: Row) -> bool:
    """A tile of keys lies within one page."""
    return not row.get("page") or row["page"] % row.get("block_kv", 16) == 0


@pytest.mark.parametrize("row", quick(cover(CACHED, readable)), ids=named)
def test_every_pair_of_features_of_a_cache(row: Row) -> None:
    seq_q, heads, kv_heads = row["heads"]
    given = inputs(Shape(3, heads, kv_heads, seq_q, 200, *row["widths"]), DTYPES[row["dtype"]])
    k, v = (poisoned(tensor, LENGTHS) for tensor in given[1:])
    options: dict[str, Any] = {"softcap": row["softcap"], "scale": row["scale"]}
    if row["slopes"]:
        options["alibi_slopes"] = normal(heads).abs()
    if row["sinks"]:
        options["sinks"] = normal(heads)
    cache: dict[str, Any] = {"kv_lengths": torch.tensor(LENGTHS, dtype=torch.int32)}
    if row["page"]:
        (k, table), (v, _) = paged(k, row["page"]), paged(v, row["page"])
        cache["page_table"] = table
    found = kernels.decode(
        given[0], k, v, causal=row["causal"], window=row["window"], return_lse=True,
        tiling=decode_tiling(row["splits"], block_kv=row["block_kv"]), **cache, **options,
    )  # fmt: skip
    assert_decoded(found, given, LENGTHS, row["window"], row["causal"], **options)


def main() -> int:
    """For `mutations.py`: 1 if `make test` finds a problem of the two covers computed wrong, 0 if all are right."""
    look_for_overflow(False)
    patch_once()
    cached, whole = cover(CACHED, readable), cover(AXES, served)
    try:
        for place in QUICK:
            test_every_pair_of_features_of_a_cache(cached[place])
            test_every_pair_of_features(whole[place])
    except AssertionError:
        return 1
    return 0
