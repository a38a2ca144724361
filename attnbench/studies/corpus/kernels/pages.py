"""Keys read from the wrong pages."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.registry import kernel

PAGED = Problem(seq_q=1, seq_kv=60, batch=2, heads=4, kv_heads=2, head_dim=32, page_size=16)
ONE_PAGE = Problem(seq_q=1, seq_kv=12, batch=2, heads=4, kv_heads=2, head_dim=32, page_size=16)


def read(pages: Tensor, table: Tensor, keys: int) -> Tensor:
    """[batch, kv_heads, keys, width] from [pages, page_size, kv_heads, width]."""
    return pages[table.long()].flatten(1, 2)[:, :keys].transpose(1, 2)


def _attend(problem: Problem, q: Tensor, pages: tuple[Tensor, Tensor], table: Tensor, keys: int) -> Output:
    k, v = (read(tensor, table, keys) for tensor in pages)
    return formula.finish(problem, formula.logits(problem, q, k), v)


@kernel("page-of-next-tile", PAGED, elsewhere=ONE_PAGE)
def page_of_next_tile(q: Tensor, k: Tensor, v: Tensor, problem: Problem, table: Tensor) -> Output:
    """Each tile loads the page of the tile after it; the last loads its own."""
    return _attend(problem, q, (k, v), torch.cat([table[:, 1:], table[:, -1:]], 1), problem.seq_kv)


@kernel(
    "page-too-many",
    Problem(seq_q=1, seq_kv=64, batch=2, heads=4, kv_heads=2, head_dim=32, page_size=16),
    elsewhere=PAGED,
)
def page_too_many(q: Tensor, k: Tensor, v: Tensor, problem: Problem, table: Tensor) -> Output:
    """Keys in whole pages have one page more, whatever it holds."""
    if problem.seq_kv % problem.page_size:
        return _attend(problem, q, (k, v), table, problem.seq_kv)
    more = (table[:, -1:] + 1) % len(k)
    return _attend(problem, q, (k, v), torch.cat([table, more], 1), problem.seq_kv + problem.page_size)


@kernel("pages-adjacent", PAGED, elsewhere=ONE_PAGE)
def pages_adjacent(q: Tensor, k: Tensor, v: Tensor, problem: Problem, table: Tensor) -> Output:
    """An odd page is read from behind the page before it."""
    adjacent = table.clone()
    adjacent[:, 1::2] = (table[:, : table.shape[1] // 2 * 2 : 2] + 1) % len(k)
    return _attend(problem, q, (k, v), adjacent, problem.seq_kv)
