"""Reference results: attention in float64, and the same-dtype reference, the plain formula in the working dtype.

Both run in blocks of query rows, over the keys that these rows may see, so memory is bounded at any length. A group is
one kv head of one sequence with the query heads that share it: the smallest unit with separate gradients. The two
formulas share the blocks and the mask but no arithmetic, so an error in one is not repeated in the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.attention import autograd_reference, blocks
from attnbench.attention.blocks import EXACT, Forward, Gradients, Group, Span, Steps
from attnbench.attention.problem import Problem
from attnbench.attention.weightings import finite

if TYPE_CHECKING:
    from torch import Tensor


def attend_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, group: Group, spans: list[Span] | None = None
) -> Forward:
    """Exact attention of one group in float64: out [heads of the group, rows of the spans, head_dim_v].

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim];
    v: [batch, kv_heads, seq_kv, head_dim_v]. A row that sees no key has out 0 and lse -inf.
    """
    if not autograd_reference.is_plain(problem):
        return Forward(*autograd_reference.forward_group(problem, q, k, v, group, spans, None)[:2])
    queries, keys, values = blocks.of_group(problem, group, q, k, v)
    keys, values = keys.double(), values.double()
    out, lse = blocks.empty_result(problem, values, spans)
    for block in blocks.row_blocks(problem, group[0], spans):
        hidden = blocks.hidden_keys(problem, group[0], block)
        for heads in blocks.head_blocks(problem):
            part = queries[heads, block.rows].double()
            weights, lse[heads, block.out_rows], _ = _weights(problem, part, keys[block.keys], hidden)
            out[heads, block.out_rows] = weights @ values[block.keys]
    return Forward(out, lse)


def gradients_group(problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, group: Group) -> Gradients:
    """Gradients of sum(out * dout) in float64: dq [heads of the group, seq_q, head_dim]; dk and dv [1, seq_kv, width].

    dV = Pᵀ dO; dS = P (dP - rowsum(P dP)) with dP = dO Vᵀ; dQ = scale dS K; dK = scale dSᵀ Q.
    """
    if not autograd_reference.is_plain(problem):
        return autograd_reference.gradients_group(problem, q, k, v, dout, group, None).gradients
    queries, keys, values, douts = (tensor.double() for tensor in blocks.of_group(problem, group, q, k, v, dout))
    dq, dk, dv = queries.new_zeros(queries.shape), keys.new_zeros(keys.shape), values.new_zeros(values.shape)
    for block in blocks.row_blocks(problem, group[0]):
        hidden = blocks.hidden_keys(problem, group[0], block)
        for heads in blocks.head_blocks(problem):
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
    """Softmax over the visible keys, its log-sum-exp, and the derivative of the soft cap if there is one."""
    logits = (queries @ keys.T).mul_(problem.scale)
    slope = None
    if cap := problem.softcap:
        capped = logits.div_(cap).tanh_()
        slope = 1 - capped**2
        logits = capped.mul_(cap)
    lse = logits.masked_fill_(hidden, float("-inf")).logsumexp(-1)
    return logits.sub_(finite(lse)[..., None]).exp_(), lse, slope


def attend_group_same_dtype(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, group: Group, spans: list[Span] | None = None
) -> tuple[Forward, Tensor]:
    """The same-dtype reference of one group, as float32 in the layout of `attend_group`, and its mass [heads, rows, 1].

    Its error shows which error a correct kernel may have. Arithmetic is float32, rounded to the working dtype after
    every step that a plain implementation rounds, and k is scaled instead of q. fp8 inputs are computed in bf16, the
    format of their output. The mass is the root of the summed squares of the terms of a sum, a mean over the width:
    independent errors of a relative size e in every term give an error of e times the mass, even if the terms cancel.
    """
    if not autograd_reference.is_plain(problem):
        steps = autograd_reference.steps_for(problem)
        forward = autograd_reference.forward_group(problem, q, k, v, group, spans, steps)
        return Forward(forward.out, forward.lse), forward.mass
    return plain_forward(problem, group[0], *blocks.of_group(problem, group, q, k, v), spans=spans)


def plain_forward(
    problem: Problem, sequence: int, q: Tensor, k: Tensor, v: Tensor, *, spans: list[Span] | None = None
) -> tuple[Forward, Tensor]:
    """The same-dtype reference of the tensors of one group, and its mass.

    q: [..., heads, seq_q, head_dim]; k: [..., seq_kv, head_dim]; v: [seq_kv, head_dim_v].
    """
    step = blocks.steps_of(problem.dtype)
    scaled, values = step.rounded(k.float() * problem.scale), v.float()
    out, lse = blocks.empty_result(problem, values, spans, q.shape[:-3])
    mass = out[..., :1].clone()
    for block in blocks.row_blocks(problem, sequence, spans):
        hidden = blocks.hidden_keys(problem, sequence, block)
        for heads in blocks.head_blocks(problem):
            part = q[..., heads, block.rows, :].float()
            logits, _ = _plain_logits(problem, step, part, scaled[..., block.keys, :], hidden)
            weights = step.softmax(logits)
            out[..., heads, block.out_rows, :] = step.product(weights, values[block.keys])
            lse[..., heads, block.out_rows] = logits.logsumexp(-1)
            mass[..., heads, block.out_rows, :] = weights.square() @ blocks.mean_square(values[block.keys])
    return Forward(out, lse), mass.sqrt()


def gradients_group_same_dtype(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, group: Group
) -> tuple[Gradients, Gradients]:
    """Gradients of the same-dtype reference, in the layout of `gradients_group`, and their masses, of width 1.

    dk and dv are computed and rounded for each query head, then summed over the heads of the group, as in an
    implementation that repeats k and v.
    """
    if not autograd_reference.is_plain(problem):
        steps = autograd_reference.steps_for(problem)
        return autograd_reference.gradients_group(problem, q, k, v, dout, group, steps)[:2]
    return plain_gradients(problem, group[0], *blocks.of_group(problem, group, q, k, v, dout))


def plain_gradients(
    problem: Problem, sequence: int, q: Tensor, k: Tensor, v: Tensor, dout: Tensor
) -> tuple[Gradients, Gradients]:
    """Gradients of the same-dtype reference of the tensors of one group, and their masses.

    q: [..., heads, seq_q, head_dim]; k: [..., seq_kv, head_dim]; v: [seq_kv, head_dim_v]; dout as the output.
    """
    step = blocks.steps_of(problem.dtype)
    queries, keys, values, douts = (tensor.float() for tensor in (q, k, v, dout))
    lead = queries.shape[:-3]
    scaled = step.rounded(keys * problem.scale)
    total = Gradients(
        queries.new_zeros(queries.shape), keys.new_zeros(keys.shape), values.new_zeros(*lead, *values.shape)
    )
    mass = Gradients(*(tensor[..., :1].clone() for tensor in total))
    for heads in blocks.head_blocks(problem):
        dk, dv = (tensor.new_zeros(*lead, heads.stop - heads.start, *tensor.shape[-2:]) for tensor in (keys, values))
        for block in blocks.row_blocks(problem, sequence):
            part, dout_part, seen = queries[..., heads, block.rows, :], douts[heads, block.rows], block.keys
            logits, tanh = _plain_logits(
                problem, step, part, scaled[..., seen, :], blocks.hidden_keys(problem, sequence, block)
            )
            weights = step.softmax(logits)
            dweights = step.product(dout_part, values[seen].T)
            dlogits, squares = _plain_dlogits(step, weights, dweights, tanh, problem.softcap)
            total.dq[..., heads, block.rows, :] = step.rounded(_product(step, dlogits, scaled[..., seen, :]))
            dk[..., seen, :] += step.exact_product(dlogits.mT, part)
            dv[..., seen, :] += step.exact_product(weights.mT, dout_part)
            mass.dq[..., heads, block.rows, :] = _product(EXACT, squares, blocks.mean_square(scaled[..., seen, :]))
            mass.dk[..., seen, :] += (squares.mT @ blocks.mean_square(part)).sum(-3).mul_(problem.scale**2)
            mass.dv[..., seen, :] += (weights.square().mT @ blocks.mean_square(dout_part)).sum(-3)
        total.dk.add_(step.rounded(step.rounded(dk) * problem.scale).sum(-3))
        total.dv.add_(step.rounded(dv).sum(-3))
    return (
        Gradients(total.dq, step.rounded(total.dk)[..., None, :, :], step.rounded(total.dv)[..., None, :, :]),
        Gradients(mass.dq.sqrt(), mass.dk.sqrt()[..., None, :, :], mass.dv.sqrt()[..., None, :, :]),
    )


def _plain_logits(
    problem: Problem, step: Steps, queries: Tensor, scaled_keys: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Logits with the rounding of a plain implementation, and the tanh of the soft cap if there is one."""
    logits = step.rounded(_product(step, queries, scaled_keys.mT))
    tanh = None
    if cap := problem.softcap:
        tanh = step.rounded(step.rounded(logits / cap).tanh())
        logits = step.rounded(tanh * cap)
    return logits.masked_fill(hidden, float("-inf")), tanh


def _product(step: Steps, heads: Tensor, shared: Tensor) -> Tensor:
    """A product of each head with the matrix that they share, as one product: [..., heads, rows, n] @ [..., n, m]."""
    products: Tensor = step.exact_product(heads.flatten(-3, -2), shared).unflatten(-2, heads.shape[-3:-1])
    return products


def _plain_dlogits(
    step: Steps, weights: Tensor, dweights: Tensor, tanh: Tensor | None, cap: float | None
) -> tuple[Tensor, Tensor]:
    """The gradient of the scaled products, and the squares of its terms."""
    total = (weights * dweights).sum(-1, keepdim=True)
    dlogits = step.rounded(weights * (dweights - total))
    size = weights * (dweights.abs() + total.abs())
    if tanh is not None and cap:
        dlogits = step.rounded(step.rounded(step.rounded(dlogits * cap) * (1 - tanh * tanh)) / cap)
        size = size * (1 - tanh * tanh)
    return dlogits, size.square()
