"""Caches as a server keeps them, in the interpreter: pages in use and not, strides, poison, rows without keys.

`test_triton_kernels.py` starts it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from attnbench import backends, kernels
from attnbench.attention import latent
from attnbench.attention.choices import Returns
from attnbench.attention.inputs import make
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.records.case import Case
from attnbench.suite import cells
from tests import oracle, reference
from tests.kernels.interpreted.cached import LENGTHS, assert_decoded, decode_tiling, paged, poisoned
from tests.kernels.interpreted.formula import DTYPES, Shape, inputs, normal, slow

USED = torch.tensor(LENGTHS, dtype=torch.int32)
SHAPE = Shape(3, 4, 2, 2, LENGTHS[0], 24, 40)


def in_pages(made: tuple[Tensor, Tensor, Tensor], page: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """k and v in pages, NaN where no key is, and their table."""
    (k, table), (v, _) = (paged(poisoned(tensor, LENGTHS), page) for tensor in made[1:])
    return k, v, table


@pytest.mark.parametrize("splits", [1, 3])
def test_all_memory_that_is_handed_out_is_written(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    real = Tensor.new_empty

    def spoilt(*sizes: Any, **options: Any) -> Tensor:
        made = real(*sizes, **options)
        return made.fill_(math.nan) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", spoilt)
    made = inputs(SHAPE)
    q, k, v = made[0], poisoned(made[1], LENGTHS), poisoned(made[2], LENGTHS)
    found = kernels.decode(q, k, v, kv_lengths=USED, return_lse=True, tiling=decode_tiling(splits))
    assert_decoded(found, made, LENGTHS)


@pytest.mark.parametrize("dtype", [DTYPES["fp16"], DTYPES["bf16"]], ids=["fp16", "bf16"])
def test_pages_of_16_bits(dtype: torch.dtype) -> None:
    made = inputs(SHAPE, dtype)
    k, v, table = in_pages(made, 64)
    found = kernels.decode(made[0], k, v, kv_lengths=USED, page_table=table, return_lse=True, tiling=decode_tiling(2))
    assert_decoded(found, made, LENGTHS)


@pytest.mark.parametrize("unused", [-1, 2**31 - 1])
def test_entries_of_pages_that_are_not_in_use_are_not_followed(unused: int) -> None:
    made = inputs(SHAPE)
    k, v, table = in_pages(made)
    needed = -(-USED // 16)
    table[torch.arange(table.shape[1])[None] >= needed[:, None]] = unused
    found = kernels.decode(
        made[0], k, v, kv_lengths=USED, page_table=table, return_lse=True, tiling=decode_tiling(3, block_kv=32)
    )
    assert_decoded(found, made, LENGTHS)


def test_pages_before_the_window_are_not_read() -> None:
    made = inputs(SHAPE)
    k, v, table = in_pages(made)
    for b, length in enumerate(LENGTHS):
        # Two queries with 30 keys before theirs: what a server may give away by then.
        for page in range(max(0, length - 32) // 16):
            k[table[b, page]] = math.nan
            v[table[b, page]] = math.nan
    found = kernels.decode(
        made[0], k, v, kv_lengths=USED, page_table=table, window=(30, 0), return_lse=True, tiling=decode_tiling(2)
    )
    assert_decoded(found, made, LENGTHS, (30, 0))


LAYOUTS = {
    "heads outside": lambda k, v: tuple(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k, v)),
    "k and v in one tensor": lambda k, v: tuple(torch.stack([k, v], 1).unbind(1)),
    "part of a wider cache": lambda k, v: tuple(torch.cat([t, t], 3)[..., : t.shape[3]] for t in (k, v)),
    "every other page": lambda k, v: tuple(t.repeat_interleave(2, 0)[::2] for t in (k, v)),
}


@pytest.fixture(scope="module")
def pages() -> tuple[Tensor, ...]:
    """q, k and v in pages, their table, and the output."""
    made = inputs(SHAPE._replace(head_dim_v=24))
    k, v, table = in_pages(made)
    out = kernels.decode(made[0], k, v, page_table=table, kv_lengths=USED, tiling=decode_tiling(2))
    return made[0], k, v, table, out


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_pages_of_any_strides(change: Any, pages: tuple[Tensor, ...]) -> None:
    q, k, v, table, expected = pages
    wider = torch.cat([table, table], 1)[:, : table.shape[1]]
    found = kernels.decode(q, *change(k, v), page_table=wider, kv_lengths=USED, tiling=decode_tiling(2))
    assert torch.equal(found, expected)


ONE_HEAD = "one head for all"
STRIDES = {
    "seq before heads": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "off an alignment": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    ONE_HEAD: lambda t: t[:, :1].expand_as(t),
    "the first part of a longer cache": lambda t: torch.cat([t, t], 2)[:, :, : t.shape[2]],
}


@cache
def of_contiguous(one_head: bool) -> Tensor:
    """What tensors of any strides must give."""
    q, k, v = (STRIDES[ONE_HEAD](tensor).contiguous() if one_head else tensor for tensor in inputs(SHAPE))
    out: Tensor = kernels.decode(q, k, v, kv_lengths=USED, tiling=decode_tiling(2))
    return out


@pytest.mark.parametrize("name", STRIDES)
def test_caches_of_any_strides(name: str) -> None:
    q, k, v = (STRIDES[name](tensor) for tensor in inputs(SHAPE))
    found = kernels.decode(q, k, v, kv_lengths=USED, tiling=decode_tiling(2))
    assert torch.equal(found, of_contiguous(name == ONE_HEAD))


@pytest.mark.parametrize("splits", [1, 3])
def test_a_row_without_keys_has_its_sink_and_no_value(splits: int) -> None:
    made, sinks = inputs(SHAPE._replace(seq_q=5)), normal(4)
    lengths = torch.tensor([0, 3, LENGTHS[0]], dtype=torch.int32)
    out, lse = kernels.decode(*made, kv_lengths=lengths, sinks=sinks, return_lse=True, tiling=decode_tiling(splits))
    # Five queries of a sequence of three tokens: the first two stand before its first key.
    for blind, its_lse in ((out[0], lse[0]), (out[1, :, :2], lse[1, :, :2])):
        assert not blind.any()
        torch.testing.assert_close(its_lse, sinks[:, None].expand_as(its_lse), rtol=1e-6, atol=1e-6)
    one = tuple(tensor[1:] for tensor in made)
    assert_decoded((out[1:], lse[1:]), one, (3, LENGTHS[0]), sinks=sinks)  # type: ignore[arg-type]


@pytest.mark.parametrize("seq_q", [seq_q if seq_q in (1, 5, 6, 11, 16) else slow(seq_q) for seq_q in range(1, 17)])
def test_every_number_of_new_queries(seq_q: int) -> None:
    made = inputs(Shape(2, 3, 1, seq_q, 70))
    found = kernels.decode(*made, return_lse=True, tiling=decode_tiling(1 + seq_q % 3))
    assert_decoded(found, made, (70, 70))


def test_more_splits_than_tiles_change_nothing() -> None:
    made = inputs(Shape(1, 2, 1, 1, 40))
    found = kernels.decode(*made, return_lse=True, tiling=decode_tiling(128))
    assert_decoded(found, made, (40,))


@pytest.mark.parametrize("options", [{"causal": False, "window": (3, 2)}, {"window": 0}, {"window": (-1, -1)}], ids=str)
def test_windows_of_several_queries(options: dict[str, Any]) -> None:
    made = inputs(Shape(3, 4, 2, 4, LENGTHS[0]))
    sides = {(3, 2): (3, 2), 0: (0, 0), (-1, -1): None}[options["window"]]
    found = kernels.decode(*made, kv_lengths=USED, return_lse=True, tiling=decode_tiling(3), **options)
    assert_decoded(found, made, LENGTHS, sides, options.get("causal", True))


def test_large_logits_in_splits() -> None:
    q, k, v = inputs(Shape(2, 4, 2, 2, 200))
    k[:, :, 70] *= 1e4
    made = (q * 10, k, v)
    found = kernels.decode(*made, return_lse=True, tiling=decode_tiling(5))
    assert_decoded(found, made, (200, 200))


def test_without_checks_the_same_comes_out() -> None:
    made = inputs(SHAPE)
    k, v, table = in_pages(made)
    options = {"kv_lengths": USED, "page_table": table, "tiling": decode_tiling(2)}
    assert torch.equal(kernels.decode(made[0], k, v, check=False, **options), kernels.decode(made[0], k, v, **options))


def test_facts_say_how_it_was_split() -> None:
    facts: dict[str, Any] = {}
    kernels.decode(*inputs(SHAPE), tiling=decode_tiling(3, block_kv=32), facts=facts)
    assert (facts["path"], facts["splits"], facts["block_q"], facts["block_kv"]) == ("decode", 3, 16, 32)


@pytest.mark.parametrize(
    "fields",
    [
        {"requests": "q20s25_2q1s40", "batch": 3, "seq_q": 20, "seq_kv": 40, "page_size": 16},
        {"requests": "q3s9_q5", "batch": 2, "seq_q": 5, "seq_kv": 9},
        {"batch": 2, "seq_q": 2, "seq_kv": 30},
    ],
    ids=str,
)
def test_the_backend_reads_a_latent_cache_absorbed(fields: dict[str, Any]) -> None:
    problem = Problem(heads=4, head_dim=24, head_dim_v=16, mask="causal", kv="latent:32+8", **fields)
    case = Case(problem=problem, backend="triton")
    assert backends.load("triton").objections(case, "cpu") == []
    prepared = backends.load("triton").prepare(case, "cpu")
    q, cache = torch.randn(*problem.shape_q, 24), torch.randn(*problem.shape_kv, 40)
    empty = cache[..., :0]
    out = prepared.call(q, *((prepared.stored(kv) if prepared.stored else kv) for kv in (cache, empty)))
    k, v = latent.expand(latent.matrices(problem), cache)
    spans = problem.spans if problem.requests else ((slice(None), slice(None)),)
    for part, (queries, keys) in zip(problem.parts, spans, strict=True):
        plain = replace(latent.expanded(part), page_size=0)
        exact = oracle.attend(plain, q[:, :, queries], k[:, :, keys], v[:, :, keys])[0]
        torch.testing.assert_close(out[:, :, queries].double(), exact, rtol=0, atol=1e-4)
    assert prepared.late_facts is not None
    assert prepared.late_facts()["latent"] == "32+8"


@pytest.mark.parametrize("page_size", [0, 16])
def test_the_backend_takes_a_prefill_beside_decodes(page_size: int) -> None:
    problem = Problem(
        requests="q20s25_2q1s40_q5", batch=4, seq_q=20, seq_kv=40, heads=2, kv_heads=1, head_dim=16, mask="causal",
        page_size=page_size, returns=Returns.LSE,
    )  # fmt: skip
    case = Case(problem=problem, backend="triton")
    assert backends.load("triton").objections(case, "cpu") == []
    prepared = backends.load("triton").prepare(case, "cpu")
    q, k, v = (torch.randn(*shape, 16) for shape in (problem.shape_q, problem.shape_kv, problem.shape_kv))
    out, lse = prepared.call(q, *((prepared.stored(kv) if prepared.stored else kv) for kv in (k, v)))
    for part, (queries, keys) in zip(problem.parts, problem.spans, strict=True):
        expected = oracle.attend(part, q[:, :, queries], k[:, :, keys], v[:, :, keys])
        for tensor, exact in zip((out, lse), expected, strict=True):
            torch.testing.assert_close(tensor[:, :, queries].double(), exact, rtol=0, atol=2e-5)
    assert "plan" in prepared.seconds
    assert prepared.late_facts is not None
    assert prepared.late_facts()["launches"] == 1


@pytest.mark.parametrize(
    ("requests", "prefix", "groups"), [("q1s40_q16s70_q3s45_q20s60_q1s33", "32:2", 3), ("3q1s40", "20:8", 1)]
)
@pytest.mark.parametrize("kv", ["", "latent:32+8"])
def test_the_backend_computes_a_prefix_once_for_each_group(requests: str, prefix: str, groups: int, kv: str) -> None:
    problem = Problem(
        **cells._shape_of_requests(requests), heads=4, kv_heads=2 if not kv else 1, head_dim=24, head_dim_v=16,
        mask="causal", page_size=16, shared_prefix=prefix, kv=kv, returns=Returns.LSE,
    )  # fmt: skip
    case = Case(problem=problem, backend="triton:cascade")
    backend = backends.load("triton:cascade")
    assert backend.objections(case, "cpu") == []
    prepared, drawn = backend.prepare(case, "cpu"), make(problem, 3)
    assert prepared.stored is not None
    out, lse = prepared.call(drawn.q, prepared.stored(drawn.k), prepared.stored(drawn.v))
    plain = replace(latent.expanded(problem) if kv else problem, shared_prefix="", page_size=0)
    k, v = latent.expand(latent.matrices(problem), drawn.k) if kv else (drawn.k, drawn.v)
    for tensor, exact in zip((out, lse), oracle.attend(plain, drawn.q, k, v), strict=True):
        torch.testing.assert_close(tensor.double(), exact, rtol=0, atol=1e-4)
    assert prepared.late_facts is not None
    facts = prepared.late_facts()
    assert (facts["groups"], facts["launches"]) == (groups, 3)
    assert "plan" in prepared.seconds


@pytest.mark.parametrize(
    "mask",
    [
        "causal+blocksparse:0.5:16",
        "bigbird:8",
        "strided:5+padding:0.3",
        "dense+causal",
        "natten:3:shape=5x10",
        "blockdiffusion:5",
    ],
)
def test_the_backend_tells_the_kernels_a_pattern(mask: str) -> None:
    problem = Problem(seq_q=50, batch=2, heads=2, head_dim=24, head_dim_v=16, mask=mask)
    qkv, _ = oracle.drawn(problem)
    out = backends.load("triton").prepare(Case(problem=problem, backend="triton"), "cpu").call(*qkv)
    torch.testing.assert_close(out.double(), oracle.attend(problem, *qkv)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "fields",
    [{}, {"mask": "causal+window:9", "sinks": True}, {"score": Score(bias="alibi", softcap=3.0)}],
    ids=["causal", "window and sinks", "bias and softcap"],
)
def test_the_backend_reads_keys_in_pages(fields: dict[str, Any]) -> None:
    shape = {"batch": 3, "seq_q": 2, "seq_kv": 37, "heads": 4, "kv_heads": 2, "head_dim": 16, "mask": "causal"}
    problem = Problem(**{**shape, "page_size": 16, **fields})
    case, backend = Case(problem=problem, backend="triton"), backends.load("triton")
    assert backend.objections(case, "cpu") == []
    qkv, _ = oracle.drawn(problem)
    prepared = backend.prepare(case, "cpu")
    assert prepared.stored is not None
    out = prepared.call(qkv[0], *map(prepared.stored, qkv[1:]))
    torch.testing.assert_close(out.double(), reference.attend(problem, *qkv).out, rtol=0, atol=2e-5)
