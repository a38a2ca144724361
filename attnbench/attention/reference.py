"""The truth that kernels are judged by: attention in float64, and the plain formula in the working dtype.

Both run in blocks of query rows, over the keys that these rows may see, so that memory stays bounded at any length. A
group is one kv head of one sequence with the query heads that share it: the smallest unit with gradients of its own.
The two formulas share the blocks and the mask, and no arithmetic: a slip in one is not a slip in the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from attnbench.attention.inputs import torch_dtype
from attnbench.attention.problem import Dtype, Problem

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


def attend(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Forward:
    """Exact attention in float64. A row that sees no key gives out 0 and lse -inf.

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim];
    v: [batch, kv_heads, seq_kv, head_dim_v].
    """
    return _forward_of_all(problem, lambda group: attend_group(problem, q, k, v, group))


def gradients(problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> Gradients:
    """Exact gradients in float64 of sum(out * dout); dout: [batch, heads, seq_q, head_dim_v]."""
    return _gradients_of_all(problem, lambda group: gradients_group(problem, q, k, v, dout, group))


def yardstick(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Forward:
    """What a plain implementation in the dtype of the problem gives, as float32: it says how much error is normal.

    Arithmetic is float32, rounded to the working dtype after every step that a plain implementation would round, and k
    is scaled in place of q. fp8 inputs are worked on in bf16, as their output is.
    """
    return _forward_of_all(problem, lambda group: yardstick_group(problem, q, k, v, group)[0])


def yardstick_gradients(problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> Gradients:
    """The backward pass of `yardstick`, step by step as autograd would take it."""
    return _gradients_of_all(problem, lambda group: yardstick_gradients_group(problem, q, k, v, dout, group)[0])


def groups(problem: Problem) -> list[Group]:
    """Every group of a problem, in the order of memory."""
    return [(b, kv_head) for b in range(problem.batch) for kv_head in range(problem.kv_heads)]


def query_heads(problem: Problem, group: Group) -> slice:
    """The query heads that share the keys of a group."""
    sharing = problem.heads // problem.kv_heads
    return slice(group[1] * sharing, (group[1] + 1) * sharing)


def blocks(problem: Problem, sequence: int, spans: list[Span] | None = None) -> Iterator[Block]:
    """Cut the rows of a sequence into blocks of bounded size; rows that see no key are in none of them."""
    most = max(1, min(ROWS, CELLS // problem.seq_kv))
    place = 0
    for first, stop in spans or [(0, problem.seq_q)]:
        for start in range(first, stop, most):
            rows = np.arange(start, min(start + most, stop))
            low, high = problem.masking.interval(problem.grid, np.array(sequence), rows)
            if (seeing := high > low).any():
                keys = slice(int(low[seeing].min()), int(high[seeing].max()))
                yield Block(slice(start, start + len(rows)), keys, slice(place, place + len(rows)))
            place += len(rows)


def touched(problem: Problem, sequence: int, spans: list[Span] | None = None) -> int:
    """The logits that are computed for one head: visible pairs, and what lies beside them in the blocks."""
    return sum(
        (block.rows.stop - block.rows.start) * (block.keys.stop - block.keys.start)
        for block in blocks(problem, sequence, spans)
    )


def attend_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, group: Group, spans: list[Span] | None = None
) -> Forward:
    """`attend` for one group: out [heads of the group, rows of the spans, head_dim_v]."""
    queries, keys, values = _of_group(problem, group, q, k, v)
    keys, values = keys.double(), values.double()
    out, lse = _blind(problem, values, spans)
    for block in blocks(problem, group[0], spans):
        hidden = _hidden(problem, group[0], block)
        for heads in _head_blocks(problem):
            part = queries[heads, block.rows].double()
            weights, lse[heads, block.place], _ = _weights(problem, part, keys[block.keys], hidden)
            out[heads, block.place] = weights @ values[block.keys]
    return Forward(out, lse)


def gradients_group(problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, group: Group) -> Gradients:
    """`gradients` for one group: dq [heads of the group, seq_q, head_dim]; dk and dv [1, seq_kv, width].

    dV = Pᵀ dO; dS = P (dP - rowsum(P dP)) with dP = dO Vᵀ; dQ = scale dS K; dK = scale dSᵀ Q.
    """
    queries, keys, values, douts = (tensor.double() for tensor in _of_group(problem, group, q, k, v, dout))
    dq, dk, dv = queries.new_zeros(queries.shape), keys.new_zeros(keys.shape), values.new_zeros(values.shape)
    for block in blocks(problem, group[0]):
        hidden = _hidden(problem, group[0], block)
        for heads in _head_blocks(problem):
            part, dout_part = queries[heads, block.rows], douts[heads, block.rows]
            weights, _, slope = _weights(problem, part, keys[block.keys], hidden)
            dv[block.keys] += weights.flatten(0, 1).T @ dout_part.flatten(0, 1)
            dweights = dout_part @ values[block.keys].T
            dweights -= (dweights * weights).sum(-1, keepdim=True)
            dlogits = dweights.mul_(weights).mul_(problem.scale)
            if slope is not None:
                dlogits *= slope
            dq[heads, block.rows] = dlogits @ keys[block.keys]
            dk[block.keys] += dlogits.flatten(0, 1).T @ part.flatten(0, 1)
    return Gradients(dq, dk[None], dv[None])


def _weights(problem: Problem, queries: Tensor, keys: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Softmax over the visible keys, its log-sum-exp, and the derivative of the soft cap where there is one."""
    logits = (queries @ keys.T).mul_(problem.scale)
    slope = None
    if cap := problem.softcap:
        capped = logits.div_(cap).tanh_()
        slope = 1 - capped**2
        logits = capped.mul_(cap)
    lse = logits.masked_fill_(hidden, float("-inf")).logsumexp(-1)
    return logits.sub_(_finite(lse)[..., None]).exp_(), lse, slope


