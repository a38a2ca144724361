"""Backends of users: `file.py:callable`, `package.module:callable`, entry points, and `attnbench.backend`.

A plain function `fn(q, k, v, *, causal, scale)` over [batch, heads, seq, head_dim] is enough. A decorated one declares
more, and receives the whole problem: `fn(q, k, v, problem)`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from attnbench.attention import cost, layouts, user_files
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import FEATURES, Problem
from attnbench.backends import FLOATS, Backend, Layout, Limits, Output, Prepared, is_source
from attnbench.errors import UnknownNameError, UsageError
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])

Word = TypeVar("Word", bound=StrEnum)

PLAIN_FEATURES = frozenset({"causal", "cross", "gqa", "scale", "head_dim_v"})
PLAIN_OPTIONS = {"causal": False, "scale": 1.0}  # of a plain function; their values are examples
# What to pass for the parameters of scaled_dot_product_attention and flash-attn.
ADAPTED = {
    "attn_mask": "None", "dropout_p": "0.0", "is_causal": "causal", "scale": "scale", "causal": "causal",
    "softmax_scale": "scale", "window_size": "(-1, -1)",
}  # fmt: skip
OF_FLASH_ATTN = frozenset({"softmax_scale", "window_size"})  # parameters that give its signature away
MAX_SUGGESTIONS = 5  # files of the folder that the error names


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What the decorator of a function declares."""

    name: str
    limits: Limits
    layout: Layout
    devices: tuple[str, ...]
    scratch_bytes: Callable[[Case], int] | None


def backend(
    *,
    name: str | None = None,
    dtypes: Iterable[str] = FLOATS,
    features: Iterable[str] = PLAIN_FEATURES,
    modes: Iterable[str] = tuple(Mode),
    layout: str = "bhsd",
    devices: Iterable[str] = ("cpu", "cuda"),
    head_dim_most: int = 0,
    scratch_bytes: Callable[[Case], int] | None = None,
) -> Callable[[Function], Function]:
    """Declare what a function `fn(q, k, v, problem)` supports; it returns out, or (out, lse) if the problem needs it.

    With the feature `paged` it also receives the page table of a paged problem: `fn(q, k, v, problem, page_table)`.

    features: keys of `attnbench.attention.problem.FEATURES`; layout: `bhsd` or `bshd`, the order of dimensions of
    q, k, v and out; head_dim_most: 0 for any; scratch_bytes(case): bytes beyond inputs and outputs, to refuse what does
    not fit. Raises UnknownNameError for a word that is not known.
    """
    for word in features:
        if word not in FEATURES:
            raise UnknownNameError("feature", word, FEATURES, where="attnbench.backend")

    def mark(function: Function) -> Function:
        function.__attnbench__ = Declared(  # type: ignore[attr-defined]
            name=name or function.__name__,
            limits=Limits(
                dtypes=_known("dtype", dtypes, Dtype),
                features=frozenset(features),
                modes=_known("mode", modes, Mode),
                head_dim_most=head_dim_most,
            ),
            layout=next(iter(_known("layout", [layout], Layout))),
            devices=tuple(devices),
            scratch_bytes=scratch_bytes,
        )
        return function

    return mark


def load(name: str) -> Backend:
    """Import the file of `file.py:callable` or `package.module:callable`, and wrap the callable.

    Exceptions of the file propagate.
    """
    path, attribute = check(name)
    module = user_files.import_file(path)
    if not hasattr(module, attribute):
        raise user_files.undefined(attribute, user_files.functions_of(module), f"--backend {name}")
    return wrap(getattr(module, attribute), name)


def check(name: str) -> tuple[Path, str]:
    """The file and the name of its callable. Checked without running the file: it parses and defines the name."""
    path, attribute = _file_of(name)
    user_files.check_defines(path, attribute, f"--backend {name}")
    return path, attribute


