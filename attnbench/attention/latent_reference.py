"""References of attention over a latent cache, one head after the other, so that memory is bounded.

The float64 reference is absorbed. The same-dtype reference has the larger of two errors at each number, absorbed and
expanded: which one is less accurate depends on the inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from attnbench.attention import latent, reference
from attnbench.attention.blocks import EXACT, Forward, Group, Span, Steps, mean_square, query_heads, steps_of
from attnbench.attention.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


class LatentForward(NamedTuple):
    """The forward pass of one group by both references, in the layout of `reference.attend_group`."""

    exact: Forward
    plain: Forward  # in the dtype of the problem
    mass: Tensor  # [heads, rows, 1], as in `reference`


def attend_group(
    problem: Problem, q: Tensor, cache: Tensor, group: Group, spans: list[Span] | None = None
) -> LatentForward:
    """Attention of one group: q [batch, heads, seq_q, head_dim], cache [batch, 1, seq_kv, rank + rope]."""
    import torch

    sequence, heads = group[0], query_heads(problem, group)
    exact, plain, masses = [], [], []
    for number in range(heads.start, heads.stop):
        head = _Head(problem, q, cache, sequence, number)
        right, step = head.absorbed(None, spans)[0], steps_of(problem.dtype)
        rounded = head.absorbed(step, spans), head.expanded(step, spans)
        errors = torch.stack([(forward.out - right.out).abs() for forward, _ in rounded])
        exact.append(right)
        plain.append((right.out + errors.amax(0), rounded[0][0].lse))
        masses.append(torch.maximum(*(mass for _, mass in rounded)))
    return LatentForward(Forward(*_joined(exact)), Forward(*_joined(plain)), torch.cat(masses))


class _Head:
    """One head of a sequence, as two ordinary problems."""

    def __init__(self, problem: Problem, q: Tensor, cache: Tensor, sequence: int, number: int) -> None:
        self.problem, self.group = replace(problem, heads=1), (sequence, 0)
        self.q, self.cache = q[sequence, number][None, None], cache[sequence][None]
        self.weights = latent.matrices(problem, range(number, number + 1))

    def absorbed(self, step: Steps | None, spans: list[Span] | None) -> tuple[Forward, Tensor]:
        """Forward and mass in float64, or with the rounding of `step`.

        Terms of the sum over the latent space have errors of their own, and those of the sums that they are.
        """
        (q, cache, weights), rounding = self._operands(step), step or EXACT
        queries, rank = rounding.rounded(latent.absorb(weights, q)), weights.of_values.shape[1]
        (out, lse), mass = self._attend(latent.absorbed(self.problem), step, spans, queries, cache, cache[..., :rank])
        size = weights.of_values.square().sum() / self.problem.head_dim_v
        mass = ((mass.square() + mean_square(out)) * size).sqrt()
        return Forward(rounding.rounded(latent.project(weights, rounding.operand(out)[None])[0]), lse), mass

    def expanded(self, step: Steps, spans: list[Span] | None) -> tuple[Forward, Tensor]:
        """Forward and mass with the rounding of `step`."""
        q, cache, weights = self._operands(step)
        keys, values = map(step.rounded, latent.expand(weights, cache))
        return self._attend(latent.expanded(self.problem), step, spans, q, keys, values)

    def _operands(self, step: Steps | None) -> tuple[Tensor, Tensor, latent.Matrices]:
        tensors = (self.q, self.cache, *self.weights)
        q, cache, *weights = (step.operand(each.float()) if step else each.double() for each in tensors)
        return q, cache, latent.Matrices(*weights)

    def _attend(
        self, problem: Problem, step: Steps | None, spans: list[Span] | None, *qkv: Tensor
    ) -> tuple[Forward, Tensor]:
        """By the reference of ordinary problems; every sequence of the batch is this one."""
        q, k, v = (tensor.expand(problem.batch, -1, -1, -1) for tensor in qkv)
        if step:
            return reference.attend_group_same_dtype(problem, q, k, v, self.group, spans)
        forward = reference.attend_group(problem, q, k, v, self.group, spans)
        return forward, forward.lse.new_zeros(*forward.lse.shape, 1)


def _joined(parts: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    import torch

    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
