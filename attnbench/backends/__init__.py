"""Backends: one module for each, loaded by name; support is data, a refusal is a list of reasons.

A backend is named as a user types it: a built-in name, `file.py:callable`, `package.module:callable`, or an entry point
of the group `attnbench.backends`. Importing this package or a module of it imports no torch; `Backend.prepare` does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache, lru_cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec
import numpy as np

from attnbench.attention import cost, scopes, user_files
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import FEATURES, Problem
from attnbench.errors import UnknownNameError
from attnbench.records.case import Case
from attnbench.records.result import Facts

if TYPE_CHECKING:
    from torch import Tensor

Keywords: TypeAlias = dict[str, Any]  # arguments of a library's function, in its words and types
Output: TypeAlias = "Tensor | tuple[Tensor, Tensor | None]"  # out, or out with the lse or the weights

ENTRY_POINTS = "attnbench.backends"

# Names of the built-in backends by module; each module holds BACKENDS, by name.
_NAMES = {
    "naive": "naive",
    "sdpa": "sdpa sdpa:math sdpa:flash sdpa:efficient sdpa:cudnn",
    "flex": "flex flex:eager",
    "xformers": "xformers xformers:cutlass xformers:fa2 xformers:fa3 xformers:splitk",
    "flash_attn": "flash-attn:2 flash-attn:3 flash-attn:4",
    "flashinfer": "flashinfer flashinfer:mla flashinfer:cascade",
    "triton": "triton triton:portable triton:descriptors triton:hopper triton:cascade",
    "varlen": "varlen",
    "padded": "sdpa:padded",
    "cascade": "sdpa:cascade",
    "mla": "mla:absorbed mla:expanded",
    "gather": "gather",
    "distributed": "ring:2 ring:4 ulysses:2 ulysses:4",
    "ort": "ort:attention ort:gqa ort:mha",
    "openvino": "openvino openvino:paged",
    "vllm_cpu": "vllm-cpu",
    "ggml": "ggml",
    "jax": "jax",
    "zentorch": "zentorch",
    "compile": "compile compile:formula",
}
BUILTIN = {name: module for module, names in _NAMES.items() for name in names.split()}
# Computed by torch alone, without a setting that outlives a case: one process may measure them in turn.
ONE_PROCESS = frozenset(name for name, module in BUILTIN.items() if module in ("naive", "sdpa"))
HALVES = frozenset({Dtype.FP16, Dtype.BF16})
FLOATS = HALVES | {Dtype.FP32}


class Layout(StrEnum):
    """The order of dimensions of q, k, v and out of a backend; inputs are created in it, untimed."""

    BHSD = "bhsd"  # [batch, heads, seq, head_dim]
    BSHD = "bshd"  # [batch, seq, heads, head_dim]


class CaseRefusedError(Exception):
    """A library does not take the case, or does not honour a setting: found while it is prepared, or in a call."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do on one kind of device."""

    dtypes: frozenset[Dtype]
    features: frozenset[str] = frozenset()  # keys of problem.FEATURES
    modes: frozenset[Mode] = frozenset(Mode)
    head_dim_most: int = 0  # 0: any
    head_dim_multiple: int = 1
    capability: tuple[int, int] = (0, 0)  # minimum CUDA compute capability
    capability_below: tuple[int, int] = (0, 0)  # first capability that is not supported; (0, 0): none
    combinations: tuple[frozenset[str], ...] = ()  # features that exclude one another
    forward_only: Mapping[Dtype, tuple[int, int]] = {}  # dtypes without a backward pass, and their minimum capability


