"""The in-house Triton kernels. On a CPU they run interpreted, to be verified and never timed."""

from __future__ import annotations

import time
from typing import Any

from attnbench.attention.masks import Causal, Window
from attnbench.attention.problem import Dtype, Problem, Returns
from attnbench.backends import Backend, Limits, Prepared
from attnbench.case import Case
from attnbench.kernels.tiling import HEAD_DIM_MOST

FEATURES = frozenset(
    {
        *("causal", "window", "prefix", "document", "padding", "varlen", "blind_rows"),
        *("gqa", "cross", "head_dim_v", "scale", "softcap", "lse"),
    }
)
UNTIMED = "interpreted on a CPU: its times mean nothing"
DTYPES = frozenset({Dtype.FP32, Dtype.FP16, Dtype.BF16})


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
        rows = problem.masking.rows(problem.grid)
        low, high = (torch.from_numpy(bound).to(device=device, dtype=torch.int32).contiguous() for bound in rows)
        options["intervals"] = low, high
        seconds["mask_build"] = time.perf_counter() - started
    facts: dict[str, Any] = {}

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return kernels.attention(q, k, v, facts=None if facts else facts, **options)

    return Prepared(call=call, seconds=seconds, late_facts=lambda: facts)


def scratch_bytes(case: Case) -> int:
    """Two int32 for every row whose keys are listed; the kernel itself keeps everything on the chip."""
    problem = case.problem
    return 8 * problem.batch * problem.seq_q if needs_intervals(problem) else 0


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
        summary="in-house Triton kernels, forward",
        limits={
            "cpu": Limits(dtypes=DTYPES, features=FEATURES, head_dim_most=HEAD_DIM_MOST),
            "cuda": Limits(
                dtypes=DTYPES | {Dtype.TF32}, features=FEATURES, head_dim_most=HEAD_DIM_MOST, capability=(8, 0)
            ),
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("triton",),
        install="pip install 'triton>=3.6,<3.8'",
        untimed=UNTIMED,
        probe=probe,
    )
}
