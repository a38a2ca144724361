"""The reference for problems beyond softmax(q k) v: biases, sinks, other scores and weightings.

The same function computes the exact result in float64 and the same-dtype reference with the rounding of the working
dtype; gradients by autograd. Blocks and groups are those of reference.py, so memory is bounded. Some weightings select
keys, and a rounding may change the selection: `choice_error` is the error that this would cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from attnbench.attention import blocks
from attnbench.attention.blocks import EXACT, Gradients, Group, RowBlock, Span, Steps
from attnbench.attention.choices import Dtype, Positions, Returns
from attnbench.attention.logits import positioned, similarity, sink_logits
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Similarity
from attnbench.attention.weightings import GumbelMax

if TYPE_CHECKING:
    from torch import Tensor

# Relative error of a logit that may change which keys are selected, by bytes of a number.
CHOICE_EPS = {4: 2.0**-19, 2: 4 * 2.0**-8, 1: 4 * 2.0**-8}


class GroupForward(NamedTuple):
    """The forward pass of one group."""

    out: Tensor  # [heads, rows, head_dim_v]
    lse: Tensor  # [heads, rows]
    weights: Tensor | None  # [heads, rows, seq_kv], None unless they are returned
    mass: Tensor  # [heads, rows, 1], as in `reference`
    choice_error: Tensor  # [heads, rows, 1]


class GroupGradients(NamedTuple):
    """The backward pass of one group, in the layout of `reference.gradients_group`."""

    gradients: Gradients
    mass: Gradients
    choice_error: Gradients


def is_plain(problem: Problem) -> bool:
    """Whether the problem is softmax(softcap(scale q.k)) v, which `reference` computes without autograd."""
    return (
        problem.score.similarity is Similarity.DOT
        and problem.bias is None
        and problem.weighting == "softmax"
        and problem.positions is Positions.NONE
        and problem.returns is not Returns.WEIGHTS
        and not problem.sinks
    )


def forward_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, group: Group, spans: list[Span] | None, step: Steps | None
) -> GroupForward:
    """The forward pass of one group in float64, or in float32 with the rounding of `step`."""
    import torch

    queries, keys, values = _cast(step, blocks.of_group(problem, group, q, k, v))
    queries, keys = _positioned(problem, step, queries, keys)
    out, lse = blocks.empty_result(problem, values, spans)
    if problem.sinks:
        lse.copy_(sink_logits(problem).to(lse)[blocks.query_heads(problem, group), None])
    mass, choice_error = out[..., :1].clone(), out[..., :1].clone()
    all_weights = out.new_zeros(*out.shape[:2], problem.seq_kv) if problem.returns is Returns.WEIGHTS else None
    for block in blocks.row_blocks(problem, group[0], spans):
        seen = values[block.keys]
        for heads in blocks.head_blocks(problem):
            row = _Rows(problem, group, block, heads, step)
            logits = row.logits(queries[heads, block.rows], keys[block.keys])
            weights, lse[heads, block.out_rows] = row.weights(logits)
            out[heads, block.out_rows] = row.step.product(weights, seen)
            mass[heads, block.out_rows] = weights.square() @ blocks.mean_square(seen)
            distance = (2 * blocks.mean_square(seen).mean()).sqrt()  # between two values
            choice_error[heads, block.out_rows] = row.undecided_weight(logits, weights) * distance
            if all_weights is not None:
                all_weights[heads, block.out_rows, block.keys] = weights
    return GroupForward(out, lse, all_weights, torch.sqrt(mass), choice_error)


def gradients_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, group: Group, step: Steps | None
) -> GroupGradients:
    """Gradients of sum(out * dout) of one group, by autograd through the rows of each block."""
    import torch

    queries, keys, values, douts = _cast(step, blocks.of_group(problem, group, q, k, v, dout))
    leaves = [tensor.clone().requires_grad_() for tensor in (queries, keys, values)]
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    mass, choice_error = ([torch.zeros_like(leaf[..., :1]) for leaf in leaves] for _ in range(2))
    for block in blocks.row_blocks(problem, group[0]):
        for heads in blocks.head_blocks(problem):
            row = _Rows(problem, group, block, heads, step)
            with torch.enable_grad():  # the caller may be a backward pass, which disables it
                q_all, k_all = _positioned(problem, step, leaves[0], leaves[1])
                part, seen, dout_part = q_all[heads, block.rows], k_all[block.keys], douts[heads, block.rows]
                logits = row.logits(part, seen)
                weights, _ = row.weights(logits)
                out = row.step.product(weights, leaves[2][block.keys])
            *gradients, dlogits = torch.autograd.grad(out, (*leaves, logits), dout_part)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient
            with torch.no_grad():
                inputs = [part, seen, values[block.keys]]
                row.add_errors(mass, choice_error, inputs, [logits, weights, dlogits], dout_part)
    if problem.score.similarity is Similarity.COSINE:  # its derivative has a factor 1 / length
        for tensor, leaf in zip(mass[:2], leaves[:2], strict=True):
            tensor.div_(leaf.detach().square().sum(-1, keepdim=True).clamp_min(1e-12))
    rounded = (step or EXACT).rounded
    with torch.no_grad():
        parts = (map(rounded, totals), map(torch.sqrt, mass), choice_error)
        return GroupGradients(*(Gradients(dq, dk[None], dv[None]) for dq, dk, dv in parts))


class _Rows:
    """One block of rows for some heads of a group: its logits, its weights, and the errors of its gradients."""

    def __init__(self, problem: Problem, group: Group, block: RowBlock, heads: slice, step: Steps | None) -> None:
        import torch

        first = blocks.query_heads(problem, group).start
        self.problem, self.sequence, self.block, self.group_heads = problem, group[0], block, heads
        self.heads = slice(first + heads.start, first + heads.stop)  # among those of the problem
        self.step = step or EXACT
        self.i = torch.arange(block.rows.start, block.rows.stop, device="cpu")
        self.j = torch.arange(block.keys.start, block.keys.stop, device="cpu")

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """[heads, rows, keys], -inf where a key is hidden."""
        problem, rounded = self.problem, self.step.rounded
        logits = rounded(similarity(problem, self.step.operand(q), self.step.operand(k)))
        logits = rounded(logits * problem.scale)
        if cap := problem.softcap:
            logits = rounded(rounded(rounded(logits / cap).tanh()) * cap)
        if (bias := problem.bias) is not None:
            logits = rounded(logits + rounded(bias.added(problem, self.heads, q, k[None], self.i, self.j)))
        return logits.masked_fill(blocks.hidden_keys(problem, self.sequence, self.block), float("-inf"))

    def weights(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The weights, and the log-sum-exp of the logits, sinks included."""
        import torch

        problem, logits = self.problem, self._with_noise(logits)
        if not problem.sinks:
            return self.step.rounded(problem.weighing.weights(logits)), logits.logsumexp(-1)
        sinks = sink_logits(problem).to(logits)[self.heads, None, None]
        logits = torch.cat([logits, sinks.expand(*logits.shape[:2], 1)], dim=-1)
        return self.step.rounded(problem.weighing.weights(logits)[..., :-1]), logits.logsumexp(-1)

    def undecided_weight(self, logits: Tensor, weights: Tensor) -> Tensor:
        """The weight that a rounding may move to other keys: [heads, rows, 1]."""
        eps = CHOICE_EPS[self.problem.dtype.bytes]
        return self.problem.weighing.undecided_weight(self._with_noise(logits), weights, eps)

    def _with_noise(self, logits: Tensor) -> Tensor:
        if not isinstance(self.problem.weighing, GumbelMax):
            return logits
        return logits + GumbelMax.noise(self.sequence, self.heads, self.i, self.j).to(logits)

    def add_errors(
        self, mass: list[Tensor], choice_error: list[Tensor], inputs: list[Tensor], steps: list[Tensor], dout: Tensor
    ) -> None:
        """Add the squares of the terms of dq, dk and dv of this block to `mass`, and their error to `choice_error`.

        inputs: q, k and v of the block; steps: logits, weights and dlogits.
        """
        q, k, v = inputs
        logits, weights, dlogits = steps
        dweights = dout @ v.mT
        size = (dlogits.nan_to_num(0.0).abs() + weights.abs() * dweights.abs()).square() * self.problem.scale**2
        rows, keys = self.block.rows, self.block.keys
        mass[0][self.group_heads, rows] += size @ blocks.mean_square(k)
        mass[1][keys] += (size.mT @ blocks.mean_square(q)).sum(0)
        mass[2][keys] += (weights.square().mT @ blocks.mean_square(dout)).sum(0)
        undecided = self.undecided_weight(logits, weights)
        if not undecided.any():
            return
        moved = undecided * dweights.abs().amax(-1, keepdim=True) * abs(self.problem.scale)
        choice_error[0][self.group_heads, rows] += moved * blocks.mean_square(k).mean().sqrt()
        choice_error[1][keys] += (moved * blocks.mean_square(q).sqrt()).amax()
        choice_error[2][keys] += (undecided * blocks.mean_square(dout).sqrt()).amax()


def _cast(step: Steps | None, tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.double() if step is None else tensor.float() for tensor in tensors]


def _positioned(problem: Problem, step: Steps | None, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    q, k = positioned(problem, q, k)
    return (q, k) if step is None else (step.rounded(q), step.rounded(k))


def steps_for(problem: Problem) -> Steps:
    """The rounding of a plain implementation, in a form that autograd can differentiate."""
    plain = blocks.steps_of(problem.dtype)
    if problem.dtype is not Dtype.TF32:
        return plain
    # Autograd cannot differentiate the bit operations: straight-through gradient.
    return Steps(rounded=plain.rounded, operand=lambda x: x + (plain.operand(x.detach()) - x.detach()))