class Prepared(msgspec.Struct, kw_only=True):
    """A backend prepared for one case.

    call(q, k, v) -> out, or (out, lse) where the problem returns the lse. Tensors are in the backend's layout; lse is
    float32 [batch, heads, seq_q], natural log. Differentiable where the case's mode needs gradients.
    """

    call: Callable[..., Any]
    seconds: dict[str, float] = {}  # untimed work done once: "mask_build", "plan", "transfer"
    facts: Facts = {}
    # [batch, kv_heads, seq_kv, width] -> k or v as the call takes them.
    stored: Callable[[Tensor], Tensor] | None = None
    stored_v: Callable[[Tensor], Tensor] | None = None  # the same of v, where it differs from that of k
    library_cache: bool = False  # they are stored in a form of the library's own, and not in pages of heads
    weights: tuple[Tensor, ...] = ()  # of projections or layers: their gradients are part of a backward pass
    hint: str = ""  # what to check where the output is wrong; added to the reason
    late_facts: Callable[[], Facts] | None = None  # known after the first call: "compile_s", kernels, tiling


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation of attention."""

    name: str
    summary: str
    limits: Mapping[str, Limits]  # by kind of device: "cpu", "cuda"
    prepare: Callable[[Case, str], Prepared]  # (case, torch device) -> the timed call; imports torch
    # Bytes beyond inputs and outputs at the peak of one call, predicted without running.
    scratch_bytes: Callable[[Case], int]
    requires: tuple[str, ...] = ()  # modules that must import
    present: tuple[str, ...] = ()  # modules that must be installed, and are not imported
    install: str = ""  # the command that installs them
    layout: Layout = Layout.BHSD
    compiles: bool = False  # compiles for minutes before the first call: measured in a later pass
    pads: bool = False  # computes every request of a batch at the lengths of the longest
    by_request: bool = False  # computes a batch of requests one by one, each as a problem of its own
    untimed: str = ""  # why its times on a CPU are meaningless; empty: they are valid
    interpreter: tuple[tuple[str, str], ...] = ()  # variables with which it runs on a CPU, to be verified only
    probe: Callable[[str], str | None] | None = None  # run on the torch device: why it cannot run there, or None
    refuses: Callable[[Case], list[str]] | None = None  # reasons that limits cannot express
    error_factor: float = 2.0  # multiple of the error of the same-dtype reference
    distributions: tuple[str, ...] = ()  # packages whose versions are facts of its results
    # By package: the first supported version, and the first later one that is not; (): none is known.
    versions: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    outside_torch: bool = False  # its memory is not torch's: measured by the high-water mark of the process
    sets: frozenset[str] = frozenset()  # settings of the process that its preparation changes on purpose
    traps: tuple[str, ...] = ()  # what to know before calling the library: each has a test

    def objections(self, case: Case, kind: str, capability: tuple[int, int] = (0, 0)) -> list[str]:
        """Every reason against running `case` on a device of that kind; empty means that it runs."""
        limits, problem = self.limits.get(kind), case.problem
        if limits is None:
            return [self.lacks(kind)]
        if problem.lengths:
            return ["a padded ragged batch is not measured any more: use --set lengths, which makes it requests"]
        reasons = [*_objections_of_device(limits, problem.dtype, capability), *_objections_of_gradients(case)]
        for each in filter(None, (*dict.fromkeys(self._computed(problem)), scopes.self_attention(problem))):
            core = each.core
            reasons += _objections_of_shape(limits, each, case.mode)
            reasons += _objections_of_features(limits, core.features)
            reasons += self.refuses(_of(case, core)) if self.refuses else []
        return list(dict.fromkeys(reasons))

    def lacks(self, kind: str) -> str:
        """Why it runs on no device of that kind, which its limits do not have."""
        return f"runs on {', '.join(self.limits)}, not on {kind}"

    def _computed(self, problem: Problem) -> tuple[Problem, ...]:
        """The problems that it computes: the core, or that of each request, from keys without pages."""
        if not (problem.requests and self.by_request):
            return (problem.core,)
        return tuple(msgspec.structs.replace(part.core, page_size=0) for part in problem.parts)

    def _scratch(self, case: Case, problems: tuple[Problem, ...]) -> list[int]:
        of_size = {each: self.scratch_bytes(_of(case, each)) for each in set(problems)}
        return [of_size[problem] for problem in problems]

    def extra_bytes(self, case: Case) -> int:
        """Predicted bytes beyond inputs and outputs at the peak of a call, with everything applied around the core."""
        problem, core = case.problem, case.problem.core
        computed = self._computed(problem)
        total = max(self._scratch(case, computed))
        if case.mode.needs_grad and len(computed) > 1:  # the other requests hold what their backward pass needs
            others = self._scratch(msgspec.structs.replace(case, mode=Mode.FWD), computed)
            total += sum(others) - max(others)
        if problem.requests and self.by_request:
            total += cost.output_bytes(core, case.mode)  # of each request, before they are joined
            if problem.page_size:  # the keys of one request, gathered
                total += max(map(cost.kv_bytes, computed))
        if core != problem:  # q and k after positions and normalisation
            total += cost.input_bytes(problem) * (2 if case.mode.needs_grad else 1)
        if problem.scope != "core":
            total += cost.scope_bytes(problem, case.mode)
        return total

    def peak_bytes(self, case: Case) -> int:
        """Predicted bytes at the peak of a call: inputs, outputs, the gradient of out, and `extra_bytes`."""
        return cost.call_bytes(case.problem, case.mode) + self.extra_bytes(case)


def _of(case: Case, problem: Problem) -> Case:
    """The case with another problem, or itself."""
    return case if problem is case.problem else msgspec.structs.replace(case, problem=problem)


def _objections_of_device(limits: Limits, dtype: Dtype, capability: tuple[int, int]) -> list[str]:
    if capability == (0, 0):
        return []
    minimum, below, of_dtype = limits.capability, limits.capability_below, limits.forward_only.get(dtype, (0, 0))
    if capability < minimum:
        needed = f"{minimum[0]}.{minimum[1]}"
    elif below != (0, 0) and capability >= below:
        needed = f"below {below[0]}.{below[1]}"
    elif capability < of_dtype:
        needed = f"{of_dtype[0]}.{of_dtype[1]} for {dtype}"
    else:
        return []
    return [f"needs compute capability {needed}, this device has {capability[0]}.{capability[1]}"]


def _objections_of_gradients(case: Case) -> list[str]:
    """Reasons of a whole batch: a backend that computes requests one by one sees neither pages nor sharing."""
    if not case.mode.needs_grad:
        return []
    problem = case.problem
    kinds = {
        "keys in pages": problem.page_size > 0, "keys that requests share": bool(problem.shared_prefix),
        "a batch with a request without queries": "empty" in problem.features,
    }  # fmt: skip
    return [f"backward of {kind} unsupported" for kind, holds in kinds.items() if holds]


def _objections_of_shape(limits: Limits, problem: Problem, mode: Mode) -> list[str]:
    reasons = []
    if problem.dtype not in limits.dtypes and problem.dtype not in limits.forward_only:
        dtypes = {*limits.dtypes, *limits.forward_only}
        reasons.append(f"{problem.dtype} unsupported (supported: {', '.join(d for d in Dtype if d in dtypes)})")
    if mode not in limits.modes:
        forward_only = limits.modes == {Mode.FWD} and mode.needs_grad
        reasons.append("backward unsupported" if forward_only else f"mode {mode} unsupported")
    elif problem.dtype in limits.forward_only and mode.needs_grad:
        reasons.append(f"backward of {problem.dtype} unsupported")
    if problem.kv and mode.needs_grad:
        reasons.append("backward of a latent cache unsupported")
    for name, width in {"head_dim": problem.head_dim, "head_dim_v": problem.head_dim_v}.items():
        if limits.head_dim_most and width > limits.head_dim_most:
            reasons.append(f"{name} {width} is over {limits.head_dim_most}")
        if width % limits.head_dim_multiple:
            reasons.append(f"{name} {width} is not a multiple of {limits.head_dim_multiple}")
    return reasons


def _objections_of_features(limits: Limits, needed: frozenset[str]) -> list[str]:
    reasons = [f"{FEATURES.get(word, word)} unsupported" for word in sorted(needed - limits.features)]
    return reasons + [f"not {' with '.join(sorted(words))}" for words in limits.combinations if words <= needed]


Plan = TypeVar("Plan")
Moved = TypeVar("Moved")


def planned(plan: Callable[[], Plan], move: Callable[[Plan], Moved], device: str) -> tuple[Moved, dict[str, float]]:
    """What a batch needs besides its tensors, on the device, and the samples `plan` and `transfer`.

    `plan` works on the host, `move` takes its tables to the device. On a CPU there is no transfer.
    """
    import torch

    started = time.perf_counter()
    tables = plan()
    seconds = {"plan": time.perf_counter() - started}
    if torch.device(device).type != "cuda":
        return move(tables), seconds
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    moved = move(tables)
    torch.cuda.synchronize(device)
    return moved, {**seconds, "transfer": time.perf_counter() - started}


def tables_on(device: str, arguments: Keywords) -> Keywords:
    """The arguments, arrays as tensors on the device."""
    import torch

    return {
        name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }


class CompileClock:
    """Seconds that dynamo and inductor spent since this object was created, from their counters."""

    def __init__(self) -> None:
        self._before = self._total()

    def facts(self) -> dict[str, object]:
        """compile_s; empty where torch has no such counter."""
        total = self._total()
        return {} if total is None or self._before is None else {"compile_s": total - self._before}

    @staticmethod
    def _total() -> float | None:
        from torch._dynamo import utils

        metrics = getattr(utils, "compilation_time_metrics", None)
        return None if metrics is None else float(sum(metrics.get("_compile.compile_inner", [])))


def failure(run: Callable[[], object]) -> str | None:
    """What a trial call of a backend raises, in one line; None: it works."""
    try:
        run()
    except (
        Exception
    ) as error:  # a package that does not fit this torch, driver or GPU, or a compiler, may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def isa_objection(_device: str) -> str | None:
    """Why a library that chooses its instruction set itself does not run on a device with `isa`; None without it."""
    isa = os.environ.get("ATEN_CPU_CAPABILITY", "")
    return f"has no setting for the instruction set {isa}: leave isa out of --device" if isa else None


def load(name: str) -> Backend:
    """The backend of that name: built in, from an entry point, or a user's, which `plugin.load` reads."""
    if is_file(name):
        plugin = import_module("attnbench.backends.plugin")
        return plugin.load(name)  # type: ignore[no-any-return]
    if is_folder(name):
        return import_module("attnbench.backends.kernels_hub").load(name)  # type: ignore[no-any-return]
    if name in BUILTIN:
        return import_module(f"attnbench.backends.{BUILTIN[name]}").BACKENDS[name]  # type: ignore[no-any-return]
    if name in _entry_points():
        plugin = import_module("attnbench.backends.plugin")
        return plugin.wrap(_entry_points()[name].load(), name)  # type: ignore[no-any-return]
    raise UnknownNameError("backend", name, names(), where="--backend")