def yardstick_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, group: Group, spans: list[Span] | None = None
) -> tuple[Forward, Tensor]:
    """`yardstick` for one group, in the layout of `attend_group`, and the mass of out [heads, rows, 1].

    The mass is the root of the summed squares of the terms that are added up, a mean over the width. Errors of a
    relative size e in every term come out as e times the mass, even where the terms cancel to nothing.
    """
    step = _steps(problem.dtype)
    queries, keys, values = _of_group(problem, group, q, k, v)
    scaled, values = step.rounded(keys.float() * problem.scale), values.float()
    out, lse = _blind(problem, values, spans)
    mass = out[..., :1].clone()
    for block in blocks(problem, group[0], spans):
        hidden = _hidden(problem, group[0], block)
        for heads in _head_blocks(problem):
            part = queries[heads, block.rows].float()
            logits, _ = _plain_logits(problem, step, part, scaled[block.keys], hidden)
            weights = step.softmax(logits)
            out[heads, block.place] = step.product(weights, values[block.keys])
            lse[heads, block.place] = logits.logsumexp(-1)
            mass[heads, block.place] = weights.square() @ _mean_square(values[block.keys])
    return Forward(out, lse), mass.sqrt()


def yardstick_gradients_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, group: Group
) -> tuple[Gradients, Gradients]:
    """`yardstick_gradients` for one group, in the layout of `gradients_group`, and their masses, of width 1.

    Each query head has gradients of its own for k and v, rounded, then summed over the heads of the group, as in an
    implementation that repeats k and v for them.
    """
    step = _steps(problem.dtype)
    queries, keys, values, douts = (tensor.float() for tensor in _of_group(problem, group, q, k, v, dout))
    scaled = step.rounded(keys * problem.scale)
    found = Gradients(*(tensor.new_zeros(tensor.shape) for tensor in (queries, keys, values)))
    mass = Gradients(*(tensor[..., :1].clone() for tensor in found))
    for heads in _head_blocks(problem):
        dk, dv = (tensor.new_zeros(heads.stop - heads.start, *tensor.shape) for tensor in (keys, values))
        for block in blocks(problem, group[0]):
            part, dout_part, seen = queries[heads, block.rows], douts[heads, block.rows], block.keys
            logits, tanh = _plain_logits(problem, step, part, scaled[seen], _hidden(problem, group[0], block))
            weights = step.softmax(logits)
            dweights = step.product(dout_part, values[seen].T)
            dlogits, size = _plain_dlogits(step, weights, dweights, tanh, problem.softcap)
            found.dq[heads, block.rows] = step.product(dlogits, scaled[seen])
            dk[:, seen] += step.exact_product(dlogits.mT, part)
            dv[:, seen] += step.exact_product(weights.mT, dout_part)
            mass.dq[heads, block.rows] = size @ _mean_square(scaled[seen])
            mass.dk[seen] += (size.mT @ _mean_square(part)).sum(0).mul_(problem.scale**2)
            mass.dv[seen] += (weights.square().mT @ _mean_square(dout_part)).sum(0)
        found.dk.add_(step.rounded(step.rounded(dk) * problem.scale).sum(0))
        found.dv.add_(step.rounded(dv).sum(0))
    return (
        Gradients(found.dq, step.rounded(found.dk)[None], step.rounded(found.dv)[None]),
        Gradients(mass.dq.sqrt(), mass.dk.sqrt()[None], mass.dv.sqrt()[None]),
    )


