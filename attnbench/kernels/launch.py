"""From tensors to launches: what each kernel is given, and how it is cut."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from msgspec.structs import replace
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from attnbench.kernels import decoding, forward, tables
from attnbench.kernels.masking import Keys
from attnbench.kernels.tables import Kernel
from attnbench.kernels.tile import INTERPRETED, BlockList, Listed, Operand, Pairs
from attnbench.kernels.tiling import INTERPRETER, Path, Target, Tiling, Work, padded, tiling

PATH_VARIABLE = "ATTNBENCH_KERNEL_PATH"  # a path for calls that ask for none
DESCRIBED = ("block_q", "block_kv", "warps", "stages", "splits", "parts", "resident", "long_first")


@dataclass(frozen=True)
class Terms:
    """What a call asks for beside its tensors, checked."""

    keys: Keys
    scale: float
    softcap: float | None = None
    slopes: Tensor | None = None  # ALiBi, fp32 [batch or 1, heads]
    dropout: float = 0.0
    seed: int = 0
    descale: Tensor | None = None  # fp32 [2, heads]: of q k, and of v
    precision: str = "ieee"
    path: str = ""  # one of tiling.Path; empty: the fastest
    cuts: Mapping[Kernel, Tiling] | None = None  # in place of those of the tables
    by_distance: bool = False  # the bias is one number for every distance


class Call(NamedTuple):
    """One launch."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    cut: Tiling
    warps: int = 0  # at the start of a kernel that divides its work among warps itself; 0: those of the cut


def operand(tensor: Tensor) -> Operand:
    """A tensor [batch, heads, rows, columns] whose columns adjoin."""
    return Operand(tensor, *tensor.stride()[:3])


def _masks(terms: Terms, kernel: Kernel) -> dict[str, Any]:
    keys = terms.keys
    found: dict[str, Any] = {"listed": None, "blocks": None, "shown": None, "left": keys.left, "right": keys.right}
    if keys.rows is not None:
        listed = keys.rows.listed
        found["listed"] = Listed(listed, listed.stride(0), listed.stride(1) if listed.shape[1] > 1 else 0)
    if keys.blocks is not None:
        from_keys = kernel is Kernel.BACKWARD_KV
        counts = keys.blocks.key_counts if from_keys else keys.blocks.counts
        indices = keys.blocks.key_indices if from_keys else keys.blocks.indices
        batch, head, _ = _shared_strides(counts)
        found["blocks"] = BlockList(counts, indices, batch, head, indices.shape[3])
    if keys.shown is not None:
        shown = keys.shown.view(torch.uint8)
        found["shown"] = Pairs(shown, *_shared_strides(shown))
    return found


