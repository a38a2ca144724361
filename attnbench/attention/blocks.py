"""How a reference is cut up: groups, blocks of query rows, and what a plain implementation in a dtype rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from attnbench.attention.inputs import torch_dtype
from attnbench.attention.problem import Dtype, Problem
from attnbench.attention.scores import Similarity

if TYPE_CHECKING:
    from torch import Tensor

Group = tuple[int, int]  # (sequence, kv head)
Span = tuple[int, int]  # rows [first, stop)

CELLS = 2**21  # logits of a block: with four such arrays of float64 alive, 64 MiB
ROWS = 256  # of a block at most, so that a narrow mask touches few keys in vain


class Forward(NamedTuple):
    """out: [..., heads, seq_q, head_dim_v]; lse, natural logarithm: [..., heads, seq_q]."""

    out: Tensor
    lse: Tensor


class Gradients(NamedTuple):
    """As the tensors they belong to: dq as q, dk as k, dv as v."""

    dq: Tensor
    dk: Tensor
    dv: Tensor


@dataclass(frozen=True)
class Block:
    """Rows of one sequence, and the keys that at least one of them may see."""

    rows: slice
    keys: slice
    place: slice  # where the rows stand among all rows that were asked for


def groups(problem: Problem) -> list[Group]:
    """Every group of a problem, in the order of memory."""
    return [(b, kv_head) for b in range(problem.batch) for kv_head in range(problem.kv_heads)]


def query_heads(problem: Problem, group: Group) -> slice:
    """The query heads that share the keys of a group."""
    sharing = problem.heads // problem.kv_heads
    return slice(group[1] * sharing, (group[1] + 1) * sharing)


def blocks(problem: Problem, sequence: int, spans: list[Span] | None = None) -> Iterator[Block]:
    """Cut the rows of a sequence into blocks of bounded size; rows that see no key are in none of them."""
    most = max(1, min(ROWS, CELLS // (problem.seq_kv * _depth(problem))))
    place = 0
    for first, stop in spans or [(0, problem.seq_q)]:
        for start in range(first, stop, most):
            rows = np.arange(start, min(start + most, stop))
            low, high = problem.masking.interval(problem.grid, np.array(sequence), rows)
            if (seeing := high > low).any():
                keys = slice(int(low[seeing].min()), int(high[seeing].max()))
                yield Block(slice(start, start + len(rows)), keys, slice(place, place + len(rows)))
            place += len(rows)


def _depth(problem: Problem) -> int:
    """Numbers that stand behind one logit: an additive score holds a vector for each pair."""
    return problem.head_dim if problem.score.similarity is Similarity.ADDITIVE else 1


def touched(problem: Problem, sequence: int, spans: list[Span] | None = None) -> int:
    """The logits that are computed for one head: visible pairs, and what lies beside them in the blocks."""
    return sum(
        (block.rows.stop - block.rows.start) * (block.keys.stop - block.keys.start)
        for block in blocks(problem, sequence, spans)
    )


def hidden_keys(problem: Problem, sequence: int, block: Block) -> Tensor:
    """True where a key of the block is not visible; from the predicate of the mask, not from its intervals."""
    import torch

    i = np.arange(block.rows.start, block.rows.stop)[:, None]
    j = np.arange(block.keys.start, block.keys.stop)[None, :]
    return torch.from_numpy(~problem.masking.visible(problem.grid, np.array(sequence), i, j))


def finite(numbers: Tensor) -> Tensor:
    """-inf, which stands for no key at all, as 0: exp(-inf - 0) is the weight 0 that is wanted."""
    return numbers.masked_fill(numbers.isneginf(), 0.0)


def head_blocks(problem: Problem) -> list[slice]:
    """Query heads of a group that are computed at once: several where the sequence is short."""
    sharing = problem.heads // problem.kv_heads
    at_once = max(1, CELLS // (problem.seq_q * problem.seq_kv * _depth(problem)))
    return [slice(first, min(first + at_once, sharing)) for first in range(0, sharing, at_once)]


def of_group(problem: Problem, group: Group, q: Tensor, k: Tensor, v: Tensor, *dout: Tensor) -> list[Tensor]:
    """What belongs to a group: q and dout of its heads [heads, seq_q, width], its k and v [seq_kv, width]."""
    sequence, kv_head = group
    heads = query_heads(problem, group)
    return [q[sequence, heads], k[sequence, kv_head], v[sequence, kv_head], *(d[sequence, heads] for d in dout)]


def blind(problem: Problem, like: Tensor, spans: list[Span] | None) -> Forward:
    """The result of rows that see no key, to be overwritten where they see one."""
    heads = problem.heads // problem.kv_heads
    rows = sum(stop - first for first, stop in spans or [(0, problem.seq_q)])
    return Forward(like.new_zeros(heads, rows, problem.head_dim_v), like.new_full((heads, rows), float("-inf")))


@dataclass(frozen=True)
class Steps:
    """How the arithmetic of a dtype rounds: what a step leaves behind, and what a matrix product reads."""

    rounded: Callable[[Tensor], Tensor]
    operand: Callable[[Tensor], Tensor]

    def exact_product(self, left: Tensor, right: Tensor) -> Tensor:
        """A matrix product whose sum is still to be rounded."""
        return self.operand(left) @ self.operand(right)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        return self.rounded(self.exact_product(left, right))

    def softmax(self, logits: Tensor) -> Tensor:
        # Libraries compute a softmax in float32 and round what it gives.
        shifted = (logits - finite(logits.amax(-1, keepdim=True))).exp_()
        total = shifted.sum(-1, keepdim=True)
        return self.rounded(shifted / total.masked_fill(total == 0, 1.0))


def steps_of(dtype: Dtype) -> Steps:
    """As a plain implementation in torch rounds."""

    def as_is(numbers: Tensor) -> Tensor:
        return numbers

    def as_tf32(numbers: Tensor) -> Tensor:
        import torch

        # 10 bits of mantissa are kept, halves away from zero, as `cvt.rna.tf32.f32` does.
        bits = numbers.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    def as_stored(numbers: Tensor) -> Tensor:
        return numbers.to(torch_dtype(dtype.out)).float()

    if dtype is Dtype.TF32:
        return Steps(rounded=as_is, operand=as_tf32)
    return Steps(rounded=as_is if dtype is Dtype.FP32 else as_stored, operand=as_is)


def mean_square(vectors: Tensor) -> Tensor:
    """[..., width] -> [..., 1]."""
    return vectors.square().mean(-1, keepdim=True)
