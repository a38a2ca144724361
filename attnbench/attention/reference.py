"""The truth that kernels are judged by: attention in float64, and the plain formula in the working dtype.

Both run in blocks of query rows, over the keys that these rows may see, so that memory stays bounded at any length. A
group is one kv head of one sequence with the query heads that share it: the smallest unit with gradients of its own.
The two formulas share the blocks and the mask, and no arithmetic: a slip in one is not a slip in the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attnbench.attention import general
from attnbench.attention.blocks import (
    Forward,
    Gradients,
    Group,
    Span,
    Steps,
    blind,
    blocks,
    finite,
    groups,
    head_blocks,
    hidden_keys,
    mean_square,
    of_group,
    steps_of,
)  # fmt: skip
from attnbench.attention.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


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


def attend_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, group: Group, spans: list[Span] | None = None
) -> Forward:
    """`attend` for one group: out [heads of the group, rows of the spans, head_dim_v]."""
    if not general.is_plain(problem):
        return general.attend_group(problem, q, k, v, group, spans)
    queries, keys, values = of_group(problem, group, q, k, v)
    keys, values = keys.double(), values.double()
    out, lse = blind(problem, values, spans)
    for block in blocks(problem, group[0], spans):
        hidden = hidden_keys(problem, group[0], block)
        for heads in head_blocks(problem):
            part = queries[heads, block.rows].double()
            weights, lse[heads, block.place], _ = _weights(problem, part, keys[block.keys], hidden)
            out[heads, block.place] = weights @ values[block.keys]
    return Forward(out, lse)


def gradients_group(problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, group: Group) -> Gradients:
    """`gradients` for one group: dq [heads of the group, seq_q, head_dim]; dk and dv [1, seq_kv, width].

    dV = Pᵀ dO; dS = P (dP - rowsum(P dP)) with dP = dO Vᵀ; dQ = scale dS K; dK = scale dSᵀ Q.
    """
    if not general.is_plain(problem):
        return general.gradients_group(problem, q, k, v, dout, group, None).gradients
    queries, keys, values, douts = (tensor.double() for tensor in of_group(problem, group, q, k, v, dout))
    dq, dk, dv = queries.new_zeros(queries.shape), keys.new_zeros(keys.shape), values.new_zeros(values.shape)
    for block in blocks(problem, group[0]):
        hidden = hidden_keys(problem, group[0], block)
        for heads in head_blocks(problem):
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
    return logits.sub_(finite(lse)[..., None]).exp_(), lse, slope


def yardstick_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, group: Group, spans: list[Span] | None = None
) -> tuple[Forward, Tensor]:
    """`yardstick` for one group, in the layout of `attend_group`, and the mass of out [heads, rows, 1].

    The mass is the root of the summed squares of the terms that are added up, a mean over the width. Errors of a
    relative size e in every term come out as e times the mass, even where the terms cancel to nothing.
    """
    if not general.is_plain(problem):
        found = general.forward_group(problem, q, k, v, group, spans, general.steps_for(problem))
        return Forward(found.out, found.lse), found.mass
    step = steps_of(problem.dtype)
    queries, keys, values = of_group(problem, group, q, k, v)
    scaled, values = step.rounded(keys.float() * problem.scale), values.float()
    out, lse = blind(problem, values, spans)
    mass = out[..., :1].clone()
    for block in blocks(problem, group[0], spans):
        hidden = hidden_keys(problem, group[0], block)
        for heads in head_blocks(problem):
            part = queries[heads, block.rows].float()
            logits, _ = _plain_logits(problem, step, part, scaled[block.keys], hidden)
            weights = step.softmax(logits)
            out[heads, block.place] = step.product(weights, values[block.keys])
            lse[heads, block.place] = logits.logsumexp(-1)
            mass[heads, block.place] = weights.square() @ mean_square(values[block.keys])
    return Forward(out, lse), mass.sqrt()


def yardstick_gradients_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, group: Group
) -> tuple[Gradients, Gradients]:
    """`yardstick_gradients` for one group, in the layout of `gradients_group`, and their masses, of width 1.

    Each query head has gradients of its own for k and v, rounded, then summed over the heads of the group, as in an
    implementation that repeats k and v for them.
    """
    if not general.is_plain(problem):
        steps = general.steps_for(problem)
        return general.gradients_group(problem, q, k, v, dout, group, steps)[:2]
    step = steps_of(problem.dtype)
    queries, keys, values, douts = (tensor.float() for tensor in of_group(problem, group, q, k, v, dout))
    scaled = step.rounded(keys * problem.scale)
    found = Gradients(*(tensor.new_zeros(tensor.shape) for tensor in (queries, keys, values)))
    mass = Gradients(*(tensor[..., :1].clone() for tensor in found))
    for heads in head_blocks(problem):
        dk, dv = (tensor.new_zeros(heads.stop - heads.start, *tensor.shape) for tensor in (keys, values))
        for block in blocks(problem, group[0]):
            part, dout_part, seen = queries[heads, block.rows], douts[heads, block.rows], block.keys
            logits, tanh = _plain_logits(problem, step, part, scaled[seen], hidden_keys(problem, group[0], block))
            weights = step.softmax(logits)
            dweights = step.product(dout_part, values[seen].T)
            dlogits, size = _plain_dlogits(step, weights, dweights, tanh, problem.softcap)
            found.dq[heads, block.rows] = step.product(dlogits, scaled[seen])
            dk[:, seen] += step.exact_product(dlogits.mT, part)
            dv[:, seen] += step.exact_product(weights.mT, dout_part)
            mass.dq[heads, block.rows] = size @ mean_square(scaled[seen])
            mass.dk[seen] += (size.mT @ mean_square(part)).sum(0).mul_(problem.scale**2)
            mass.dv[seen] += (weights.square().mT @ mean_square(dout_part)).sum(0)
        found.dk.add_(step.rounded(step.rounded(dk) * problem.scale).sum(0))
        found.dv.add_(step.rounded(dv).sum(0))
    return (
        Gradients(found.dq, step.rounded(found.dk)[None], step.rounded(found.dv)[None]),
        Gradients(mass.dq.sqrt(), mass.dk.sqrt()[None], mass.dv.sqrt()[None]),
    )


def _plain_logits(
    problem: Problem, step: Steps, queries: Tensor, scaled_keys: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Logits as a plain implementation rounds them, and the tanh of the soft cap where there is one."""
    logits = step.product(queries, scaled_keys.T)
    tanh = None
    if cap := problem.softcap:
        tanh = step.rounded(step.rounded(logits / cap).tanh())
        logits = step.rounded(tanh * cap)
    return logits.masked_fill(hidden, float("-inf")), tanh