def _shared_strides(tensor: Tensor) -> list[int]:
    """Strides, 0 where one entry serves all."""
    return [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def common(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, terms: Terms, kernel: Kernel) -> dict[str, Any]:
    """What every kernel is given."""
    batch, heads, seq_q, head_dim = q.shape
    seq_kv, head_dim_v = v.shape[2:]
    slopes, keys = terms.slopes, terms.keys
    extra = terms.softcap is not None or slopes is not None or bias is not None
    return _masks(terms, kernel) | {
        "q": operand(q), "k": operand(k), "v": operand(v),
        "bias": _bias(bias, terms.by_distance), "slopes_ptr": slopes,
        "slopes_batch": slopes.stride(0) if slopes is not None and slopes.shape[0] > 1 else 0,
        "pairs": batch * heads, "heads": heads, "seq_q": seq_q, "seq_kv": seq_kv,
        "scale": float(terms.scale), "softcap": float(terms.softcap or 1.0),
        "seed": terms.seed, "threshold": round(terms.dropout * 2**31), "amplify": 1.0 / (1.0 - terms.dropout),
        "GROUP": heads // k.shape[1], "HEAD_DIM": head_dim, "HEAD_DIM_V": head_dim_v,
        "BLOCK_D": padded(head_dim), "BLOCK_E": padded(head_dim_v),
        "LIST_Q": keys.blocks.block_q if keys.blocks else 1, "LIST_KV": keys.blocks.block_kv if keys.blocks else 1,
        "FUSED": terms.scale > 0 and not extra, "SOFTCAP": terms.softcap is not None,
        "BY_DISTANCE": terms.by_distance, "DROPOUT": terms.dropout > 0,
        "PRECISION": terms.precision, "UPCAST": INTERPRETED,
    }  # fmt: skip


def _bias(bias: Tensor | None, by_distance: bool) -> Pairs | None:
    if bias is None:
        return None
    if by_distance:
        return Pairs(bias, 0, bias.stride(0) if bias.shape[0] > 1 else 0, 0, bias.stride(1))
    return Pairs(bias, *_shared_strides(bias))


def cut_of(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, terms: Terms, kernel: Kernel, split: str = "",
    hopper: str = "", dout: Tensor | None = None,
) -> Tiling:  # fmt: skip
    """How a pass over these tensors is cut; `split` and `hopper` say why these paths cannot serve it."""
    keys, seq_q, seq_kv = terms.keys, q.shape[2], k.shape[2]
    if terms.cuts and kernel in terms.cuts:
        return _checked(terms.cuts[kernel], keys, split, hopper)
    work = Work(
        dtype={1: "fp8", 2: "half"}.get(q.element_size(), "tf32" if terms.precision == "tf32" else "fp32"),
        head_dim=q.shape[3], head_dim_v=v.shape[3], batch=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1],
        seq_q=seq_q, seq_kv=seq_kv,
        masked=keys.hides(seq_q, seq_kv) or keys.shown is not None or keys.blocks is not None,
        growing=keys.right < seq_q - 1 and keys.left >= seq_kv - 1,
        list_q=keys.blocks.block_q if keys.blocks else 0, list_kv=keys.blocks.block_kv if keys.blocks else 0,
        pair_bytes=(keys.shown is not None) + (bias.element_size() if bias is not None else 0),
        descriptors=_no_descriptors(q=q, k=k, v=v, dout=dout), split=split, hopper=hopper,
        path=terms.path or os.environ.get(PATH_VARIABLE, ""),
    )  # fmt: skip
    return _cached_tiling(work, target_of(q), kernel)


def _checked(cut: Tiling, keys: Keys, split: str, hopper: str) -> Tiling:
    """A cut that the caller chose, if it can serve."""
    if reason := {Path.DECODE: split, Path.HOPPER: hopper}.get(Path(cut.path)):
        raise ValueError(f"cuts has path={cut.path!r}: {reason}")
    for name in ("block_q", "block_kv") if keys.blocks else ():
        tile, block = getattr(cut, name), getattr(keys.blocks, name)
        if block % tile:
            raise ValueError(f"cuts has {name}={tile}: must divide the {block} of a block of the mask")
    return cut


@lru_cache(maxsize=4096)
def _cached_tiling(work: Work, target: Target, kernel: Kernel) -> Tiling:
    return tiling(work, target, kernel, _users_table())


@lru_cache(maxsize=1)
def _users_table() -> tables.Table:
    return tables.users()


def target_of(tensor: Tensor) -> Target:
    """The chip on which a tensor lies."""
    return _target(tensor.device.index or 0) if tensor.device.type == "cuda" else Target(INTERPRETER)


@lru_cache(maxsize=64)
def _target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Target(properties.gcnArchName.partition(":")[0], properties.multi_processor_count)
    major, minor = torch.cuda.get_device_capability(index)
    return Target(f"sm_{major}{minor}", properties.multi_processor_count)


