"""ONNX Runtime on a CPU: the operators Attention (opset 24), GroupQueryAttention and MultiHeadAttention, one node each.

A session holds one node, so that no graph optimiser is between us and the kernel; the nodes that it runs are read back.
Inputs are bound by address, which copies nothing, and bound again only where the address changes. Outputs are new
tensors. https://onnx.ai/onnx/operators/onnx__Attention.html
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attnbench.attention import dense_masks, logits
from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, CaseRefusedError, Keywords, Layout, Limits, Output, Prepared, isa_objection
from attnbench.records.case import Case

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession
    from torch import Tensor

OPSET, IR_VERSION = 24, 11
CONTRIBUTED = "com.microsoft"
ENTRIES = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
    "session.set_denormal_as_zero": "0",
}  # of a session's configuration


class Node(NamedTuple):
    """The operator of a case: its inputs beside q, k and v as tensors, in the order of its schema."""

    op: str
    domain: str
    inputs: tuple[str, ...]  # names, empty where one is left out
    outputs: tuple[str, ...]
    attributes: Keywords


def uses_mask(problem: Problem, name: str) -> bool:
    """Whether the mask is a tensor: where no flag of the operator expresses it."""
    if problem.bias is not None:
        return True
    flagged = {"causal"} | ({"window"} if name == "ort:gqa" else set())
    words = problem.masking.words
    if name == "ort:mha" and problem.seq_q != problem.seq_kv:
        flagged = set()
    return not dense_masks.sees_all(problem) and not (words <= flagged and "causal" in words)


def needs_rows(problem: Problem) -> bool:
    """Whether GroupQueryAttention needs the number of new tokens: for several queries of a batch after a past."""
    return problem.batch > 1 and 1 < problem.seq_q < problem.seq_kv


def node(case: Case) -> Node:
    """The problem in the words of the operator."""
    problem, masked = case.problem, uses_mask(case.problem, case.backend)
    causal = int(problem.causal and not masked and not dense_masks.sees_all(problem))
    mask = "mask" if masked else ""
    if case.backend == "ort:attention":
        options: Keywords = {"scale": problem.scale, "is_causal": causal}
        options |= {"softcap": problem.softcap} if problem.softcap else {}
        wants = problem.returns is Returns.WEIGHTS
        options |= {"qk_matmul_output_mode": 3} if wants else {}
        # Without the lengths, versions differ in how they align a causal mask.
        with_mask = ("q", "k", "v", mask, "", "", "lengths" if causal else "")
        return Node("Attention", "", with_mask, ("out", "", "", "weights") if wants else ("out",), options)
    if case.backend == "ort:mha":
        options = {"num_heads": problem.heads, "scale": problem.scale, "unidirectional": causal}
        return Node("MultiHeadAttention", CONTRIBUTED, ("q", "k", "v", "", "", mask), ("out",), options)
    causal |= needs_rows(problem)  # beside a mask too, which hides the same keys
    options = {"num_heads": problem.heads, "kv_num_heads": problem.kv_heads, "scale": problem.scale, "causal": causal}
    options |= {"softcap": problem.softcap} if problem.softcap else {}
    if problem.window and not masked:
        options["local_window_size"] = problem.window[0] + 1  # counts the diagonal key too
    inputs: tuple[str, ...] = ("q", "k", "v", "past_k", "past_v", "last", "total")
    inputs += ("", "", "", mask, "sinks" if problem.sinks else "")
    inputs += ("", "", "", "", "rows") if needs_rows(problem) else ()
    return Node("GroupQueryAttention", CONTRIBUTED, inputs, ("out", "present_k", "present_v"), options)


def constants(problem: Problem, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The inputs that do not change: masks, lengths, sinks."""
    import torch

    from attnbench.attention.inputs import torch_dtype

    ints = {"last": problem.seq_kv - 1, "rows": problem.seq_q}
    tensors: dict[str, Tensor] = {
        name: torch.full((problem.batch,), ints[name], dtype=torch.int32) for name in names if name in ints
    }
    if "lengths" in names:
        tensors["lengths"] = torch.full((problem.batch,), problem.seq_kv, dtype=torch.int64)
    if "total" in names:
        tensors["total"] = torch.tensor(problem.seq_kv, dtype=torch.int32)
    if "mask" in names:
        tensors["mask"] = dense_masks.added(problem, torch_dtype(problem.dtype)).contiguous()
    if "sinks" in names:
        tensors["sinks"] = logits.sink_logits(problem).to(torch_dtype(problem.dtype))
    return tensors


