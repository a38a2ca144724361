"""What a simulated kernel must fulfil, on problems small enough for many schedules."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor

from attnbench.kernels.call import CallOptions, Saved
from attnbench.kernels.hopper import launch
from attnbench.kernels.masking import KeyConditions, Rows
from attnbench.kernels.tiling import Tiling
from tests.kernels.simulated.block import Fault
from tests.kernels.simulated.kernel import PASSES, run

FAR = 2**20  # no window
WHEN = ("random", "late", "early")


class Wrong(AssertionError):  # noqa: N818 (as Fault)
    """A result that is not the one of the formula."""


class Shape(NamedTuple):
    """A problem and its tiling."""

    seq_q: int = 200
    seq_kv: int = 150
    heads: int = 2
    kv_heads: int = 1
    batch: int = 1
    left: int = FAR
    right: int = FAR
    block_q: int = 32  # of the pass over rows
    block_kv: int = 32
    stages: int = 2
    programs: int = 2
    resident: int = 1
    long_first: bool = False
    pingpong: bool = True
    dtype: torch.dtype = torch.bfloat16
    width: int = 64

    @property
    def tiling(self) -> Tiling:
        """As `tiling` would give it."""
        return Tiling(
            path="hopper", block_q=128, block_kv=self.block_kv, warps=8, stages=self.stages, resident=self.resident,
            long_first=self.long_first,
        )  # fmt: skip

    @property
    def eight(self) -> bool:
        """Whether numbers have 8 bits."""
        return self.dtype.itemsize == 1

    @property
    def descale(self) -> Tensor:
        """Of q k and of v, [2, heads]; ones where numbers need no scale."""
        return torch.linspace(0.5, 2.0, 2 * self.heads).reshape(2, -1) if self.eight else torch.ones(2, self.heads)

    def options(self, listed: Tensor | None) -> CallOptions:
        """As `kernels.attention` would give them."""
        rows = None if listed is None else Rows(listed, self.seq_kv)
        descale = self.descale if self.eight else None
        return CallOptions(keys=KeyConditions(self.left, self.right, rows), scale=self.width**-0.5, descale=descale)


def drawn(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, [batch, heads, rows, width]."""
    torch.manual_seed(seed)
    sizes = ((shape.heads, shape.seq_q), (shape.kv_heads, shape.seq_kv), (shape.kv_heads, shape.seq_kv))
    q, k, v = (torch.randn(shape.batch, *size, shape.width).to(shape.dtype) for size in sizes)
    return q, k, v


def seen(shape: Shape, listed: Tensor | None) -> Tensor:
    """[batch or 1, seq_q, seq_kv], pair by pair."""
    key = torch.arange(shape.seq_kv)
    if listed is not None:
        return (key >= listed[0][..., None]) & (key < listed[1][..., None])
    diagonal = torch.arange(shape.seq_q)[:, None] + shape.seq_kv - shape.seq_q
    return ((key >= diagonal - shape.left) & (key <= diagonal + shape.right))[None]


