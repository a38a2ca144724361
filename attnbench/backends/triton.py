"""The in-house Triton kernels, on the path that they choose or on a named one: docs/kernels.md.

On a CPU they run in Triton's interpreter, to be verified and never timed.
"""

from __future__ import annotations

import itertools
import time
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from attnbench.attention import cost, latent
from attnbench.attention.biases import BIASES, ByDistance, Relative
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.masks import PATTERNS
from attnbench.attention.problem import Problem
from attnbench.attention.terms import BlockPattern
from attnbench.backends import FLOATS, HALVES, Backend, Keywords, Limits, Output, Prepared, failure
from attnbench.backends.triton_call import (
    FP8,
    arguments,
    decoded,
    is_decoded,
    optional_arguments,
    refuses,
    refuses_in_cascade,
    refuses_packed,
)
from attnbench.kernels.tiling import (
    MAX_DECODE_ROWS,
    MAX_HEAD_DIM,
    MAX_HOPPER_BACKWARD_WIDTH,
    MAX_SPLIT_ROWS,
    MAX_SPLITS,
    MIN_BLOCK,
)
from attnbench.records.case import Case

if TYPE_CHECKING:
    import torch

FEATURES = frozenset(
    {
        *("causal", "window", "prefix", "document", "padding", "blind_rows", "dense", *PATTERNS),
        *("gqa", "cross", "head_dim_v", "scale", "softcap", "lse", "sinks", "dropout", "dense_bias", "paged"),
        *("requests", "empty", "latent", *BIASES),
    }
)
ROW_BYTES = 16  # the tensor memory accelerator copies multiples of it
UNTIMED = "interpreted on a CPU: its times mean nothing"
LIMITS = Limits(dtypes=FLOATS, forward_only={FP8: (8, 9)}, features=FEATURES, head_dim_most=MAX_HEAD_DIM)


class MaskForm(StrEnum):
    """How a mask is passed to the kernels."""

    BAND = "band"  # causal and window, by arguments
    ROWS = "rows"  # the run of keys of each row
    BLOCKS = "blocks"
    TENSOR = "boolean tensor"  # of which they skip the tiles that are hidden completely


def mask_form(problem: Problem) -> MaskForm:
    """The cheapest form that expresses the whole mask."""
    masking = problem.masking
    pattern = masking.pattern
    if isinstance(pattern, BlockPattern) and not problem.requests:
        alone = masking.words <= {pattern.word, "causal", "window"}
        if alone and pattern.block >= MIN_BLOCK and pattern.block.bit_count() == 1:
            return MaskForm.BLOCKS
    if pattern or "dense" in masking.words:
        return MaskForm.TENSOR
    return MaskForm.ROWS if problem.requests or masking.words - {"causal", "window"} else MaskForm.BAND


def prepare(case: Case, device: str) -> Prepared:
    """Build the intervals, blocks or booleans of the mask, untimed; the call takes them as they are."""
    from attnbench import kernels

    problem, form = case.problem, mask_form(case.problem)
    if is_decoded(case):
        return decoded(problem, device, cascade=case.backend == "triton:cascade")
    started = time.perf_counter()
    options = arguments(problem) | _mask(problem, form, device) | optional_arguments(problem, device)
    options["path"] = case.backend.partition(":")[2]
    built = "plan" if problem.requests else "mask_build"
    seconds = {built: time.perf_counter() - started} if "mask" in options else {}
    facts: Keywords = {"mask": form.value} if form in (MaskForm.BLOCKS, MaskForm.TENSOR) else {}
    relative = problem.bias if isinstance(problem.bias, Relative) else None
    seeds = itertools.count()

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Output:
        varying: Keywords = {"seed": next(seeds)} if problem.dropout else {}
        if relative is not None:
            varying["bias"] = relative.whole(problem, q, k)
        launched = None if "path" in facts else facts
        output: Output = kernels.attention(q, k, v, facts=launched, **options, **varying)
        return output

    return Prepared(call=call, seconds=seconds, late_facts=lambda: facts)


