"""Layouts of q, k and v in memory: sequences packed for varlen kernels, and the pages of a KV cache as in vLLM.

Every sequence of a paged cache (https://arxiv.org/abs/2309.06180) has as many pages as its keys need. Pages are in
memory in a fixed random order, given by a page table.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from attnbench.attention.fixed_random import splitmix64
from attnbench.attention.masks.document import Document
from attnbench.attention.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


class Segments(NamedTuple):
    """The sequences of a packed batch, in order."""

    starts_q: tuple[int, ...]  # index of the first query of each sequence, and the number of queries (cu_seqlens)
    starts_kv: tuple[int, ...]  # the same of keys
    longest_q: int  # queries
    longest_kv: int  # keys

    @property
    def lengths_kv(self) -> tuple[int, ...]:
        """The keys of each sequence."""
        return tuple(end - start for start, end in itertools.pairwise(self.starts_kv))


def is_packed(problem: Problem) -> bool:
    """Whether varlen kernels alone compute it: requests, documents, keys in pages."""
    return bool(problem.requests or problem.page_size) or problem.masking.find(Document) is not None


def segments(problem: Problem) -> Segments:
    """The sequences for a varlen kernel: requests, those of an even batch, or documents."""
    sizes: tuple[tuple[int, int], ...] = problem.sizes
    if not problem.requests and (document := problem.masking.find(Document)):
        spans = [int(start) for start in document.spans(problem.grid)]
        sizes = tuple((end - start, end - start) for start, end in itertools.pairwise(spans)) * problem.batch
    queries, keys = zip(*sizes, strict=True)
    starts_q, starts_kv = (tuple(itertools.accumulate(counts, initial=0)) for counts in (queries, keys))
    return Segments(starts_q, starts_kv, max(queries), max(keys))


def waits_beside_decodes(problem: Problem) -> bool:
    """Whether a request without queries is among decodes of grouped heads.

    FlashAttention-2 takes their heads for queries, of which it expects one request each:
    https://github.com/Dao-AILab/flash-attention/issues/1537
    """
    return problem.seq_q == 1 and problem.kv_heads < problem.heads and "empty" in problem.features


def unflattened(batch: int, seq: int, out: Tensor, lse: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The batch and its rows in place of all tokens.

    out: [tokens, heads, width] -> [batch, seq, heads, width]; lse: [heads, tokens] -> [batch, heads, seq].
    """
    out = out.view(batch, seq, *out.shape[1:])
    return out, None if lse is None else lse.view(-1, batch, seq).transpose(0, 1)