def _plain_dlogits(
    step: Steps, weights: Tensor, dweights: Tensor, tanh: Tensor | None, cap: float | None
) -> tuple[Tensor, Tensor]:
    """The gradient of the scaled products, and the square of the two terms whose difference it is."""
    total = (weights * dweights).sum(-1, keepdim=True)
    dlogits = step.rounded(weights * (dweights - total))
    size = weights * (dweights.abs() + total.abs())
    if tanh is not None and cap:
        dlogits = step.rounded(step.rounded(step.rounded(dlogits * cap) * (1 - tanh * tanh)) / cap)
        size = size * (1 - tanh * tanh)
    return dlogits, size.square()


def _forward_of_all(problem: Problem, one: Callable[[Group], Forward]) -> Forward:
    found = [one(group) for group in groups(problem)]
    return Forward(*(_joined(problem, parts) for parts in zip(*found, strict=True)))


def _gradients_of_all(problem: Problem, one: Callable[[Group], Gradients]) -> Gradients:
    found = [one(group) for group in groups(problem)]
    return Gradients(*(_joined(problem, parts) for parts in zip(*found, strict=True)))


def _joined(problem: Problem, parts: tuple[Tensor, ...]) -> Tensor:
    import torch

    return torch.cat(parts).reshape(problem.batch, -1, *parts[0].shape[1:])
