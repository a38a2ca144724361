"""A pytest plugin, `-p tests.without_torch`: torch and triton count as installed, and whoever imports them fails."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

BLOCKED = ("torch", "triton")


class _Blocker:
    """The first finder of modules, and the loader of those that must not be loaded."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.partition(".")[0] in BLOCKED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise AssertionError(f"{spec.name} was imported: these tests do without it, to be fast")

    def exec_module(self, module: ModuleType) -> None:
        raise AssertionError


sys.meta_path.insert(0, _Blocker())