def refuses_of_path(case: Case) -> list[str]:
    """Objections of a named path, which is never replaced by another one."""
    problem, path = case.problem, case.backend.partition(":")[2]
    reasons = refuses_packed(problem) + (["only the decode kernel reads pages"] if problem.page_size else [])
    if path == "portable":
        return reasons
    if mask_form(problem) in (MaskForm.BLOCKS, MaskForm.TENSOR):
        reasons.append("a list of blocks is walked by pointers")
    widths = {"head_dim": problem.head_dim, "head_dim_v": problem.head_dim_v}
    for name, width in widths.items():
        if width * problem.dtype.bytes % ROW_BYTES:
            reasons.append(f"{name} {width}: a row is not a multiple of {ROW_BYTES} bytes")
    if path == "hopper" and problem.dtype is FP8 and mask_form(problem) is MaskForm.ROWS:
        reasons.append("for 8-bit inputs its kernels take only causal and window")
    if path == "hopper" and case.mode.needs_grad:
        if mask_form(problem) is MaskForm.ROWS:
            reasons.append("its backward kernels take only causal and window")
        if max(widths.values()) > MAX_HOPPER_BACKWARD_WIDTH:
            reasons.append(f"its backward kernels take head_dim up to {MAX_HOPPER_BACKWARD_WIDTH}")
    return reasons


def _mask(problem: Problem, form: MaskForm, device: str) -> Keywords:
    """The arguments that express the mask, where causal and window do not."""
    import torch

    from attnbench import kernels

    if form is MaskForm.BAND:
        return {}
    if form is MaskForm.BLOCKS:
        pattern = problem.masking.pattern
        assert isinstance(pattern, BlockPattern)
        visible = torch.from_numpy(pattern.visible_blocks(problem.grid))[None, None].to(device)
        return {"mask": kernels.blocks(visible, pattern.block, pattern.block)}
    # The forms below include causal and window.
    alone = {"causal": False, "window": None}
    if form is MaskForm.TENSOR:
        return {"mask": torch.from_numpy(_visible(problem))[:, None].to(device), **alone}
    low, high = (torch.from_numpy(bound).to(device) for bound in _intervals(problem))
    return {"mask": kernels.rows(low, high, seq_kv=problem.shape_kv[2]), **alone}


def _visible(problem: Problem) -> NDArray[np.bool_]:
    """The mask as booleans; of requests, that of all packed tokens: a request sees its own keys."""
    if not problem.requests:
        return problem.visible()
    visible = np.zeros((1, problem.tokens_q, problem.tokens_kv), dtype=bool)
    for part, (queries, keys) in zip(problem.parts, problem.spans, strict=True):
        visible[0, queries, keys] = part.visible()[0]
    return visible


