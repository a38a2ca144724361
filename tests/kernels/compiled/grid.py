"""Every launch that the compile gate looks at: all configurations of the tables, and all features on one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from msgspec.structs import replace

from attnbench.kernels import launch
from attnbench.kernels.call import Call, CallOptions, KvCache, Saved
from attnbench.kernels.hopper import launch as hopper
from attnbench.kernels.masking import BlockMask, KeyConditions, Rows
from attnbench.kernels.tables import Kernel, shipped
from attnbench.kernels.tiling import HOPPER, PASSES, PATHS, SHARED_BYTES, Chip, Path, Tiling, Work, family, tiling

ARCHES = (*(arch for arch in SHARED_BYTES if arch != "sm_86"), "sm_89")  # sm_89 stands for its family, and has fp8
FORWARD_ARCHES = tuple(arch for arch in ARCHES if arch != "sm_89")  # it has the forward tiles and products of sm_120
DTYPES = {"half": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}
FEATURES = (
    *("rows", "blocks", "booleans", "softcap", "alibi", "bias", "bias_by_distance", "dropout", "window"),
    *("sinks", "pages", "ragged", "prefix", "odd_width", "combine", "delta", "bias_gradient"),
)
OF_REQUESTS = ("ragged", "prefix")  # a prefix is unmasked, and as long for each group
LISTED = ("blocks", "booleans")  # booleans come with the list of the blocks that hold any
SEQ, HEADS, KV_HEADS, BATCH = 4096, 8, 2, 2
LATENT, TAIL = 512, 64  # the width of values that are a view of keys of 576, which 128 heads share
FAR = 2 * SEQ


class Variant(NamedTuple):
    """One launch."""

    kernel: str
    arch: str
    dtype: str = "half"
    width: int = 128
    mask: str = "causal"  # or none
    feature: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(str(value) for value in self if value)


def everything() -> Iterator[Variant]:
    """All of the gate."""
    yield from configurations()
    for arch in FORWARD_ARCHES:
        yield from (Variant(_kernel_of(feature), arch, feature=feature) for feature in FEATURES)
        yield Variant("forward", arch, dtype="fp16")
        yield from (Variant("decode", arch, width=LATENT, feature=feature) for feature in OF_REQUESTS)
        if ("decode", arch, "fp8", "128", "any") in shipped():
            yield Variant("decode", arch, dtype="fp8", feature="ragged")
    for arch in ARCHES:
        for kernel in ("backward_kv", "backward_q"):
            yield from (Variant(kernel, arch, feature=feature) for feature in ("rows", "dropout", "bias", "softcap"))
    for width in (64, 128, 256):
        yield Variant("forward_hopper", HOPPER, width=width, feature="rows")
    for feature in ("window", "odd_width"):
        yield Variant("forward_hopper", HOPPER, feature=feature)
    for kernel in ("forward_hopper", "backward_kv_hopper", "backward_q_hopper"):
        yield Variant(kernel, HOPPER, dtype="fp16")
    for kernel in ("backward_kv_hopper", "backward_q_hopper"):
        yield Variant(kernel, HOPPER, feature="window")


def configurations() -> Iterator[Variant]:
    """All configurations of the tables, as they are taken for self-attention, each once.

    Where a configuration serves both, its kernel with a mask holds the loop without one too. Products of fp32 go by no
    tensor cores, so that one tiling makes one code for all GPUs of NVIDIA, of which the smallest is taken.
    """
    chosen: dict[tuple[str, Variant, Tiling], Variant] = {}
    for kernel, arch, dtype, width, mask in sorted(shipped(), key=lambda row: SHARED_BYTES[row[1]]):
        both = ("none", "causal") if kernel.endswith("hopper") and dtype == "half" else ("causal",)
        for shown in {"any": both, "none": ("none",), "some": ("causal",)}[mask]:
            variant = Variant(kernel, {"sm_86": "sm_89"}.get(arch, arch), dtype, int(width), shown)
            maker = arch.partition("_")[0] if dtype == "fp32" else arch
            tiles = replace(tiling_of(variant), passed_over=())
            chosen.setdefault((maker, variant._replace(arch=""), tiles), variant)
    yield from sorted(chosen.values())


def _kernel_of(feature: str) -> str:
    return "decode" if feature in ("pages", *OF_REQUESTS, "combine") else "forward"


def tiling_of(variant: Variant) -> Tiling:
    """As the tables give it."""
    kernel = Kernel(variant.kernel)
    work = Work(
        dtype="half" if variant.dtype == "fp16" else variant.dtype, head_dim=variant.width, head_dim_v=variant.width,
        batch=BATCH, heads=_heads(variant)[0], kv_heads=_heads(variant)[1], seq_q=_queries(variant), seq_kv=SEQ,
        masked=variant.mask != "none", growing=variant.mask == "causal",
        pair_bytes={"bias": 2, "bias_by_distance": 2, "booleans": 1}.get(variant.feature, 0),
        list_q=128 if variant.feature in LISTED else 0, list_kv=128 if variant.feature in LISTED else 0,
    )  # fmt: skip
    path = "" if kernel is Kernel.DECODE else PATHS[kernel].value
    pass_ = kernel if kernel is Kernel.DECODE else PASSES[kernel]
    return tiling(replace(work, path=path), Chip(variant.arch, 132), pass_)


def _heads(variant: Variant) -> tuple[int, int]:
    return (128, 1) if variant.width == LATENT else (HEADS, KV_HEADS)


def _queries(variant: Variant) -> int:
    if variant.kernel != "decode":
        return SEQ
    return 16 if variant.feature in OF_REQUESTS else 1


def call_of(variant: Variant) -> Call:
    """The launch, of tensors [batch, rows, heads, width] seen as [batch, heads, rows, width], without data."""
    dtype, width, kernel, feature = DTYPES[variant.dtype], variant.width, variant.kernel, variant.feature
    width = width - 24 if feature == "odd_width" else width
    chosen = tiling_of(variant)
    heads, kv_heads = _heads(variant)
    tail = TAIL if width == LATENT else 0
    q, k = (_rows(count, width + tail, dtype) for count in (heads, kv_heads))
    v = k[..., :width] if tail else _rows(kv_heads, width, dtype)
    out = _rows(heads, width, torch.bfloat16 if variant.dtype == "fp8" else dtype)
    lse = torch.empty(BATCH, heads, SEQ, device="meta")
    bias, sinks = _bias(feature), torch.empty(HEADS, device="meta") if feature == "sinks" else None
    options = _options(variant)
    if kernel.startswith("forward") and chosen.path == Path.HOPPER:
        return hopper.forward_call(q, k, v, out, lse, options, chosen)
    if kernel.startswith("forward") and feature not in ("delta", "bias_gradient"):
        return launch.forward_call(q, k, v, out, lse, bias, sinks, options, chosen)
    if kernel == "decode":
        return _decode(variant, q, k, v, out, lse, options, replace(chosen, splits=4, path=Path.DECODE.value))
    saved = Saved(q, k, v, bias, out, lse, out, lse)
    if feature == "delta":
        return launch.delta_call(saved, None)
    if feature == "bias_gradient":
        pairs = torch.empty(1, HEADS, SEQ, SEQ, device="meta")
        half = replace(tiling_of(variant._replace(kernel="backward_q")), stages=1)
        return launch.bias_call(saved._replace(bias=pairs), pairs, options, half)
    if kernel.startswith("backward_kv"):
        return launch.key_call(saved, k, v, options, replace(chosen, parts=1))
    return launch.query_call(saved, q, options, chosen)


def _rows(heads: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(BATCH, SEQ, heads, width, dtype=dtype, device="meta").transpose(1, 2)


def _bias(feature: str) -> torch.Tensor | None:
    shapes = {"bias": (1, HEADS, SEQ, SEQ), "bias_by_distance": (HEADS, 2 * SEQ - 1)}
    return torch.empty(shapes[feature], dtype=torch.bfloat16, device="meta") if feature in shapes else None


def _options(variant: Variant) -> CallOptions:
    feature = variant.feature
    rows = Rows(torch.empty(3, BATCH, SEQ, dtype=torch.int32, device="meta"), SEQ) if feature == "rows" else None
    lists = torch.empty(1, 1, SEQ // 128, dtype=torch.int32, device="meta")
    indices = torch.empty(1, 1, SEQ // 128, 8, dtype=torch.int32, device="meta")
    blocks = BlockMask(lists, indices, lists, indices, 128, 128) if feature in LISTED else None
    visible = torch.empty(1, 1, SEQ, SEQ, dtype=torch.bool, device="meta") if feature == "booleans" else None
    keys = KeyConditions(
        left=512 if feature == "window" else FAR,
        right=0 if variant.mask == "causal" and feature not in ("rows", "blocks", "booleans", "prefix") else FAR,
        rows=rows, blocks=blocks, visible=visible,
    )  # fmt: skip
    return CallOptions(
        keys=keys, scale=variant.width**-0.5, softcap=30.0 if feature == "softcap" else None,
        slopes=torch.empty(1, HEADS, device="meta") if feature == "alibi" else None,
        dropout=0.1 if feature == "dropout" else 0.0,
        descale=torch.empty(2, _heads(variant)[0], device="meta") if variant.dtype == "fp8" else None,
        by_distance=feature == "bias_by_distance",
    )  # fmt: skip


def _decode(
    variant: Variant, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    options: CallOptions, chosen: Tiling,
) -> Call:  # fmt: skip
    cache = KvCache()
    if variant.feature in OF_REQUESTS:
        q, out, lse = (tensor[:1] for tensor in (q, out, lse))
        lengths, starts = (torch.empty(BATCH + more, dtype=torch.int32, device="meta") for more in (0, 1))
        cache = KvCache(lengths=None if variant.feature == "prefix" else lengths, starts_q=starts)
    else:
        q, out, lse = (tensor[:, :, :1] for tensor in (q, out, lse))
    if variant.feature in ("pages", *OF_REQUESTS) or variant.width == LATENT:
        table = torch.empty(BATCH, SEQ // 16, dtype=torch.int32, device="meta")
        k, v = _pages(k), _pages(v)
        v = k[..., :LATENT] if variant.width == LATENT else v
        cache = cache._replace(table=table)
    calls = launch.decode_calls(q, k, v, out, lse, [launch.DecodeShare(options, chosen, cache, None)])
    return calls[1 if variant.feature == "combine" else 0]


def _pages(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(1024, 16, *tensor.shape[1:4:2], dtype=tensor.dtype, device="meta").transpose(1, 2)


def shared_limit(arch: str) -> int:
    """Bytes that one block may have."""
    return SHARED_BYTES[family(arch)]
