"""ggml's flash attention, as llama.cpp calls it, through its C interface.

The tensors of its graph point to ours. A mask is 16-bit numbers that are added, and is passed even where all keys are
visible. `include/ggml.h` and `include/ggml-cpu.h` of https://github.com/ggml-org/ggml
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_bool, c_float, c_int, c_int64, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attnbench.attention import dense_masks, logits
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, CaseRefusedError, Limits, Prepared, failure, isa_objection
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

F32, F16 = 0, 1  # enum ggml_type
PRECISE = 10  # GGML_PREC_F32
MAX_THREADS = 512  # GGML_MAX_N_THREADS
CONTEXT_BYTES = 1024**2  # of graph and tensors, without their numbers
SUCCESS = 0


class InitParams(Structure):
    """ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class ComputePlan(Structure):
    """ggml_cplan."""

    _fields_ = (
        ("work_size", c_size_t), ("work_data", c_void_p), ("n_threads", c_int), ("threadpool", c_void_p),
        ("abort_callback", c_void_p), ("abort_callback_data", c_void_p), ("use_ref", c_bool),
    )  # fmt: skip


class PoolParams(Structure):
    """ggml_threadpool_params."""

    _fields_ = (
        ("cpumask", c_bool * MAX_THREADS), ("n_threads", c_int), ("prio", c_int), ("poll", c_uint32),
        ("strict_cpu", c_bool), ("paused", c_bool),
    )  # fmt: skip


class Library(NamedTuple):
    """The two libraries, with the types of the functions that are called."""

    base: ctypes.CDLL
    cpu: ctypes.CDLL