def _no_descriptors(**tensors: Tensor | None) -> str:
    """Why tensor descriptors cannot describe these tensors; the rules are those of cuTensorMapEncodeTiled."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.data_ptr() % 16:
            return f"{name} starts at no multiple of 16 bytes"
        odd = [stride for stride in tensor.stride()[:3] if stride * tensor.element_size() % 16 or stride == 0]
        if odd:
            return f"{name} has a stride of {odd[0]} numbers, no multiple of 16 bytes above 0"
    return ""


def run(call: Call, device: torch.device) -> Any:
    """Launch it; what Triton says of the compiled kernel, None in the interpreter."""
    options = {"num_warps": call.warps or call.cut.warps, "num_stages": call.cut.stages}
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return call.kernel[(call.programs,)](**call.arguments, **options)


def describe(cut: Tiling, compiled: Any) -> dict[str, Any]:
    """Facts of a launch: its tiles, and what the compiler made of them."""
    facts: dict[str, Any] = {"path": cut.path, "triton": triton.__version__, "interpreted": INTERPRETED}
    facts |= {name: getattr(cut, name) for name in DESCRIBED}
    if cut.passed_over:
        facts["passed_over"] = list(cut.passed_over)
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


def sources(tensors: Mapping[str, Tensor], cut: Tiling) -> dict[str, Any]:
    """Descriptors of what a kernel reads, if its path is theirs: a box is a tile of queries, or of keys."""
    described = cut.path == Path.DESCRIPTORS
    found: dict[str, Any] = {"DESCRIPTORS": described}
    for name, tensor in tensors.items() if described else ():
        box = [1, 1, cut.block_kv if name in ("k", "v") else cut.block_q, padded(tensor.shape[3])]
        found[name] = TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), box)
    return found


def forward_call(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, bias: Tensor | None, sinks: Tensor | None,
    terms: Terms, cut: Tiling,
) -> Call:  # fmt: skip
    """The launch of a forward pass by pointers or descriptors."""
    seq_q, seq_kv = q.shape[2], k.shape[2]
    arguments = common(q, k, v, bias, terms, Kernel.FORWARD) | {
        "out": operand(out), "lse_ptr": lse, "sinks_ptr": sinks, "descale_ptr": terms.descale,
        "resident": cut.resident, "BLOCK_Q": cut.block_q, "BLOCK_KV": cut.block_kv, "LONG_FIRST": cut.long_first,
        "EDGES": terms.keys.hides(seq_q, seq_kv) or seq_kv % cut.block_kv != 0,
    }  # fmt: skip
    arguments |= sources({"q": q, "k": k, "v": v}, cut)
    return Call(forward.forward_kernel, triton.cdiv(seq_q, cut.block_q) * q.shape[0] * q.shape[1], arguments, cut)


def forward_pass(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, terms: Terms, with_lse: bool
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """out [batch, heads, seq_q, head_dim_v], lse [batch, heads, seq_q], and the facts of the launch."""
    out = new_like(q, v.shape[3], torch.bfloat16 if q.element_size() == 1 else q.dtype)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32) if with_lse else None
    sinks = None if sinks is None else sinks.float().contiguous()
    cut = cut_of(
        q, k, v, bias, terms, Kernel.FORWARD, split=_no_split(bias, terms), hopper=no_hopper(q, v, bias, sinks, terms)
    )
    if out.numel() == 0:
        return out, lse, describe(cut, None)
    if cut.path == Path.DECODE:
        compiled = _decode(q, k, v, out, lse, sinks, terms, cut, None, None)
    elif cut.path == Path.HOPPER:
        from attnbench.kernels.hopper import launch as hopper

        compiled = run(hopper.forward_call(q, k, v, out, lse, terms, cut), q.device)
    else:
        compiled = run(forward_call(q, k, v, out, lse, bias, sinks, terms, cut), q.device)
    return out, lse, describe(cut, compiled)


def no_hopper(q: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, terms: Terms) -> str:
    """Why the kernels for Hopper cannot serve a call; empty: they can."""
    keys = terms.keys
    reasons = {
        "a row of no multiple of 16 bytes": any(t.shape[3] * t.element_size() % 16 != 0 for t in (q, v)),
        "no key": v.shape[2] == 0,
        "intervals of rows with numbers of 8 bits": keys.rows is not None and q.element_size() == 1,
        "an additive bias": bias is not None,
        "ALiBi": terms.slopes is not None,
        "a soft cap": terms.softcap is not None,
        "a scale below 0": terms.scale <= 0,
        "a sink": sinks is not None,
        "dropout": terms.dropout > 0,
        "a list of blocks": keys.blocks is not None,
        "booleans of pairs": keys.shown is not None,
    }
    return next((f"{what} is not in its kernels" for what, there in reasons.items() if there), "")


def _no_split(bias: Tensor | None, terms: Terms) -> str:
    keys = terms.keys
    reasons = {
        "an additive bias": bias is not None,
        "dropout": terms.dropout > 0,
        "intervals of rows": keys.rows is not None,
        "a list of blocks": keys.blocks is not None,
        "booleans of pairs": keys.shown is not None,
    }
    return next((f"{what} is not split" for what, there in reasons.items() if there), "")


def decode_calls(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, sinks: Tensor | None, terms: Terms, cut: Tiling,
    lengths: Tensor | None, table: Tensor | None,
) -> list[Call]:  # fmt: skip
    """The split pass, and the one that adds the splits up where there are several.

    k and v: [batch, kv_heads, seq_kv, width], or with `table` [pages, kv_heads, page_size, width].
    """
    batch, heads, seq_q, head_dim_v = *q.shape[:3], v.shape[3]
    kv_heads = k.shape[1]
    page = k.shape[2] if table is not None else 1
    row_tiles = triton.cdiv(heads // kv_heads * seq_q, cut.block_q)
    parts, lse_parts, several = out, lse, cut.splits > 1
    if several:
        parts = q.new_empty(cut.splits, *q.shape[:3], head_dim_v, dtype=torch.float32)
        lse_parts = q.new_empty(cut.splits, *q.shape[:3], dtype=torch.float32)
    names = decoding.split_kernel.arg_names
    every = common(q, k, v, None, terms, Kernel.DECODE)
    arguments = {name: value for name, value in every.items() if name in names} | {
        "out": operand(parts[0]) if several else operand(out), "lse_ptr": lse_parts, "lengths_ptr": lengths,
        "table_ptr": table, "sinks_ptr": sinks, "descale_ptr": terms.descale,
        "table_batch": table.stride(0) if table is not None else 0,
        "out_split": parts.stride(0) if several else 0,
        "lse_split": lse_parts.stride(0) if several and lse_parts is not None else 0,
        "row_tiles": row_tiles, "splits": cut.splits,
        "seq_kv": k.shape[2] if table is None else table.shape[1] * page,
        "BLOCK_R": cut.block_q, "BLOCK_KV": cut.block_kv, "PAGE": page,
    }  # fmt: skip
    if several:
        arguments["out"] = Operand(parts, *parts.stride()[1:4])
    calls = [Call(decoding.split_kernel, batch * kv_heads * row_tiles * cut.splits, arguments, cut)]
    if several and lse_parts is not None:
        together = {
            "parts": Operand(parts, *parts.stride()[1:4]), "lse_parts_ptr": lse_parts, "out": operand(out),
            "lse_ptr": lse, "part_split": parts.stride(0), "lse_split": lse_parts.stride(0), "heads": heads,
            "seq_q": seq_q, "splits": cut.splits, "HEAD_DIM_V": head_dim_v, "BLOCK_E": padded(head_dim_v),
            "BLOCK_S": triton.next_power_of_2(cut.splits),
        }  # fmt: skip
        small = Tiling(path=cut.path, block_q=1, block_kv=1, warps=4, stages=1)
        calls.append(Call(decoding.combine_kernel, batch * heads * seq_q, together, small))
    return calls


def _decode(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, sinks: Tensor | None, terms: Terms, cut: Tiling,
    lengths: Tensor | None, table: Tensor | None,
) -> Any:  # fmt: skip
    calls = decode_calls(q, k, v, out, lse, sinks, terms, cut, lengths, table)
    compiled = [run(call, q.device) for call in calls]
    return compiled[0]


def decode_pass(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, terms: Terms, with_lse: bool, lengths: Tensor | None,
    table: Tensor | None,
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:  # fmt: skip
    """As `forward_pass`, for cached keys."""
    out = new_like(q, v.shape[3], torch.bfloat16 if q.element_size() == 1 else q.dtype)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32) if with_lse else None
    sinks = None if sinks is None else sinks.float().contiguous()
    keys = k if table is None else k.new_empty((q.shape[0], k.shape[1], table.shape[1] * k.shape[2], 0))
    cut = cut_of(q, keys, v, None, terms, Kernel.DECODE)
    cut = replace(cut, path=Path.DECODE.value)
    compiled = _decode(q, k, v, out, lse, sinks, terms, cut, lengths, table) if out.numel() else None
    return out, lse, describe(cut, compiled)
