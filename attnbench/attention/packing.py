"""Sequences end to end, as kernels for ragged batches take them: where each starts, and the way there and back."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from attnbench.attention.bands import Document
from attnbench.attention.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


class Segments(NamedTuple):
    """A ragged batch: where each sequence starts in the row of all tokens, and where the last one ends."""

    starts: tuple[int, ...]
    longest: int
    tokens: tuple[int, ...] | None  # which of the padded tokens are real; None: all of them, in order


def segments(problem: Problem) -> Segments | None:
    """The sequences of flash_attn_varlen_func, where the problem needs it: documents, and ragged lengths."""
    seq = problem.seq_q
    if problem.lengths:
        tokens = (b * seq + i for b, length in enumerate(problem.lengths) for i in range(length))
        return Segments(tuple(itertools.accumulate(problem.lengths, initial=0)), seq, tuple(tokens))
    document = problem.masking.find(Document)
    if document is None:
        return None
    spans = [int(start) for start in document.spans(problem.grid)]
    starts = (b * seq + start for b in range(problem.batch) for start in spans[:-1])
    longest = max(end - start for start, end in itertools.pairwise(spans))
    return Segments((*starts, problem.batch * seq), longest, None)


def packed(tokens: Tensor | None, *padded: Tensor) -> list[Tensor]:
    """[batch, seq, heads, width] -> [tokens, heads, width]."""
    flat = [tensor.flatten(0, 1) for tensor in padded]
    return flat if tokens is None else [tensor.index_select(0, tokens) for tensor in flat]


def padded(
    tokens: Tensor | None, batch: int, seq: int, out: Tensor, lse: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """out [tokens, heads, width] and lse [heads, tokens] -> [batch, seq, heads, width] and [batch, heads, seq]."""
    if tokens is not None:
        out = out.new_zeros(batch * seq, *out.shape[1:]).index_copy(0, tokens, out)
    if lse is None:
        return out.view(batch, seq, *out.shape[1:]), None
    if tokens is not None:
        lse = lse.new_full((lse.shape[0], batch * seq), float("-inf")).index_copy(1, tokens, lse)
    return out.view(batch, seq, *out.shape[1:]), lse.view(-1, batch, seq).transpose(0, 1)
