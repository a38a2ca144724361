"""What every launch has in common: options and tensors in, the arguments of a kernel and its tiling out."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from attnbench.kernels import tables
from attnbench.kernels.masking import KeyConditions
from attnbench.kernels.tables import Kernel
from attnbench.kernels.tile import INTERPRETED, BlockList, Listed, Operand, Pairs
from attnbench.kernels.tiling import INTERPRETER, Chip, Path, Tiling, Work, padded, tiling

PATH_VARIABLE = "ATTNBENCH_KERNEL_PATH"  # the path of calls that name none
DESCRIBED = ("block_q", "block_kv", "warps", "stages", "splits", "parts", "resident", "long_first")


@dataclass(frozen=True)
class CallOptions:
    """What a call requests besides its tensors, after the checks of `arguments`."""

    keys: KeyConditions
    scale: float
    softcap: float | None = None
    slopes: Tensor | None = None  # ALiBi, fp32 [batch or 1, heads]
    dropout: float = 0.0
    seed: int = 0
    descale: Tensor | None = None  # fp32 [2, heads]: of q k, and of v
    precision: str = "ieee"
    path: str = ""  # one of tiling.Path; empty: the fastest
    tilings: Mapping[Kernel, Tiling] | None = None  # in place of those of the tables
    by_distance: bool = False  # the bias is one number for every distance


class Saved(NamedTuple):
    """What a backward pass starts from. delta: fp32 [batch, heads, seq_q], see `launch.delta_call`."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    out: Tensor
    lse: Tensor
    dout: Tensor
    delta: Tensor


class Prefixes(NamedTuple):
    """The first keys of the requests of a packed batch: whole pages, the same for all requests of a group."""

    keys: int  # of each group
    table: Tensor  # int32 [groups, pages]
    starts_q: Tensor  # int32 [groups + 1], the queries of consecutive groups
    longest_q: int  # queries of one group, at most


class KvCache(NamedTuple):
    """Where the queries and the keys of every sequence of a decode are; by default, each has the same number."""

    lengths: Tensor | None = None  # int32 [batch], keys of each sequence
    table: Tensor | None = None  # int32 [batch, pages of a sequence]
    starts_q: Tensor | None = None  # int [requests + 1], the queries of a packed batch (cu_seqlens)
    starts_kv: Tensor | None = None  # and its keys
    longest_q: int = 0  # queries of one request of a packed batch, at most
    longest_kv: int = 0  # and keys
    prefix: Prefixes | None = None


class Call(NamedTuple):
    """One launch of a kernel."""

    kernel: JITFunction
    programs: int
    arguments: Mapping[str, object]
    tiling: Tiling
    warps: int = 0  # at the start of a kernel that divides its work among warps itself; 0: those of the tiling


def operand(tensor: Tensor) -> Operand:
    """A tensor [batch, heads, rows, columns] whose columns are contiguous."""
    return Operand(tensor, *tensor.stride()[:3])


def listed(keys: KeyConditions) -> Listed | None:
    """The intervals of rows, if there are any."""
    if keys.rows is None:
        return None
    table = keys.rows.listed
    return Listed(table, table.stride(0), table.stride(1) if table.shape[1] > 1 else 0)


def _masks(keys: KeyConditions, kernel: Kernel) -> dict[str, object]:
    blocks = visible = None
    if keys.blocks is not None:
        from_keys = kernel is Kernel.BACKWARD_KV
        counts = keys.blocks.key_counts if from_keys else keys.blocks.counts
        indices = keys.blocks.key_indices if from_keys else keys.blocks.indices
        batch, head, _ = _shared_strides(counts)
        blocks = BlockList(counts, indices, batch, head, indices.shape[3])
    if keys.visible is not None:
        booleans = keys.visible.view(torch.uint8)
        visible = Pairs(booleans, *_shared_strides(booleans))
    return {"listed": listed(keys), "blocks": blocks, "visible": visible, "left": keys.left, "right": keys.right}


