"""AMD's zentorch: its scaled dot-product attention for CPUs, an operator of torch.

https://github.com/amd/ZenDNN-pytorch-plugin
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from attnbench.attention import dense_masks
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import FLOATS, Backend, CaseRefusedError, Keywords, Limits, Prepared, failure, isa_objection
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor


def arguments(problem: Problem) -> Keywords:
    """The problem in the keywords of zentorch_sdpa, where `mask` is True if a tensor is needed."""
    causal = dense_masks.is_top_left(problem) and problem.bias is None
    masked = not causal and not (dense_masks.sees_all(problem) and problem.bias is None)
    return {"is_causal": causal, "scale": problem.scale, "mask": masked}


def prepare(case: Case, _device: str) -> Prepared:
    """Build the mask as numbers to be added; the operator takes no other."""
    import torch

    from attnbench.attention.inputs import torch_dtype

    if (precision := torch.get_float32_matmul_precision()) != "highest":
        raise CaseRefusedError(f"torch's precision of products is {precision}, not highest")
    problem, options = case.problem, arguments(case.problem)
    started, seconds = time.perf_counter(), {}
    if masked := options.pop("mask"):
        mask = dense_masks.added(problem, torch_dtype(problem.dtype))
        options["attn_mask"] = mask.expand(problem.batch, -1, -1, -1).contiguous()
        seconds = {"mask_build": time.perf_counter() - started}
    attend = torch.ops.zentorch.zentorch_sdpa

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attend(q, k, v, **options)[0]
        return out

    facts = {"dense_mask": masked, "library_threads": torch.get_num_threads(), "telemetry": "off"}
    return Prepared(call=call, seconds=seconds, facts=facts | {"precision": precision})


def scratch_bytes(case: Case) -> int:
    """The lse, tiles of logits of each thread, and the mask as numbers."""
    problem = case.problem
    heads = problem.heads if problem.bias else 1
    mask = problem.batch * heads * problem.seq_q * problem.seq_kv * problem.dtype.bytes
    return (mask if arguments(problem)["mask"] else 0) + 4 * math.prod(problem.shape_q) + 16 * 1024**2


def probe(device: str) -> str | None:
    """Run 64 tokens."""

    def run() -> None:
        import torch

        tokens = torch.zeros(1, 1, 64, 64)
        torch.ops.zentorch.zentorch_sdpa(tokens, tokens, tokens)

    return isa_objection(device) or failure(run)


BACKENDS = {
    "zentorch": Backend(
        name="zentorch",
        summary="AMD's zentorch, its attention for CPUs",
        limits={
            "cpu": Limits(
                dtypes=FLOATS,
                features=dense_masks.MASKS | dense_masks.BIASES | {"gqa", "cross", "scale"},
                modes=frozenset({Mode.FWD}),
            )
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch", "zentorch"),
        install="pip install zentorch==2.13.0.2",
        probe=probe,
        distributions=("zentorch",),
        versions={"zentorch": ((2, 13), (2, 14)), "torch": ((2, 13), (2, 14))},
        outside_torch=True,
        traps=(
            "is_causal is aligned to the top left: where seq_q differs from seq_kv the mask is a tensor",
            "the lse that it returns is not always written: it is refused",
            "a last dimension that is not contiguous gives a wrong output, or by CPU and dtype an error",
            "each version belongs to one version of torch: unpinned, pip takes one for another",
        ),
    )
}