def page_table(problem: Problem) -> NDArray[np.int32]:
    """The page table: [batch, pages of the longest sequence], indices of pages, and 0 behind those of a sequence.

    Requests that share a prefix have the same pages for it.
    """
    counts = [-(-keys // problem.page_size) for _, keys in problem.sizes]
    used = np.arange(max(counts)) < np.array(counts)[:, None]
    shared = [(members, keys // problem.page_size) for keys, members in problem.prefix_groups]
    for members, pages in shared:
        used[members[1:], :pages] = False
    table = np.zeros(used.shape, dtype=np.int32)
    table[used] = np.argsort(splitmix64(0, np.arange(used.sum())), kind="stable")
    for members, pages in shared:
        table[members[1:], :pages] = table[members[0], :pages]
    return table


def prefix_starts(problem: Problem) -> tuple[int, ...]:
    """The first request of each group of a shared prefix, and the number of requests; a request may be alone.

    Empty where a request lacks the prefix, or stands between those of a group, or where groups have unlike prefixes.
    """
    groups = problem.prefix_groups
    keys = groups[0].keys if groups else 0
    lacking = [size for size in problem.sizes if size.keys - size.queries < keys]
    unlike = any(group.keys != keys for group in groups)
    if not groups or unlike or lacking or any(members[-1] - members[0] >= len(members) for _, members in groups):
        return ()
    followers = {number for _, members in groups for number in members[1:]}
    return (*(number for number in range(problem.batch) if number not in followers), problem.batch)


def slots(problem: Problem) -> NDArray[np.int64]:
    """Where each packed key of a batch of requests is among the tokens of all pages: [tokens]."""
    table, size = page_table(problem).astype(np.int64), problem.page_size
    places = (np.arange(keys) for _, keys in problem.sizes)
    return np.concatenate([table[b, place // size] * size + place % size for b, place in enumerate(places)])


def paged(problem: Problem, tensor: Tensor) -> Tensor:
    """Write to pages: [batch, kv_heads, seq_kv, width] -> [pages, page_size, kv_heads, width], padded with 0."""
    import torch

    if problem.requests:
        count = int(page_table(problem).max()) + 1
        pool = tensor.new_zeros(count * problem.page_size, tensor.shape[1], tensor.shape[3])
        pool.index_copy_(0, torch.from_numpy(slots(problem)), tensor[0].transpose(0, 1))
        return pool.view(count, problem.page_size, *pool.shape[1:])
    table = torch.from_numpy(page_table(problem).astype(np.int64)).to(tensor.device)
    batch, heads, _, width = tensor.shape
    capacity = table.shape[1] * problem.page_size
    padded = torch.nn.functional.pad(tensor, (0, 0, 0, capacity - problem.seq_kv)).transpose(1, 2)
    pages = padded.reshape(batch * table.shape[1], problem.page_size, heads, width)
    return torch.empty_like(pages).index_copy_(0, table.flatten(), pages)


def packed_keys(pages: Tensor, where: Tensor) -> Tensor:
    """Read the keys of all requests from pages: [1, kv_heads, tokens, width]; where: `slots` on the device."""
    return pages.flatten(0, 1).index_select(0, where).transpose(0, 1)[None]


def gathered(problem: Problem, pages: Tensor, table: Tensor) -> Tensor:
    """Read from pages: [batch, kv_heads, seq_kv, width]. table: [batch, pages of a sequence], int64."""
    return pages[table].flatten(1, 2)[:, : problem.seq_kv].transpose(1, 2)


class WrittenPages(NamedTuple):
    """A cache in pages that a library keeps in a form of its own: what was in it before the call, and what is new."""

    table: NDArray[np.int32]  # [sequences, pages of the longest]
    slots: NDArray[np.int64]  # where each packed key is among the tokens of all pages
    new: NDArray[np.int64]  # the packed keys that the call writes: the last ones of a sequence, as many as its queries
    pages: int

    @property
    def has_past(self) -> bool:
        """Whether the call reads keys that it does not write."""
        return len(self.new) < len(self.slots)


def cache_of(problem: Problem, page_size: int) -> WrittenPages:
    """The cache of a batch: pages in random order, and the keys of the last queries as the new ones."""
    paged_problem = replace(problem, page_size=page_size)
    table, ends = page_table(paged_problem), np.cumsum([size.keys for size in problem.sizes])
    new = [np.arange(end - size.queries, end) for end, size in zip(ends, problem.sizes, strict=True)]
    return WrittenPages(table, slots(paged_problem), np.concatenate(new), int(table.max()) + 1)


def key_rows(tensor: Tensor) -> Tensor:
    """Packed keys: [batch, kv_heads, seq_kv, width] -> [tokens, kv_heads, width]."""
    return tensor.transpose(1, 2).flatten(0, 1)


def with_new_rows(pool: Tensor, rows: Tensor, cache: WrittenPages) -> Tensor:
    """One tensor [numbers] with the pages, and behind them the packed new keys, which the call writes again."""
    import torch

    return torch.cat([pool.flatten(), rows[torch.from_numpy(cache.new)].flatten()])


def pages_and_new_rows(stored: Tensor, pool_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What `with_new_rows` put together: the pages in their shape, and the numbers of the new keys."""
    count = math.prod(pool_shape)
    return stored[:count].view(pool_shape), stored[count:]
