"""The kernel for Hopper on simulated blocks: the source of attnbench.kernels.hopper, run line by line by Python."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from attnbench.kernels.gluon import TensorDescriptor
from attnbench.kernels.launch import Call
from attnbench.kernels.tile import Listed
from tests.simulated import gluon
from tests.simulated.block import Block
from tests.simulated.gluon import Descriptor, Int, Launch, Pointer

SHIM = "attnbench.kernels.gluon"
SOURCE = Path(__file__).parents[2] / "attnbench" / "kernels" / "hopper.py"


def load(text: str | None = None) -> Any:
    """The module of the kernel, of this text or as it is, over the simulated names."""
    text = SOURCE.read_text(encoding="utf-8") if text is None else text
    module = ModuleType("hopper")
    names, saved = (module.__name__, SHIM), {name: sys.modules.get(name) for name in (module.__name__, SHIM)}
    sys.modules |= dict(zip(names, (module, gluon), strict=True))
    try:
        exec(compile(text, str(SOURCE), "exec"), module.__dict__)
    finally:
        for name, before in saved.items():
            if before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = before
    return module


def run(kernel: Any, call: Call, programs: int, seed: int = 0, async_when: str = "random", **changes: Any) -> None:
    """A launch of so many programs, one after the other, with `changes` in place of its arguments."""
    arguments = {name: _simulated(value) for name, value in (call.arguments | changes).items()}
    for program in range(programs):
        Launch.now = Launch(program, programs, Block(seed + program, async_when))
        kernel(**arguments)


def _simulated(value: Any) -> Any:
    if isinstance(value, TensorDescriptor):
        return Descriptor(value.base, value.block_shape, value.layout)
    if isinstance(value, Listed):
        return Listed(Pointer(value.pointer), Int(value.plane), Int(value.batch))
    if isinstance(value, Tensor):
        return Pointer(value)
    return Int(value) if type(value) is int else value
