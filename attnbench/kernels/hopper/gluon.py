"""The names of Gluon that the kernels use, in one place: they move between versions of Triton.

Gluon is Triton's language of explicit layouts, barriers and warps; it runs on GPUs alone. Imported late, by `hopper`.
"""

# mypy: disable-error-code="attr-defined"

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Triton 3.9 calls them async_load and async_store.
fetch = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
send = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
sent = tma.store_wait
MBarrierLayout = mbarrier.MBarrierLayout
arrive, expect, init, wait = mbarrier.arrive, mbarrier.expect, mbarrier.init, mbarrier.wait
jit = gluon.jit

__all__ = ["GluonASTSource", "TensorDescriptor", "fence_async_shared", "gl", "warpgroup_mma", "warpgroup_mma_wait"]