@lru_cache(maxsize=1)
def library() -> Library:
    """Load ggml."""
    spec = find_spec("libggml")
    assert spec
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "lib64"
    base = ctypes.CDLL(str(folder / "libggml-base.so.0"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so.0"))
    pointer = c_void_p
    types = {
        "ggml_init": (pointer, [InitParams]),
        "ggml_new_tensor": (pointer, [pointer, c_int, c_int, POINTER(c_int64)]),
        "ggml_get_data": (pointer, [pointer]),
        "ggml_flash_attn_ext": (pointer, [pointer] * 5 + [c_float] * 3),
        "ggml_flash_attn_ext_set_prec": (None, [pointer, c_int]),
        "ggml_flash_attn_ext_get_prec": (c_int, [pointer]),
        "ggml_flash_attn_ext_add_sinks": (None, [pointer, pointer]),
        "ggml_new_graph": (pointer, [pointer]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_threadpool_params_init": (None, [POINTER(PoolParams), c_int]),
        "ggml_free": (None, [pointer]),
        "ggml_graph_plan": (ComputePlan, [pointer, c_int, pointer]),
        "ggml_graph_compute": (c_int, [pointer, POINTER(ComputePlan)]),
        "ggml_threadpool_new": (pointer, [POINTER(PoolParams)]),
        "ggml_threadpool_free": (None, [pointer]),
    }
    for name, (result, arguments) in types.items():
        owner = base if hasattr(base, name) else cpu
        function = getattr(owner, name)
        function.restype, function.argtypes = result, arguments
    cpu.ggml_cpu_init()
    return Library(base, cpu)


@lru_cache(maxsize=1)
def data_offset() -> int:
    """Where a tensor of ggml keeps the address of its numbers: found in one that has some."""
    base = library().base
    context = base.ggml_init(InitParams(CONTEXT_BYTES, None, False))
    tensor = base.ggml_new_tensor(context, F32, 1, (c_int64 * 1)(4))
    address = base.ggml_get_data(tensor)
    words = (c_void_p * 64).from_address(tensor)
    place = next((number for number, word in enumerate(words) if word == address), None)
    base.ggml_free(context)
    if place is None:
        raise CaseRefusedError("ggml has another layout of tensors: use the version of constraints.txt")
    return place * ctypes.sizeof(c_void_p)


class Graph:
    """A graph with one flash attention, its threads, and the memory of its plan."""

    def __init__(self, problem: Problem, threads: int, has_sinks: bool) -> None:
        base, cpu = library()
        self._offset = data_offset()
        self._context = base.ggml_init(InitParams(CONTEXT_BYTES, None, True))
        b, heads, kv = problem.batch, problem.heads, problem.kv_heads
        masks = b if {"padding"} & problem.masking.words else 1
        shapes = {
            "q": (F32, problem.head_dim, problem.seq_q, heads, b),
            "k": (F32, problem.head_dim, problem.seq_kv, kv, b),
            "v": (F32, problem.head_dim_v, problem.seq_kv, kv, b),
            "mask": (F16, problem.seq_kv, problem.seq_q, 1, masks),
        }
        self.tensors = {
            name: base.ggml_new_tensor(self._context, kind, 4, (c_int64 * 4)(*shape))
            for name, (kind, *shape) in shapes.items()
        }
        node = base.ggml_flash_attn_ext(
            self._context, *self.tensors.values(), problem.scale, 0.0, problem.softcap or 0.0
        )
        base.ggml_flash_attn_ext_set_prec(node, PRECISE)
        if has_sinks:
            self.tensors["sinks"] = base.ggml_new_tensor(self._context, F32, 1, (c_int64 * 1)(heads))
            base.ggml_flash_attn_ext_add_sinks(node, self.tensors["sinks"])
        if (precision := base.ggml_flash_attn_ext_get_prec(node)) != PRECISE:
            raise CaseRefusedError(f"ggml does not keep the precision of products: {precision}")
        self.tensors["out"] = node
        self._graph = base.ggml_new_graph(self._context)
        base.ggml_build_forward_expand(self._graph, node)
        params = PoolParams()
        base.ggml_threadpool_params_init(byref(params), threads)
        params.poll = 0  # threads sleep between calls
        self._pool = cpu.ggml_threadpool_new(byref(params))
        self._plan = cpu.ggml_graph_plan(self._graph, threads, self._pool)
        self.threads = int(self._plan.n_threads)
        self._work = ctypes.create_string_buffer(max(self._plan.work_size, 1))
        self._plan.work_data = ctypes.addressof(self._work)
        self._held: dict[str, Tensor] = {}

    def bind(self, name: str, tensor: Tensor) -> None:
        """Point a tensor of the graph to the numbers of a contiguous one, which lives as long as it is bound."""
        c_void_p.from_address(self.tensors[name] + self._offset).value = tensor.data_ptr()
        self._held[name] = tensor

    def run(self) -> None:
        if (status := library().cpu.ggml_graph_compute(self._graph, byref(self._plan))) != SUCCESS:
            raise RuntimeError(f"ggml_graph_compute ended with status {status}")
        del self._held["out"]

    @property
    def work_bytes(self) -> int:
        return int(self._plan.work_size)

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            library().cpu.ggml_threadpool_free(self._pool)
            library().base.ggml_free(self._context)


def mask_of(problem: Problem) -> Tensor:
    """The mask in 16 bits, [batch or 1, 1, seq_q, seq_kv]; zeros where all keys are visible."""
    import torch

    return dense_masks.added(problem, torch.float16).contiguous()


def prepare(case: Case, _device: str) -> Prepared:
    """Build the graph and the mask."""
    import torch

    problem, threads = case.problem, torch.get_num_threads()
    graph = Graph(problem, threads, problem.sinks)
    if graph.threads != threads:
        raise CaseRefusedError(f"ggml uses {graph.threads} threads, not {threads}")
    graph.bind("mask", mask_of(problem))
    if problem.sinks:
        graph.bind("sinks", logits.sink_logits(problem).float())
    shape = (problem.batch, problem.seq_q, problem.heads, problem.head_dim_v)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            graph.bind(name, tensor.contiguous())
        out = torch.empty(shape)
        graph.bind("out", out)
        graph.run()
        return out.transpose(1, 2)

    features = ("avx512_bf16", "avx512", "avx2", "neon")
    isa = next((name for name in features if getattr(library().cpu, f"ggml_cpu_has_{name}")()), "none")
    facts = {"library_threads": graph.threads, "spinning": "off", "library_isa": isa, "work_bytes": graph.work_bytes}
    return Prepared(call=call, facts=facts | {"precision": "f32"})


def scratch_bytes(case: Case) -> int:
    """The mask, and a buffer of each thread."""
    problem = case.problem
    mask = 2 * problem.seq_q * problem.seq_kv * problem.batch
    return mask + 4 * 256 * (problem.head_dim + 2 * problem.head_dim_v + 2 * problem.seq_kv) + CONTEXT_BYTES


def probe(device: str) -> str | None:
    """Load the library, and run 64 tokens."""

    def run() -> None:
        import torch

        case = Case(problem=Problem(seq_q=64, heads=1), backend="ggml")
        tokens = torch.zeros(1, 1, 64, 64)
        prepare(case, device).call(tokens, tokens, tokens)

    return isa_objection(device) or failure(run)


BACKENDS = {
    "ggml": Backend(
        name="ggml",
        summary="ggml's flash attention, the kernel of llama.cpp",
        limits={
            "cpu": Limits(
                dtypes=frozenset({Dtype.FP32}),
                features=dense_masks.MASKS | {"gqa", "cross", "scale", "softcap", "sinks", "head_dim_v"},
                modes=frozenset({Mode.FWD}),
            )
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        present=("libggml",),
        install="pip install libggml-python==0.20.2.post1",
        probe=probe,
        distributions=("libggml-python",),
        versions={"libggml-python": ((0, 20), (0, 21))},
        outside_torch=True,
        traps=(
            "softcap without a mask is wrong where seq_kv is no multiple of 64: a mask is always passed",
            "a mask has 16 bits: a bias would be rounded to them, and is refused",
            "fp16 keys are summed in 16 bits: fp32 alone is taken",
            "a decode can miss the tolerance on `large` inputs (2.5e-5 against 1.0e-5), which is not widened",
        ),
    )
}
