"""torch's scaled_dot_product_attention: each of its kernels alone, and torch's own choice among them.

SDPA's `is_causal` is aligned to the top left, ours to the bottom right: it is used only where the two agree.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from attnbench.attention import cost
from attnbench.attention.problem import PATTERNS, Dtype, Mode, Problem
from attnbench.backends import Backend, Limits, Prepared
from attnbench.case import Case

if TYPE_CHECKING:
    from torch import Tensor

DOCS = "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html"

_HALVES = frozenset({Dtype.FP16, Dtype.BF16})
_CPU_DTYPES = _HALVES | {Dtype.FP32}
_MODES = frozenset(Mode)
_MASKS = frozenset({"causal", "window", "prefix", "document", "padding", "blind_rows", "dense"}) | PATTERNS
_SHAPES = frozenset({"gqa", "cross", "scale", "head_dim_v"})

# torch's names of the kernels, as torch.nn.attention.SDPBackend has them.
_KERNELS = {"math": "MATH", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"}


def prepare(case: Case, device: str) -> Prepared:
    """Restrict this process to the kernel; make the mask as a boolean tensor where the kernel cannot say it."""
    import torch
    import torch.nn.functional as F

    problem = case.problem
    kernel = case.backend.partition(":")[2]
    restrict(kernel)
    started = time.perf_counter()
    mask = dense_mask(problem, device)
    arguments: dict[str, Any] = {"is_causal": is_top_left(problem), "scale": problem.scale}
    if mask is not None:
        arguments["attn_mask"] = mask
    seconds = {"mask_build": time.perf_counter() - started} if mask is not None else {}
    groups = problem.heads // problem.kv_heads
    # On CUDA the efficient kernel takes no grouped heads: the expansion is part of its cost.
    expand = groups > 1 and kernel == "efficient"
    arguments["enable_gqa"] = groups > 1 and not expand

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if expand:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(q, k, v, **arguments)

    def late_facts() -> dict[str, Any]:
        return {"resolved": kernel or chosen(problem, torch.device(device), mask)}

    return Prepared(call=call, seconds=seconds, facts={"dense_mask": mask is not None}, late_facts=late_facts)


def restrict(kernel: str) -> None:
    """Let torch use that kernel alone, or any for an empty name; for the whole process, which is one arm's."""
    from torch.backends import cuda

    cuda.enable_flash_sdp(kernel in ("", "flash"))
    cuda.enable_mem_efficient_sdp(kernel in ("", "efficient"))
    cuda.enable_math_sdp(kernel in ("", "math"))
    if hasattr(cuda, "enable_cudnn_sdp"):
        cuda.enable_cudnn_sdp(kernel in ("", "cudnn"))


def is_top_left(problem: Problem) -> bool:
    """Whether `is_causal` says this mask exactly."""
    return problem.mask == "causal" and problem.seq_q == problem.seq_kv


def dense_mask(problem: Problem, device: str) -> Tensor | None:
    """The mask as booleans [batch or 1, 1, seq_q, seq_kv], True where visible; None where SDPA says it by itself."""
    import torch

    if problem.mask == "none" or is_top_left(problem):
        return None
    return torch.from_numpy(problem.masking.dense(problem.grid)).unsqueeze(1).to(device)


def chosen(problem: Problem, device: Any, mask: Tensor | None) -> str:
    """The kernel that torch picks by itself: it is asked with small stand-ins of the same shape, on that device."""
    import torch
    from torch.nn.attention import SDPBackend

    from attnbench.attention.inputs import torch_dtype

    dtype = torch_dtype(problem.dtype)
    shapes = (
        (problem.heads, problem.seq_q, problem.head_dim),
        (problem.kv_heads, problem.seq_kv, problem.head_dim),
        (problem.kv_heads, problem.seq_kv, problem.head_dim_v),
    )
    q, k, v = (torch.empty(problem.batch, *shape, dtype=dtype, device=device) for shape in shapes)
    number = torch._fused_sdp_choice(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=is_top_left(problem),
        scale=problem.scale,
        enable_gqa=problem.heads > problem.kv_heads,
    )
    names = {int(getattr(SDPBackend, name).value): word for word, name in _KERNELS.items()}
    return names.get(number, str(number))


def scratch_bytes(case: Case) -> int:
    """math: scores and weights, the expanded heads, the mask as numbers; the others: the mask alone, and row sums."""
    problem, mode = case.problem, case.mode
    number = problem.dtype.bytes
    scores = problem.batch * problem.heads * problem.seq_q * problem.seq_kv
    masked = problem.mask != "none" and not is_top_left(problem)
    sequences = problem.batch if "padding" in problem.features else 1
    mask = sequences * problem.seq_q * problem.seq_kv * (1 + 2 * number) if masked else 0
    inputs = cost.input_bytes(problem)
    expanded = problem.heads // problem.kv_heads * inputs if problem.kv_heads != problem.heads else 0
    if case.backend == "sdpa:math":
        accumulated = max(number, 4)  # on a CPU 16-bit scores are summed in float32
        return (2 if mode is Mode.FWD else 4) * scores * accumulated + mask + 2 * inputs + expanded
    rows = problem.batch * problem.heads * problem.seq_q * 4
    return mask + rows + inputs + (expanded if case.backend == "sdpa:efficient" else 0)


def _cuda_limits(kernel: str) -> Limits:
    """As torch's own checks have them (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp)."""
    return {
        "math": Limits(dtypes=_CPU_DTYPES, features=_MASKS | _SHAPES, modes=_MODES),
        "flash": Limits(
            dtypes=_HALVES,
            features=frozenset({"causal", "gqa", "scale", "cross"}),
            modes=_MODES,
            head_dim_most=256,
            capability=(8, 0),
            # is_causal is top-left: where the lengths differ it would be another mask, and flash takes no mask tensor.
            combinations=(frozenset({"causal", "cross"}),),
        ),
        "efficient": Limits(dtypes=_CPU_DTYPES, features=_MASKS | _SHAPES, modes=_MODES, capability=(5, 0)),
        "cudnn": Limits(
            dtypes=_HALVES,
            features=_MASKS | _SHAPES,
            modes=_MODES,
            head_dim_most=256,
            head_dim_multiple=8,
            capability=(8, 0),
        ),
    }[kernel]


def _backend(name: str, summary: str) -> Backend:
    kernel = name.partition(":")[2]
    limits = {"cuda": _cuda_limits(kernel or "math")}
    if kernel in ("", "math", "flash"):
        features = _MASKS | _SHAPES if kernel != "flash" else (_MASKS | _SHAPES) - {"head_dim_v"}
        limits["cpu"] = Limits(dtypes=_CPU_DTYPES, features=features, modes=_MODES)
    return Backend(
        name=name,
        summary=summary,
        limits=limits,
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
    )


BACKENDS = {
    name: _backend(name, summary)
    for name, summary in {
        "sdpa": "torch SDPA, the kernel that torch picks",
        "sdpa:math": "torch SDPA, the unfused formula alone",
        "sdpa:flash": "torch SDPA, FlashAttention alone",
        "sdpa:efficient": "torch SDPA, memory-efficient attention alone (CUDA)",
        "sdpa:cudnn": "torch SDPA, cuDNN alone (CUDA)",
    }.items()
}
