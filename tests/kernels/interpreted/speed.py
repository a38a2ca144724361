"""Triton's interpreter without work that it does again for each operation: a third of the time for these tests.

What is computed stays the same: types, constants, casts and patched functions are looked up instead of found again.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core, random, semantic
from triton.runtime import interpreter

from tests.kernels.interpreted.operators import cast_by_plan, known_by, planned


def patch_once() -> None:
    """Patch `triton.language` once for the life of the process, and look up each dtype and each type of a tile once.

    The interpreter patches the language again at every call of a jitted function, and this process only interprets.
    A Triton whose interpreter is built in another way is left as it is.
    """
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    patch, numpy_dtype = interpreter._patch_lang, interpreter._get_np_dtype
    patched: set[tuple[str, ...]] = set()
    seen: set[Any] = set()
    dtypes: dict[str, Any] = {}

    def patch_lang(function: Any) -> Any:
        if function not in seen:
            languages = [value for value in function.__globals__.values() if inspect.ismodule(value)]
            names = tuple(sorted({value.__name__ for value in languages if value in (tl, tl.core)}))
            if names not in patched:
                patch(function)
                patched.add(names)
            seen.add(function)
        return interpreter._LangPatchScope()  # holds nothing to undo

    def get_np_dtype(dtype: Any) -> Any:
        scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        name = "pointer" if isinstance(scalar, tl.pointer_type) else scalar.name
        if name not in dtypes:
            dtypes[name] = numpy_dtype(dtype)
        return dtypes[name]

    interpreter._patch_lang, interpreter._get_np_dtype = patch_lang, get_np_dtype
    interpreter._patch_attr = _patch_attr
    _make_types_once()
    _make_sizes_once()
    _compare_by_identity()
    _match_operands_once()
    _draw_once()
    _check_sizes_quickly()
    cast_by_plan()


def _patch_attr(place: Any, name: str, member: Any, _builder: Any, scope: Any) -> None:
    """As the interpreter does it, without a copy of all arguments at every call."""

    def call(*arguments: Any, **named: Any) -> Any:
        named["_semantic"] = interpreter.interpreter_semantic
        return member(*arguments, **named)

    scope.set_attr(place, name, planned(place, name, call))


def _check_sizes_quickly() -> None:
    """An array has no wider numbers than its type; how wide these are is looked up."""
    most: dict[str, float] = {}

    def initialise(handle: Any, data: Any, dtype: Any, attr: Any = None) -> None:
        if dtype.name not in most:
            most[dtype.name] = math.inf if dtype.is_ptr() else max(8, dtype.primitive_bitwidth) // 8
        if data.itemsize > most[dtype.name]:
            raise ValueError(f"numbers of {data.itemsize} bytes in a tile of {dtype.name}")
        handle.data, handle.dtype, handle.attr = data, dtype, attr or {}

    interpreter.TensorHandle.__init__ = initialise


def _make_types_once() -> None:
    """One object for each type of a tile, and one tuple of sizes for all tiles of a shape."""
    make = tl.block_type.__init__
    types: dict[tuple[str, tuple[int, ...]], Any] = {}

    def create(kind: type, element_ty: Any, shape: Any, *_: Any, **__: Any) -> Any:
        if kind is not tl.block_type:
            return object.__new__(kind)
        sizes = tuple(size.value if isinstance(size, tl.constexpr) else size for size in shape)
        tile = types.get((element_ty.name, sizes))
        if tile is None:
            tile = types[element_ty.name, sizes] = object.__new__(kind)
            make(tile, element_ty, shape)
            tile.sizes = sizes
        return tile

    def initialise(tile: Any, element_ty: Any, shape: Any) -> None:
        if type(tile) is not tl.block_type:
            make(tile, element_ty, shape)

    tl.block_type.__new__, tl.block_type.__init__ = create, initialise


def _make_sizes_once() -> None:
    """The sizes of a tensor are constants of the language, which are made once for each type."""
    make = tl.tensor.__init__

    def initialise(tensor: Any, handle: Any, kind: Any) -> None:
        known = vars(kind).get("of_tensors")
        if known is None:
            make(tensor, handle, kind)
            known = kind.of_tensors = {name: value for name, value in vars(tensor).items() if name != "handle"}
        vars(tensor).update(known, handle=handle)

    tl.tensor.__init__ = initialise


def _compare_by_identity() -> None:
    """Most types that are compared are one object, and most values that are unwrapped are no constants."""
    equal, unwrap = tl.dtype.__eq__, core._unwrap_if_constexpr
    plain = frozenset((tl.tensor, int, float, bool, str, type(None)))
    tl.dtype.__eq__ = lambda one, other: one is other or equal(one, other)
    core._unwrap_if_constexpr = lambda value: value if type(value) in plain else unwrap(value)


def _match_operands_once() -> None:
    """What operands are cast to and spread over depends on their types alone, and on the value of a number."""
    kind = semantic.TritonSemantic
    match, broadcast = kind.binary_op_type_checking_impl, kind.broadcast_impl_value
    matches: dict[Any, tuple[Any, ...]] = {}
    broadcasts: dict[tuple[str, str], tuple[Any, Any]] = {}

    def fit(self: Any, operand: Any, wanted: Any) -> Any:
        if type(wanted) is tl.tensor:
            return wanted
        if operand.type is wanted:
            return operand
        if operand.dtype is not wanted.scalar:
            operand = self.cast(operand, wanted.scalar)
        if operand.type is wanted or not wanted.is_block():
            return operand
        data = np.broadcast_to(operand.handle.data, wanted.sizes)
        return tl.tensor(interpreter.TensorHandle(data, operand.handle.dtype.scalar), wanted)

    def match_once(self: Any, lhs: Any, rhs: Any, *flags: Any) -> Any:
        key = (known_by(lhs), known_by(rhs), flags)
        if key in matches:
            left, right = matches[key]
            return fit(self, lhs, left), fit(self, rhs, right)
        left, right = match(self, lhs, rhs, *flags)
        matches[key] = tuple(new.type if type(old) is tl.tensor else new for old, new in ((lhs, left), (rhs, right)))
        return left, right

    def broadcast_once(self: Any, lhs: Any, rhs: Any) -> Any:
        key = (lhs.type.name, rhs.type.name)
        if key in broadcasts:
            left, right = broadcasts[key]
            return fit(self, lhs, left), fit(self, rhs, right)
        left, right = broadcast(self, lhs, rhs)
        broadcasts[key] = left.type, right.type
        return left, right

    kind.binary_op_type_checking_impl, kind.broadcast_impl_value = match_once, broadcast_once


def _draw_once() -> None:
    """Forward and backward kernels draw the same random numbers, which depend on the arguments alone."""
    draw = random.philox_impl
    drawn: dict[Any, Any] = {}

    def draw_once(*arguments: Any) -> Any:
        key = tuple((a.type.name, a.handle.data.tobytes()) if type(a) is tl.tensor else a for a in arguments)
        if key not in drawn:
            drawn[key] = draw(*arguments)
        return drawn[key]

    random.philox_impl = draw_once