def _file_of(name: str) -> tuple[Path, str]:
    """The file and the callable that `file.py:callable` or `package.module:callable` names."""
    if not is_source(name):
        module, _, attribute = name.partition(":")
        file = user_files.module_file(module)
        if file is None:
            raise UsageError(
                f"--backend {name}: no module {module!r} here or on Python's path (try file.py:{attribute})"
            )
        return file.resolve(), attribute
    stem, _, attribute = name.partition(".py:")
    stem = stem.removesuffix(".py")
    path = Path(stem + ".py").expanduser().resolve()
    if attribute.startswith(":"):  # as pytest separates them
        one_colon = f"{stem}.py:{attribute.lstrip(':') or user_files.example(path)}"
        raise UsageError(f"--backend {name}: one colon separates file and callable (try {one_colon})")
    if not attribute:
        raise UsageError(
            f"--backend {name}: which callable of the file? (try {name.rstrip(':')}:{user_files.example(path)})"
        )
    if not path.is_file():
        nearby = sorted(other.name for other in path.parent.glob("*.py"))[:MAX_SUGGESTIONS]
        raise UnknownNameError("file", f"{stem}.py", nearby, where=f"--backend {name}")
    return path, attribute


def name_of(function: object, place: str) -> str:
    """`file.py:callable` of a function that its module defines by name; `place` says where it was passed.

    Raises UsageError for anything else: only such a function can be imported in another process.
    """
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None) or ""
    # The name in the module may differ from the function's: a decorator can return another function.
    names = [name for name, value in vars(module).items() if value is function] if module and file else []
    if not names or not callable(function) or isinstance(function, type):
        remedy = "pass a function that a module defines by name, or 'file.py:name' of a callable"
        raise UsageError(f"{place} is {_describe(function)}: {remedy}")
    return f"{os.path.relpath(file)}:{names[0]}"


def _describe(value: object) -> str:
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    if isinstance(value, functools.partial):
        return f"a partial of {getattr(value.func, '__qualname__', value.func)}"
    name = getattr(value, "__qualname__", "")
    return f"the {type(value).__name__} {name}" if name else f"a {type(value).__name__}"


def wrap(value: Any, name: str) -> Backend:
    """Return a Backend as it is, or make one of a plain or decorated function."""
    if isinstance(value, Backend):
        return msgspec.structs.replace(value, name=name)
    if not callable(value):
        raise UsageError(f"--backend {name}: a {type(value).__name__}, not a function")
    declared: Declared | None = getattr(value, "__attnbench__", None)
    limits = declared.limits if declared else Limits(dtypes=FLOATS, features=PLAIN_FEATURES)
    return Backend(
        name=name,
        summary=(value.__doc__ or "a function of the user").strip().splitlines()[0],
        limits=dict.fromkeys(declared.devices if declared else ("cpu", "cuda"), limits),
        prepare=lambda case, device: _prepare(value, declared, case, device),
        scratch_bytes=(declared.scratch_bytes if declared else None) or scratch_bytes,
        layout=declared.layout if declared else Layout.BHSD,
    )


def scratch_bytes(case: Case) -> int:
    """Unknown for a user's function: assume the scores of the textbook formula, twice."""
    problem = case.problem
    scores = problem.batch * problem.heads * problem.seq_q * problem.seq_kv * problem.dtype.bytes
    return 2 * scores + cost.input_bytes(problem)


def _prepare(function: Callable[..., Output], declared: Declared | None, case: Case, device: str) -> Prepared:
    problem = case.problem
    if declared:
        return _prepare_declared(function, problem, device)
    groups = problem.heads // problem.kv_heads
    causal = "causal" in problem.features

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        if groups > 1:  # a plain function does not support grouped heads; repeating them is part of its cost
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        try:
            return function(q, k, v, causal=causal, scale=problem.scale)
        except TypeError as error:
            _check_signature(function, error, ())
            raise

    return Prepared(call=call, facts={"kv_heads_repeated": groups > 1}, hint=_layout_hint(function))


def _prepare_declared(function: Callable[..., Output], problem: Problem, device: str) -> Prepared:
    words = ["problem"]
    arguments: list[Problem | Tensor] = [problem]
    stored = None
    if problem.page_size:
        import torch

        words.append("page_table")
        arguments.append(torch.from_numpy(layouts.page_table(problem)).to(device))
        stored = functools.partial(layouts.paged, problem)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        try:
            return function(q, k, v, *arguments)
        except TypeError as error:
            _check_signature(function, error, words)
            raise

    return Prepared(call=call, stored=stored)