class Bindings:
    """A session and the addresses that are bound to its inputs and outputs."""

    def __init__(self, session: InferenceSession, fixed: dict[str, Tensor]) -> None:
        self._session, self._binding = session, session.io_binding()
        self._bound: dict[str, tuple[int, Tensor]] = {}
        for name, tensor in fixed.items():
            self.bind(name, tensor)

    def bind(self, name: str, tensor: Tensor, *, output: bool = False) -> None:
        """Bind a contiguous tensor, which lives as long as it is bound."""
        address = tensor.data_ptr()
        if self._bound.get(name, (0,))[0] != address:
            bind = self._binding.bind_output if output else self._binding.bind_input
            bind(name, "cpu", 0, _element_type(tensor), tuple(tensor.shape), address)
        self._bound[name] = address, tensor

    def bind_cache(self, letter: str, cache: Tensor) -> None:
        """Bind the memory of keys or values as past and as present."""
        self.bind(f"past_{letter}", cache)
        self.bind(f"present_{letter}", cache, output=True)

    def run(self, **outputs: Tensor) -> dict[str, Tensor]:
        """Run into these tensors, which are the caller's afterwards."""
        for name, tensor in outputs.items():
            self.bind(name, tensor, output=True)
        self._session.run_with_iobinding(self._binding)
        for name in outputs:
            del self._bound[name]
        return outputs


def _element_type(tensor: Tensor) -> type[np.generic]:
    import numpy as np
    import torch

    kinds: dict[torch.dtype, type[np.generic]] = {
        torch.float32: np.float32, torch.float16: np.float16, torch.int32: np.int32, torch.int64: np.int64,
    }  # fmt: skip
    return kinds[tensor.dtype]


