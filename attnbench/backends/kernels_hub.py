"""A kernel in the format of Hugging Face's `kernels`, from a local folder: `kernels:FOLDER[:function]`.

The loader is offline in every worker, so nothing is downloaded. https://huggingface.co/docs/kernels
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from attnbench.attention import cost
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import FLOATS, Backend, CaseRefusedError, Keywords, Limits, Output, Prepared, isa_objection
from attnbench.errors import UsageError
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "kernels:"
FUNCTIONS = ("attention", "flash_attn_func", "forward")  # tried in this order where the name has none
CAUSAL, SCALE = ("is_causal", "causal"), ("scale", "softmax_scale", "sm_scale")  # parameters
_LIMITS = Limits(
    dtypes=FLOATS,
    features=frozenset({"causal", "cross", "gqa", "scale", "head_dim_v"}),
    modes=frozenset(Mode),
    # Libraries align a causal mask to the first key or to the last one.
    combinations=(frozenset({"causal", "cross"}),),
)


def parse(name: str) -> tuple[Path, str]:
    """The folder and the function; empty: one of FUNCTIONS. Raises UsageError if the folder holds no kernel."""
    text = name.removeprefix(PREFIX)
    folder, colon, function = text.rpartition(":")
    if not colon or not function.isidentifier():
        folder, function = text, ""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UsageError(f"--backend {name}: no folder {folder!r} (try {PREFIX}FOLDER:function)")
    if not any(path.glob("build/*/metadata.json")):
        needed = "build/VARIANT/metadata.json and build/VARIANT/__init__.py, as `kernel-builder build` writes them"
        raise UsageError(f"--backend {name}: {folder} is no built kernel: it needs {needed}")
    return path.resolve(), function


def load(name: str) -> Backend:
    """The backend of that name. The folder is imported where the kernel runs."""
    parse(name)
    return Backend(
        name=name,
        summary="a kernel of a local folder, in the format of Hugging Face's kernels",
        limits={"cpu": _LIMITS, "cuda": _LIMITS},
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch", "kernels"),
        install="pip install kernels==0.17.2",
        probe=isa_objection,
        distributions=("kernels",),
        versions={"kernels": ((0, 17), ())},
    )


def arguments(parameters: Mapping[str, inspect.Parameter], problem: Problem) -> Keywords:
    """The problem in the keywords that the function has. Raises CaseRefusedError for what it has no keyword for."""
    options: Keywords = {}
    values = {"causal": (CAUSAL, problem.causal, False), "scale": (SCALE, problem.scale, problem.head_dim**-0.5)}
    for word, (names, value, default) in values.items():
        known = next((name for name in names if name in parameters), None)
        if known:
            options[known] = value
        elif value != default:
            raise CaseRefusedError(f"the function has no parameter for {word}: {', '.join(names)}")
    if "enable_gqa" in parameters:
        options["enable_gqa"] = problem.heads > problem.kv_heads
    return options


def function_of(module: ModuleType, name: str) -> Callable[..., Output]:
    """The function of that name, or the first of FUNCTIONS that the kernel has."""
    for each in (name,) if name else FUNCTIONS:
        if callable(function := getattr(module, each, None)):
            return cast("Callable[..., Output]", function)
    public = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
    raise CaseRefusedError(f"the kernel has no function {name or ' or '.join(FUNCTIONS)}: it has {', '.join(public)}")


def prepare(case: Case, _device: str) -> Prepared:
    """Import the folder. A function as flash-attn's, known by `softmax_scale`, takes [batch, seq, heads, width]."""
    from kernels import get_local_kernel

    folder, name = parse(case.backend)
    function = function_of(get_local_kernel(folder), name)
    parameters = inspect.signature(function).parameters
    options, heads_last = arguments(parameters, case.problem), "softmax_scale" in parameters

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if heads_last:
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        result = function(q, k, v, **options)
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out.transpose(1, 2) if heads_last else out

    order = "[batch, seq, heads, width], as a view" if heads_last else "[batch, heads, seq, width]"
    return Prepared(call=call, facts={"function": function.__name__, "order": order, "telemetry": "off"})


def scratch_bytes(case: Case) -> int:
    """Copies of the inputs: a kernel of which nothing is known."""
    return 2 * cost.input_bytes(case.problem)


BACKENDS: dict[str, Backend] = {}  # named by their folders: `load`