def names() -> tuple[str, ...]:
    """Every name that `load` knows, files aside."""
    return (*BUILTIN, *_entry_points())


@cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    """Those of installed packages. Cached: a look-up reads the metadata of each of them."""
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}


def is_file(name: str) -> bool:
    """Whether the name is a user's: `file.py:callable` or `package.module:callable`."""
    known = name in BUILTIN or is_folder(name)
    return not known and (is_source(name) or _is_in_module(name, os.getcwd()))


def is_folder(name: str) -> bool:
    """Whether the name is a local kernel in the format of Hugging Face's kernels: `kernels:FOLDER[:function]`."""
    return name.startswith("kernels:")


def source_file(name: str) -> Path | None:
    """The file of a user's backend; None for other backends, and where the module is not found."""
    if is_source(name):
        return Path(name.partition(".py:")[0].removesuffix(".py") + ".py")
    return user_files.module_file(name.partition(":")[0]) if is_file(name) else None


def is_source(name: str) -> bool:
    """Whether the name is `file.py:callable`, with or without the callable."""
    return ".py:" in name or name.endswith(".py")


@lru_cache(maxsize=256)
def _is_in_module(name: str, _directory: str) -> bool:
    """Whether the name is `package.module:callable`. Without a dot, as in `sdpa:flsh`, the module must exist."""
    module, colon, attribute = name.partition(":")
    words = module.split(".")
    if not colon or not all(word.isidentifier() for word in (*words, attribute)) or name in names():
        return False
    return len(words) > 1 or (module not in _NAMES and user_files.module_file(module) is not None)
