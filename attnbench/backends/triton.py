"""The in-house Triton kernels. On a CPU they run interpreted, to be verified and never timed."""

from __future__ import annotations

import time
from typing import Any

from msgspec.structs import replace

from attnbench.attention.masks import Causal, Window
from attnbench.attention.problem import Dtype, Mode, Problem, Returns
from attnbench.backends import Backend, Limits, Prepared
from attnbench.case import Case
from attnbench.kernels.tiling import DECODE_ROWS_MOST, HEAD_DIM_MOST, SPLITS_MOST

FEATURES = frozenset(
    {
        *("causal", "window", "prefix", "document", "padding", "varlen", "blind_rows"),
        *("gqa", "cross", "head_dim_v", "scale", "softcap", "lse"),
    }
)
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
        "softcap": problem.score.softcap,
        "precision": "tf32" if problem.dtype is Dtype.TF32 else "ieee",
        "return_lse": problem.returns is Returns.LSE,
    }


def needs_intervals(problem: Problem) -> bool:
    """Whether the mask is more than a band along the diagonal, so that the keys of each row are listed."""
    return bool(problem.lengths or problem.masking.words - {"causal", "window"})


def prepare(case: Case, device: str) -> Prepared:
    """The intervals of the rows are built here, untimed; the call takes them as they are."""
    import torch

    from attnbench import kernels

    problem, options = case.problem, arguments(case.problem)
    seconds: dict[str, float] = {}
    if needs_intervals(problem):
        started = time.perf_counter()
        low, high = (torch.from_numpy(bound).to(device) for bound in problem.masking.rows(problem.grid))
        options["mask"] = kernels.rows(low, high, seq_kv=problem.seq_kv)
        # The intervals hold the band too.
        options |= {"causal": False, "window": None}
        seconds["mask_build"] = time.perf_counter() - started
    facts: dict[str, Any] = {}
    if problem.dtype is FP8:
        heads = (problem.heads, problem.kv_heads, problem.kv_heads)
        options["descale"] = tuple(torch.ones(count, device=device) for count in heads)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return kernels.attention(q, k, v, facts=None if "path" in facts else facts, **options)

    return Prepared(call=call, seconds=seconds, late_facts=lambda: facts)


def scratch_bytes(case: Case) -> int:
    """Intervals of rows, and what passes hand on: the lse and delta, the splits of a decode, gradients in parts."""
    problem = case.problem
    rows = problem.batch * problem.heads * problem.seq_q
    total = 12 * problem.batch * problem.seq_q if needs_intervals(problem) else 0
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


BACKENDS = {
    "triton": Backend(
        name="triton",
        summary="in-house Triton kernels",
        limits={"cpu": LIMITS, "cuda": replace(LIMITS, dtypes=DTYPES | {Dtype.TF32}, capability=(8, 0))},
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("triton",),
        install="pip install 'triton>=3.6,<3.8'",
        untimed=UNTIMED,
        interpreter=(("TRITON_INTERPRET", "1"),),
        probe=probe,
    )
}
