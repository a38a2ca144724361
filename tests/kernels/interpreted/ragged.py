"""Batches of requests with their own queries and keys, in the interpreter, in pages and packed.

`test_triton_kernels.py` starts it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench import backends, kernels
from attnbench.attention import requests
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.requests import RequestSize
from attnbench.backends import scope
from attnbench.records.case import Case
from tests import oracle
from tests.kernels.interpreted.cached import assert_decoded, decode_tiling
from tests.kernels.interpreted.formula import DTYPES, Shape, inputs, normal

Sizes = tuple[tuple[int, int], ...]  # queries and keys of each request
DECODES: Sizes = ((1, 37), (4, 4), (16, 90), (1, 1), (7, 40))
MIXED: Sizes = ((1, 70), (45, 45), (2, 3), (33, 60), (1, 16))
WAITING: Sizes = ((0, 0), (1, 37), (0, 40), (4, 4), (0, 0), (20, 33), (0, 5))  # some without queries


class Batch(NamedTuple):
    """Requests as a server has them, and each alone."""

    q: Tensor  # [tokens, heads, head_dim]
    k: Tensor  # in pages, NaN where no key is
    v: Tensor
    options: dict[str, Tensor]
    alone: list[tuple[Tensor, Tensor, Tensor]]


def starts(counts: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)


def alone(sizes: Sizes, shape: Shape, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        inputs(shape._replace(batch=1, seq_q=queries, seq_kv=keys), dtype, seed=number)
        for number, (queries, keys) in enumerate(sizes)
    ]


def packed(sizes: Sizes, shape: Shape, dtype: torch.dtype = torch.float32) -> Batch:
    """All tokens one behind the other."""
    requests = alone(sizes, shape, dtype)
    q, k, v = (torch.cat([tensor[0].transpose(0, 1) for tensor in tensors]) for tensors in zip(*requests, strict=True))
    queries, keys = map(list, zip(*sizes, strict=True))
    return Batch(q, k, v, {"cu_seqlens_q": starts(queries), "cu_seqlens_kv": starts(keys)}, requests)


def paged(sizes: Sizes, shape: Shape, page: int = 16, dtype: torch.dtype = torch.float32) -> Batch:
    """Keys in shuffled pages; entries of the table that are not in use name no page."""
    batch = packed(sizes, shape, dtype)
    counts = [-(-keys // page) for _, keys in sizes]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(page)).to(torch.int32)
    table = torch.full((len(sizes), max(counts)), 2**31 - 1, dtype=torch.int32)
    pools = [torch.full((sum(counts), page, *kv.shape[1:]), math.nan, dtype=dtype) for kv in (batch.k, batch.v)]
    for request, (pages, (_, *kv)) in enumerate(zip(order.split(counts), batch.alone, strict=True)):
        table[request, : len(pages)] = pages
        for pool, tensor in zip(pools, kv, strict=True):
            for key in range(tensor.shape[2]):
                pool[pages[key // page], key % page] = tensor[0, :, key]
    lengths = torch.tensor([keys for _, keys in sizes], dtype=torch.int32)
    options = {"cu_seqlens_q": batch.options["cu_seqlens_q"], "kv_lengths": lengths, "page_table": table}
    return Batch(batch.q, *pools, options, batch.alone)


def decoded(batch: Batch, **options: Any) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = kernels.decode(
        batch.q, batch.k, batch.v, return_lse=True, **batch.options, **options
    )
    return result


def assert_requests(result: tuple[Tensor, Tensor], batch: Batch, **options: Any) -> None:
    """Every request against float64, alone."""
    ends = batch.options["cu_seqlens_q"].tolist()
    for (first, end), request in zip(itertools.pairwise(ends), batch.alone, strict=True):
        if end > first:
            out, lse = result[0][first:end].transpose(0, 1)[None], result[1][None, :, first:end]
            assert_decoded((out, lse), request, (request[1].shape[2],), **options)


SHAPE = Shape(heads=4, kv_heads=2, head_dim=16, head_dim_v=24)


@pytest.mark.parametrize("make", [paged, packed])
@pytest.mark.parametrize(("sizes", "splits"), [(DECODES, 3), (MIXED, 1), (WAITING, 1), (WAITING, 3)])
def test_every_request_is_right(make: Any, sizes: Sizes, splits: int) -> None:
    batch = make(sizes, SHAPE)
    facts: dict[str, Any] = {}
    result = decoded(batch, tiling=decode_tiling(splits, block_kv=32), facts=facts)
    assert_requests(result, batch)
    assert facts["launches"] == (1 if splits == 1 else 2)


@pytest.mark.parametrize("page", [1, 4, 64, 256])
def test_pages_of_any_size(page: int) -> None:
    batch = paged(((3, 21), (1, 9)), SHAPE, page)
    assert_requests(decoded(batch, tiling=decode_tiling(2)), batch)


@pytest.mark.parametrize("dtype", [DTYPES["fp16"], DTYPES["bf16"]], ids=["fp16", "bf16"])
def test_requests_of_16_bits(dtype: torch.dtype) -> None:
    batch = paged(((1, 40), (18, 20)), SHAPE, dtype=dtype)
    assert_requests(decoded(batch, tiling=decode_tiling(2)), batch)


FEATURES: dict[str, dict[str, Any]] = {
    "not causal": {"causal": False, "window": (9, 4)},
    "everything": {"window": (30, 0), "softcap": 9.0, "alibi_slopes": normal(4).abs(), "sinks": normal(4)},
}


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())
def test_features_of_requests(options: dict[str, Any]) -> None:
    batch = paged(((1, 50), (20, 33), (3, 3)), SHAPE)
    assert_requests(decoded(batch, tiling=decode_tiling(2), **options), batch, **options)


def test_equal_requests_give_the_bits_of_an_ordinary_batch() -> None:
    batch = paged(((2, 40),) * 3, SHAPE)
    q = batch.q.unflatten(0, (3, 2)).transpose(1, 2)
    options = {name: tensor for name, tensor in batch.options.items() if name != "cu_seqlens_q"}
    ordinary = kernels.decode(q, batch.k, batch.v, tiling=decode_tiling(2), **options)
    assert torch.equal(decoded(batch, tiling=decode_tiling(2))[0], ordinary.transpose(1, 2).flatten(0, 1))


def test_a_request_without_queries_writes_nothing_and_64_bit_starts_serve() -> None:
    sizes = ((3, 20), (1, 5), (2, 8))
    batch = packed(sizes, SHAPE)
    batch.options["cu_seqlens_q"] = torch.tensor([0, 3, 3, 3, 4, 6])
    ends = batch.options["cu_seqlens_kv"].long()
    batch.options["cu_seqlens_kv"] = ends[[0, 1, 1, 1, 2, 3]]
    nothing = (batch.alone[0][0][:, :, :0],) * 3
    batch = batch._replace(alone=[batch.alone[0], nothing, nothing, *batch.alone[1:]])
    assert_requests(decoded(batch, tiling=decode_tiling()), batch)


@pytest.mark.slow
def test_the_longest_request_changes_tiles_and_no_result() -> None:
    batch = paged(MIXED, SHAPE)
    expected = decoded(batch)
    for longest in (1, 1000):
        result = decoded(batch, max_seqlen_q=longest, max_seqlen_kv=longest)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_batch(data: st.DataObject) -> None:
    queries = st.integers(1, 20)
    sizes = data.draw(st.lists(st.tuples(queries, st.integers(0, 40)), min_size=1, max_size=5))
    batch = data.draw(st.sampled_from([packed, paged]))(
        tuple((count, count + more) for count, more in sizes),
        Shape(heads=data.draw(st.sampled_from([2, 6])), kv_heads=2),
    )
    assert_requests(decoded(batch, tiling=decode_tiling(data.draw(st.integers(1, 3)), block_kv=32)), batch)


def latent(batch: Batch, width: int) -> Batch:
    """The same requests, V being a view of the first columns of K."""
    requests = [(q, k, k[..., :width]) for q, k, _ in batch.alone]
    return batch._replace(v=batch.k[..., :width], alone=requests)


@pytest.mark.slow
@pytest.mark.parametrize("make", [paged, packed])
@pytest.mark.parametrize("width", [16, 13])
def test_values_that_are_a_view_of_the_keys_are_read_once(make: Any, width: int) -> None:
    batch = latent(make(((1, 37), (18, 20)), Shape(heads=8, kv_heads=1, head_dim=24)), width)
    facts: dict[str, Any] = {}
    assert_requests(decoded(batch, tiling=decode_tiling(2), facts=facts), batch)
    assert facts["latent"] == f"{width}+{24 - width}"
    apart: dict[str, Any] = {}
    assert_requests(decoded(batch._replace(v=batch.v.clone()), tiling=decode_tiling(2), facts=apart), batch)
    assert "latent" not in apart


def test_the_latent_cache_of_deepseek() -> None:
    batch = latent(paged(((1, 20), (2, 9)), Shape(heads=16, kv_heads=1, head_dim=576), dtype=torch.bfloat16), 512)
    facts: dict[str, Any] = {}
    assert_requests(decoded(batch, scale=192**-0.5, facts=facts), batch, scale=192**-0.5)
    assert facts["path"] == "decode"


def cascaded(sizes: Sizes, shape: Shape, prefix: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Requests that begin with the same keys, in the same pages of 16; `sizes` are the keys behind the prefix."""
    shared = inputs(shape._replace(batch=1, seq_q=1, seq_kv=prefix), dtype, seed=99)[1:]
    batch = paged(sizes, shape, dtype=dtype)
    pools, pages = [], prefix // 16
    for pool, tensor in zip((batch.k, batch.v), shared, strict=True):
        pools.append(torch.cat([pool, tensor[0].transpose(0, 1).unflatten(0, (pages, 16))]))
    first = torch.arange(len(batch.k), len(pools[0]), dtype=torch.int32).expand(len(sizes), pages)
    options = batch.options | {
        "page_table": torch.cat([first, batch.options["page_table"]], 1),
        "kv_lengths": batch.options["kv_lengths"] + prefix,
    }
    whole = [(q, *(torch.cat(both, 2) for both in zip(shared, kv, strict=True))) for q, *kv in batch.alone]
    return Batch(batch.q, *pools, options, whole)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_shared_prefix_is_computed_once_and_merged(splits: int) -> None:
    batch = cascaded(((1, 5), (18, 18), (3, 40)), SHAPE, 48)
    options: dict[str, Any] = {"softcap": 9.0, "sinks": normal(4)}
    facts: dict[str, Any] = {}
    result = decoded(batch, shared_prefix=48, tiling=decode_tiling(splits), facts=facts, **options)
    assert_requests(result, batch, **options)
    assert (facts["shared_prefix"], facts["prefix_splits"], facts["launches"]) == (48, splits, 3)


