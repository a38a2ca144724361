"""Outputs of one (sequence, kv head) group: by the float64 reference and by the plain formula in the same dtype.

For a block or layers, the core reference is a differentiable function inside the projections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from attnbench.attention import autograd_reference, latent_reference, reference, scopes
from attnbench.attention.blocks import Gradients, Group, Span, of_group, of_part, query_heads
from attnbench.attention.choices import Mode
from attnbench.attention.inputs import Inputs, torch_dtype
from attnbench.attention.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor

GRADIENTS = ("dq", "dk", "dv")
FEW_LOGITS = 2**14  # of a group: so few that the error of one computation may be small by chance
ORDERS = 8  # of the channels, in which the plain formula is computed where logits are few


class GroupOutput(NamedTuple):
    """One output of a group, [heads, rows, width], by both references; mass and loose have width 1."""

    name: str
    reference: Tensor
    plain: Tensor  # as far from it as the plain formula in the same dtype
    mass: Tensor  # root of the summed squares of the terms of each number
    loose: Tensor | None = None  # the error from another choice of keys, where a rounding decides the choice


def group_outputs(
    problem: Problem, mode: Mode, inputs: Inputs, group: Group, spans: list[Span] | None
) -> Iterator[GroupOutput]:
    """Every output of a group, of the rows `spans` or of all."""
    if problem.scope != "core":
        return _scope_outputs(problem, mode, inputs, group)
    longest = problem.seq_kv
    problem, group, inputs = of_part(problem, group, inputs)
    if problem.kv:
        return _latent_outputs(problem, inputs, group, spans)
    if autograd_reference.is_plain(problem):
        return _plain_outputs(problem, mode, inputs, group, spans)
    return _autograd_outputs(problem, mode, inputs, group, spans, longest)


def _plain_outputs(
    problem: Problem, mode: Mode, inputs: Inputs, group: Group, spans: list[Span] | None
) -> Iterator[GroupOutput]:
    qkv = inputs.q, inputs.k, inputs.v
    exact, orders = reference.attend_group(problem, *qkv, group, spans), _orders(problem, spans)
    q, k, v, dout = of_group(problem, group, *qkv, inputs.dout)
    queries, keys = q[..., orders].movedim(-2, 0), k[..., orders].movedim(-2, 0)  # one after the other
    plain, masses = reference.plain_forward(problem, group[0], *_divided(queries, keys), v, spans=spans)
    mass = masses[0]
    yield GroupOutput("out", exact.out, _worst(exact.out, plain.out), mass)
    yield GroupOutput("lse", exact.lse[..., None], _worst(exact.lse, plain.lse)[..., None], mass.new_zeros(mass.shape))
    if mode.needs_grad:
        exact_gradients = reference.gradients_group(problem, *qkv, inputs.dout, group)
        (dq, dk, dv), gradient_masses = reference.plain_gradients(problem, group[0], queries, keys, v, dout)
        inverse = orders.argsort(-1)[:, None, None]
        rounded = dq.take_along_dim(inverse, -1), dk.take_along_dim(inverse, -1), dv
        for name, right, computed, each in zip(GRADIENTS, exact_gradients, rounded, gradient_masses, strict=True):
            yield GroupOutput(name, right, _worst(right, computed), each[0])


def _orders(problem: Problem, spans: list[Span] | None) -> Tensor:
    """Orders of the channels of q and k, each as right as any other: several where the logits of a group are few."""
    import torch

    rows = sum(stop - first for first, stop in spans or [(0, problem.seq_q)])
    few = rows * problem.heads // problem.kv_heads * problem.seq_kv <= FEW_LOGITS
    chance = torch.Generator().manual_seed(0)
    others = [torch.randperm(problem.head_dim, generator=chance) for _ in range(ORDERS - 1 if few else 0)]
    return torch.stack([torch.arange(problem.head_dim), *others])


def _divided(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """float32 q and k with factors moved from k to q, as a kernel divides the scale between them; others as given.

    q: [orders, heads, rows, head_dim]; k: [orders, keys, head_dim]. The first is as given.
    """
    import torch

    if q.element_size() != 4:
        return q, k
    factors = (1 + torch.arange(len(q)) / len(q))[:, None, None]
    return q * factors[..., None], k / factors


def _worst(exact: Tensor, plain: Tensor) -> Tensor:
    """A result as far from the exact one as the furthest of `plain`, number by number; `plain`: [orders, ...]."""
    if len(plain) == 1:
        return plain[0]
    return exact + (plain.double() - exact).abs().nan_to_num(0.0, 0.0, 0.0).amax(0)


def _latent_outputs(problem: Problem, inputs: Inputs, group: Group, spans: list[Span] | None) -> Iterator[GroupOutput]:
    exact, plain, mass = latent_reference.attend_group(problem, inputs.q, inputs.k, group, spans)
    yield GroupOutput("out", exact.out, plain.out, mass)
    yield GroupOutput("lse", exact.lse[..., None], plain.lse[..., None], mass.new_zeros(mass.shape))


def _autograd_outputs(
    problem: Problem, mode: Mode, inputs: Inputs, group: Group, spans: list[Span] | None, longest: int
) -> Iterator[GroupOutput]:
    """`longest`: keys of the longest request, to which weights are padded with zeros."""
    import torch

    qkv, step = (inputs.q, inputs.k, inputs.v), autograd_reference.steps_for(problem)
    exact = autograd_reference.forward_group(problem, *qkv, group, spans, None)
    plain = autograd_reference.forward_group(problem, *qkv, group, spans, step)
    no_mass = plain.mass.new_zeros(plain.mass.shape)
    yield GroupOutput("out", exact.out, plain.out, plain.mass, exact.choice_error)
    yield GroupOutput("lse", exact.lse[..., None], plain.lse[..., None], no_mass)
    if exact.weights is not None and plain.weights is not None:
        beyond = (0, longest - problem.seq_kv)
        weights, rounded = (torch.nn.functional.pad(each, beyond) for each in (exact.weights, plain.weights))
        yield GroupOutput("weights", weights, rounded, no_mass)
    if mode.needs_grad:
        backward = autograd_reference.gradients_group(problem, *qkv, inputs.dout, group, None)
        plain_backward = autograd_reference.gradients_group(problem, *qkv, inputs.dout, group, step)
        gradients = backward.gradients, plain_backward.gradients
        yield from map(GroupOutput, GRADIENTS, *gradients, plain_backward.mass, backward.choice_error)


def _scope_outputs(problem: Problem, mode: Mode, inputs: Inputs, group: Group) -> Iterator[GroupOutput]:
    """Outputs of a block or layers: all heads of a sequence are computed together, and each group takes its part."""
    exact, plain = (sequence_outputs(problem, mode, inputs, group[0], exact) for exact in (True, False))
    kv_heads = slice(group[1], group[1] + 1)
    for name in exact:
        heads = kv_heads if name in ("dk", "dv") else query_heads(problem, group)
        # Every number is a sum over all heads of its token: their size stands for that of the terms, layer by layer.
        mass = exact[name].square().mean((0, 2)).sqrt()[None, :, None] * (1 + problem.scoped[1])
        yield GroupOutput(name, exact[name][heads], plain[name][heads], mass.expand(len(exact[name][heads]), -1, 1))


@lru_cache(maxsize=2)
def sequence_outputs(problem: Problem, mode: Mode, inputs: Inputs, sequence: int, exact: bool) -> dict[str, Tensor]:
    """out and, for gradients, dq, dk, dv of one sequence: [heads, seq, width] in float64.

    `exact`: computed in float64, else in the dtype of the problem. The cache holds tensors: clear it after use.
    """
    import torch

    problem, (sequence, _), inputs = of_part(problem, (sequence, 0), inputs)
    dtype = torch.float64 if exact else torch_dtype(problem.working_dtype.out)
    matrices = {name: matrix.to(dtype) for name, matrix in scopes.matrices(problem)}
    leaves = [getattr(inputs, name)[sequence : sequence + 1].to(dtype).requires_grad_() for name in "qkv"]
    core = differentiable(replace(problem, scope="core", dtype=problem.working_dtype, autocast="none"), exact, sequence)
    inner = scopes.self_attention(problem)
    self_attention = None if inner is None else differentiable(inner, exact, sequence)
    out = scopes.apply(problem, matrices, core, self_attention, *leaves)
    outputs = {"out": out}
    if mode.needs_grad:
        dout = inputs.dout[sequence : sequence + 1].to(dtype)
        outputs |= zip(GRADIENTS, torch.autograd.grad(out, leaves, dout, materialize_grads=True), strict=True)
    return {name: tensor.detach()[0].double() for name, tensor in outputs.items()}


def differentiable(problem: Problem, exact: bool, sequence: int) -> Callable[..., Tensor]:
    """The core reference of one sequence of a batch as a function of q, k, v that autograd can differentiate.

    `exact`: the float64 reference, else the same-dtype reference. Tensors hold only that sequence,
    [1, heads, seq, width]; its number is needed because masks may differ between sequences.
    """
    import torch

    groups = [(sequence, head) for head in range(problem.kv_heads)]

    def attend(group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if exact:
            return reference.attend_group(problem, q, k, v, group).out
        return reference.attend_group_same_dtype(problem, q, k, v, group)[0].out

    def differentiate(group: Group, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> Gradients:
        if exact:
            return reference.gradients_group(problem, q, k, v, dout, group)
        return reference.gradients_group_same_dtype(problem, q, k, v, dout, group)[0]

    def as_batch(*tensors: Tensor) -> list[Tensor]:
        """Views in which every number of a sequence means this one."""
        return [tensor.expand(problem.batch, *tensor.shape[1:]) for tensor in tensors]

    class Reference(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            ctx.save_for_backward(q, k, v)
            return torch.cat([attend(group, *as_batch(q, k, v)) for group in groups])[None].to(q.dtype)

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
            parts = [differentiate(group, *as_batch(*ctx.saved_tensors, dout)) for group in groups]
            return tuple(torch.cat(heads)[None].to(dout.dtype) for heads in zip(*parts, strict=True))

    applied: Callable[..., Tensor] = Reference.apply
    return applied