def _shared_strides(tensor: Tensor) -> list[int]:
    """Strides, 0 where one entry serves all."""
    return [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def latent_tail(k: Tensor, v: Tensor) -> int:
    """The columns of k behind those that v is a view of; 0: v is no such view."""
    shared = k.data_ptr() == v.data_ptr() and k.stride() == v.stride() and k.shape[:-1] == v.shape[:-1]
    return k.shape[-1] - v.shape[-1] if shared else 0


def common_arguments(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: CallOptions, kernel: Kernel
) -> dict[str, object]:
    """The arguments that every kernel takes."""
    batch, heads, seq_q, head_dim = q.shape
    seq_kv, head_dim_v = v.shape[2:]
    slopes, blocks = options.slopes, options.keys.blocks
    plain = options.softcap is None and slopes is None and bias is None
    return _masks(options.keys, kernel) | {
        "q": operand(q), "k": operand(k), "v": operand(v),
        **_biases(bias, options.by_distance), "slopes_ptr": slopes,
        "slopes_batch": slopes.stride(0) if slopes is not None and slopes.shape[0] > 1 else 0,
        "pairs": batch * heads, "heads": heads, "seq_q": seq_q, "seq_kv": seq_kv,
        "scale": float(options.scale), "softcap": None if options.softcap is None else float(options.softcap),
        "seed": options.seed, "threshold": round(options.dropout * 2**31) if options.dropout else None,
        "amplify": 1.0 / (1.0 - options.dropout),
        "GROUP": heads // k.shape[1], "HEAD_DIM": head_dim, "HEAD_DIM_V": head_dim_v,
        "BLOCK_D": padded(head_dim), "BLOCK_E": padded(head_dim_v),
        "LIST_Q": blocks.block_q if blocks else 1, "LIST_KV": blocks.block_kv if blocks else 1,
        "FUSED": options.scale > 0 and plain, "PRECISION": options.precision,
    }  # fmt: skip


def _biases(bias: Tensor | None, by_distance: bool) -> dict[str, Pairs | None]:
    if bias is None:
        return {"bias": None, "distance_bias": None}
    if by_distance:
        shared = Pairs(bias, 0, bias.stride(0) if bias.shape[0] > 1 else 0, 0, bias.stride(1))
        return {"bias": None, "distance_bias": shared}
    return {"bias": Pairs(bias, *_shared_strides(bias)), "distance_bias": None}


def tiling_of(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: CallOptions, kernel: Kernel, split: str = "",
    hopper: str = "", dout: Tensor | None = None, tokens_q: int = 0,
) -> Tiling:  # fmt: skip
    """The tiling of a pass over these tensors; `split` and `hopper` say why those paths do not support it."""
    keys, seq_q, seq_kv = options.keys, q.shape[2], k.shape[2]
    if options.tilings and kernel in options.tilings:
        return _checked(options.tilings[kernel], keys, split, hopper)
    work = Work(
        dtype={1: "fp8", 2: "half"}.get(q.element_size(), "tf32" if options.precision == "tf32" else "fp32"),
        head_dim=q.shape[3], head_dim_v=v.shape[3], batch=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1],
        seq_q=seq_q, seq_kv=seq_kv, tokens_q=tokens_q,
        masked=keys.hides(seq_q, seq_kv) or keys.visible is not None or keys.blocks is not None,
        growing=keys.right < seq_q - 1 and keys.left >= seq_kv - 1,
        list_q=keys.blocks.block_q if keys.blocks else 0, list_kv=keys.blocks.block_kv if keys.blocks else 0,
        pair_bytes=(keys.visible is not None) + (bias.element_size() if bias is not None else 0),
        descriptors=_no_descriptors(q=q, k=k, v=v, dout=dout), split=split, hopper=hopper,
        path=options.path or os.environ.get(PATH_VARIABLE, ""),
    )  # fmt: skip
    return _cached_tiling(work, chip_of(q), kernel)


def _checked(tiling: Tiling, keys: KeyConditions, split: str, hopper: str) -> Tiling:
    """Return a tiling of the caller. Raises ValueError if it does not support the call."""
    if reason := {Path.DECODE: split, Path.HOPPER: hopper}.get(Path(tiling.path)):
        raise ValueError(f"tilings has path={tiling.path!r}: {reason}")
    for name in ("block_q", "block_kv") if keys.blocks else ():
        tile, block = getattr(tiling, name), getattr(keys.blocks, name)
        if block % tile:
            raise ValueError(f"tilings has {name}={tile}: must divide the {block} of a block of the mask")
    return tiling


