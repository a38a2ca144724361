"""Backends from outside: `file.py:callable`, entry points, and the decorator `attnbench.backend`.

A plain function `fn(q, k, v, *, causal, scale)` over [batch, heads, seq, head_dim] is enough. A decorated one declares
more, and gets the whole problem: `fn(q, k, v, problem)`.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from attnbench.attention import cost
from attnbench.attention.problem import FEATURES, Dtype, Mode
from attnbench.backends import Backend, Layout, Limits, Prepared
from attnbench.case import Case
from attnbench.errors import UnknownNameError, UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

PLAIN_FEATURES = frozenset({"causal", "cross", "gqa", "scale", "head_dim_v"})
NAMED_MOST = 5  # files that are named where one is missing
PLAIN_DTYPES = frozenset({Dtype.FP32, Dtype.FP16, Dtype.BF16})


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What a decorated function says of itself."""

    name: str
    dtypes: frozenset[Dtype]
    features: frozenset[str]
    modes: frozenset[Mode]
    layout: Layout
    devices: tuple[str, ...]
    head_dim_most: int
    scratch_bytes: Callable[[Case], int] | None


def backend(
    *,
    name: str | None = None,
    dtypes: Iterable[str] = PLAIN_DTYPES,
    features: Iterable[str] = PLAIN_FEATURES,
    modes: Iterable[str] = tuple(Mode),
    layout: str = "bhsd",
    devices: Iterable[str] = ("cpu", "cuda"),
    head_dim_most: int = 0,
    scratch_bytes: Callable[[Case], int] | None = None,
) -> Callable[[Function], Function]:
    """Declare what a function `fn(q, k, v, problem)` can do; it gives out, or (out, lse) where the problem asks for it.

    features: words of `attnbench.attention.problem.FEATURES`; layout: `bhsd` or `bshd`, the order of dimensions of
    q, k, v and out; head_dim_most: 0 for any; scratch_bytes(case): bytes beyond inputs and outputs, to refuse what does
    not fit. Raises UnknownNameError for a word that is none of ours.
    """
    for word in features:
        if word not in FEATURES:
            raise UnknownNameError("feature", word, FEATURES, where="attnbench.backend")

    def mark(function: Function) -> Function:
        declared = Declared(
            name=name or function.__name__,
            dtypes=_known("dtype", dtypes, Dtype),
            features=frozenset(features),
            modes=_known("mode", modes, Mode),
            layout=next(iter(_known("layout", [layout], Layout))),
            devices=tuple(devices),
            head_dim_most=head_dim_most,
            scratch_bytes=scratch_bytes,
        )
        function.__attnbench__ = declared  # type: ignore[attr-defined]
        return function

    return mark


def load(name: str) -> Backend:
    """Import the file of `file.py:callable`, and wrap the callable. Whatever the file raises rises."""
    path, attribute = check(name)
    spec = importlib.util.spec_from_file_location(f"attnbench_plugin_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))  # its neighbours are importable, as if it were run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    if not hasattr(module, attribute):
        raise UnknownNameError("callable", attribute, _public(vars(module)), where=str(path))
    return wrap(getattr(module, attribute), name)


def check(name: str) -> tuple[Path, str]:
    """What can be said without running the file: that it is there, parses, and defines the name."""
    file, _, attribute = name.partition(".py:")
    path = Path(file + ".py").expanduser().resolve()
    if not attribute:
        raise UsageError(f"--backend {name}: which callable of the file? (try {name}:attend)")
    if not path.is_file():
        there = sorted(other.name for other in path.parent.glob("*.py"))[:NAMED_MOST]
        raise UnknownNameError("file", f"{file}.py", there, where=f"--backend {name}")
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UsageError(f"--backend {name}: {file}.py cannot be parsed: {error}") from error
    defined = _defined(tree)
    if attribute not in defined and "*" not in defined:
        raise UnknownNameError("callable", attribute, _public(defined), where=f"{file}.py")
    return path, attribute


def wrap(value: Any, name: str) -> Backend:
    """A Backend as it is, or one made of a function, plain or decorated."""
    if isinstance(value, Backend):
        return msgspec.structs.replace(value, name=name)
    if not callable(value):
        raise UsageError(f"--backend {name}: a {type(value).__name__}, not a function")
    declared: Declared | None = getattr(value, "__attnbench__", None)
    limits = Limits(
        dtypes=declared.dtypes if declared else PLAIN_DTYPES,
        features=declared.features if declared else PLAIN_FEATURES,
        modes=declared.modes if declared else frozenset(Mode),
        head_dim_most=declared.head_dim_most if declared else 0,
    )
    return Backend(
        name=name,
        summary=(value.__doc__ or "a function of the user").strip().splitlines()[0],
        limits=dict.fromkeys(declared.devices if declared else ("cpu", "cuda"), limits),
        prepare=lambda case, device: _prepare(value, declared, case),
        scratch_bytes=(declared.scratch_bytes if declared else None) or scratch_bytes,
        layout=declared.layout if declared else Layout.BHSD,
    )


def scratch_bytes(case: Case) -> int:
    """Unknown of a user's function: the scores of the plain formula are assumed, twice."""
    problem = case.problem
    scores = problem.batch * problem.heads * problem.seq_q * problem.seq_kv * problem.dtype.bytes
    return 2 * scores + cost.input_bytes(problem)


def _prepare(function: Callable[..., Any], declared: Declared | None, case: Case) -> Prepared:
    problem = case.problem
    if declared:
        return Prepared(call=lambda q, k, v: function(q, k, v, problem))
    groups = problem.heads // problem.kv_heads
    causal = "causal" in problem.features

    def call(q: Any, k: Any, v: Any) -> Any:
        if groups > 1:  # a plain function knows nothing of grouped heads; repeating them is part of its cost
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return function(q, k, v, causal=causal, scale=problem.scale)

    return Prepared(call=call, facts={"kv_heads_repeated": groups > 1})


def _known(kind: str, values: Iterable[str], words: Any) -> frozenset[Any]:
    for value in values:
        if value not in tuple(words):
            raise UnknownNameError(kind, value, tuple(words), where="attnbench.backend")
    return frozenset(words(value) for value in values)


def _defined(tree: ast.Module) -> dict[str, None]:
    """Names that the top level of a module binds, those inside `if` and `try` too; `*` for a star import."""
    found: dict[str, None] = {}
    waiting: list[ast.AST] = list(reversed(tree.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found[node.name] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(dict.fromkeys((alias.asname or alias.name.split(".")[0]) for alias in node.names))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        else:
            waiting.extend(reversed(list(ast.iter_child_nodes(node))))
    return found


def _public(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]
