"""The in-house Triton kernels, by the path that they choose or by one that is named: docs/kernels.md.

On a CPU they run interpreted, to be verified and never timed.
"""

from __future__ import annotations

import itertools
import time
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from attnbench.attention import formula, pages
from attnbench.attention.bands import Causal, Window
from attnbench.attention.biases import BIASES, Alibi, ByDistance, Constant, Relative
from attnbench.attention.patterns import Blocks
from attnbench.attention.problem import PATTERNS, Dtype, Mode, Problem, Returns
from attnbench.backends import Backend, Limits, Prepared
from attnbench.case import Case
from attnbench.kernels.tiling import (
    BLOCK_LEAST,
    DECODE_ROWS_MOST,
    HEAD_DIM_MOST,
    HOPPER_BACKWARD_WIDTH_MOST,
    SPLITS_MOST,
)

if TYPE_CHECKING:
    import torch

FEATURES = frozenset(
    {
        *("causal", "window", "prefix", "document", "padding", "varlen", "blind_rows", "dense", *PATTERNS),
        *("gqa", "cross", "head_dim_v", "scale", "softcap", "lse", "sinks", "dropout", "dense_bias", "paged", *BIASES),
    }
)
PAGE_LEAST, PAGE_MOST = 16, 256  # tokens
ROW_BYTES = 16  # what the tensor memory accelerator copies is a multiple of it
UNTIMED = "interpreted on a CPU: its times mean nothing"
DTYPES = frozenset({Dtype.FP32, Dtype.FP16, Dtype.BF16})
FP8 = Dtype.FP8_E4M3
LIMITS = Limits(
    dtypes=DTYPES, forward_only={FP8: (8, 9)}, features=FEATURES, modes=frozenset(Mode), head_dim_most=HEAD_DIM_MOST
)


def arguments(problem: Problem) -> dict[str, Any]:
    """The problem in the words of `attnbench.kernels.attention`, intervals aside."""
    window = problem.masking.find(Window)
    return {
        "causal": problem.masking.find(Causal) is not None,
        "window": (window.left, window.right) if window else None,
        "scale": problem.scale,
        "softcap": problem.softcap,
        "precision": "tf32" if problem.dtype is Dtype.TF32 else "ieee",
        "return_lse": problem.returns is Returns.LSE,
    }


class Told(StrEnum):
    """How the kernels are told a mask."""

    BAND = "band"  # causal and window, by arguments
    ROWS = "rows"  # the run of keys of each row
    BLOCKS = "blocks"
    TENSOR = "boolean tensor"  # of which they skip the tiles that are hidden as a whole


def told(problem: Problem) -> Told:
    """The leanest way that says the whole mask."""
    masking = problem.masking
    pattern = masking.pattern
    if isinstance(pattern, Blocks) and not problem.lengths:
        alone = masking.words <= {pattern.word, "causal", "window"}
        if alone and pattern.size >= BLOCK_LEAST and pattern.size.bit_count() == 1:
            return Told.BLOCKS
    if pattern or "dense" in masking.words:
        return Told.TENSOR
    return Told.ROWS if problem.lengths or masking.words - {"causal", "window"} else Told.BAND


def prepare(case: Case, device: str) -> Prepared:
    """What the mask needs beyond arguments is built here, untimed; the call takes it as it is."""
    import torch

    from attnbench import kernels

    problem, way = case.problem, told(case.problem)
    if problem.page_size:
        return _paged(problem, device)
    started = time.perf_counter()
    options = arguments(problem) | _mask(problem, way, device) | _terms(problem, device)
    options["path"] = case.backend.partition(":")[2]
    seconds = {"mask_build": time.perf_counter() - started} if "mask" in options else {}
    facts: dict[str, Any] = {"mask": way.value} if way in (Told.BLOCKS, Told.TENSOR) else {}
    if problem.dtype is FP8:
        heads = (problem.heads, problem.kv_heads, problem.kv_heads)
        options["descale"] = tuple(torch.ones(count, device=device) for count in heads)

    relative = problem.bias if isinstance(problem.bias, Relative) else None
    seeds = itertools.count()

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        own: dict[str, Any] = {"seed": next(seeds)} if problem.dropout else {}
        if relative is not None:
            own["bias"] = relative.whole(problem, q, k)
        return kernels.attention(q, k, v, facts=None if "path" in facts else facts, **options, **own)

    return Prepared(call=call, seconds=seconds, late_facts=lambda: facts)