def logits(shape: Shape, q: Tensor, k: Tensor, listed: Tensor | None) -> Tensor:
    """In float64; NaN in keys that nobody sees is nothing."""
    keys = k.double().nan_to_num().repeat_interleave(shape.heads // shape.kv_heads, 1)
    scale = shape.width**-0.5 * shape.descale[0, :, None, None].double()
    return (q.double() @ keys.mT * scale).masked_fill(~seen(shape, listed)[:, None], -torch.inf)


def check(
    module: Any, shape: Shape, *, listed: Tensor | None = None, seed: int = 0, async_when: str = "random",
    tensors: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Run the kernel and compare it with the formula. Wrong says by how much it is off; faults pass through."""
    q, k, v = tensors or drawn(shape, seed)
    out = torch.full(q.shape, torch.nan).to(torch.bfloat16 if shape.eight else shape.dtype)
    lse = torch.full(q.shape[:3], torch.nan)
    call = launch.forward_call(q, k, v, out, lse, shape.options(listed), shape.tiling)
    run(module.forward.forward_kernel, call, shape.programs, seed, async_when, PINGPONG=shape.pingpong)
    s = logits(shape, q, k, listed)
    values = v.double().nan_to_num().repeat_interleave(shape.heads // shape.kv_heads, 1)
    values = values * shape.descale[1, :, None, None].double()
    p = torch.softmax(s, -1).nan_to_num()
    # Twice the error of the formula with weights rounded as they are for the product, and the rounding of the output.
    peak = s.amax(-1, keepdim=True).nan_to_num(0.0, 0.0, 0.0)
    weights = torch.exp(s - peak) * (256 if shape.eight else 1)
    rounded = weights.to(shape.dtype).double() / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    bound = 2 * ((rounded - p) @ values).abs().amax() + 2 * torch.finfo(out.dtype).eps * values.abs().amax()
    compare("out", out, p @ values, float(bound))
    compare("lse", lse, torch.logsumexp(s, -1), 1e-5)


def check_gradients(kernels: Any, shape: Shape, *, seed: int = 0, async_when: str = "random") -> None:
    """As `check`, of dq, dk and dv: at most twice the error of the plain formula in the same dtype."""
    q, k, v = drawn(shape, seed)
    dout = torch.randn(q.shape).to(shape.dtype)
    exact = gradients(shape, q.double(), k.double(), v.double(), dout.double())
    plain = gradients(shape, q, k, v, dout)
    s = logits(shape, q, k, None)
    values = v.double().repeat_interleave(shape.heads // shape.kv_heads, 1)
    out = (torch.softmax(s, -1).nan_to_num() @ values).to(shape.dtype)
    lse = torch.logsumexp(s, -1).float()
    saved = Saved(q, k, v, None, out, lse, dout, (out.float() * dout.float()).sum(-1))
    dq, dk, dv = (torch.full_like(tensor, torch.nan) for tensor in (q, k, v))
    options = shape.options(None)
    calls = {
        "query_kernel": launch.query_call(saved, dq, options, shape.tiling),
        "key_kernel": launch.key_call(
            saved, dk, dv, options, replace(shape.tiling, block_q=shape.block_q, block_kv=128)
        ),
    }
    for name, call in calls.items():
        run(getattr(kernels.backward, name), call, shape.programs, seed, async_when)
    for name, found, true, rough in zip(("dq", "dk", "dv"), (dq, dk, dv), exact, plain, strict=True):
        largest = max(1.0, float(true.abs().max()))
        bound = 2 * float((rough.double() - true).abs().max()) + 8 * torch.finfo(shape.dtype).eps * largest
        compare(name, found, true, bound)


def gradients(shape: Shape, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    """Of the plain formula, by autograd, in the dtype of the inputs; a row that sees no key gives none."""
    q, k, v = (tensor.clone().requires_grad_() for tensor in (q, k, v))
    group = shape.heads // shape.kv_heads
    s = q @ k.repeat_interleave(group, 1).mT * shape.width**-0.5
    visible = seen(shape, None)[:, None]
    p = torch.softmax(s.masked_fill(~visible, torch.finfo(s.dtype).min), -1) * visible
    return torch.autograd.grad(p @ v.repeat_interleave(group, 1), (q, k, v), dout)


def compare(name: str, found: Tensor, exact: Tensor, bound: float) -> None:
    """NaN is wrong, and infinities must stand where they should."""
    endless = exact.isinf()
    if not torch.equal(found[endless].double(), exact[endless]):
        raise Wrong(f"{name}: infinities elsewhere")
    error = (found.double() - exact)[~endless].abs()
    if error.numel() and not error.max() <= bound:
        raise Wrong(f"{name}: off by {float(error.max())}, more than {bound}")


def packed(lengths: list[int], spare: int) -> Tensor:
    """Causal sequences one behind another, and `spare` tokens that belong to none; int32 [3, 1, tokens]."""
    low, high = [], []
    start = 0
    for length in lengths:
        low += [start] * length
        high += range(start + 1, start + length + 1)
        start += length
    low += [0] * spare
    high += [0] * spare
    rows = torch.tensor([low, high, high], dtype=torch.int32)
    return rows[:, None].contiguous()


def problems() -> Iterator[tuple[Shape, Tensor | None, tuple[Tensor, Tensor, Tensor] | None]]:
    """Those that every seeded bug must be noticed by; first the short ones that few other problems stand in for."""
    yield Shape(dtype=torch.float8_e4m3fn, right=0), None, None
    listed = packed([70, 3, 120], 20)
    shape = Shape(seq_q=213, seq_kv=213, programs=1, block_kv=32)
    q, k, v = drawn(shape)
    k[:, :, 193:], v[:, :, 193:] = torch.nan, torch.nan
    yield shape, listed, (q, k, v)
    yield Shape(left=20, right=30, pingpong=False), None, None
    yield Shape(left=50), None, None
    yield Shape(), None, None
    yield Shape(right=0, long_first=True, stages=1), None, None
    yield Shape(seq_q=260, seq_kv=260, right=0, programs=1, stages=3, resident=2), None, None


def notices(module: Any, passes: Collection[str] = PASSES, seeds: int = 3) -> str:
    """What is said of the kernels of these passes: the name of the first fault, Wrong, or nothing."""
    # All problems in one schedule first: most bugs show in any schedule, and only some in any problem.
    for seed, when in product(range(seeds), WHEN):
        for shape, listed, tensors in problems():
            try:
                if "forward" in passes:
                    check(module, shape, listed=listed, seed=seed, async_when=when, tensors=tensors)
                if "backward" in passes and listed is None and not shape.eight:
                    check_gradients(module, shape, seed=seed, async_when=when)
            except (Fault, Wrong) as noticed:
                return type(noticed).__name__
    return ""
