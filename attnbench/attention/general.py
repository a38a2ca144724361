"""The reference where a problem is more than a softmax of dot products: biases, sinks, other scores and weightings.

One function, taken in float64 for the truth and with the rounding of the working dtype for the yardstick; gradients by
autograd. Blocks and groups are those of reference.py, so memory stays bounded here too. Some weightings choose keys: a
row whose choice hangs on a rounding is `loose`, by as much as the other choice would change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from attnbench.attention import formula
from attnbench.attention.blocks import (
    Block,
    Forward,
    Gradients,
    Group,
    Span,
    Steps,
    blind,
    blocks,
    head_blocks,
    hidden_keys,
    mean_square,
    of_group,
    query_heads,
    steps_of,
)  # fmt: skip
from attnbench.attention.problem import Dtype, Positions, Problem, Returns
from attnbench.attention.scores import Similarity
from attnbench.attention.weightings import Sample

if TYPE_CHECKING:
    from torch import Tensor

CHOICE_EPS = {4: 2.0**-19, 2: 4 * 2.0**-8, 1: 4 * 2.0**-8}  # of a logit, by bytes of a number: what may turn a choice


class Found(NamedTuple):
    """One group: out, lse, and weights [heads, rows, seq_kv] where they are returned; mass and loose [heads, rows, 1].

    The mass is the root of the summed squares of the terms of out, a mean over the width, as in `reference`.
    """

    out: Tensor
    lse: Tensor
    weights: Tensor | None
    mass: Tensor
    loose: Tensor


class FoundGradients(NamedTuple):
    """Gradients of one group with their masses and how loose they are, in the layout of `reference`."""

    gradients: Gradients
    mass: Gradients
    loose: Gradients


def is_plain(problem: Problem) -> bool:
    """Whether the problem is softmax(softcap(scale q.k)) v: what `reference` works out by hand."""
    return (
        problem.score.similarity is Similarity.DOT
        and problem.bias is None
        and problem.weighting == "softmax"
        and problem.positions is Positions.NONE
        and problem.returns is not Returns.WEIGHTS
        and not problem.sinks
    )


def exact() -> Steps:
    """Steps that round nothing."""
    return Steps(rounded=lambda numbers: numbers, operand=lambda numbers: numbers)


def forward_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, group: Group, spans: list[Span] | None, step: Steps | None
) -> Found:
    """One group in float64, or with the steps of a dtype in float32."""
    import torch

    queries, keys, values = _cast(step, of_group(problem, group, q, k, v))
    queries, keys = _turned(problem, step, queries, keys)
    out, lse = blind(problem, values, spans)
    if problem.sinks:
        lse.copy_(formula.sinks(problem).to(lse)[query_heads(problem, group), None])
    mass, loose = out[..., :1].clone(), out[..., :1].clone()
    every = out.new_zeros(*out.shape[:2], problem.seq_kv) if problem.returns is Returns.WEIGHTS else None
    for block in blocks(problem, group[0], spans):
        seen = values[block.keys]
        for heads in head_blocks(problem):
            row = _Rows(problem, group, block, heads, step)
            logits = row.logits(queries[heads, block.rows], keys[block.keys])
            weights, lse[heads, block.place] = row.weights(logits)
            out[heads, block.place] = row.step.product(weights, seen)
            mass[heads, block.place] = weights.square() @ mean_square(seen)
            loose[heads, block.place] = row.unsure(logits, weights) * (2 * mean_square(seen).mean()).sqrt()
            if every is not None:
                every[heads, block.place, block.keys] = weights
    return Found(out, lse, every, torch.sqrt(mass), loose)


def gradients_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, group: Group, step: Steps | None
) -> FoundGradients:
    """Gradients of sum(out * dout) of one group, by autograd through the rows of each block."""
    import torch

    queries, keys, values, douts = _cast(step, of_group(problem, group, q, k, v, dout))
    leaves = [tensor.clone().requires_grad_() for tensor in (queries, keys, values)]
    found = [torch.zeros_like(leaf) for leaf in leaves]
    mass, loose = ([torch.zeros_like(leaf[..., :1]) for leaf in leaves] for _ in range(2))
    for block in blocks(problem, group[0]):
        for heads in head_blocks(problem):
            row = _Rows(problem, group, block, heads, step)
            with torch.enable_grad():  # even where a backward pass asks for it
                turned_q, turned_k = _turned(problem, step, leaves[0], leaves[1])
                part, seen, dout_part = turned_q[heads, block.rows], turned_k[block.keys], douts[heads, block.rows]
                logits = row.logits(part, seen)
                weights, _ = row.weights(logits)
                out = row.step.product(weights, leaves[2][block.keys])
            *steps, dlogits = torch.autograd.grad(out, (*leaves, logits), dout_part)
            for total, one in zip(found, steps, strict=True):
                total += one
            with torch.no_grad():
                turned = part, seen, values[block.keys]
                row.weigh_gradients(mass, loose, turned, (logits, weights, dlogits), dout_part)
    if problem.score.similarity is Similarity.COSINE:  # whose derivative holds one over the length
        for tensor, leaf in zip(mass[:2], leaves[:2], strict=True):
            tensor.div_(leaf.detach().square().sum(-1, keepdim=True).clamp_min(1e-12))
    rounded = (step or exact()).rounded
    with torch.no_grad():
        dq, dk, dv = (rounded(tensor) for tensor in found)
        return FoundGradients(
            Gradients(dq, dk[None], dv[None]),
            Gradients(mass[0].sqrt(), mass[1].sqrt()[None], mass[2].sqrt()[None]),
            Gradients(loose[0], loose[1][None], loose[2][None]),
        )


def attend_group(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, group: Group, spans: list[Span] | None = None
) -> Forward:
    """Out and lse of one group, in float64."""
    found = forward_group(problem, q, k, v, group, spans, None)
    return Forward(found.out, found.lse)


class _Rows:
    """One block of rows of some heads of a group: its logits, its weights, and what its gradients are made of."""

    def __init__(self, problem: Problem, group: Group, block: Block, heads: slice, step: Steps | None) -> None:
        import torch

        first = query_heads(problem, group).start
        self.problem, self.sequence, self.block, self.own = problem, group[0], block, heads
        self.heads = slice(first + heads.start, first + heads.stop)  # of the problem
        self.step = step or exact()
        self.i = torch.arange(block.rows.start, block.rows.stop)
        self.j = torch.arange(block.keys.start, block.keys.stop)

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """[heads, rows, keys], -inf where a key is hidden."""
        problem, rounded = self.problem, self.step.rounded
        logits = rounded(formula.similarity(problem, self.step.operand(q), self.step.operand(k)))
        logits = rounded(logits * problem.scale)
        if cap := problem.softcap:
            logits = rounded(rounded(rounded(logits / cap).tanh()) * cap)
        if (bias := problem.bias) is not None:
            logits = rounded(logits + rounded(bias.added(problem, self.heads, q, k[None], self.i, self.j)))
        return logits.masked_fill(hidden_keys(problem, self.sequence, self.block), float("-inf"))

    def weights(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The weights, and the log-sum-exp of what stands in a softmax."""
        import torch

        problem = self.problem
        if isinstance(problem.weigh, Sample):
            logits = logits + Sample.noise(self.sequence, self.heads, self.i, self.j).to(logits)
        if not problem.sinks:
            return self.step.rounded(problem.weigh.weights(logits)), logits.logsumexp(-1)
        sinks = formula.sinks(problem).to(logits)[self.heads, None, None]
        logits = torch.cat([logits, sinks.expand(*logits.shape[:2], 1)], dim=-1)
        return self.step.rounded(problem.weigh.weights(logits)[..., :-1]), logits.logsumexp(-1)

    def unsure(self, logits: Tensor, weights: Tensor) -> Tensor:
        """[heads, rows, 1]: the weight that a rounding may move to other keys."""
        problem = self.problem
        if isinstance(problem.weigh, Sample):
            logits = logits + Sample.noise(self.sequence, self.heads, self.i, self.j).to(logits)
        found = problem.weigh.unsure(logits, weights, CHOICE_EPS[problem.dtype.bytes])
        return weights.new_zeros(*weights.shape[:2], 1) if found is None else found

    def weigh_gradients(
        self,
        mass: list[Tensor],
        loose: list[Tensor],
        turned: tuple[Tensor, Tensor, Tensor],
        found: tuple[Tensor, Tensor, Tensor],
        dout: Tensor,
    ) -> None:
        """Add this block's squares of the terms of dq, dk and dv, and what an unsure choice may move."""
        q, k, v = turned
        logits, weights, dlogits = found
        dweights = dout @ v.mT
        size = (dlogits.nan_to_num(0.0).abs() + weights.abs() * dweights.abs()).square() * self.problem.scale**2
        rows, keys = self.block.rows, self.block.keys
        mass[0][self.own, rows] += size @ mean_square(k)
        mass[1][keys] += (size.mT @ mean_square(q)).sum(0)
        mass[2][keys] += (weights.square().mT @ mean_square(dout)).sum(0)
        unsure = self.unsure(logits, weights)
        if not unsure.any():
            return
        moved = unsure * dweights.abs().amax(-1, keepdim=True) * abs(self.problem.scale)
        loose[0][self.own, rows] += moved * mean_square(k).mean().sqrt()
        loose[1][keys] += (moved * mean_square(q).sqrt()).amax()
        loose[2][keys] += (unsure * mean_square(dout).sqrt()).amax()


def _cast(step: Steps | None, tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.double() if step is None else tensor.float() for tensor in tensors]


def _turned(problem: Problem, step: Steps | None, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    turned = formula.turned(problem, q, k)
    return turned if step is None else (step.rounded(turned[0]), step.rounded(turned[1]))


def steps_for(problem: Problem) -> Steps:
    """What a plain implementation rounds; a choice between rounded and not is differentiable."""
    plain = steps_of(problem.dtype)
    if problem.dtype is not Dtype.TF32:
        return plain
    # Bits are no function that autograd knows: the gradient passes as if nothing had been rounded.
    return Steps(rounded=plain.rounded, operand=lambda x: x + (plain.operand(x.detach()) - x.detach()))
