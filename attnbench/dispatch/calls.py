"""Calls of the backends that a process can use beside its own work: no global setting of torch is changed.

The kernels of torch's SDPA are called by their operators. `sdpa_kernel`, which selects one of them, sets flags of the
process that other threads see, and takes longer than a small call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from attnbench import backends
from attnbench.attention import dense_masks
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import CaseRefusedError, Keywords, Layout, Output
from attnbench.backends.installation import version_objection
from attnbench.records.case import Case

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Call = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
MAX_KEPT_MASK = 2**16  # numbers; a larger mask is built in each call, as thousands of shapes may have one
MAX_COMPILED = 8  # shapes of flex: torch compiles no more of one function (torch._dynamo.config.recompile_limit)


class Site(NamedTuple):
    """What a call is prepared for: a dense or causal problem on one device."""

    problem: Problem
    device: torch.device
    gradients: bool

    @property
    def scale(self) -> float | None:
        """As SDPA takes it."""
        return self.problem.score.scale

    @property
    def grouped(self) -> bool:
        return self.problem.heads > self.problem.kv_heads

    @property
    def top_left(self) -> bool:
        """Whether SDPA's `is_causal` is the mask."""
        return dense_masks.is_top_left(self.problem)

    @property
    def needs_mask(self) -> bool:
        """Whether the mask must be a tensor: `is_causal` is aligned to the top left, ours to the bottom right."""
        return not (self.top_left or dense_masks.sees_all(self.problem))

    def mask(self) -> Callable[[], Tensor]:
        """The function that returns the causal mask; a small one is built once."""
        seq_q, seq_kv = self.problem.seq_q, self.problem.seq_kv
        build = partial(_visible, seq_q, seq_kv, self.device)
        if seq_q * seq_kv > MAX_KEPT_MASK:
            return build
        mask = build()
        return lambda: mask


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    """torch's SDPA, with the kernel that torch picks; causal is aligned to the last query and key."""
    import torch.nn.functional as F

    (heads, seq_q), (kv_heads, seq_kv) = q.shape[1:3], k.shape[1:3]
    options: Keywords = {"scale": scale, "enable_gqa": heads != kv_heads}
    if causal and seq_q > 1 and seq_q != seq_kv:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=_visible(seq_q, seq_kv, q.device), **options)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal and seq_q > 1, **options)


