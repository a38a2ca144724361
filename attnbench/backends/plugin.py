"""Backends of users: `file.py:callable`, entry points, and the decorator `attnbench.backend`.

A plain function `fn(q, k, v, *, causal, scale)` over [batch, heads, seq, head_dim] is enough. A decorated one declares
more, and receives the whole problem: `fn(q, k, v, problem)`.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from attnbench.attention import cost
from attnbench.attention.problem import FEATURES, Dtype, Mode
from attnbench.backends import FLOATS, Backend, Layout, Limits, Output, Prepared
from attnbench.errors import UnknownNameError, UsageError
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])

Word = TypeVar("Word", bound=StrEnum)

PLAIN_FEATURES = frozenset({"causal", "cross", "gqa", "scale", "head_dim_v"})
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
    """Import the file of `file.py:callable`, and wrap the callable. Exceptions of the file propagate."""
    path, attribute = check(name)
    spec = importlib.util.spec_from_file_location(f"attnbench_plugin_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))  # modules beside it are importable, as if it were run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    if not hasattr(module, attribute):
        raise UnknownNameError("callable", attribute, _public(vars(module)), where=str(path))
    return wrap(getattr(module, attribute), name)


def check(name: str) -> tuple[Path, str]:
    """Check without running the file: it exists, parses, and defines the name."""
    file, _, attribute = name.partition(".py:")
    path = Path(file + ".py").expanduser().resolve()
    if not attribute:
        raise UsageError(f"--backend {name}: which callable of the file? (try {name}:attend)")
    if not path.is_file():
        nearby = sorted(other.name for other in path.parent.glob("*.py"))[:MAX_SUGGESTIONS]
        raise UnknownNameError("file", f"{file}.py", nearby, where=f"--backend {name}")
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UsageError(f"--backend {name}: {file}.py cannot be parsed: {error}") from error
    defined = _defined(tree)
    if attribute not in defined and "*" not in defined:
        raise UnknownNameError("callable", attribute, _public(defined), where=f"{file}.py")
    return path, attribute


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
        prepare=lambda case, device: _prepare(value, declared, case),
        scratch_bytes=(declared.scratch_bytes if declared else None) or scratch_bytes,
        layout=declared.layout if declared else Layout.BHSD,
    )


def scratch_bytes(case: Case) -> int:
    """Unknown for a user's function: assume the scores of the textbook formula, twice."""
    problem = case.problem
    scores = problem.batch * problem.heads * problem.seq_q * problem.seq_kv * problem.dtype.bytes
    return 2 * scores + cost.input_bytes(problem)


def _prepare(function: Callable[..., Output], declared: Declared | None, case: Case) -> Prepared:
    problem = case.problem
    if declared:
        return Prepared(call=lambda q, k, v: function(q, k, v, problem))
    groups = problem.heads // problem.kv_heads
    causal = "causal" in problem.features

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        if groups > 1:  # a plain function does not support grouped heads; repeating them is part of its cost
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return function(q, k, v, causal=causal, scale=problem.scale)

    return Prepared(call=call, facts={"kv_heads_repeated": groups > 1})


def _known(kind: str, values: Iterable[str], words: type[Word]) -> frozenset[Word]:
    for value in values:
        if value not in tuple(words):
            raise UnknownNameError(kind, value, tuple(words), where="attnbench.backend")
    return frozenset(words(value) for value in values)


def _defined(tree: ast.Module) -> dict[str, None]:
    """Names that the top level of a module binds, those inside `if` and `try` too; `*` for a star import."""
    names: dict[str, None] = {}
    pending: list[ast.AST] = list(reversed(tree.body))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names[node.name] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(dict.fromkeys((alias.asname or alias.name.split(".")[0]) for alias in node.names))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = None
        else:
            pending.extend(reversed(list(ast.iter_child_nodes(node))))
    return names


def _public(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]
