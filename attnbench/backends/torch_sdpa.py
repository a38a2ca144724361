"""The call of torch's scaled_dot_product_attention, for the backends that compute with it.

SDPA's `is_causal` is aligned to the top left, ours to the bottom right: it is used only where the two agree.
https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attnbench.attention import cost, dense_masks
from attnbench.attention.biases import Constant, Relative
from attnbench.attention.choices import Mode, Returns
from attnbench.attention.inputs import torch_dtype
from attnbench.attention.problem import Problem
from attnbench.backends import Keywords, Output, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MASKS = dense_masks.MASKS | {"blind_rows"}

# What `restrict` sets, by the names of worker.process_settings.
SWITCHES = frozenset({"flash SDPA", "memory-efficient SDPA", "math SDPA", "cuDNN SDPA"})

# torch's names of the kernels, as torch.nn.attention.SDPBackend has them.
_KERNELS = {"math": "MATH", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"}


def prepare(case: Case, device: str) -> Prepared:
    """Restrict this process to the kernel; build a boolean mask where `is_causal` cannot express it."""
    import torch
    import torch.nn.functional as F

    problem = case.problem
    kernel = case.backend.partition(":")[2]
    restrict(kernel)
    started = time.perf_counter()
    mask = dense_mask(problem, device)
    arguments: Keywords = {"is_causal": dense_masks.is_top_left(problem) and mask is None, "scale": problem.scale}
    seconds = {}
    if mask is not None:
        arguments["attn_mask"], seconds["mask_build"] = mask, time.perf_counter() - started
    if problem.dropout:
        arguments["dropout_p"] = problem.dropout
    relative = problem.bias if isinstance(problem.bias, Relative) else None
    attend = _with_weights if problem.returns is Returns.WEIGHTS else F.scaled_dot_product_attention
    groups = problem.heads // problem.kv_heads
    # On CUDA the efficient kernel takes no grouped heads: the expansion is part of its cost.
    expand = groups > 1 and kernel == "efficient"
    arguments["enable_gqa"] = groups > 1 and not expand

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        if expand:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        if relative is None or mask is None:
            return attend(q, k, v, **arguments)
        return attend(q, k, v, **arguments | {"attn_mask": relative.whole(problem, q, k) + mask})

    def late_facts() -> dict[str, object]:
        return {"resolved": kernel or chosen(problem, torch.device(device), mask)}

    return Prepared(call=call, seconds=seconds, facts={"dense_mask": mask is not None}, late_facts=late_facts)


def restrict(kernel: str) -> None:
    """Let torch use that kernel alone, or any for an empty name; for the whole process, which serves one arm."""
    from torch.backends import cuda

    cuda.enable_flash_sdp(kernel in ("", "flash"))
    cuda.enable_mem_efficient_sdp(kernel in ("", "efficient"))
    cuda.enable_math_sdp(kernel in ("", "math"))
    if hasattr(cuda, "enable_cudnn_sdp"):
        cuda.enable_cudnn_sdp(kernel in ("", "cudnn"))


def dense_mask(problem: Problem, device: str) -> Tensor | None:
    """The attn_mask argument of SDPA, or None where `is_causal` is enough or every pair is visible, as in a decode.

    Booleans [batch or 1, 1, seq_q, seq_kv], True where visible; with a bias numbers [batch or 1, heads or 1, seq_q,
    seq_kv] to be added. A relative bias is added within the call, to a mask of zeros and -inf.
    """
    if problem.bias is None and (dense_masks.is_top_left(problem) or dense_masks.sees_all(problem)):
        return None
    if problem.bias is None and problem.returns is not Returns.WEIGHTS:
        return dense_masks.visible(problem).to(device)
    return dense_masks.added(problem, torch_dtype(problem.dtype)).to(device)


def _with_weights(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **arguments: float
) -> tuple[Tensor, Tensor]:
    """The unfused kernel, under the name that returns its weights too; its mask is added, never boolean."""
    import torch

    dropout, causal = arguments.pop("dropout_p", 0.0), arguments.pop("is_causal")
    kernel = torch.ops.aten._scaled_dot_product_attention_math
    out, weights = kernel(q, k, v, attn_mask, dropout, causal, **arguments)
    return out, weights


def chosen(problem: Problem, device: torch.device, mask: Tensor | None) -> str:
    """The kernel that torch picks, found with empty tensors of the same shapes on that device."""
    import torch
    from torch.nn.attention import SDPBackend

    dtype = torch_dtype(problem.dtype)
    shapes = (
        (problem.heads, problem.seq_q, problem.head_dim),
        *((problem.kv_heads, problem.seq_kv, width) for width in (problem.head_dim, problem.head_dim_v)),
    )
    q, k, v = (torch.empty(problem.batch, *shape, dtype=dtype, device=device) for shape in shapes)
    causal, grouped = dense_masks.is_top_left(problem) and mask is None, problem.heads > problem.kv_heads
    options: Keywords = {"scale": problem.scale, "enable_gqa": grouped}
    number = torch._fused_sdp_choice(q, k, v, mask, problem.dropout, causal, **options)
    names = {int(getattr(SDPBackend, name).value): word for word, name in _KERNELS.items()}
    return names.get(number, str(number))


def scratch_bytes(case: Case) -> int:
    """math: scores and weights, the expanded heads, the mask as numbers; the others: the mask alone, and row sums."""
    problem, mode = case.problem, case.mode
    number = problem.dtype.bytes
    scores = problem.batch * problem.heads * problem.seq_q * problem.seq_kv
    masked = bool(problem.bias) or not (dense_masks.is_top_left(problem) or dense_masks.sees_all(problem))
    sequences = problem.batch if "padding" in problem.features else 1
    if isinstance(problem.bias, Constant) and "span" not in problem.features:  # a mask for each head
        sequences *= problem.heads
    mask = sequences * problem.seq_q * problem.seq_kv * (1 + 2 * number) if masked else 0
    if isinstance(problem.bias, Relative):
        mask += cost.relative_bias_bytes(problem, problem.bias) + scores * number
    inputs = cost.input_bytes(problem)
    expanded = problem.heads // problem.kv_heads * inputs if problem.kv_heads != problem.heads else 0
    if case.backend == "sdpa:math":
        accumulated = max(number, 4)  # on a CPU 16-bit scores are summed in float32
        copies = (2 * inputs + expanded) * accumulated // number
        return (2 if mode is Mode.FWD else 4) * scores * accumulated + mask + copies
    rows = problem.batch * problem.heads * problem.seq_q * 4
    return mask + rows + inputs + (expanded if case.backend == "sdpa:efficient" else 0)
