"""The tensors of a user's safetensors file, read without torch, and why a file cannot be inputs."""

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnbench.errors import ProblemError

REQUIRED = "qkv"
NAMES = (*REQUIRED, "dout")
Shape = tuple[int, ...]
# By the name that safetensors has for a dtype: what its bytes are read as, and the name for people.
_FLOATS = {
    "F64": ("<f8", "float64"),
    "F32": ("<f4", "float32"),
    "F16": ("<f2", "float16"),
    "BF16": ("<u2", "bfloat16"),
    "F8_E5M2": ("u1", "float8_e5m2"),
    "F8_E4M3": ("u1", "float8_e4m3fn"),
}


class TensorSummary(NamedTuple):
    """What decides whether a tensor fits a case."""

    dtype: str
    shape: Shape
    largest: float  # magnitude


def read(path: Path) -> dict[str, NDArray[np.floating]]:
    """The tensors q, k, v and, if the file has it, dout. ProblemError names what is missing, no float or not finite."""
    return {name: tensor for name, (_, tensor) in _read(path).items()}


def summary(path: Path) -> dict[str, TensorSummary]:
    """Dtype, shape and largest magnitude of each tensor; raises as `read` does."""
    try:
        state = path.stat()
    except OSError as error:
        raise ProblemError(f"{path}: cannot be read: {error.strerror}") from error
    return _summary(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _summary(path: Path, _changed_ns: int, _size: int) -> dict[str, TensorSummary]:
    return {
        name: TensorSummary(dtype, tensor.shape, float(np.abs(tensor).max(initial=0)))
        for name, (dtype, tensor) in _read(path).items()
    }


def objection(path: Path, shapes: Mapping[str, Shape], largest: Mapping[str, float]) -> str:
    """Why the file does not fit a case with these shapes, and these largest numbers of its dtypes; else empty."""
    for name, tensor in summary(path).items():
        if tensor.shape != shapes[name]:
            return f"{name} is {tensor.dtype} {list(tensor.shape)}; this case needs floats {list(shapes[name])}"
        if tensor.largest > largest[name]:
            return f"{name} holds {tensor.largest:.4g}; the dtype of this case ends at {largest[name]:.4g}"
    return ""


def _read(path: Path) -> dict[str, tuple[str, NDArray[np.floating]]]:
    from safetensors import SafetensorError, deserialize

    try:
        stored = dict(deserialize(path.read_bytes()))
    except (OSError, SafetensorError) as error:
        raise ProblemError(f"{path}: cannot be read: {error}") from error
    tensors = {}
    for name in NAMES:
        if name not in stored:
            if name not in REQUIRED:
                continue
            raise ProblemError(f"{path}: no tensor {name!r}; it holds {', '.join(sorted(stored)) or 'none'}")
        dtype, shape = str(stored[name]["dtype"]), tuple(stored[name]["shape"])
        if dtype not in _FLOATS:
            floats = ", ".join(name for _, name in _FLOATS.values())
            raise ProblemError(f"{path}: {name} is {dtype.lower().replace('i', 'int')} {list(shape)}; use {floats}")
        tensor = _decoded(bytes(stored[name]["data"]), dtype).reshape(shape)
        if not np.isfinite(tensor).all():
            place = np.unravel_index(int(np.argmin(np.isfinite(tensor))), shape)
            raise ProblemError(
                f"{path}: {name}[{', '.join(map(str, place))}] is {tensor[place]}: inputs must be finite, since a NaN "
                "or an infinity says nothing about a kernel"
            )
        tensors[name] = _FLOATS[dtype][1], tensor
    return tensors


def _decoded(data: bytes, dtype: str) -> NDArray[np.floating]:
    raw: NDArray[Any] = np.frombuffer(data, dtype=_FLOATS[dtype][0])
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E5M2":
        return (raw.astype(np.uint16) << 8).view(np.float16)
    numbers: NDArray[np.floating] = _E4M3[raw] if dtype == "F8_E4M3" else raw
    return numbers


def _e4m3() -> NDArray[np.float32]:
    """Every number of float8_e4m3fn by its byte (https://arxiv.org/abs/2209.05433)."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, (codes & 7) / 8
    magnitude = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    magnitude[codes & 127 == 127] = math.nan
    return np.where(codes > 127, -magnitude, magnitude).astype(np.float32)


_E4M3 = _e4m3()
