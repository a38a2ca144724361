"""Benchmark, verify and guard attention kernels."""

from __future__ import annotations

from importlib import import_module

from attnbench._version import __version__ as __version__

TYPE_CHECKING = False  # `typing` takes longer to import than the rest of this module
if TYPE_CHECKING:
    from typing import Any

    from attnbench import dispatch as dispatch
    from attnbench import kernels as kernels
    from attnbench.analysis import rows as frame
    from attnbench.api import load as load
    from attnbench.api import run as run
    from attnbench.backends.plugin import backend as backend

# Imported on first use: `import attnbench` stays fast and loads no torch.
_MODULES = {"dispatch": "attnbench.dispatch", "kernels": "attnbench.kernels", "frame": "attnbench.analysis.rows"}
_FUNCTIONS = {"run": "attnbench.api", "load": "attnbench.api", "backend": "attnbench.backends.plugin"}

__all__ = ["backend", "dispatch", "frame", "kernels", "load", "run"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'attnbench' has no attribute {name!r}")