@dataclass(frozen=True)
class _Steps:
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
        shifted = (logits - _finite(logits.amax(-1, keepdim=True))).exp_()
        total = shifted.sum(-1, keepdim=True)
        return self.rounded(shifted / total.masked_fill(total == 0, 1.0))


def _steps(dtype: Dtype) -> _Steps:
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
        return _Steps(rounded=as_is, operand=as_tf32)
    return _Steps(rounded=as_is if dtype is Dtype.FP32 else as_stored, operand=as_is)


def _plain_logits(
    problem: Problem, step: _Steps, queries: Tensor, scaled_keys: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Logits as a plain implementation rounds them, and the tanh of the soft cap where there is one."""
    logits = step.product(queries, scaled_keys.T)
    tanh = None
    if cap := problem.softcap:
        tanh = step.rounded(step.rounded(logits / cap).tanh())
        logits = step.rounded(tanh * cap)
    return logits.masked_fill(hidden, float("-inf")), tanh


def _plain_dlogits(
    step: _Steps, weights: Tensor, dweights: Tensor, tanh: Tensor | None, cap: float | None
) -> tuple[Tensor, Tensor]:
    """The gradient of the scaled products, and the square of the two terms whose difference it is."""
    total = (weights * dweights).sum(-1, keepdim=True)
    dlogits = step.rounded(weights * (dweights - total))
    size = weights * (dweights.abs() + total.abs())
    if tanh is not None and cap:
        dlogits = step.rounded(step.rounded(step.rounded(dlogits * cap) * (1 - tanh * tanh)) / cap)
        size = size * (1 - tanh * tanh)
    return dlogits, size.square()


def _mean_square(vectors: Tensor) -> Tensor:
    return vectors.square().mean(-1, keepdim=True)


def _hidden(problem: Problem, sequence: int, block: Block) -> Tensor:
    """True where a key of the block is not visible; from the predicate of the mask, not from its intervals."""
    import torch

    i = np.arange(block.rows.start, block.rows.stop)[:, None]
    j = np.arange(block.keys.start, block.keys.stop)[None, :]
    return torch.from_numpy(~problem.masking.visible(problem.grid, np.array(sequence), i, j))


def _finite(numbers: Tensor) -> Tensor:
    """-inf, which stands for no key at all, as 0: exp(-inf - 0) is the weight 0 that is wanted."""
    return numbers.masked_fill(numbers.isneginf(), 0.0)


def _head_blocks(problem: Problem) -> list[slice]:
    """Query heads of a group that are computed at once: several where the sequence is short."""
    sharing = problem.heads // problem.kv_heads
    at_once = max(1, CELLS // (problem.seq_q * problem.seq_kv))
    return [slice(first, min(first + at_once, sharing)) for first in range(0, sharing, at_once)]


def _of_group(problem: Problem, group: Group, q: Tensor, k: Tensor, v: Tensor, *dout: Tensor) -> list[Tensor]:
    sequence, kv_head = group
    heads = query_heads(problem, group)
    return [q[sequence, heads], k[sequence, kv_head], v[sequence, kv_head], *(d[sequence, heads] for d in dout)]


def _blind(problem: Problem, like: Tensor, spans: list[Span] | None) -> Forward:
    """The result of rows that see no key, to be overwritten where they see one."""
    heads = problem.heads // problem.kv_heads
    rows = sum(stop - first for first, stop in spans or [(0, problem.seq_q)])
    return Forward(like.new_zeros(heads, rows, problem.head_dim_v), like.new_full((heads, rows), float("-inf")))


def _forward_of_all(problem: Problem, one: Callable[[Group], Forward]) -> Forward:
    found = [one(group) for group in groups(problem)]
    return Forward(*(_joined(problem, parts) for parts in zip(*found, strict=True)))


def _gradients_of_all(problem: Problem, one: Callable[[Group], Gradients]) -> Gradients:
    found = [one(group) for group in groups(problem)]
    return Gradients(*(_joined(problem, parts) for parts in zip(*found, strict=True)))


def _joined(problem: Problem, parts: tuple[Tensor, ...]) -> Tensor:
    import torch

    return torch.cat(parts).reshape(problem.batch, -1, *parts[0].shape[1:])
