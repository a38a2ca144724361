"""The in-house kernels on a GPU: every configuration of the tables against float64, and the same bits every time."""

from __future__ import annotations

import pytest

from attnbench.attention import inputs
from attnbench.attention.problem import Problem
from attnbench.kernels.tables import TileConfig
from attnbench.kernels.tiling import Path
from tests import reference

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.gpu.configurations import check, grid, near  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("key", "config", "shape"), grid())
def test_every_configuration_is_right_and_gives_the_same_bits(
    key: tuple[str, ...], config: TileConfig, shape: str
) -> None:
    check(key, config, shape)


def test_pages_give_what_one_piece_gives() -> None:
    from attnbench import kernels

    torch.manual_seed(0)
    batch, heads, kv_heads, width, page, pages = 8, 32, 8, 128, 16, 64
    q = torch.randn(batch, heads, 1, width, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(batch, kv_heads, page * pages, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    table = torch.randperm(batch * pages, device="cuda").reshape(batch, pages).to(torch.int32)
    lengths = torch.randint(1, page * pages, (batch,), device="cuda", dtype=torch.int32)
    paged = []
    for whole in (k, v):
        cache = torch.full((batch * pages, page, kv_heads, width), float("nan"), device="cuda", dtype=whole.dtype)
        cache[table.flatten().long()] = whole.transpose(1, 2).reshape(batch * pages, page, kv_heads, width)
        paged.append(cache)
    one = kernels.decode(q, k, v, kv_lengths=lengths)
    assert torch.equal(kernels.decode(q, *paged, kv_lengths=lengths, page_table=table), one)


@pytest.mark.parametrize(("heads", "kv_heads", "width", "tail"), [(32, 8, 128, 0), (16, 1, 512, 64), (128, 1, 512, 64)])
def test_requests_in_pages_are_right(heads: int, kv_heads: int, width: int, tail: int) -> None:
    from attnbench import kernels

    torch.manual_seed(0)
    sizes, page = ((1, 3000), (300, 700), (16, 16), (2, 900)), 16
    starts = torch.tensor([0, 1, 301, 317, 319], dtype=torch.int32)
    q = torch.randn(319, heads, width + tail, dtype=torch.bfloat16)
    counts = [-(-keys // page) for _, keys in sizes]
    pool = torch.randn(sum(counts), page, kv_heads, width + tail, dtype=torch.bfloat16)
    table = torch.zeros(len(sizes), max(counts), dtype=torch.int32)
    out = torch.empty(319, heads, width, dtype=torch.float64)
    for b, (pages, (queries, keys)) in enumerate(zip(torch.randperm(sum(counts)).split(counts), sizes, strict=True)):
        table[b, : len(pages)] = pages
        k = pool[pages].flatten(0, 1)[:keys].repeat_interleave(heads // kv_heads, 1).double()
        logits = torch.einsum("ihd,jhd->hij", q[starts[b] : starts[b + 1]].double(), k) * (width + tail) ** -0.5
        hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        out[starts[b] : starts[b + 1]] = torch.einsum("hij,jhd->ihd", weights, k[..., :width])
    options = {"page_table": table, "kv_lengths": torch.tensor([keys for _, keys in sizes], dtype=torch.int32)}
    there = {name: tensor.cuda() for name, tensor in options.items()}
    cache = pool.cuda()
    result = kernels.decode(q.cuda(), cache, cache[..., :width], cu_seqlens_q=starts.cuda(), **there)
    torch.testing.assert_close(result.cpu().double(), out, rtol=2e-2, atol=2e-2)


def test_a_prefix_of_each_group_gives_what_all_keys_give() -> None:
    from attnbench import kernels

    torch.manual_seed(0)
    page, shared, counts, groups = 16, 32, (5, 40, 9, 33, 20), (0, 2, 5)
    pages = torch.randperm(2 * shared + sum(counts), dtype=torch.int32)
    prefixes, rest = pages[: 2 * shared].view(2, shared), pages[2 * shared :].split(counts)
    table = torch.zeros(5, shared + max(counts), dtype=torch.int32)
    for request, own in enumerate(rest):
        table[request, : shared + len(own)] = torch.cat([prefixes[int(request >= groups[1])], own])
    queries = torch.tensor([1, 70, 1, 16, 2])
    starts = torch.cat([torch.zeros(1), queries.cumsum(0)]).to(torch.int32).cuda()
    lengths = torch.tensor([page * (shared + count) - 3 for count in counts], dtype=torch.int32).cuda()
    q = torch.randn(int(queries.sum()), 32, 128, dtype=torch.bfloat16, device="cuda")
    k, v = (torch.randn(len(pages), page, 8, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    options = {"page_table": table.cuda(), "cu_seqlens_q": starts}
    made = kernels.prefixes(page * shared, groups, page_size=page, **options)
    expected, expected_lse = kernels.decode(q, k, v, kv_lengths=lengths, return_lse=True, **options)
    out, lse = kernels.decode(q, k, v, kv_lengths=lengths, shared_prefix=made, return_lse=True, **options)
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-3, atol=1e-3)


def test_more_keys_than_2_to_the_31_numbers() -> None:
    from attnbench import kernels

    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    heads, seq, width = 130, 2**17, 128
    k = torch.randn(1, heads, seq, width, device="cuda", dtype=torch.bfloat16)
    assert k.numel() > 2**31
    q = torch.randn(1, heads, 1, width, device="cuda", dtype=torch.bfloat16)
    for path in (Path.DECODE, Path.DESCRIPTORS, Path.PORTABLE):
        out = kernels.attention(q, k, k, path=path.value)
        weights = torch.softmax(q[:, -1].float() @ k[:, -1].float().mT * width**-0.5, -1)
        torch.testing.assert_close(out[:, -1].float(), weights @ k[:, -1].float(), rtol=2e-2, atol=2e-2)


def test_a_small_step_is_right_at_every_padded_width() -> None:
    from attnbench import kernels

    for width in (16, 40, 41, 80, 96, 192, 256):
        problem = Problem(seq_q=130, seq_kv=200, batch=1, heads=2, head_dim=width, dtype="bf16", mask="causal")
        made = inputs.make(problem, seed=1)
        out = kernels.attention(made.q.cuda(), made.k.cuda(), made.v.cuda(), causal=True)
        exact, plain = (
            make(problem, made.q, made.k, made.v).out for make in (reference.attend, reference.attend_same_dtype)
        )
        near(out, exact, torch.bfloat16, plain)
