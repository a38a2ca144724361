"""Benchmark, verify and guard attention kernels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from attnbench import kernels as kernels
    from attnbench.api import load as load
    from attnbench.api import run as run
    from attnbench.backends.plugin import backend as backend

# Looked up when asked for: `import attnbench` is cheap, and loads no torch.
_PLACES = {"run": "attnbench.api", "load": "attnbench.api", "backend": "attnbench.backends.plugin"}

__all__ = ["backend", "kernels", "load", "run"]


def __getattr__(name: str) -> Any:
    if name == "kernels":
        return import_module("attnbench.kernels")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'attnbench' has no attribute {name!r}")
