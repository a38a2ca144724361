"""Triton's interpreter without work that it does again for each call of a function: half the time for these tests."""

from __future__ import annotations

import inspect
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


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
    _look_up_tiles()
    _look_up_shapes()


def _look_up_tiles() -> None:
    """Each type of a tile is checked and named once."""
    make, known = tl.block_type.__init__, dict[tuple[str, tuple[int, ...]], dict[str, Any]]()

    def initialise(tile: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(size.value if isinstance(size, tl.constexpr) else size for size in shape)
        key = (element_ty.name, sizes)
        if key not in known:
            make(tile, element_ty, shape)
            known[key] = {name: value for name, value in vars(tile).items() if name != "element_ty"}
        vars(tile).update(known[key], element_ty=element_ty)

    tl.block_type.__init__ = initialise


def _look_up_shapes() -> None:
    """The sizes of a tensor are constants of the language, which are made once for each shape."""
    make, known = tl.tensor.__init__, dict[tuple[int, ...], dict[str, Any]]()

    def initialise(tensor: Any, handle: Any, kind: Any) -> None:
        shape = kind.shape if kind.is_block() else ()
        if shape not in known:
            make(tensor, handle, kind)
            known[shape] = {name: value for name, value in vars(tensor).items() if name in ("shape", "numel")}
        vars(tensor).update(known[shape], handle=handle, type=kind, dtype=kind.scalar)

    tl.tensor.__init__ = initialise