def model_of(made: Node, examples: dict[str, Tensor], out_shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The model with that node alone. `examples` has a tensor for each input, of its dtype and shape."""
    import torch
    from onnx import TensorProto, helper

    kinds = {
        torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.int32: TensorProto.INT32,
        torch.int64: TensorProto.INT64,
    }  # fmt: skip
    kind = kinds[examples["q"].dtype]
    inputs = [helper.make_tensor_value_info(n, kinds[t.dtype], tuple(t.shape)) for n, t in examples.items()]
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in out_shapes.items()]
    single = helper.make_node(made.op, made.inputs, made.outputs, domain=made.domain, **made.attributes)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIBUTED, 1)]
    graph = helper.make_graph([single], "attention", inputs, outputs)
    encoded: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return encoded


def session_of(op: str, model: bytes) -> tuple[InferenceSession, Keywords]:
    """A session of a model with one node, and the settings as they are read back.

    The optimisers are off. A node without a kernel is decomposed anyway, so the nodes are read back as well.
    Raises CaseRefusedError where a setting is not kept, or where another node runs.
    """
    import onnxruntime as ort
    import torch

    ort.disable_telemetry_events()
    options, threads = ort.SessionOptions(), torch.get_num_threads()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False  # memory that is freed is given back, and seen to be
    options.log_severity_level = 3
    for entry, value in ENTRIES.items():
        options.add_session_config_entry(entry, value)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        nodes = _operators(Path(options.optimized_model_filepath))
    settings = _read_back(session) | {"nodes": nodes}
    if nodes != [op]:
        raise CaseRefusedError(f"onnxruntime has no kernel for this {op}: it runs {len(nodes)} other nodes")
    if settings["library_threads"] != threads:
        raise CaseRefusedError(f"onnxruntime uses {settings['library_threads']} threads, not {threads}")
    return session, settings


def _read_back(session: InferenceSession) -> Keywords:
    options = session.get_session_options()
    values: Keywords = {entry: options.get_session_config_entry(entry) for entry in ENTRIES}
    values["enable_cpu_mem_arena"] = options.enable_cpu_mem_arena
    if values != {**ENTRIES, "enable_cpu_mem_arena": False}:
        raise CaseRefusedError(f"onnxruntime does not keep its settings: {values}")
    return {
        "library_threads": options.intra_op_num_threads,
        "spinning": "off",
        "denormals": "kept",
        "rewrites": "off",
        "arena": "off",
        "telemetry": "off",
    }


def _operators(path: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(str(path)).graph.node]


def prepare(case: Case, _device: str) -> Prepared:
    """Make the session and the tensors that do not change."""
    problem = case.problem
    return _prepare_gqa(case) if case.backend == "ort:gqa" else _prepare_plain(case, problem)


def _prepare_plain(case: Case, problem: Problem) -> Prepared:
    """Attention over [batch, heads, seq, width], MultiHeadAttention over [batch, seq, heads * width]."""
    import torch

    from attnbench.attention.inputs import torch_dtype

    made, dtype, flat = node(case), torch_dtype(problem.dtype), case.backend == "ort:mha"
    fixed = constants(problem, made.inputs)
    b, sq, skv = problem.batch, problem.seq_q, problem.seq_kv
    sizes = ((problem.heads, sq, problem.head_dim), (problem.kv_heads, skv, problem.head_dim),
             (problem.kv_heads, skv, problem.head_dim_v), (problem.heads, sq, problem.head_dim_v))  # fmt: skip
    shapes = [(b, s, h * d) if flat else (b, h, s, d) for h, s, d in sizes]
    examples = {n: torch.empty(s, dtype=dtype, device="meta") for n, s in zip("qkv", shapes[:3], strict=True)}
    out_shapes: dict[str, tuple[int, ...]] = {"out": shapes[3]}
    if "weights" in made.outputs:
        out_shapes["weights"] = (b, problem.heads, sq, skv)
    session, settings = session_of(made.op, model_of(made, examples | fixed, out_shapes))
    bindings = Bindings(session, fixed)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            bindings.bind(name, tensor.contiguous().view(examples[name].shape))
        outputs = bindings.run(**{name: torch.empty(shape, dtype=dtype) for name, shape in out_shapes.items()})
        out = outputs["out"].view(b, sq, problem.heads, problem.head_dim_v) if flat else outputs["out"]
        return (out, outputs["weights"]) if "weights" in outputs else out

    return Prepared(call=call, facts=settings | {"dense_mask": "mask" in fixed})


def _prepare_gqa(case: Case) -> Prepared:
    """GroupQueryAttention writes new keys behind those of the past, which lie in [batch, kv_heads, seq, width].

    The past and the present are the same memory. Where all keys are new it is scratch, else k and v themselves: their
    last seq_q rows are the new tokens, and are written with the values that they have.
    """
    import torch

    from attnbench.attention.inputs import torch_dtype

    problem, made = case.problem, node(case)
    dtype, fixed = torch_dtype(problem.dtype), constants(problem, made.inputs)
    b, new = problem.batch, problem.seq_q
    shape_q, shape_kv = ((b, new, heads * problem.head_dim) for heads in (problem.heads, problem.kv_heads))
    cache_shape = (b, problem.kv_heads, problem.seq_kv, problem.head_dim)
    shapes = {"q": shape_q, "k": shape_kv, "v": shape_kv, "past_k": cache_shape, "past_v": cache_shape}
    examples = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    out_shapes = {"out": shape_q, "present_k": cache_shape, "present_v": cache_shape}
    session, settings = session_of(made.op, model_of(made, examples | fixed, out_shapes))
    bindings, has_past = Bindings(session, fixed), problem.seq_kv > new
    if not has_past:
        for letter in "kv":
            bindings.bind_cache(letter, torch.zeros(cache_shape, dtype=dtype))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for letter, tensor in (("k", k), ("v", v)):
            if has_past:
                bindings.bind_cache(letter, tensor)
                tensor = tensor[:, :, -new:].transpose(1, 2)
            bindings.bind(letter, tensor.contiguous().view(shape_kv))
        bindings.bind("q", q.contiguous().view(shape_q))
        out = bindings.run(out=torch.empty(shape_q, dtype=dtype))["out"]
        return out.view(b, new, problem.heads, problem.head_dim)

    store = _contiguous if has_past else None
    facts = settings | {"dense_mask": "mask" in fixed}
    return Prepared(call=call, facts=facts, stored=store, library_cache=has_past)


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def scratch_bytes(case: Case) -> int:
    """A mask as numbers, copied keys, and the logits of the rows that one thread computes at a time."""
    problem, number = case.problem, case.problem.dtype.bytes
    masked = uses_mask(problem, case.backend)
    mask = problem.seq_q * problem.seq_kv * problem.batch * number * (problem.heads if problem.bias else 1)
    scores = problem.batch * problem.heads * problem.seq_q * problem.seq_kv * max(number, 4)
    keys = 2 * math.prod(problem.shape_kv) * max(problem.head_dim, problem.head_dim_v) * number
    rows = math.prod(problem.shape_q) * (problem.head_dim + problem.head_dim_v) * number
    return (mask if masked else 0) + scores + keys + rows


def refusals(case: Case) -> list[str]:
    """What the operators cannot express, or compute wrong."""
    problem, reasons = case.problem, []
    if case.backend == "ort:gqa":
        if problem.seq_q > problem.seq_kv:
            reasons.append(f"seq_q {problem.seq_q} is over seq_kv {problem.seq_kv}: new tokens are the last keys")
        if problem.window and not problem.causal:
            reasons.append(f"mask {problem.mask} unsupported: a window needs causal")
        if needs_rows(problem) and not problem.causal:
            reasons.append(f"mask {problem.mask} unsupported: several queries of a batch after a past need causal")
    return reasons


_DENSE = dense_masks.MASKS | dense_masks.BIASES | {"cross", "scale", "head_dim_v"}
_FP32, _BOTH = frozenset({Dtype.FP32}), frozenset({Dtype.FP32, Dtype.FP16})


def _backend(name: str, summary: str, limits: Limits, layout: Layout, traps: tuple[str, ...]) -> Backend:
    return Backend(
        name=name,
        summary=summary,
        limits={"cpu": limits},
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch", "onnxruntime", "onnx"),
        install="pip install onnxruntime==1.32.0 onnx==1.23.2",
        layout=layout,
        probe=isa_objection,
        refuses=refusals,
        distributions=("onnxruntime",),
        versions={"onnxruntime": ((1, 32), (2,)), "onnx": ((1, 23), ())},
        outside_torch=True,
        traps=traps,
    )


BACKENDS = {
    "ort:attention": _backend(
        "ort:attention",
        "ONNX Runtime's Attention, opset 24",
        Limits(
            dtypes=_BOTH, features=_DENSE | {"blind_rows", "gqa", "softcap", "weights"}, modes=frozenset({Mode.FWD})
        ),
        Layout.BHSD,
        (
            "without nonpad_kv_seqlen, a causal mask is aligned to the top left where seq_q differs from seq_kv",
            "opset 25 has no kernel: it is decomposed into dozens of nodes, without a warning",
            "its arena keeps freed memory, and later calls seem to need none: it is off",
        ),
    ),
    "ort:gqa": _backend(
        "ort:gqa",
        "ONNX Runtime's GroupQueryAttention, as its generators use it",
        Limits(
            dtypes=_BOTH,
            features=frozenset({"causal", "window", "gqa", "cross", "scale", "softcap", "sinks"}) | dense_masks.BIASES,
            modes=frozenset({Mode.FWD}),
            head_dim_multiple=8,
        ),
        Layout.BSHD,
        (
            "several queries of a batch after a past need query_seqlens, and a causal mask",
            "new keys and values are written into the memory of the past",
        ),
    ),
    "ort:mha": _backend(
        "ort:mha",
        "ONNX Runtime's MultiHeadAttention",
        Limits(dtypes=_FP32, features=_DENSE, modes=frozenset({Mode.FWD})),
        Layout.BSHD,
        (
            "unidirectional leaves keys visible where seq_q differs from seq_kv: the mask is a tensor there",
            "a row that sees no key is not a number",
            "fp16 is computed by inserted casts",
            "bf16 has no kernel",
        ),
    ),
}
