"""Operators of Triton's interpreter, found out once for the types of their operands.

An operator checks its operands, casts and spreads them, and calls one function of NumPy; which one, and what is cast
to what, depends on the types alone, and on the values of numbers. It is watched the first time, and repeated after.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

IN_ORDER = (
    *("__add__", "__sub__", "__mul__", "__truediv__", "__mod__", "__and__", "__or__"),
    *("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"),
)
REVERSED = ("__radd__", "__rsub__", "__rmul__")
OTHER = object()  # what no cast explains
OF_THE_LANGUAGE = ("maximum", "minimum")


class Plan(NamedTuple):
    """What an operator does with operands of two types. An operand is taken as it is (None), cast, or a constant."""

    function: Any  # of two arrays; None: the operator is called as it is
    left: Any = None
    right: Any = None
    dtype: Any = None  # of the array that comes out
    label: Any = None  # what its handle says of it; None: what that of the left operand says
    known: Any = None  # the attributes of the tensor


class Call(NamedTuple):
    """One that the builder got."""

    left: Any
    right: Any
    function: Any
    result: Any


def known_by(operand: Any) -> Any:
    """The name of a tensor's type; of a number its type and value."""
    return operand.type.name if type(operand) is tl.tensor else (type(operand), operand)


def planned(place: Any, name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator by its plans, if it is one that can have some."""
    if place is tl.tensor and name in (*IN_ORDER, *REVERSED):
        return _by_plan(operator, name in REVERSED)
    if place is tl.tensor and name == "__getitem__":
        return _expanded_once(operator)
    return _by_plan(operator, False) if place is tl and name in OF_THE_LANGUAGE else operator


def _expanded_once(index: Callable[..., Any]) -> Callable[..., Any]:
    """A row as a tile: [:, None] and [None, :]."""
    known: dict[tuple[str, int], dict[str, Any]] = {}

    def call(row: Any, slices: Any, **named: Any) -> Any:
        if named or type(slices) is not tuple or len(slices) != 2 or len(row.shape) != 1:
            return index(row, slices, **named)
        axis = 0 if slices[0] is None else 1
        if slices[axis] is not None or slices[1 - axis] != slice(None):
            return index(row, slices)
        key = (row.type.name, axis)
        if key not in known:
            known[key] = attributes(index(row, slices))
        data = row.handle.data
        return made(data[:, None] if axis else data[None], row.handle.dtype, known[key])

    return call


def _by_plan(operator: Callable[..., Any], is_reversed: bool) -> Callable[..., Any]:
    plans: dict[Any, Plan] = {}
    builder, tensor, constant = interpreter.interpreter_builder, tl.tensor, tl.constexpr

    def call(left: Any, right: Any, **named: Any) -> Any:
        if named or builder.options.sanitize_overflow:
            return operator(left, right, **named)
        if type(right) is constant:
            right = right.value
        key = (
            left.type.name if type(left) is tensor else (type(left), left),
            right.type.name if type(right) is tensor else (type(right), right),
        )
        plan = plans.get(key)
        if plan is None:
            result, plans[key] = _watched(partial(operator, left, right), left, right, is_reversed)
            return result
        function, of_left, of_right, dtype, label, known = plan
        if function is None:
            return operator(left, right)
        one = left.handle.data if of_left is None else _data(left, of_left)
        other = right.handle.data if of_right is None else _data(right, of_right)
        data = function(other, one) if is_reversed else function(one, other)
        if data.dtype is not dtype:
            return operator(left, right)
        return made(data, left.handle.dtype if label is None else label, known)

    return call


def made(data: Any, label: Any, known: dict[str, Any]) -> Any:
    """A tensor with these attributes."""
    handle, tensor = _new(interpreter.TensorHandle), _new(tl.tensor)
    handle.data, handle.dtype, handle.attr = data, label, {}
    vars(tensor).update(known)
    tensor.handle = handle
    return tensor


_new = object.__new__


def attributes(tensor: Any) -> dict[str, Any]:
    """Those that the type of a tensor decides."""
    return {name: value for name, value in vars(tensor).items() if name != "handle"}


def _data(operand: Any, change: Any) -> Any:
    if change is None:
        return operand.handle.data
    return change if type(change) is np.ndarray else interpreter.interpreter_semantic.cast(operand, change).handle.data


def _watched(operator: Callable[[], Any], left: Any, right: Any, is_reversed: bool) -> tuple[Any, Plan]:
    """What the operator gives, and its plan."""
    calls: list[Call] = []
    builder = interpreter.interpreter_builder
    binary, add = builder.binary_op, builder.create_addptr

    def binary_op(lhs: Any, rhs: Any, function: Any) -> Any:
        calls.append(Call(lhs, rhs, function, binary(lhs, rhs, function)))
        return calls[-1].result

    def create_addptr(pointer: Any, offset: Any) -> Any:
        width = max(1, pointer.get_element_ty().primitive_bitwidth // 8)
        calls.append(Call(pointer, offset, _moved_by(width), add(pointer, offset)))
        return calls[-1].result

    builder.binary_op, builder.create_addptr = binary_op, create_addptr
    try:
        result = operator()
    finally:
        del builder.binary_op, builder.create_addptr
    if len(calls) != 1 or result.handle is not calls[0].result:
        return result, Plan(None)
    call = calls[0]
    handles = (call.right, call.left) if is_reversed else (call.left, call.right)
    changes = [_change(operand, handle) for operand, handle in zip((left, right), handles, strict=True)]
    if any(change is OTHER for change in changes):
        return result, Plan(None)
    kept = not is_reversed and changes[0] is None and call.result.dtype is left.handle.dtype
    label = None if kept else call.result.dtype
    return result, Plan(call.function, *changes, call.result.data.dtype, label, attributes(result))


@cache
def _moved_by(width: int) -> Callable[[Any, Any], Any]:
    """Pointers to numbers of so many bytes, and how many numbers they move on."""
    return lambda pointers, steps: pointers + width * steps.astype(np.uint64)


def _change(operand: Any, handle: Any) -> Any:
    """What made the handle of the operand: nothing, a cast, a constant, or OTHER."""
    if type(operand) is not tl.tensor:
        return OTHER if type(operand) is float and operand == 0.0 else handle.data  # 0.0 and -0.0 are one key
    pointers = handle.dtype.is_ptr() or operand.type.scalar.is_ptr()
    for change in (None,) if pointers else (None, handle.dtype):
        data = _data(operand, change)
        if data.dtype is handle.data.dtype and _same(data, handle.data):
            return change
    return OTHER


def _same(small: Any, large: Any) -> bool:
    """Whether one array spread over the other is the other, bit by bit."""
    return bool(np.broadcast_to(small, large.shape).tobytes() == large.tobytes())


# bfloat16 is kept as its 16 bits, the upper half of a float32; the interpreter cuts the lower half off.
HALVES = {
    ("bf16", "fp32"): lambda data: (data.astype(np.uint32) << 16).view(np.float32),
    ("fp32", "bf16"): lambda data: (data.view(np.uint32) >> 16).astype(np.uint16),
}


def cast_by_plan() -> None:
    """What a cast does depends on the two types alone, and on what the handle says of its array."""
    kind = type(interpreter.interpreter_semantic)
    cast = kind.cast
    plans: dict[Any, tuple[Any, Any, Any]] = {}

    def watched(self: Any, operand: Any, wanted: Any, *rounding: Any) -> tuple[Any, tuple[Any, Any, Any]]:
        result = cast(self, operand, wanted, *rounding)
        data, label = result.handle.data, result.handle.dtype
        change = HALVES.get((operand.handle.dtype.name, label.name), lambda array: array.astype(data.dtype))
        by_plan = change(operand.handle.data)
        same = by_plan.dtype is data.dtype and by_plan.tobytes() == data.tobytes()
        return result, (change if same else None, label, attributes(result))

    def cast_once(self: Any, operand: Any, wanted: Any, *rounding: Any) -> Any:
        scalar = wanted.scalar
        if operand.type.scalar is scalar:
            return operand
        key = (operand.type.name, operand.handle.dtype.name, scalar.name, rounding)
        if key not in plans:
            result, plans[key] = watched(self, operand, wanted, *rounding)
            return result
        change, label, known = plans[key]
        if change is None:
            return cast(self, operand, wanted, *rounding)
        return made(change(operand.handle.data), label, known)

    kind.cast = cast_once