def _visible(seq_q: int, seq_kv: int, device: torch.device) -> Tensor:
    """The causal mask of the last queries, [seq_q, seq_kv], True where visible."""
    import torch

    return torch.ones(seq_q, seq_kv, dtype=torch.bool, device=device).tril_(seq_kv - seq_q)


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers to add: 0 where visible, else -inf."""
    import torch

    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def _sdpa(site: Site) -> Call:
    return partial(sdpa, causal=site.problem.causal, scale=site.scale)


def _math(site: Site) -> Call:
    import torch

    operator, causal = torch._scaled_dot_product_attention_math, site.top_left
    options: Keywords = {"scale": site.scale, "enable_gqa": site.grouped}
    if not site.needs_mask:
        return lambda q, k, v: operator(q, k, v, None, 0.0, causal, **options)[0]
    mask = site.mask()
    return lambda q, k, v: operator(q, k, v, _added(mask(), q.dtype), 0.0, False, **options)[0]


def _flash(site: Site) -> Call:
    import torch

    causal, scale = site.top_left, site.scale
    if site.device.type == "cpu":
        of_cpu = torch._scaled_dot_product_flash_attention_for_cpu
        if not site.needs_mask:
            return lambda q, k, v: of_cpu(q, k, v, 0.0, causal, scale=scale)[0]
        mask = site.mask()
        return lambda q, k, v: of_cpu(q, k, v, 0.0, False, attn_mask=_added(mask(), q.dtype), scale=scale)[0]
    _refuse_mask(site)
    if site.problem.head_dim % 8:
        raise CaseRefusedError("SDPA pads head dims that are no multiple of 8 around this operator")
    operator = torch._scaled_dot_product_flash_attention
    return lambda q, k, v: operator(q, k, v, 0.0, causal, scale=scale)[0]


def _efficient(site: Site) -> Call:
    import torch

    _refuse_mask(site)
    operator, groups = torch._scaled_dot_product_efficient_attention, site.problem.heads // site.problem.kv_heads
    gradients, causal, scale = site.gradients, site.top_left, site.scale

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out: Tensor = operator(q, k, v, None, gradients, 0.0, causal, scale=scale)[0]
        return out

    return call


def _cudnn(site: Site) -> Call:
    import torch

    _refuse_mask(site)
    operator = torch._scaled_dot_product_cudnn_attention
    gradients, causal, scale = site.gradients, site.top_left, site.scale
    return lambda q, k, v: operator(q, k, v, None, gradients, 0.0, causal, False, scale=scale)[0]


def _refuse_mask(site: Site) -> None:
    if site.needs_mask:
        raise CaseRefusedError("causal with other keys than queries needs a mask, which this operator is not given")


def _naive(site: Site) -> Call:
    from attnbench.backends import naive

    problem = site.problem
    if dense_masks.sees_all(problem):
        fixed = naive.Fixed(None, None, None, None, None)
        return lambda q, k, v: _out(naive.attend(problem, fixed, q, k, v))
    mask, blind = site.mask(), "blind_rows" in problem.features

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        visible = mask()[None, None]
        hidden = ~visible.any(-1, keepdim=True) if blind else None
        return _out(naive.attend(problem, naive.Fixed(visible, hidden, None, None, None), q, k, v))

    return call


def _out(output: Output) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


_compiled: set[Problem] = set()  # problems for which flex was compiled in this process


def _flex(site: Site) -> Call:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from attnbench.backends import flex

    problem, device = site.problem, str(site.device)
    if problem not in _compiled and len(_compiled) >= MAX_COMPILED:
        raise CaseRefusedError(f"it was compiled for {MAX_COMPILED} shapes, and torch compiles no more")
    _compiled.add(problem)
    predicate, lengths = flex.mask_mod(problem, device), (problem.seq_q, problem.seq_kv)
    mask = create_block_mask(predicate, None, None, *lengths, device=device) if predicate else None
    options: Keywords = {"block_mask": mask, "scale": site.scale, "enable_gqa": site.grouped}
    return partial(torch.compile(flex_attention, dynamic=False, fullgraph=True), **options)


def _prepared(name: str, site: Site) -> Call:
    """The call that the backend prepares, with tensors in its layout."""
    case = Case(problem=site.problem, backend=name, mode=Mode.FWD_BWD if site.gradients else Mode.FWD)
    backend = backends.load(name)
    call: Call = backend.prepare(case, str(site.device)).call
    if backend.layout is Layout.BHSD:
        return call
    return lambda q, k, v: call(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


_PREPARED = (
    *("triton", "triton:portable", "triton:descriptors", "triton:hopper"),
    *("flash-attn:2", "flash-attn:3", "flash-attn:4"),
    *("xformers", "xformers:cutlass", "xformers:fa2", "xformers:fa3", "xformers:splitk"),
)
_BUILDERS: dict[str, Callable[[Site], Call]] = {
    "naive": _naive,
    "sdpa": _sdpa,
    "sdpa:math": _math,
    "sdpa:flash": _flash,
    "sdpa:efficient": _efficient,
    "sdpa:cudnn": _cudnn,
    "flex": _flex,
    **{name: partial(_prepared, name) for name in _PREPARED},
}
CALLABLE = tuple(_BUILDERS)


def prepare(name: str, case: Case, device: torch.device) -> Call:
    """The call of one backend for one case. Raises CaseRefusedError with the reasons against it."""
    import torch

    if name not in _BUILDERS:
        raise CaseRefusedError("attnbench calls it only in its own processes")
    backend = backends.load(name)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    reasons = backend.objections(case, device.type, capability) or [version_objection(backend)]
    if any(reasons):
        raise CaseRefusedError("; ".join(reasons))
    return _BUILDERS[name](Site(case.problem, device, case.mode.needs_grad))
