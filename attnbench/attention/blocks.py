"""Parts of a reference: groups, blocks of query rows, and the rounding steps of a plain implementation in a dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from attnbench.attention.choices import Dtype
from attnbench.attention.inputs import Inputs, torch_dtype
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Similarity
from attnbench.attention.weightings import SOFTMAX

if TYPE_CHECKING:
    from torch import Tensor

Group = tuple[int, int]  # (sequence, kv head), with the query heads that share the kv head
Span = tuple[int, int]  # rows [first, stop)

MAX_LOGITS = 2**21  # of a block; four such arrays in float64 take 64 MiB
MAX_ROWS = 256  # of a block, so that few hidden keys are computed under a narrow mask


class Forward(NamedTuple):
    """The result of a forward pass."""

    out: Tensor  # [..., heads, seq_q, head_dim_v]
    lse: Tensor  # [..., heads, seq_q], natural logarithm


class Gradients(NamedTuple):
    """The result of a backward pass: dq has the shape of q, dk of k, dv of v."""

    dq: Tensor
    dk: Tensor
    dv: Tensor


class RowBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one sequence, and the interval of keys that at least one of them may see."""

    rows: slice
    keys: slice
    out_rows: slice  # of the result, which has the requested rows


def groups(problem: Problem) -> list[Group]:
    """Every group of a problem, in memory order."""
    return [(b, kv_head) for b in range(problem.sequences) for kv_head in range(problem.kv_heads)]


def rows_of(problem: Problem, group: Group) -> int:
    """The query rows of a group."""
    return problem.parts[group[0]].seq_q if problem.requests else problem.seq_q


def of_part(problem: Problem, group: Group, inputs: Inputs) -> tuple[Problem, Group, Inputs]:
    """The part of a problem that holds a group, the group in it, and its inputs: those of one request, or all."""
    if not problem.requests:
        return problem, group, inputs
    queries, keys = problem.spans[group[0]]
    q, dout = inputs.q[:, :, queries], inputs.dout[:, :, queries]
    k, v = inputs.k[:, :, keys], inputs.v[:, :, keys]
    return problem.parts[group[0]], (0, group[1]), Inputs(q=q, k=k, v=v, dout=dout)


def query_heads(problem: Problem, group: Group) -> slice:
    """The query heads of a group."""
    sharing = problem.heads // problem.kv_heads
    return slice(group[1] * sharing, (group[1] + 1) * sharing)


def row_blocks(problem: Problem, sequence: int, spans: list[Span] | None = None) -> Iterator[RowBlock]:
    """Split the rows of a sequence into blocks of bounded size, without those in which no row sees a key."""
    max_rows = max(1, min(MAX_ROWS, MAX_LOGITS // (problem.seq_kv * _depth(problem))))
    done = 0  # rows of earlier blocks
    for first, stop in spans or [(0, problem.seq_q)]:
        for start in range(first, stop, max_rows):
            rows = np.arange(start, min(start + max_rows, stop))
            low, high = problem.masking.interval(problem.grid, np.array(sequence), rows)
            if (sees_keys := high > low).any():
                keys = slice(int(low[sees_keys].min()), int(high[sees_keys].max()))
                yield RowBlock(rows=slice(start, start + len(rows)), keys=keys, out_rows=slice(done, done + len(rows)))
            done += len(rows)


def _depth(problem: Problem) -> int:
    """Numbers held for one logit: an additive score holds a vector for each pair."""
    return problem.head_dim if problem.score.similarity is Similarity.ADDITIVE else 1


def computed_logits(problem: Problem, sequence: int, spans: list[Span] | None = None) -> int:
    """The number of logits computed for one head: visible pairs, and hidden ones in the same blocks."""
    part, number = (problem.parts[sequence], 0) if problem.requests else (problem, sequence)
    return sum(
        (block.rows.stop - block.rows.start) * (block.keys.stop - block.keys.start)
        for block in row_blocks(part, number, spans)
    )


def hidden_keys(problem: Problem, sequence: int, block: RowBlock) -> Tensor:
    """[rows, keys] of the block, True where hidden; from the predicate of the mask, not from its intervals."""
    import torch

    i = np.arange(block.rows.start, block.rows.stop)[:, None]
    j = np.arange(block.keys.start, block.keys.stop)[None, :]
    return torch.from_numpy(~problem.masking.visible(problem.grid, np.array(sequence), i, j))


def head_blocks(problem: Problem) -> list[slice]:
    """Query heads of a group that are computed together: several if the sequence is short."""
    sharing = problem.heads // problem.kv_heads
    together = max(1, MAX_LOGITS // (problem.seq_q * problem.seq_kv * _depth(problem)))
    return [slice(first, min(first + together, sharing)) for first in range(0, sharing, together)]


def of_group(problem: Problem, group: Group, q: Tensor, k: Tensor, v: Tensor, *dout: Tensor) -> list[Tensor]:
    """The tensors of a group: q and dout of its heads [heads, seq_q, width], k and v [seq_kv, width]."""
    sequence, kv_head = group
    heads = query_heads(problem, group)
    return [q[sequence, heads], k[sequence, kv_head], v[sequence, kv_head], *(d[sequence, heads] for d in dout)]


def empty_result(problem: Problem, like: Tensor, spans: list[Span] | None, leading: tuple[int, ...] = ()) -> Forward:
    """out and lse of rows that see no key, 0 and -inf, to be overwritten for the other rows."""
    heads = problem.heads // problem.kv_heads
    rows = sum(stop - first for first, stop in spans or [(0, problem.seq_q)])
    shape = (*leading, heads, rows)
    return Forward(like.new_zeros(*shape, problem.head_dim_v), like.new_full(shape, float("-inf")))


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """The rounding of a dtype: `rounded` is applied to results, `operand` to the inputs of a matrix product."""

    rounded: Callable[[Tensor], Tensor]
    operand: Callable[[Tensor], Tensor]

    def exact_product(self, left: Tensor, right: Tensor) -> Tensor:
        """A matrix product without rounding of the result."""
        return self.operand(left) @ self.operand(right)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        return self.rounded(self.exact_product(left, right))

    def softmax(self, logits: Tensor) -> Tensor:
        # Libraries compute a softmax in float32 and round the result.
        return self.rounded(SOFTMAX.weights(logits))


EXACT = Steps(rounded=lambda numbers: numbers, operand=lambda numbers: numbers)


def steps_of(dtype: Dtype) -> Steps:
    """The rounding of a plain implementation in torch."""

    def as_tf32(numbers: Tensor) -> Tensor:
        import torch

        # `cvt.rna.tf32.f32`: 10 bits of mantissa, ties away from zero.
        bits = numbers.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    def as_stored(numbers: Tensor) -> Tensor:
        return numbers.to(torch_dtype(dtype.out)).float()

    if dtype is Dtype.TF32:
        return Steps(rounded=EXACT.rounded, operand=as_tf32)
    return EXACT if dtype is Dtype.FP32 else Steps(rounded=as_stored, operand=EXACT.operand)


def mean_square(vectors: Tensor) -> Tensor:
    """The mean of the squares: [..., width] -> [..., 1]."""
    return vectors.square().mean(-1, keepdim=True)