@lru_cache(maxsize=4096)
def _cached_tiling(work: Work, chip: Chip, kernel: Kernel) -> Tiling:
    return tiling(work, chip, kernel, _users_table())


@lru_cache(maxsize=1)
def _users_table() -> tables.Table:
    return tables.users()


def chip_of(tensor: Tensor) -> Chip:
    """The chip that holds a tensor."""
    return _chip(tensor.device.index or 0) if tensor.device.type == "cuda" else Chip(INTERPRETER)


@lru_cache(maxsize=64)
def _chip(index: int) -> Chip:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Chip(properties.gcnArchName.partition(":")[0], properties.multi_processor_count)
    major, minor = torch.cuda.get_device_capability(index)
    return Chip(f"sm_{major}{minor}", properties.multi_processor_count)


def _no_descriptors(**tensors: Tensor | None) -> str:
    """Why tensor descriptors cannot describe these tensors; the rules are those of cuTensorMapEncodeTiled."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.data_ptr() % 16:
            return f"the address of {name} is not a multiple of 16 bytes"
        odd = [stride for stride in tensor.stride()[:3] if stride * tensor.element_size() % 16 or stride == 0]
        if odd:
            return f"{name} has a stride of {odd[0]} elements, not a positive multiple of 16 bytes"
    return ""


def no_hopper(q: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, options: CallOptions) -> str:
    """Why the kernels for Hopper do not support a call; empty: they do."""
    keys = options.keys
    reasons = {
        "rows that are not a multiple of 16 bytes": any(t.shape[3] * t.element_size() % 16 != 0 for t in (q, v)),
        "an empty sequence of keys": v.shape[2] == 0,
        "intervals of rows with 8-bit inputs": keys.rows is not None and q.element_size() == 1,
        "an additive bias": bias is not None,
        "ALiBi": options.slopes is not None,
        "a soft cap": options.softcap is not None,
        "a scale of 0 or less": options.scale <= 0,
        "a sink": sinks is not None,
        "dropout": options.dropout > 0,
        "a list of blocks": keys.blocks is not None,
        "a boolean mask": keys.visible is not None,
    }
    return next((f"its kernels do not support {what}" for what, present in reasons.items() if present), "")


def run(call: Call, device: torch.device) -> CompiledKernel | None:
    """Launch a kernel. Returns the compiled kernel, or None in the interpreter."""
    options = {"num_warps": call.warps or call.tiling.warps, "num_stages": call.tiling.stages}
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return call.kernel[(call.programs,)](**call.arguments, **options)


def describe(tiling: Tiling, compiled: CompiledKernel | None) -> dict[str, object]:
    """Facts of a launch: its tiles, and what the compiler made of them."""
    facts: dict[str, object] = {"path": tiling.path, "triton": triton.__version__, "interpreted": INTERPRETED}
    facts |= {name: getattr(tiling, name) for name in DESCRIBED}
    if tiling.passed_over:
        facts["passed_over"] = list(tiling.passed_over)
    if compiled is not None:
        facts["registers"], facts["spilled_registers"] = compiled.n_regs, compiled.n_spills
        facts["shared_bytes"] = compiled.metadata.shared
    return facts


def new_like(tensor: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """An empty [batch, heads, rows, width], its heads inside or outside its rows as in `tensor`."""
    batch, heads, rows, _ = tensor.shape
    if heads > 1 and rows > 1 and tensor.stride(1) < tensor.stride(2):
        return tensor.new_empty(batch, rows, heads, width, dtype=dtype).transpose(1, 2)
    return tensor.new_empty(batch, heads, rows, width, dtype=dtype)


def descriptors(tensors: Mapping[str, Tensor], tiling: Tiling) -> dict[str, object]:
    """Descriptors of what a kernel reads, on the path of descriptors: a box is a tile of queries, or of keys."""
    described = tiling.path == Path.DESCRIPTORS
    arguments: dict[str, object] = {"DESCRIPTORS": described}
    for name, tensor in tensors.items() if described else ():
        box = [1, 1, tiling.block_kv if name in ("k", "v") else tiling.block_q, padded(tensor.shape[3])]
        arguments[name] = TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), box)
    return arguments
