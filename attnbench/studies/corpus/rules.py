"""Rules by which others judge attention kernels: the inputs, the reference and the comparison of their sources.

Every rule judges the problems of the corpus, whatever shapes it ships with. The plain formula is the backend `naive`. A
rule judges the log-sum-exp where a kernel returns one, though none of the sources does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from attnbench import backends
from attnbench.attention import inputs
from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.attention.inputs import Inputs, torch_dtype
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, scope
from attnbench.records.case import Case
from attnbench.studies.corpus.registry import CorpusKernel
from attnbench.units import figure
from attnbench.worker.prepared_case import ordered

if TYPE_CHECKING:
    from torch import Tensor

Outputs = dict[str, "Tensor"]  # out, lse, dq, dk, dv, as far as there are


class KernelCall(NamedTuple):
    """A call of a kernel, as a comparison gets it."""

    problem: Problem
    mode: Mode
    values: Inputs
    outputs: Outputs


class ComparisonRule(NamedTuple):
    """A rule of another project. `close` raises AssertionError for outputs that it finds wrong."""

    name: str
    source: str  # the file that it is from
    text: str  # inputs, reference and comparison
    draw: Callable[[Problem, int], Inputs]
    close: Callable[[KernelCall], None]
    seeds: int = 1
    gradients: bool = True  # whether it judges them


def objection(rule: ComparisonRule, kernel: CorpusKernel) -> str | None:
    """Why the rule finds a kernel wrong; empty if it finds it right, None if it cannot judge it."""
    backend = backends.load(kernel.backend)
    mode = kernel.mode if rule.gradients else Mode.FWD
    for problem in kernel.problems:
        if problem.dropout or problem.dtype is Dtype.TF32:  # random outputs; no plain formula in tf32 on a CPU
            return None
        for seed in range(rule.seeds):
            values = rule.draw(problem, seed)
            call = KernelCall(problem, mode, values, _call(backend, problem, mode, values))
            try:
                rule.close(call)
            except AssertionError as wrong:
                return str(wrong).strip().splitlines()[-1]
    return ""


def _call(backend: Backend, problem: Problem, mode: Mode, values: Inputs, key_scale: float = 1.0) -> Outputs:
    """Call a backend with copies of the inputs; the keys are multiplied by `key_scale` within."""
    import torch

    precision = torch.get_float32_matmul_precision()
    prepared = scope.prepare(backend, Case(problem=problem, backend=backend.name, mode=mode), "cpu")
    torch.set_float32_matmul_precision(precision)
    q, k, v, dout = (
        ordered(backend, problem, tensor.clone()) for tensor in (values.q, values.k, values.v, values.dout)
    )
    if prepared.stored:
        k, v = prepared.stored(values.k), prepared.stored(values.v)
    leaves = [tensor.requires_grad_(mode.needs_grad) for tensor in (q, k, v)]
    with torch.set_grad_enabled(mode.needs_grad):
        result = prepared.call(q, k if key_scale == 1.0 else k * key_scale, v)
    named = {"out": result[0], "lse": result[1]} if problem.returns is Returns.LSE else {"out": result}
    if mode.needs_grad:
        named |= zip(("dq", "dk", "dv"), torch.autograd.grad(named["out"], leaves, dout), strict=True)
    flipped = backend.layout is backends.Layout.BSHD
    return {
        name: tensor.detach().transpose(1, 2) if flipped and name != "lse" else tensor.detach()
        for name, tensor in named.items()
    }


def _plain(call: KernelCall) -> Outputs:
    return _call(backends.load("naive"), call.problem, call.mode, call.values)


def _normal(problem: Problem, seed: int) -> Inputs:
    return inputs.make(problem, seed)


def _half_normal(problem: Problem, seed: int) -> Inputs:
    """q, k and v with a standard deviation of 0.5."""
    values = inputs.make(problem, seed)
    return replace(values, q=values.q * 0.5, k=values.k * 0.5, v=values.v * 0.5)


def _uniform(problem: Problem, seed: int) -> Inputs:
    """q, k and v uniform in 0..1."""
    import torch

    values, generator = inputs.make(problem, seed), torch.Generator().manual_seed(seed)

    def drawn(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator).to(tensor.dtype)

    return replace(values, q=drawn(values.q), k=drawn(values.k), v=drawn(values.v))


def _within_softcap(problem: Problem, seed: int) -> Inputs:
    """Normal, queries times a quarter of the soft cap."""
    values = inputs.make(problem, seed)
    return replace(values, q=values.q * (problem.softcap / 4)) if problem.softcap else values


def _allclose(call: KernelCall, atol: float, rtol: float) -> None:
    import torch

    for name, expected in _plain(call).items():
        actual = call.outputs[name]
        difference = float((actual.double() - expected.double()).abs().nan_to_num(float("inf"), float("inf")).max())
        assert torch.allclose(actual, expected, atol=atol, rtol=rtol), (
            f"{name}: not allclose, off by {figure(difference)}"
        )


def _assert_close(call: KernelCall) -> None:
    import torch

    for name, expected in _plain(call).items():
        torch.testing.assert_close(call.outputs[name], expected)


def _kernelbench(call: KernelCall) -> None:
    tolerance = 1e-4 if torch_dtype(call.problem.dtype).itemsize == 4 else 1e-2
    _allclose(call, tolerance, tolerance)


def _flash_attention(call: KernelCall) -> None:
    """At most 2 times (3 with a soft cap) the error of the plain formula in the same dtype, and rounding.

    The reference is computed in float32, in float64 for a problem of float32, and rounded to the dtype; the plain
    formula scales the keys.
    """
    import torch

    problem, naive = call.problem, backends.load("naive")
    narrow = torch_dtype(problem.dtype)
    wide = torch.float64 if narrow is torch.float32 else torch.float32
    exact = Inputs(**{name: getattr(call.values, name).to(wide) for name in ("q", "k", "v", "dout")})
    references = _call(naive, replace(problem, dtype=Dtype.FP32), call.mode, exact)
    scaled = replace(problem, score=replace(problem.score, scale=1.0))
    plain = _call(naive, scaled, call.mode, call.values, problem.scale)
    factor, more = (3, 3e-4) if problem.softcap else (2, 0.0)
    for name, exactly in references.items():
        reference = exactly.to(plain[name].dtype)
        atol = 2 * _largest(reference + 0.3 - 0.3, reference) + (0.0 if name in ("out", "lse") else more)
        allowed = factor * _largest(plain[name], reference) + atol
        error = _largest(call.outputs[name], reference)
        assert error <= allowed, f"{name}: error {figure(error)} is over {figure(allowed)}"


def _largest(actual: Tensor, expected: Tensor) -> float:
    """The largest difference; equal infinities do not differ."""
    return float((actual - expected).masked_fill(actual == expected, 0.0).abs().max())


RULES = {
    rule.name: rule
    for rule in (
        ComparisonRule(
            name="assert_close",
            source="https://github.com/pytorch/pytorch/blob/003029b0eb704f4abb7e3b343da75d699ae36392/torch/testing/_comparison.py",
            text="torch.testing.assert_close with its defaults, plain formula in the same dtype, normal inputs",
            draw=_normal,
            close=_assert_close,
        ),
        ComparisonRule(
            name="allclose-1e-2",
            source="https://github.com/triton-lang/triton/blob/003da478d84f5bb0f51b3988cf0ea0bbe60282b7/python/tutorials/06-fused-attention.py",
            text="allclose(atol=1e-2, rtol=0) as in Triton's tutorial, plain formula, normal inputs times 0.5",
            draw=_half_normal,
            close=lambda call: _allclose(call, 1e-2, 0.0),
        ),
        ComparisonRule(
            name="kernelbench",
            source="https://github.com/ScalingIntelligence/KernelBench/blob/423217d9fda91e0c2d67e4a43bf62f96f6d104f1/src/kernelbench/eval.py",
            text="allclose(1e-4) in fp32, allclose(1e-2) in 16 bits, plain formula, five draws of uniform inputs, no "
            "gradients",
            draw=_uniform,
            close=_kernelbench,
            seeds=5,
            gradients=False,
        ),
        ComparisonRule(
            name="flash-attention",
            source="https://github.com/Dao-AILab/flash-attention/blob/008e63667e0f50c146689bc4c3fa1aa8e3bc4fbd/tests/cute/test_flash_attn.py",
            text="at most twice the error of the plain formula in the same dtype, and rounding; normal inputs",
            draw=_within_softcap,
            close=_flash_attention,
        ),
        ComparisonRule(
            name="kernels",
            source="https://github.com/huggingface/kernels/blob/0959766e060ed004a342040aa775f5db963375e0/kernels/src/kernels/cli/benchmark.py",
            text="allclose(atol=1e-2) of Hugging Face's kernels, plain formula, normal inputs, no gradients",
            draw=_normal,
            close=lambda call: _allclose(call, 1e-2, 1e-5),
            gradients=False,
        ),
    )
}
