"""OpenVINO on a CPU: scaled_dot_product_attention, and the paged attention of its server.

A model holds one operator. Tensors are shared by address. The precision hint is set and read back, since a CPU with
bf16 computes fp32 models in bf16 by default.
https://docs.openvino.ai/2026/documentation/openvino-ir-format/operation-sets.html
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnbench.attention import dense_masks, logits
from attnbench.attention.biases import Alibi
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.layouts import WrittenPages, cache_of, key_rows, pages_and_new_rows, with_new_rows
from attnbench.attention.problem import Problem
from attnbench.backends import (
    FLOATS,
    Backend,
    CaseRefusedError,
    Keywords,
    Layout,
    Limits,
    Prepared,
    failure,
    isa_objection,
)
from attnbench.records.case import Case

if TYPE_CHECKING:
    import openvino
    from torch import Tensor

PAGE_SIZE = 32  # tokens, of the CPU plugin
FIRST_TABLE = 5  # the place of past_lens among the inputs of a paged model
CACHE_PRECISIONS = ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION")
_TYPES = {Dtype.FP32: "f32", Dtype.FP16: "f16", Dtype.BF16: "bf16"}


@lru_cache(maxsize=1)
def library() -> ModuleType:
    """The package with its own stub in place of its telemetry, which would report every import to a server."""
    vars(sys)["modules"]["openvino_telemetry"] = None  # its import fails, as if it were not installed
    return import_module("openvino")


def opset() -> ModuleType:
    """The operators of the models."""
    library()
    return import_module("openvino.opset13")


def capabilities() -> tuple[str, ...]:
    """What this CPU computes in, as OpenVINO names it: FP32, BF16, ..."""
    return tuple(library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def hint(dtype: Dtype, capabilities: tuple[str, ...]) -> str:
    """The precision to ask for: that of the tensors if the CPU has it, else fp32, never a lower one."""
    return "bf16" if dtype is Dtype.BF16 and "BF16" in capabilities else "f32"


def compiled(model: openvino.Model, problem: Problem, **more: object) -> tuple[openvino.CompiledModel, Keywords]:
    """The compiled model, and the settings as they are read back. Raises CaseRefusedError where one is not kept."""
    ov = library()
    import torch

    core = ov.Core()
    precision = hint(problem.dtype, capabilities())
    settings: Keywords = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": getattr(ov.Type, precision),
        "ENABLE_CPU_PINNING": False,  # attnbench has pinned the process
        "CPU_DENORMALS_OPTIMIZATION": False,
        **more,
    }
    plan = core.compile_model(model, "CPU", settings)
    for name, value in settings.items():
        if (used := plan.get_property(name)) != value:
            raise CaseRefusedError(f"openvino does not keep {name}={value}: it uses {used}")
    kinds = [str(node.get_rt_info()["layerType"].astype(str)) for node in plan.get_runtime_model().get_ops()]
    return plan, {
        "library_threads": settings["INFERENCE_NUM_THREADS"],
        "precision": precision,
        "denormals": "kept",
        "pinned_by_library": False,
        "nodes": [kind for kind in kinds if kind not in ("Input", "Output", "Const")],
        "telemetry": "off",
    }


def shared(tensor: Tensor, dtype: Dtype) -> openvino.Tensor:
    """An OpenVINO tensor in the memory of a contiguous one, which must outlive it."""
    ov = library()
    import torch

    kind = getattr(ov.Type, _TYPES[dtype])
    bits = tensor.view(torch.int16) if dtype is not Dtype.FP32 else tensor
    return ov.Tensor(bits.numpy(), ov.Shape(list(tensor.shape)), kind)


class Inference:
    """An inference request, and the tensors that it holds by address."""

    def __init__(self, plan: openvino.CompiledModel, dtype: Dtype, tables: Sequence[NDArray[np.int32]] = ()) -> None:
        ov = library()

        self._request, self._dtype = plan.create_infer_request(), dtype
        self._bound: dict[int, tuple[int, Tensor]] = {}
        for place, values in enumerate(tables, FIRST_TABLE):
            self._request.set_input_tensor(place, ov.Tensor(np.array(values)))

    def bind(self, place: int, tensor: Tensor, shape: tuple[int, ...]) -> None:
        """Bind an input by its position; again only where its address changes."""
        address = tensor.data_ptr()
        if self._bound.get(place, (0,))[0] != address:
            self._request.set_input_tensor(place, shared(tensor.contiguous().view(shape), self._dtype))
        self._bound[place] = address, tensor

    def run(self, out: Tensor) -> Tensor:
        self._request.set_output_tensor(0, shared(out, self._dtype))
        self._request.infer()
        return out


def folds(problem: Problem) -> bool:
    """Whether the heads that share keys are rows of one: [batch, kv_heads, group * seq_q, head_dim], without a copy."""
    return problem.kv_heads < problem.heads and dense_masks.sees_all(problem) and problem.bias is None


class SdpaModel(NamedTuple):
    """A model with one scaled_dot_product_attention, and the shapes of its q, k, v and out."""

    model: openvino.Model
    shapes: Sequence[tuple[int, ...]]
    mask: Tensor | None


def sdpa_model(problem: Problem) -> SdpaModel:
    """A mask that is not exactly `causal` is an input, of numbers that are added."""
    from attnbench.attention.inputs import torch_dtype

    ov, ops = library(), opset()
    kind = getattr(ov.Type, _TYPES[problem.dtype])
    group = problem.heads // problem.kv_heads if folds(problem) else 1
    b, heads, rows, keys = problem.batch, problem.heads // group, problem.seq_q * group, problem.seq_kv
    shapes = [(b, heads, rows, problem.head_dim), (b, problem.kv_heads, keys, problem.head_dim),
              (b, problem.kv_heads, keys, problem.head_dim_v), (b, heads, rows, problem.head_dim_v)]  # fmt: skip
    inputs = [ops.parameter(list(shape), kind, name) for shape, name in zip(shapes, "qkv", strict=False)]
    mask = None
    if not is_free_of_masks(problem):
        mask = dense_masks.added(problem, torch_dtype(problem.dtype)).contiguous()
        inputs.append(ops.parameter(list(mask.shape), kind, "mask"))
    q, k, v, *rest = inputs
    if group == 1 and problem.kv_heads < problem.heads:
        k, v = (_expanded(tensor, problem) for tensor in (k, v))
    scale = ops.constant(problem.scale, ov.Type.f32)
    scale = scale if kind == ov.Type.f32 else ops.convert(scale, _TYPES[problem.dtype])
    causal = mask is None and not dense_masks.sees_all(problem)
    node = ops.scaled_dot_product_attention(q, k, v, *(rest or [None]), scale, causal)
    return SdpaModel(ov.Model([node.output(0)], inputs, "attention"), shapes, mask)


def prepare(case: Case, _device: str) -> Prepared:
    """Compile the model, and bind the mask."""
    import torch

    problem = case.problem
    made = sdpa_model(problem)
    plan, facts = compiled(made.model, problem)
    inference = Inference(plan, problem.dtype)
    if made.mask is not None:
        inference.bind(3, made.mask, tuple(made.mask.shape))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for place, tensor in enumerate((q, k, v)):
            inference.bind(place, tensor.contiguous(), made.shapes[place])
        out = inference.run(torch.empty(made.shapes[3], dtype=q.dtype))
        return out.view(problem.batch, problem.heads, problem.seq_q, problem.head_dim_v)

    sharing = "none" if problem.kv_heads == problem.heads else "folded" if folds(problem) else "broadcast"
    return Prepared(call=call, facts=facts | {"dense_mask": made.mask is not None, "shared_heads": sharing})


def _expanded(tensor: openvino.Node, problem: Problem) -> openvino.Node:
    """Key heads repeated within the model."""
    ov, ops = library(), opset()
    b, heads, seq, width = tensor.get_output_shape(0)
    wide = ops.constant([b, heads, problem.heads // heads, seq, width], ov.Type.i32)
    apart = ops.broadcast(ops.unsqueeze(tensor, ops.constant([2], ov.Type.i32)), wide)
    return ops.reshape(apart, ops.constant([b, problem.heads, seq, width], ov.Type.i32), False)


# The inputs of PagedAttentionExtension that a case sets, by their places. The others are empty.
_PAGED_INPUTS = ("query", "key", "value", "key_cache", "value_cache", "past_lens", "subsequence_begins",
                 "block_indices", "block_indices_begins", "scale", "sliding_window", "alibi_slopes",
                 "max_context_len")  # fmt: skip
# src/core/include/openvino/op/paged_attention.hpp: element type and shape of inputs 13 to 27. The window over which
# scores are aggregated (13) must be empty too: with a number in it, no output is written.
_EMPTY: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("i32", (0,)), ("i32", (0,)), ("i32", (0,)), ("f32", (0,)), ("f32", (0,)), ("i32", ()), ("i32", ()), ("f32", (0,)),
    ("i32", ()), ("i32", (0,)), ("i32", (0,)), ("i32", (0,)), ("i32", (0,)), ("u8", (0,)), ("i32", (0,)),
)  # fmt: skip
_SINKS = 20


def paged_model(problem: Problem) -> openvino.Model:
    """A model with one PagedAttentionExtension; its inputs that change are parameters, in the order of the operator."""
    ov, ops = library(), opset()
    kind, kv, d = getattr(ov.Type, _TYPES[problem.dtype]), problem.kv_heads, problem.head_dim
    dv = problem.head_dim_v
    shapes: list[list[int]] = [[-1, problem.heads * d], [-1, kv * d], [-1, kv * dv],
                               [-1, kv, PAGE_SIZE, d], [-1, kv, PAGE_SIZE, dv]]  # fmt: skip
    inputs = [ops.parameter(shape, kind, name) for shape, name in zip(shapes, _PAGED_INPUTS, strict=False)]
    inputs += [ops.parameter([-1], ov.Type.i32, name) for name in _PAGED_INPUTS[5:9]]
    window = problem.window[0] + 1 if problem.window else 0  # counts the diagonal key too
    slopes = problem.bias.slopes(problem).numpy() if isinstance(problem.bias, Alibi) else np.zeros(0)
    constants = ((problem.scale, ov.Type.f32), (window, ov.Type.i32), (slopes, ov.Type.f32))
    fixed = [ops.constant(value, of_constant) for value, of_constant in constants]
    longest = ops.parameter([], ov.Type.i32, "max_context_len")
    rest = [ops.constant(np.zeros(shape), getattr(ov.Type, name)) for name, shape in _EMPTY]
    if problem.sinks:
        sinks = logits.sink_logits(problem).float().numpy().reshape(1, -1, 1, 1)
        rest[_SINKS - len(_PAGED_INPUTS)] = ops.constant(sinks, ov.Type.f32)
    arguments = [node.output(0) for node in (*inputs, *fixed, longest, *rest)]
    node = ov.op._PagedAttentionExtension(arguments)
    sizes = {"num_k_heads": kv, "k_head_size": d, "num_v_heads": kv, "v_head_size": dv}
    for name, size in sizes.items():
        node.get_rt_info()[name] = size
    return ov.Model([node.output(0)], [*inputs, longest], "attention")


def tables(problem: Problem, cache: WrittenPages) -> list[NDArray[np.int32]]:
    """past_lens, subsequence_begins, block_indices, block_indices_begins and max_context_len of the batch."""
    queries, keys = (np.array(counts, np.int32) for counts in zip(*problem.sizes, strict=True))
    counts = -(-keys // PAGE_SIZE)
    indices = [row[:count] for row, count in zip(cache.table, counts, strict=True)]
    begins = [np.array([0, *itertools.accumulate(each.tolist())], np.int32) for each in (queries, counts)]
    return [keys - queries, begins[0], np.concatenate(indices), begins[1], np.array(keys.max(), np.int32)]


def pooled(problem: Problem, cache: WrittenPages, tensor: Tensor) -> Tensor:
    """k or v as the call takes it: pages [pages, kv_heads, PAGE_SIZE, width], and behind them the new keys."""
    import torch

    rows = key_rows(tensor)
    pool = rows.new_zeros(cache.pages, problem.kv_heads, PAGE_SIZE, rows.shape[-1])
    slots = torch.from_numpy(cache.slots)
    pool[slots // PAGE_SIZE, :, slots % PAGE_SIZE] = rows
    return with_new_rows(pool, rows, cache)


def prepare_paged(case: Case, _device: str) -> Prepared:
    """Compile the model, and lay out the pages. The operator writes the new keys into them, inside the call."""
    ov = library()
    import torch

    from attnbench.attention.inputs import torch_dtype

    problem = case.problem
    if problem.dtype is Dtype.BF16 and "BF16" not in capabilities():
        raise CaseRefusedError("openvino has no bf16 cache on this CPU, which lacks bf16 instructions: use fp32")
    dtype, kind = torch_dtype(problem.dtype), getattr(ov.Type, _TYPES[problem.dtype])
    cache = cache_of(problem, PAGE_SIZE)
    plan, facts = compiled(paged_model(problem), problem, **dict.fromkeys(CACHE_PRECISIONS, kind))
    if converting := [kind for kind in facts["nodes"] if kind == "Convert"]:
        raise CaseRefusedError(f"openvino converts the whole cache at every call: {len(converting)} Convert nodes")
    inference = Inference(plan, problem.dtype, tables(problem, cache))
    kv, tokens = problem.kv_heads, math.prod((problem.shape_q[0], problem.shape_q[2]))
    pool_shapes = [(cache.pages, kv, PAGE_SIZE, width) for width in (problem.head_dim, problem.head_dim_v)]
    row_shapes = [(len(cache.new), kv * shape[-1]) for shape in pool_shapes]
    scratch = [] if cache.has_past else [torch.zeros(shape, dtype=dtype) for shape in pool_shapes]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        inference.bind(0, q.contiguous(), (tokens, problem.heads * problem.head_dim))
        for place, tensor in enumerate((k, v)):
            if cache.has_past:
                pool, rows = pages_and_new_rows(tensor, pool_shapes[place])
            else:
                pool, rows = scratch[place], tensor.contiguous()
            inference.bind(1 + place, rows, row_shapes[place])
            inference.bind(3 + place, pool, pool_shapes[place])
        out = inference.run(torch.empty(tokens, problem.heads * problem.head_dim_v, dtype=dtype))
        return out.view(*q.shape[:3], problem.head_dim_v)

    store = partial(pooled, problem, cache) if cache.has_past else None
    facts |= {"pages": cache.pages, "page_size": PAGE_SIZE}
    return Prepared(call=call, facts=facts, stored=store, library_cache=cache.has_past)


def probe(device: str) -> str | None:
    """Import it."""
    return isa_objection(device) or failure(library)


def scratch_bytes(case: Case) -> int:
    """q, k and v in fp32 or in other layouts, a mask as numbers, repeated keys, and for pages the pool of them."""
    problem, number = case.problem, max(case.problem.dtype.bytes, 4)
    widths = problem.head_dim + problem.head_dim_v
    pairs = sum(size.queries * size.keys for size in problem.sizes)
    mask = 0 if is_free_of_masks(problem) else pairs * number * (problem.heads if problem.bias else 1)
    repeated = 1 if case.backend == "openvino:paged" or folds(problem) else problem.heads // problem.kv_heads
    keys = problem.kv_heads * problem.tokens_kv * widths * number
    return mask + keys * repeated + math.prod(problem.shape_q) * widths * number + 4 * 1024**2


def is_free_of_masks(problem: Problem) -> bool:
    """Whether no mask tensor is needed."""
    if problem.requests or problem.page_size:
        return True
    return problem.bias is None and (dense_masks.is_top_left(problem) or dense_masks.sees_all(problem))


def refuses_paged(case: Case) -> list[str]:
    """What the operator cannot express: it is causal, and the queries are the last tokens."""
    problem, reasons = case.problem, []
    parts = dict.fromkeys(problem.parts)
    if any(part.seq_q > part.seq_kv for part in parts):
        reasons.append("more queries than keys: new tokens are the last keys")
    elif not all(part.causal or (dense_masks.sees_all(part) and part.seq_q == 1) for part in parts):
        reasons.append(f"mask {problem.mask} unsupported: causal only, as causal+window:128")
    if problem.page_size not in (0, PAGE_SIZE):
        reasons.append(f"page_size={problem.page_size} unsupported: use page_size={PAGE_SIZE}")
    if problem.shared_prefix:
        reasons.append("shared prefixes unsupported")
    return reasons


_COMMON: Keywords = {
    "requires": ("torch",),
    "present": ("openvino",),  # `library` imports it
    "install": "pip install openvino==2026.4.1",
    "probe": probe,
    "distributions": ("openvino",),
    "versions": {"openvino": ((2026, 4), (2027,))},
    "outside_torch": True,
    "scratch_bytes": scratch_bytes,
}

BACKENDS = {
    "openvino": Backend(
        name="openvino",
        summary="OpenVINO's scaled_dot_product_attention",
        limits={
            "cpu": Limits(
                dtypes=FLOATS,
                features=dense_masks.MASKS | dense_masks.BIASES | {"gqa", "cross", "scale", "head_dim_v"},
                modes=frozenset({Mode.FWD}),
            )
        },
        prepare=prepare,
        traps=(
            "its import reports itself to a server: it is imported without its telemetry",
            "causal is aligned to the top left: where seq_q differs from seq_kv the mask is a tensor",
            "a mask is ignored where causal is set: one tensor holds both",
            "a CPU with bf16 computes fp32 in bf16 unless the precision hint says f32",
            "the hint f16 means bf16 on a CPU without fp16: fp16 is computed in fp32",
            "a row that sees no key is not a number",
            "heads that share keys are folded into rows where all keys are visible, else keys are repeated",
        ),
        **_COMMON,
    ),
    "openvino:paged": Backend(
        name="openvino:paged",
        summary="OpenVINO's paged attention, as its server uses it",
        limits={
            "cpu": Limits(
                dtypes=frozenset({Dtype.FP32, Dtype.BF16}),
                features=frozenset(
                    {"causal", "window", "gqa", "cross", "scale", "head_dim_v", "sinks", "alibi", "requests", "paged"}
                ),
                modes=frozenset({Mode.FWD}),
            )
        },
        prepare=prepare_paged,
        refuses=refuses_paged,
        layout=Layout.BSHD,
        traps=(
            "the operator is private: no compatibility is promised",
            "the precision of the cache is u8 unless it is set",
            "with a number as window of the aggregated scores, no output is written, or the call fails",
            "a decode can miss the tolerance on `large` inputs (3.3e-5 against 1.0e-5), which is not widened",
            "fp16: the whole cache is converted at every call, and new keys are lost",
            "bf16 fails on a CPU without bf16 instructions: the cache must be fp32 there",
        ),
        **_COMMON,
    ),
}