def _paged(problem: Problem, device: str) -> Prepared:
    """The decode kernel, which reads keys through a table of pages."""
    import torch

    from attnbench import kernels

    options = arguments(problem) | _terms(problem, device)
    where = torch.from_numpy(pages.table(problem)).to(device)
    lengths = torch.full((problem.batch,), problem.seq_kv, dtype=torch.int32, device=device)
    facts: dict[str, Any] = {"page_size": problem.page_size}

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        seen = None if "path" in facts else facts
        return kernels.decode(q, k, v, kv_lengths=lengths, page_table=where, facts=seen, check=False, **options)

    return Prepared(call=call, stored=partial(pages.stored, problem), late_facts=lambda: facts)


def refuses(case: Case) -> list[str]:
    """What pages ask of the decode kernel."""
    problem = case.problem
    if not problem.page_size:
        return []
    reasons = []
    if problem.seq_q > DECODE_ROWS_MOST:
        reasons.append(f"pages are read by the decode kernel, of at most {DECODE_ROWS_MOST} queries")
    if not PAGE_LEAST <= problem.page_size <= PAGE_MOST:
        reasons.append(f"page_size {problem.page_size} is not {PAGE_LEAST} to {PAGE_MOST}")
    if beyond := problem.masking.words - {"causal", "window"}:
        reasons.append(f"no {', '.join(sorted(beyond))} over pages")
    if (problem.bias and problem.bias.text != "alibi") or problem.dropout:
        reasons.append("no bias but ALiBi and no dropout over pages")
    return reasons


def refuses_of_path(case: Case) -> list[str]:
    """What a path that is named asks for; it never gives way to another one."""
    problem, path = case.problem, case.backend.partition(":")[2]
    reasons = ["pages are read by the decode kernel alone"] if problem.page_size else []
    if path == "portable":
        return reasons
    if told(problem) in (Told.BLOCKS, Told.TENSOR):
        reasons.append("a list of blocks is walked by pointers")
    widths = {"head_dim": problem.head_dim, "head_dim_v": problem.head_dim_v}
    for name, width in widths.items():
        if width * problem.dtype.bytes % ROW_BYTES:
            reasons.append(f"{name} {width}: a row is no multiple of {ROW_BYTES} bytes")
    if path == "hopper" and problem.dtype is FP8 and told(problem) is Told.ROWS:
        reasons.append("of 8 bits its kernels take causal and window alone")
    if path == "hopper" and case.mode.needs_grad:
        if told(problem) is Told.ROWS:
            reasons.append("its backward kernels take causal and window alone")
        if max(widths.values()) > HOPPER_BACKWARD_WIDTH_MOST:
            reasons.append(f"its backward kernels take head_dim up to {HOPPER_BACKWARD_WIDTH_MOST}")
    return reasons


def _mask(problem: Problem, way: Told, device: str) -> dict[str, Any]:
    """The arguments that say the mask, where causal and window do not."""
    import torch

    from attnbench import kernels

    if way is Told.BAND:
        return {}
    if way is Told.BLOCKS:
        pattern = problem.masking.pattern
        assert isinstance(pattern, Blocks)
        kept = torch.from_numpy(pattern.kept(problem.grid))[None, None].to(device)
        return {"mask": kernels.blocks(kept, pattern.size, pattern.size)}
    # What follows holds causal and window too.
    alone = {"causal": False, "window": None}
    if way is Told.TENSOR:
        return {"mask": torch.from_numpy(problem.masking.dense(problem.grid))[:, None].to(device), **alone}
    low, high = (torch.from_numpy(bound).to(device) for bound in problem.masking.rows(problem.grid))
    return {"mask": kernels.rows(low, high, seq_kv=problem.seq_kv), **alone}


