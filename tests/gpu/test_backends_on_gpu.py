"""Every built-in backend that is available here, against float64 in plain torch, on the same GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import BUILTIN, Backend, Layout, load
from attnbench.records.case import Case

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu

DEVICE = "cuda:0"
EPS = {Dtype.FP32: 2.0**-23, Dtype.TF32: 2.0**-10, Dtype.FP16: 2.0**-10, Dtype.BF16: 2.0**-7}
STORED = {Dtype.FP32: "float32", Dtype.TF32: "float32", Dtype.FP16: "float16", Dtype.BF16: "bfloat16"}

PROBLEMS: dict[str, dict[str, Any]] = {
    "none": {"batch": 2},
    "causal": {"mask": "causal", "batch": 2},
    "causal, more keys": {"seq_q": 113, "seq_kv": 203, "mask": "causal"},
    "causal, fewer keys": {"seq_q": 203, "seq_kv": 113, "mask": "causal"},
    "no tile fits": {"seq_q": 239, "seq_kv": 1},
    "decode": {"seq_q": 1, "seq_kv": 799, "mask": "causal", "kv_heads": 1},
    "window": {"mask": "window:17:40", "seq_kv": 300},
    "causal window": {"mask": "causal+window:33"},
    "window, shared heads": {"mask": "causal+window:100", "kv_heads": 2},
    "shared heads": {"kv_heads": 2, "mask": "causal"},
    "one key head": {"kv_heads": 1, "seq_kv": 320},
    "prefix": {"mask": "prefix:70"},
    "documents": {"mask": "causal+document:5", "batch": 2},
    "padding": {"mask": "padding:0.3", "batch": 3},
    "head_dim 128": {"head_dim": 128, "mask": "causal"},
    "head_dim 96": {"head_dim": 96, "mask": "causal"},
    "head_dim 256": {"head_dim": 256, "mask": "causal"},
    "wide keys": {"head_dim": 192, "head_dim_v": 128, "mask": "causal"},
    "softcap": {"score": Score(softcap=20.0), "mask": "causal"},
    "scale": {"score": Score(scale=0.3)},
    "lse": {"returns": Returns.LSE, "mask": "causal"},
}
FEW = ("causal, more keys", "window", "shared heads", "lse")
GRID = [(label, Dtype.BF16) for label in PROBLEMS]
GRID += [(label, dtype) for dtype in (Dtype.FP16, Dtype.FP32, Dtype.TF32) for label in FEW]


def problem_of(fields: dict[str, Any], dtype: Dtype) -> Problem:
    return Problem(**{"seq_q": 256, "heads": 4, "dtype": dtype, **fields})


@cache
def available(name: str) -> tuple[Backend, str]:
    """The backend, and why it cannot run here; empty if it can."""
    backend = load(name)
    for module in backend.requires:
        try:
            __import__(module)
        except Exception as error:  # a broken package may raise anything
            return backend, f"import {module}: {error}"
    return backend, (backend.probe(DEVICE) if backend.probe else None) or ""


def inputs(problem: Problem) -> dict[str, Any]:
    """q, k, v and the gradient of out, [batch, heads, seq, head_dim]."""
    p, generator = problem, torch.Generator().manual_seed(0)
    sizes = {"q": (p.heads, p.seq_q, p.head_dim), "k": (p.kv_heads, p.seq_kv, p.head_dim)}
    sizes |= {"v": (p.kv_heads, p.seq_kv, p.head_dim_v), "dout": (p.heads, p.seq_q, p.head_dim_v)}
    made = {name: torch.randn(p.batch, *size, generator=generator) for name, size in sizes.items()}
    return {name: tensor.to(getattr(torch, STORED[p.dtype])).to(DEVICE) for name, tensor in made.items()}


def formula(problem: Problem, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """out and lse in the dtype of the inputs."""
    group = problem.heads // problem.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.transpose(2, 3) * problem.scale
    if (cap := problem.softcap) is not None:
        logits = cap * torch.tanh(logits / cap)
    visible = torch.from_numpy(problem.masking.dense(problem.grid)).to(DEVICE)[:, None]
    blind = ~visible.any(-1, keepdim=True)
    hidden = logits.masked_fill(~visible, -math.inf)
    weights = hidden.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return weights @ v, hidden.detach().logsumexp(-1)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def outputs(problem: Problem, mode: Mode, given: dict[str, Any], dtype: Any = None) -> dict[str, Any]:
    """What the formula gives, in that dtype."""
    q, k, v, dout = (given[name].detach().to(dtype or given[name].dtype) for name in ("q", "k", "v", "dout"))
    leaves = [tensor.requires_grad_(mode.needs_grad) for tensor in (q, k, v)]
    with tf32(problem.dtype is Dtype.TF32 and dtype is None):
        out, lse = formula(problem, *leaves)
        named = {"out": out.detach(), "lse": lse}
        if mode.needs_grad:
            named |= dict(zip(("dq", "dk", "dv"), torch.autograd.grad(out, leaves, dout), strict=True))
    return named


def measured(backend: Backend, case: Case, given: dict[str, Any]) -> dict[str, Any]:
    """What the backend gives, as [batch, heads, seq, head_dim]."""
    turn = backend.layout is Layout.BSHD
    q, k, v, dout = (
        given[name].detach().transpose(1, 2).contiguous() if turn else given[name].detach().clone()
        for name in ("q", "k", "v", "dout")
    )
    leaves = [tensor.requires_grad_(case.mode.needs_grad) for tensor in (q, k, v)]
    call = backend.prepare(case, DEVICE).call
    with torch.set_grad_enabled(case.mode.needs_grad):
        result = call(*leaves)
    out, lse = result if isinstance(result, tuple) else (result, None)
    named = {"out": out.detach()}
    if case.mode.needs_grad:
        named |= dict(zip(("dq", "dk", "dv"), torch.autograd.grad(out, leaves, dout), strict=True))
    named = {name: tensor.transpose(1, 2) if turn else tensor for name, tensor in named.items()}
    return named if lse is None else named | {"lse": lse}


def assert_right(
    found: dict[str, Any], exact: dict[str, Any], plain: dict[str, Any], dtype: Dtype, capped: bool
) -> None:
    """No further from float64 than twice the formula in the same dtype, and a few roundings; thrice for gradients."""
    for name, tensor in found.items():
        assert tensor.shape == exact[name].shape
        if name == "lse":
            assert torch.equal(tensor == -math.inf, exact[name] == -math.inf)
            seen = exact[name] > -math.inf
            slack = 1e-5 if dtype is Dtype.FP32 else 1e-3
            torch.testing.assert_close(tensor.double()[seen], exact[name][seen], rtol=slack, atol=slack)
            continue
        assert tensor.dtype is getattr(torch, STORED[dtype])
        factor = 3.0 if capped or name != "out" else 2.0
        error, yardstick = (tensor - exact[name]).abs().max(), (plain[name] - exact[name]).abs().max()
        rounding = 16 * EPS[dtype] * exact[name].abs().max().clamp(min=1)
        assert error <= factor * yardstick + rounding, name


@pytest.mark.parametrize("mode", [Mode.FWD, Mode.FWD_BWD])
@pytest.mark.parametrize(("label", "dtype"), GRID)
@pytest.mark.parametrize("name", BUILTIN)
def test_a_backend_computes_the_problem(name: str, label: str, dtype: Dtype, mode: Mode) -> None:
    backend, unavailable = available(name)
    if unavailable:
        pytest.skip(unavailable)
    case = Case(problem=problem_of(PROBLEMS[label], dtype), backend=name, mode=mode)
    if objections := backend.objections(case, "cuda", torch.cuda.get_device_capability(DEVICE)):
        pytest.skip("; ".join(objections))
    if backend.compiles and label not in FEW:
        pytest.skip("compiles for many seconds: a few problems are enough here")
    given = inputs(case.problem)
    exact, plain = outputs(case.problem, mode, given, torch.float64), outputs(case.problem, mode, given)
    capped = case.problem.softcap is not None
    assert_right(measured(backend, case, given), exact, plain, dtype, capped)


def triton_case(**fields: Any) -> Case:
    if available("triton")[1]:
        pytest.skip(available("triton")[1])
    return Case(problem=problem_of(fields, Dtype.BF16), backend="triton")


def test_the_triton_kernel_gives_equal_bits_twenty_times() -> None:
    case = triton_case(mask="causal", seq_q=777, head_dim=128, kv_heads=2)
    given = inputs(case.problem)
    first = measured(load("triton"), case, given)["out"]
    assert all(torch.equal(measured(load("triton"), case, given)["out"], first) for _ in range(19))


def test_the_triton_kernel_reaches_keys_beyond_two_to_the_31_numbers() -> None:
    case = triton_case(seq_q=1, seq_kv=2**25 + 64, heads=1, head_dim=64)
    q, k = (torch.zeros(1, 1, rows, 64, dtype=torch.bfloat16, device=DEVICE) for rows in (1, case.problem.seq_kv))
    v = torch.zeros_like(k)
    q[...] = 1.0
    k[0, 0, -1] = 16.0  # the only key with weight
    v[0, 0, -1] = 3.0
    out = load("triton").prepare(case, DEVICE).call(q, k, v)
    torch.testing.assert_close(out, torch.full_like(out, 3.0))
