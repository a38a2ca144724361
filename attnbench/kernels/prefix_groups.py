"""Prefixes that requests of a packed batch share: from the pages and queries of the requests to those of each group."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from attnbench.kernels.call import KvCache, Prefixes


def prefixes_of(
    prefix: int, table: Tensor | None, starts_q: Tensor | None, page_size: int, tokens: int,
    groups: Sequence[int] | None = None,
) -> Prefixes:  # fmt: skip
    """The prefixes of consecutive groups of requests; by default of one group of all, which waits for no device."""
    text = f"shared_prefix={prefix}"
    if table is None or starts_q is None:
        raise ValueError(f"{text}: needs cu_seqlens_q and page_table")
    pages, rest = divmod(prefix, page_size)
    if rest or not 0 < pages < table.shape[1]:
        raise ValueError(f"{text}: must be whole pages of {page_size}, fewer than the {table.shape[1]} of a request")
    if groups is None:
        return Prefixes(prefix, table[:1, :pages], torch.stack([starts_q[0], starts_q[-1]]), tokens)
    if groups[0] != 0 or groups[-1] != len(table) or any(a >= b for a, b in itertools.pairwise(groups)):
        raise ValueError(f"groups={list(groups)}: must ascend from 0 to {len(table)}, the requests")
    first = torch.tensor(groups, device=table.device)
    starts = starts_q[first]
    return Prefixes(prefix, table[first[:-1], :pages].contiguous(), starts, int(starts.diff().max()))


def check_prefixes(cache: KvCache, prefix: Prefixes) -> None:
    """Check that all requests begin with the pages of their group, and that their queries are behind them."""
    text, table, starts_q = f"shared_prefix={prefix.keys}", cache.table, cache.starts_q
    assert table is not None
    assert starts_q is not None
    group_of = torch.searchsorted(prefix.starts_q[1:], starts_q[:-1], right=True).clamp(max=len(prefix.table) - 1)
    wrong = table[:, : prefix.table.shape[1]] != prefix.table[group_of]
    if different := wrong.any(1).nonzero().flatten().tolist():
        raise ValueError(f"{text}: page_table[{different[0]}] begins with other pages than those of its group")
    if cache.lengths is not None:
        behind = (cache.lengths - starts_q.diff() < prefix.keys).nonzero().flatten().tolist()
        if behind:
            raise ValueError(f"{text}: the queries of request {behind[0]} are not all behind it")