def _terms(problem: Problem, device: str) -> dict[str, Any]:
    """Sinks, dropout, and a bias that depends on no tensor: by slope or by distance, or as a tensor where asked for."""
    found: dict[str, Any] = {"dropout": problem.dropout} if problem.dropout else {}
    if problem.sinks:
        found["sinks"] = formula.sinks(problem).float().to(device)
    bias = problem.bias
    if isinstance(bias, Alibi) and not bias.dense:
        found["alibi_slopes"] = bias.slopes(problem).float().to(device)
    elif isinstance(bias, ByDistance) and not bias.dense:
        found["bias"] = bias.distances(problem).float().contiguous().to(device)
    elif isinstance(bias, Constant):
        found["bias"] = bias.dense_tensor(problem).float()[None].contiguous().to(device)
    return found


def scratch_bytes(case: Case) -> int:
    """Intervals of rows, and what passes hand on: the lse and delta, the splits of a decode, gradients in parts."""
    problem = case.problem
    rows = problem.batch * problem.heads * problem.seq_q
    way, rows_of_bias = told(problem), problem.heads * problem.seq_q * problem.seq_kv
    total = 12 * problem.batch * problem.seq_q if way is Told.ROWS else 0
    if way is Told.TENSOR:
        sequences = problem.batch if "padding" in problem.features or problem.lengths else 1
        total += sequences * problem.seq_q * problem.seq_kv
    if isinstance(problem.bias, Relative):
        total += problem.bias.whole_bytes(problem)
    elif problem.bias and (problem.bias.dense or not isinstance(problem.bias, ByDistance)):
        total += 4 * rows_of_bias
    if case.mode.needs_grad:
        # A gradient of k and v for every query head, at most, where too few key heads would leave the chip idle.
        keys = problem.batch * problem.heads * problem.seq_kv * (problem.head_dim + problem.head_dim_v)
        total += 8 * rows + (4 * keys if problem.kv_heads < problem.heads else 0)
    elif problem.seq_q <= DECODE_ROWS_MOST:
        total += 4 * SPLITS_MOST * rows * (problem.head_dim_v + 1)
    return total


def probe(device: str) -> str | None:
    """Run it on 16 tokens."""
    import torch

    from attnbench import kernels

    tokens = torch.zeros(1, 1, 16, 16, device=device)
    try:
        kernels.attention(tokens, tokens, tokens)
    except Exception as error:  # Triton raises whatever its compiler, its driver or its interpreter does
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


_CUDA = replace(LIMITS, dtypes=DTYPES | {Dtype.TF32}, capability=(8, 0))
_HALVES = frozenset({Dtype.FP16, Dtype.BF16})
_DESCRIBED = replace(_CUDA, dtypes=_HALVES, capability=(9, 0))
_BY_HOPPER = frozenset(
    {"causal", "window", "prefix", "document", "padding", "varlen", "blind_rows", "gqa", "cross", "scale", "lse"}
)
_HOPPER = replace(_DESCRIBED, features=_BY_HOPPER, forward_only={FP8: (9, 0)}, capability_below=(10, 0))
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
    "portable": ("by pointers", {"cpu": LIMITS, "cuda": _CUDA}),
    "descriptors": ("by tensor descriptors (TMA)", {"cpu": replace(LIMITS, dtypes=_HALVES), "cuda": _DESCRIBED}),
    "hopper": ("in Gluon for Hopper, unproved (docs/hopper.md)", {"cuda": _HOPPER}),
}
BACKENDS = {"triton": _ANY} | {
    f"triton:{path}": replace(
        _ANY, name=f"triton:{path}", summary=f"{_ANY.summary}, {how}", limits=limits, refuses=refuses_of_path
    )
    for path, (how, limits) in _PATHS.items()
}
