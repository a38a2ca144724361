"""The kernels for Hopper on simulated blocks: their source in attnbench/kernels/hopper, run line by line by Python."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor

from attnbench.kernels.call import Call
from attnbench.kernels.hopper.gluon import TensorDescriptor
from attnbench.kernels.tile import Listed, Operand
from tests.kernels.simulated import gluon
from tests.kernels.simulated.block import Block
from tests.kernels.simulated.gluon import Descriptor, Int, Launch, Pointer

PACKAGE = "attnbench.kernels.hopper"
FOLDER = Path(__file__).parents[3] / "attnbench" / "kernels" / "hopper"
PASSES = ("forward", "backward")
MODULES = ("warps", *PASSES)  # the first serves both passes


def changed(right: str) -> tuple[str, ...]:
    """The passes that change where something takes the place of `right`."""
    modules = [name for name in MODULES if right in (FOLDER / f"{name}.py").read_text(encoding="utf-8")]
    return PASSES if "warps" in modules else tuple(modules)


def load(right: str = "", wrong: str = "") -> Any:
    """The kernels over the simulated names, with `wrong` in place of `right` wherever it stands."""
    made = {f"{PACKAGE}.gluon": gluon} | {f"{PACKAGE}.{name}": ModuleType(f"{PACKAGE}.{name}") for name in MODULES}
    saved = {name: sys.modules.get(name) for name in made}
    texts = {name: (FOLDER / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    if right and not any(right in text for text in texts.values()):
        raise ValueError(f"stands nowhere: {right!r}")
    sys.modules.update(made)
    try:
        for name, text in texts.items():
            changed = text.replace(right, wrong) if right else text
            exec(_compiled(name, changed), made[f"{PACKAGE}.{name}"].__dict__)
    finally:
        for name, before in saved.items():
            if before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = before
    return SimpleNamespace(**{name: made[f"{PACKAGE}.{name}"] for name in MODULES})


@cache  # most bugs change one module of three
def _compiled(name: str, text: str) -> CodeType:
    return compile(text, str(FOLDER / f"{name}.py"), "exec")


def run(kernel: Any, call: Call, programs: int, seed: int = 0, async_when: str = "random", **changes: Any) -> None:
    """A launch of so many programs, one after the other, with `changes` in place of its arguments."""
    arguments = {name: _simulated(value) for name, value in (call.arguments | changes).items()}
    for program in range(programs):
        Launch.now = Launch(program, programs, Block(seed + program, async_when))
        kernel(**arguments)


def _simulated(value: Any) -> Any:
    if isinstance(value, TensorDescriptor):
        return Descriptor(value.base, value.block_shape, value.layout)
    if isinstance(value, Listed | Operand):
        return type(value)(*(_simulated(item) for item in value))
    if isinstance(value, Tensor):
        return Pointer(value)
    return Int(value) if type(value) is int else value
