"""Every configuration of the tables on the GPU that is here: against float64, and the same bits every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.attention import inputs
from attnbench.attention.problem import Problem
from attnbench.kernels.tables import KEYS, Kernel, TileConfig, shipped, users
from attnbench.kernels.tiling import MAX_HEAD_DIM, PASSES, PATHS, Path, Tiling, family
from tests import reference

REPEATS = 20
DTYPES = {"half": "bf16", "fp32": "fp32"}
SHAPES: dict[str, dict[str, Any]] = {
    "none": {"seq_q": 500, "seq_kv": 700, "mask": "none"},
    "causal": {"seq_q": 700, "seq_kv": 500, "mask": "causal"},
    "window": {"seq_q": 640, "seq_kv": 640, "mask": "causal+window:100"},
    "document": {"seq_q": 640, "seq_kv": 640, "mask": "causal+document:7"},
}


def arch() -> str:
    major, minor = torch.cuda.get_device_capability(0)
    return f"sm_{major}{minor}"


def entries(hopper: bool) -> list[tuple[tuple[str, ...], TileConfig]]:
    """Configurations for this GPU, of the kernels in Gluon or of the others; a name stands for all without a GPU."""
    if not torch.cuda.is_available():
        return [(("no GPU",), TileConfig(block_q=16, block_kv=16, warps=4, stages=1))]
    here = (arch(), family(arch()))
    table = shipped() | users()
    found = [
        (key, config)
        for key, config in table.items()
        if key[1] in here and key[2] in DTYPES and len(key) == KEYS and int(key[3]) <= MAX_HEAD_DIM
    ]
    return [(key, config) for key, config in found if (PATHS[Kernel(key[0])] is Path.HOPPER) is hopper]


def tiling_of(kernel: Kernel, config: TileConfig) -> Tiling:
    sizes = {"block_q": config.block_q, "block_kv": config.block_kv, "warps": config.warps, "stages": config.stages}
    return Tiling(path=PATHS[kernel].value, splits=3 if kernel is Kernel.DECODE else 1, **sizes)


def near(found: Any, exact: Any, dtype: Any, plain: Any) -> None:
    """The rule of FlashAttention: twice the error of the plain formula in the same dtype."""
    error = (found.double().cpu() - exact).abs().max()
    bound = 2 * (plain.double() - exact).abs().max() + 8 * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)
    assert error <= bound


def grid(hopper: bool = False) -> list[Any]:
    """Every configuration with the masks that it is for; all masks at one width, as each takes seconds to compile."""
    found = []
    for key, config in entries(hopper):
        for shape in SHAPES:
            kernel, _, dtype, width, mask = key if len(key) == KEYS else ("", "", "half", "128", "any")
            plain = shape == ("none" if mask == "none" else "causal") or (shape == "none" and mask == "any")
            everything = width == "128" and dtype == "half" and kernel != "decode" and mask != "none"
            if kernel.startswith("backward") and hopper and shape == "document":
                continue  # intervals of rows are not in them
            if (plain and (dtype == "half" or shape == "causal")) or everything:
                found.append(pytest.param(key, config, shape, id=f"{'-'.join(key)}-{shape}"))
    return found


def check(key: tuple[str, ...], config: TileConfig, shape: str) -> None:
    """Outputs and gradients of a configuration against float64, and the same bits every time."""
    from attnbench import kernels

    kernel, dtype, width = Kernel(key[0]), DTYPES[key[2]], int(key[3])
    fields = dict(SHAPES[shape])
    if kernel is Kernel.DECODE:
        fields["seq_q"] = 5
    problem = Problem(batch=2, heads=4, kv_heads=2, head_dim=width, dtype=dtype, **fields)
    made = inputs.make(problem, seed=0)
    q, k, v = (tensor.cuda().requires_grad_() for tensor in (made.q, made.k, made.v))
    # A call takes the tiling of a pass; the configuration determines its path.
    options: dict[str, Any] = {"tilings": {PASSES[kernel]: tiling_of(kernel, config)}}
    results = []
    for _ in range(REPEATS):
        with torch.set_grad_enabled(kernel.startswith("backward")):
            out = kernels.attention(q, k, v, mask=problem.mask if problem.mask != "none" else None, **options)
            gradients = torch.autograd.grad(out, (q, k, v), made.dout.cuda()) if out.requires_grad else ()
        results.append((out.detach(), *gradients))
    near(results[0][0], reference.attend(problem, made.q, made.k, made.v).out, q.dtype,
         reference.attend_same_dtype(problem, made.q, made.k, made.v).out)  # fmt: skip
    if len(results[0]) > 1:
        exact = reference.gradients(problem, made.q, made.k, made.v, made.dout)
        plain = reference.gradients_same_dtype(problem, made.q, made.k, made.v, made.dout)
        for found, true, rough in zip(results[0][1:], exact, plain, strict=True):
            near(found, true, q.dtype, rough)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