def _layout_hint(function: Callable[..., Output]) -> str:
    """For a function that takes any keyword, or those of flash-attn: which layout and arguments it receives."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a function in C
        return ""
    if not (_takes_any_keyword(parameters) or OF_FLASH_ATTN & set(parameters)):
        return ""
    name = getattr(function, "__name__", "attend")
    return (
        f"{name} receives causal and scale, and tensors [batch, heads, seq, head_dim]; if it takes [batch, seq, heads, "
        f'head_dim], as flash-attn does: @attnbench.backend(layout="bshd") above def adapted(q, k, v, problem)'
    )


def _takes_any_keyword(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _check_signature(function: Callable[..., Output], error: TypeError, declared: Sequence[str]) -> None:
    """After the TypeError of a call: raise UsageError with the way to adapt a function that takes other arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function in C: the docstring of torch's begin with the signature
        text = re.match(r"\w+\(([^)]*)\)", function.__doc__ or "")
        names = re.findall(r"(\w+)(?:=[^,]*)?(?:,|$)", "".join(text[1].split())) if text else []
        required = names[:3]
    else:
        with contextlib.suppress(TypeError):
            signature.bind(*"qkv", *declared, **({} if declared else PLAIN_OPTIONS))
            passed_on = _takes_any_keyword(signature.parameters) and "unexpected keyword argument" in str(error)
            if passed_on and not declared:
                raise UsageError(f"it passes its keywords on: {error}; {_layout_hint(function)}") from error
            return
        names = list(signature.parameters)
        required = [name for name, each in signature.parameters.items() if each.default is each.empty]
    if names:
        raise UsageError(_advice(getattr(function, "__name__", "attend"), names, required, declared)) from error


def _advice(name: str, names: Sequence[str], required: Sequence[str], declared: Sequence[str]) -> str:
    """How to adapt a function with these parameters to the way in which it is called."""
    shown = f"{name}({', '.join(names)})"
    if declared:
        wanted = f"fn(q, k, v, {', '.join(declared)})"
        return f"{shown} is decorated with @attnbench.backend, which calls {wanted}: accept these arguments"
    if "problem" in names:
        return f"{shown}: decorate it with @attnbench.backend, which calls fn(q, k, v, problem)"
    rest = [each for each in names[3:] if each in ADAPTED and (each in required or ADAPTED[each] in PLAIN_OPTIONS)]
    if OF_FLASH_ATTN & set(names):
        values = {**ADAPTED, "causal": '"causal" in problem.features', "softmax_scale": "problem.scale"}
        arguments = ", ".join(["q, k, v", *(f"{each}={values[each]}" for each in rest)])
        return (
            f"{shown} has the signature of flash-attn, on [batch, seq, heads, head_dim]. Adapt it: "
            f'@attnbench.backend(layout="bshd") above def adapted(q, k, v, problem): return {name}({arguments})'
        )
    plain = "attnbench calls fn(q, k, v, *, causal, scale) on [batch, heads, seq, head_dim]"
    if not set(names) & {"is_causal", "attn_mask"}:
        return f"{shown}: {plain}; accept causal and scale, or decorate it with @attnbench.backend"
    arguments = ", ".join(["q, k, v", *(f"{each}={ADAPTED[each]}" for each in rest)])
    return (
        f"{shown} has the signature of scaled_dot_product_attention; {plain}. Adapt it: "
        f"def adapted(q, k, v, *, causal, scale): return {name}({arguments}); "
        "where seq_q differs from seq_kv, causal is aligned to the bottom right, is_causal of PyTorch to the top left"
    )


def _known(kind: str, values: Iterable[str], words: type[Word]) -> frozenset[Word]:
    for value in values:
        if value not in tuple(words):
            raise UnknownNameError(kind, value, tuple(words), where="attnbench.backend")
    return frozenset(words(value) for value in values)