def _intervals(problem: Problem) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The keys [low, high) of every row, among those of all packed requests."""
    if not problem.requests:
        return problem.masking.rows(problem.grid)
    rows = [
        [bound + keys.start for bound in part.masking.rows(part.grid)]
        for part, (_, keys) in zip(problem.parts, problem.spans, strict=True)
    ]
    low, high = (np.concatenate(bounds, axis=1) for bounds in zip(*rows, strict=True))
    return low, high


def scratch_bytes(case: Case) -> int:
    """Intervals of rows, and intermediate results: the lse and delta, the splits of a decode, gradients in parts."""
    problem = case.problem
    is_decode, rows = is_decoded(case), problem.heads * problem.tokens_q
    form, rows_of_bias = mask_form(problem), problem.heads * problem.seq_q * problem.seq_kv
    total = 12 * problem.tokens_q if form is MaskForm.ROWS and not is_decode else 0
    if form is MaskForm.TENSOR:
        sequences = problem.shape_q[0] if "padding" in problem.features else 1
        total += sequences * problem.shape_q[2] * problem.shape_kv[2]
    if isinstance(problem.bias, Relative):
        total += cost.relative_bias_bytes(problem, problem.bias)
    elif problem.bias and (problem.bias.dense or not isinstance(problem.bias, ByDistance)):
        total += 4 * rows_of_bias
    if case.mode.needs_grad:
        # A gradient of k and v for every query head, at most, where too few key heads would leave the chip idle.
        keys = problem.heads * problem.tokens_kv * (problem.head_dim + problem.head_dim_v)
        total += 8 * rows + (4 * keys if problem.kv_heads < problem.heads else 0)
    elif is_decode or problem.seq_q <= MAX_DECODE_ROWS:
        width = problem.head_dim_v
        if problem.kv:  # q and out in the latent space, and the matrices
            inner = latent.absorbed(problem)
            width = inner.head_dim_v
            total += rows * (inner.head_dim + width) * problem.dtype.bytes + latent.matrix_bytes(problem)
        total += 4 * min(MAX_SPLITS * rows, MAX_SPLIT_ROWS) * (width + 1)
    return total


def probe(device: str) -> str | None:
    """Run it on 16 tokens."""
    import torch

    from attnbench import kernels

    tokens = torch.zeros(1, 1, 16, 16, device=device)
    return failure(lambda: kernels.attention(tokens, tokens, tokens))


_OF_PATHS = FEATURES - {"latent"}  # which only the decode kernel takes
_CUDA = replace(LIMITS, dtypes=FLOATS | {Dtype.TF32}, capability=(8, 0))
_DESCRIBED = replace(_CUDA, dtypes=HALVES, features=_OF_PATHS, capability=(9, 0))
_BY_HOPPER = frozenset(
    {
        "causal",
        "window",
        "prefix",
        "document",
        "padding",
        "requests",
        "empty",
        "blind_rows",
        "gqa",
        "cross",
        "scale",
        "lse",
    }
)
_HOPPER = replace(_DESCRIBED, features=_BY_HOPPER, forward_only={FP8: (9, 0)}, capability_below=(10, 0))
_NAMED, _NAMED_CUDA = (replace(limits, features=_OF_PATHS) for limits in (LIMITS, _CUDA))
_ANY = Backend(
    name="triton",
    summary="in-house Triton kernels",
    limits={"cpu": LIMITS, "cuda": _CUDA},
    prepare=prepare,
    scratch_bytes=scratch_bytes,
    requires=("triton",),
    install="pip install 'triton>=3.6,<3.8'",
    untimed=UNTIMED,
    interpreter=(("TRITON_INTERPRET", "1"),),
    probe=probe,
    refuses=refuses,
)
# Paths: what they are, and on which kinds of device.
_PATHS: dict[str, tuple[str, dict[str, Limits]]] = {
    "portable": ("by pointers", {"cpu": _NAMED, "cuda": _NAMED_CUDA}),
    "descriptors": ("by tensor descriptors (TMA)", {"cpu": replace(_NAMED, dtypes=HALVES), "cuda": _DESCRIBED}),
    "hopper": ("in Gluon for Hopper, unproved (docs/hopper.md)", {"cuda": _HOPPER}),
}
_IN_CASCADE = frozenset(
    {"causal", "gqa", "cross", "head_dim_v", "scale", "softcap", "lse", "sinks", "paged", "requests", "latent"}
)
_CASCADE = replace(
    _ANY,
    name="triton:cascade",
    summary="in-house Triton decode kernel, a shared prefix once for all its requests",
    limits={
        kind: replace(limits, features=_IN_CASCADE, modes=frozenset({Mode.FWD})) for kind, limits in _ANY.limits.items()
    },
    refuses=refuses_in_cascade,
)
BACKENDS = {"triton": _ANY, "triton:cascade": _CASCADE} | {
    f"triton:{path}": replace(
        _ANY, name=f"triton:{path}", summary=f"{_ANY.summary}, {how}", limits=limits, refuses=refuses_of_path
    )
    for path, (how, limits) in _PATHS.items()
}
