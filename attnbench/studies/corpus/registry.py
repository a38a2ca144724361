"""The kernels of the corpus: what the listing says of them, and the problems that they declare.

The listing was fixed before the first measurement. A kernel is an ordinary function of a user, named
`package.module:function`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import msgspec

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import plugin

LISTING = Path(__file__).parent / "listing.toml"
PACKAGE = f"{__package__}.kernels"
MODULES = (
    "masks", "windows", "heads", "scores", "sinks", "splits", "pages", "dropout", "precision", "values", "tails",
    "state", "orders", "merges", "roundings", "rewrites",
)  # fmt: skip

Function = TypeVar("Function", bound=Callable[..., object])


class CorpusKernel(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel of the corpus. The problems are judged one after the other, in one process."""

    name: str
    text: str  # the fault, or what makes a right kernel look wrong
    kind: str = ""  # of fault; empty: the kernel is right
    source: str = ""  # the address of the report
    chosen: str = ""  # why it is in the corpus: "any", without regard to attnbench's rule, or "weak spot"
    backend: str  # `package.module:function`
    problems: tuple[Problem, ...]
    mode: Mode
    elsewhere: Problem | None  # a problem on which a wrong kernel is right

    @property
    def right(self) -> bool:
        return not self.kind


_KERNELS: dict[str, CorpusKernel] = {}


@lru_cache(maxsize=1)
def listing() -> dict[str, dict[str, str]]:
    """The entries of the listing by name, in its order."""
    entries = tomllib.loads(LISTING.read_text())
    wrong = {entry["name"]: {**entry, "text": entry.pop("fault")} for entry in entries["wrong"]}
    return wrong | {entry["name"]: {**entry, "text": entry.pop("looks")} for entry in entries["right"]}


def kernel(
    name: str, *problems: Problem, mode: str = "fwd", elsewhere: Problem | None = None, layout: str = "bhsd"
) -> Callable[[Function], Function]:
    """Register a function `fn(q, k, v, problem)` as the kernel of that name in the listing, and as a backend."""
    entry = listing()[name]
    declared = [*problems, *([elsewhere] if elsewhere else [])]

    def register(function: Function) -> Function:
        module = function.__module__
        fields = {"problems": problems, "mode": Mode(mode), "elsewhere": elsewhere}
        backend = f"{module}:{function.__name__}"
        _KERNELS[name] = msgspec.convert({**entry, **fields, "backend": backend}, CorpusKernel)
        mark = plugin.backend(
            name=name,
            dtypes={problem.dtype for problem in declared},
            features=_features(declared),
            modes={mode},
            layout=layout,
            devices=("cpu",),
        )
        return mark(function)

    return register


def _features(problems: Iterable[Problem]) -> frozenset[str]:
    return frozenset().union(*(problem.core.features for problem in problems))


def kernels() -> list[CorpusKernel]:
    """All kernels, in the order of the listing. Imports torch."""
    for module in MODULES:
        import_module(f"{PACKAGE}.{module}")
    return [_KERNELS[name] for name in listing()]