def test_a_shared_prefix_is_not_read_through_other_requests() -> None:
    batch = cascaded(((1, 5), (2, 9)), SHAPE, 32)
    expected = decoded(batch, shared_prefix=32)
    batch.options["page_table"][1:, :2] = 2**31 - 1
    torch.testing.assert_close(decoded(batch, shared_prefix=32, check=False), expected, rtol=0, atol=0)


def test_a_shared_prefix_of_a_latent_cache() -> None:
    batch = latent(cascaded(((1, 5), (2, 9)), Shape(heads=4, kv_heads=1, head_dim=24), 16), 16)
    assert_requests(decoded(batch, shared_prefix=16), batch)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("triton", {"mask": "causal"}),
        ("triton", {"mask": "window:3:2"}),
        ("triton", {"mask": "prefix:4+padding:0.2"}),
        ("triton", {"mask": "causal+dilated:3"}),
        ("triton:portable", {"mask": "causal"}),
    ],
)
def test_gradients_of_packed_requests_and_masks_of_any_kind(name: str, fields: dict[str, Any]) -> None:
    sizes = (RequestSize(20, 20), RequestSize(1, 30), RequestSize(7, 40))
    shape = {"batch": 3, "seq_q": 20, "seq_kv": 40, "heads": 4, "kv_heads": 2, "head_dim": 16}
    problem = Problem(**shape, requests=requests.spell(sizes), **fields)
    case = Case(problem=problem, backend=name, mode=Mode.FWD_BWD)
    assert backends.load(name).objections(case, "cpu") == []
    leaves, dout = oracle.drawn(problem)
    exact = [tensor.double().requires_grad_() for tensor in leaves]
    out = scope.prepare(backends.load(name), case, "cpu").call(*(tensor.requires_grad_() for tensor in leaves))
    expected = oracle.attend(problem, *exact)[0]
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-5)
    found = torch.autograd.grad(out, leaves, dout)
    for gradient, right in zip(found, torch.autograd.grad(expected, exact, dout.double()), strict=True):
        torch.testing.assert_close(gradient.double(), right, rtol=0, atol=1e-4)
