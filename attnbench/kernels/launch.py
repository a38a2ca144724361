"""Launches of the forward pass, of decoding and of the backward pass, and the differentiable function."""

import dataclasses
from typing import Any, NamedTuple

import torch
import triton
from msgspec.structs import replace
from torch import Tensor

from attnbench.kernels import backward, bias_gradient, decoding, forward
from attnbench.kernels.call import (
    Call,
    CallOptions,
    KvCache,
    Saved,
    common_arguments,
    describe,
    descriptors,
    latent_tail,
    new_like,
    no_hopper,
    operand,
    run,
    tiling_of,
)
from attnbench.kernels.masking import KeyConditions
from attnbench.kernels.tables import Kernel
from attnbench.kernels.tile import Operand
from attnbench.kernels.tiling import Path, Tiling, padded

Outputs = tuple[Tensor, Tensor | None, dict[str, object]]


def forward_call(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, bias: Tensor | None, sinks: Tensor | None,
    options: CallOptions, tiling: Tiling,
) -> Call:  # fmt: skip
    """The launch of a forward pass by pointers or descriptors."""
    seq_q, seq_kv = q.shape[2], k.shape[2]
    arguments = common_arguments(q, k, v, bias, options, Kernel.FORWARD) | {
        "out": operand(out), "lse_ptr": lse, "sinks_ptr": sinks, "descale_ptr": options.descale,
        "resident": tiling.resident, "BLOCK_Q": tiling.block_q, "BLOCK_KV": tiling.block_kv,
        "LONG_FIRST": tiling.long_first,
        "EDGES": options.keys.hides(seq_q, seq_kv) or seq_kv % tiling.block_kv != 0,
    }  # fmt: skip
    arguments |= descriptors({"q": q, "k": k, "v": v}, tiling)
    programs = triton.cdiv(seq_q, tiling.block_q) * q.shape[0] * q.shape[1]
    return Call(forward.forward_kernel, programs, arguments, tiling)


def forward_pass(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, options: CallOptions, with_lse: bool
) -> Outputs:
    """out [batch, heads, seq_q, head_dim_v], lse [batch, heads, seq_q], and the facts of the launch."""
    out, lse = _outputs(q, v, with_lse)
    sinks = None if sinks is None else sinks.float().contiguous()
    hopper_reason = no_hopper(q, v, bias, sinks, options)
    tiling = tiling_of(q, k, v, bias, options, Kernel.FORWARD, split=_no_split(bias, options), hopper=hopper_reason)
    if out.numel() == 0:
        return out, lse, describe(tiling, None)
    if tiling.path == Path.DECODE:
        calls = decode_calls(q, k, v, out, lse, [DecodeShare(options, tiling, KvCache(), sinks)])
    elif tiling.path == Path.HOPPER:
        from attnbench.kernels.hopper import launch as hopper

        calls = [hopper.forward_call(q, k, v, out, lse, options, tiling)]
    else:
        calls = [forward_call(q, k, v, out, lse, bias, sinks, options, tiling)]
    compiled = [run(call, q.device) for call in calls]
    return out, lse, describe(tiling, compiled[0])


def _outputs(q: Tensor, v: Tensor, with_lse: bool) -> tuple[Tensor, Tensor | None]:
    out = new_like(q, v.shape[3], torch.bfloat16 if q.element_size() == 1 else q.dtype)
    return out, q.new_empty(q.shape[:3], dtype=torch.float32) if with_lse else None


def _no_split(bias: Tensor | None, options: CallOptions) -> str:
    keys = options.keys
    reasons = {
        "an additive bias": bias is not None,
        "dropout": options.dropout > 0,
        "intervals of rows": keys.rows is not None,
        "a list of blocks": keys.blocks is not None,
        "a boolean mask": keys.visible is not None,
    }
    return next((f"its kernel does not support {what}" for what, present in reasons.items() if present), "")


class DecodeShare(NamedTuple):
    """Keys that one launch of the decode kernel covers; all of them, but where a prefix is shared."""

    options: CallOptions
    tiling: Tiling
    cache: KvCache
    sinks: Tensor | None


def decode_calls(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, shares: list[DecodeShare]
) -> list[Call]:
    """The split pass of every share and, where there are several splits, the one that combines all of them.

    q: [batch, heads, seq_q, width], or packed [1, heads, tokens, width]. k and v: [batch, kv_heads, seq_kv, width],
    packed [1, kv_heads, tokens, width], or with a table [pages, kv_heads, page_size, width].
    """
    splits = sum(share.tiling.splits for share in shares)
    if splits == 1:
        strides = {"out_split": 0, "lse_split": 0}
        return [_split_call(q, k, v, operand(out), lse, shares[0], strides)]
    parts = q.new_empty(splits, *q.shape[:3], v.shape[3], dtype=torch.float32)
    lse_parts = q.new_empty(splits, *q.shape[:3], dtype=torch.float32)
    strides = {"out_split": parts.stride(0), "lse_split": lse_parts.stride(0)}
    calls, begin = [], 0
    for share in shares:
        target = Operand(parts[begin:], *parts.stride()[1:4])
        calls.append(_split_call(q, k, v, target, lse_parts[begin:], share, strides))
        begin += share.tiling.splits
    batch, heads, seq_q = q.shape[:3]
    arguments: dict[str, object] = {
        "parts": Operand(parts, *parts.stride()[1:4]), "lse_parts_ptr": lse_parts, "out": operand(out), "lse_ptr": lse,
        "part_split": parts.stride(0), "lse_split": lse_parts.stride(0), "heads": heads, "seq_q": seq_q,
        "splits": splits, "HEAD_DIM_V": v.shape[3], "BLOCK_E": padded(v.shape[3]),
        "BLOCK_S": triton.next_power_of_2(splits),
    }  # fmt: skip
    one_row = Tiling(path=Path.DECODE.value, block_q=1, block_kv=1, warps=4, stages=1)
    return [*calls, Call(decoding.combine_kernel, batch * heads * seq_q, arguments, one_row)]


def _split_call(
    q: Tensor, k: Tensor, v: Tensor, out: Operand, lse: Tensor | None, share: DecodeShare, strides: dict[str, int]
) -> Call:
    options, tiling, cache, sinks = share
    batch, heads, seq_q = q.shape[:3]
    table = cache.table
    kv_heads, page = k.shape[1], k.shape[2] if table is not None else 1
    row_tiles = triton.cdiv(heads // kv_heads * seq_q, tiling.block_q)
    requests, tiles = 0, batch * row_tiles
    if cache.starts_q is not None:  # at most one tile more for each request than its rows need
        requests = len(cache.starts_q) - 1
        tiles = heads // kv_heads * seq_q // tiling.block_q + requests
    every = common_arguments(q, k, v, None, options, Kernel.DECODE)
    names = decoding.split_kernel.arg_names
    arguments = {name: value for name, value in every.items() if name in names} | strides | {
        "out": out, "lse_ptr": lse, "lengths_ptr": cache.lengths, "table_ptr": table, "sinks_ptr": sinks,
        "descale_ptr": options.descale, "table_batch": table.stride(0) if table is not None else 0,
        "starts_q_ptr": cache.starts_q, "starts_kv_ptr": cache.starts_kv, "requests": requests, "row_tiles": row_tiles,
        "splits": tiling.splits, "seq_kv": k.shape[2] if table is None else table.shape[1] * page,
        "BLOCK_R": tiling.block_q, "BLOCK_KV": tiling.block_kv, "PAGE": page,
    } | _latent(k, v)  # fmt: skip
    return Call(decoding.split_kernel, tiles * kv_heads * tiling.splits, arguments, tiling)


def _latent(k: Tensor, v: Tensor) -> dict[str, object]:
    """How the columns of k are divided: where v is a view of the first ones, they are read once."""
    tail, width = latent_tail(k, v), v.shape[3]
    if not tail:
        return {"TAIL": 0, "BLOCK_T": 0}
    return {"v": None, "HEAD_DIM": width, "BLOCK_D": padded(width), "TAIL": tail, "BLOCK_T": padded(tail)}


def decode_pass(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, options: CallOptions, with_lse: bool, cache: KvCache
) -> Outputs:
    """As `forward_pass`, for cached keys."""
    out, lse = _outputs(q, v, with_lse)
    sinks = None if sinks is None else sinks.float().contiguous()
    shares = _by_prefix(q, k, v, sinks, options, cache)
    calls = decode_calls(q, k, v, out, lse, shares) if out.numel() else []
    compiled = [run(call, q.device) for call in calls]
    # Of several shares, the last is that of the keys that each request has alone.
    facts = describe(shares[-1].tiling, compiled[len(shares) - 1] if compiled else None) | {"launches": len(calls)}
    if cache.prefix:
        facts |= {"shared_prefix": cache.prefix.keys, "groups": len(cache.prefix.table)}
        facts["prefix_splits"] = shares[0].tiling.splits
    if tail := latent_tail(k, v):
        facts["latent"] = f"{v.shape[3]}+{tail}"
    return out, lse, facts


def _by_prefix(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, options: CallOptions, cache: KvCache
) -> list[DecodeShare]:
    """All keys, or those of shared prefixes and the others.

    The queries of a group are as one sequence to its prefix, of which each of them sees every key.
    """
    prefix = cache.prefix
    if not prefix:
        return [_share(q, k, v, sinks, options, cache)]
    assert cache.table is not None
    far = q.shape[2] + prefix.keys
    shared = KvCache(table=prefix.table, starts_q=prefix.starts_q, longest_q=prefix.longest_q, longest_kv=prefix.keys)
    rest = cache._replace(
        table=cache.table[:, prefix.table.shape[1] :],
        lengths=None if cache.lengths is None else cache.lengths - prefix.keys,
        longest_kv=cache.longest_kv - prefix.keys,
    )
    unmasked = dataclasses.replace(options, keys=KeyConditions(far, far))
    return [_share(q, k, v, None, unmasked, shared), _share(q, k, v, sinks, options, rest)]


def _share(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, options: CallOptions, cache: KvCache) -> DecodeShare:
    keys = k.new_empty((q.shape[0], k.shape[1], cache.longest_kv, 0))
    queries, tokens_q = q, 0
    if cache.starts_q is not None:
        queries = q[:, :, :1].expand(len(cache.starts_q) - 1, q.shape[1], cache.longest_q, q.shape[3])
        tokens_q = q.shape[2]
    tiling = tiling_of(queries, keys, v, None, options, Kernel.DECODE, tokens_q=tokens_q)
    return DecodeShare(options, replace(tiling, path=Path.DECODE.value), cache, sinks)


def delta_call(saved: Saved, dlse: Tensor | None) -> Call:
    """delta = rowsum(out dout) - dlse."""
    batch, heads, seq_q, head_dim_v = saved.out.shape
    tiling = Tiling(block_q=32, block_kv=1, warps=4, stages=1)
    arguments = {
        "out": operand(saved.out), "dout": operand(saved.dout), "dlse_ptr": dlse, "delta_ptr": saved.delta,
        "pairs": batch * heads, "heads": heads, "seq_q": seq_q,
        "HEAD_DIM_V": head_dim_v, "BLOCK_E": padded(head_dim_v), "BLOCK_Q": tiling.block_q,
    }  # fmt: skip
    return Call(backward.delta_kernel, triton.cdiv(seq_q, tiling.block_q) * batch * heads, arguments, tiling)


def _of_backward(saved: Saved, options: CallOptions, kernel: Kernel, tiling: Tiling) -> dict[str, object]:
    seq_q, seq_kv = saved.q.shape[2], saved.k.shape[2]
    arguments = common_arguments(saved.q, saved.k, saved.v, saved.bias, options, kernel) | {
        "dout": operand(saved.dout), "lse_ptr": saved.lse, "delta_ptr": saved.delta, "resident": tiling.resident,
        "BLOCK_Q": tiling.block_q, "BLOCK_KV": tiling.block_kv,
        # The pass over rows needs no mask at the end of the keys.
        "EDGES": options.keys.hides(seq_q, seq_kv) or (kernel is Kernel.BACKWARD_Q and seq_kv % tiling.block_kv != 0),
    }  # fmt: skip
    tensors = {"q": saved.q, "k": saved.k, "v": saved.v, "dout": saved.dout}
    return arguments | descriptors(tensors, tiling)


def key_call(saved: Saved, dk: Tensor, dv: Tensor, options: CallOptions, tiling: Tiling) -> Call:
    """dk and dv: [batch, kv_heads * parts, seq_kv, width]."""
    if tiling.path == Path.HOPPER:
        from attnbench.kernels.hopper import launch as hopper

        return hopper.key_call(saved, dk, dv, options, tiling)
    batch, heads, seq_kv = saved.q.shape[0], saved.q.shape[1], saved.k.shape[2]
    shares = saved.k.shape[1] * tiling.parts
    arguments = _of_backward(saved, options, Kernel.BACKWARD_KV, tiling) | {
        "dk": operand(dk), "dv": operand(dv), "pairs": batch * shares, "parts": tiling.parts, "GROUP": heads // shares,
        "RAGGED": saved.q.shape[2] % tiling.block_q != 0 and tiling.path != Path.DESCRIPTORS,
    }  # fmt: skip
    return Call(backward.key_kernel, triton.cdiv(seq_kv, tiling.block_kv) * batch * shares, arguments, tiling)


def query_call(saved: Saved, dq: Tensor, options: CallOptions, tiling: Tiling) -> Call:
    """dq: as q."""
    if tiling.path == Path.HOPPER:
        from attnbench.kernels.hopper import launch as hopper

        return hopper.query_call(saved, dq, options, tiling)
    batch, heads, seq_q = saved.q.shape[:3]
    arguments = _of_backward(saved, options, Kernel.BACKWARD_Q, tiling)
    arguments |= {"dq": operand(dq), "LONG_FIRST": tiling.long_first}
    return Call(backward.query_kernel, triton.cdiv(seq_q, tiling.block_q) * batch * heads, arguments, tiling)


def bias_call(saved: Saved, dbias: Tensor, options: CallOptions, tiling: Tiling) -> Call:
    """dbias: fp32 [batch or 1, heads or 1, seq_q, seq_kv]."""
    batch, seq_q, seq_kv = saved.q.shape[0], saved.q.shape[2], saved.k.shape[2]
    arguments = _of_backward(saved, options, Kernel.BACKWARD_Q, tiling)
    for name in ("pairs", "resident", "EDGES", "DESCRIPTORS"):
        del arguments[name]
    arguments |= {
        "dbias": operand(dbias), "batches": batch, "bias_batches": dbias.shape[0], "bias_heads": dbias.shape[1]
    }  # fmt: skip
    programs = (
        triton.cdiv(seq_q, tiling.block_q) * triton.cdiv(seq_kv, tiling.block_kv) * dbias.shape[0] * dbias.shape[1]
    )
    return Call(bias_gradient.bias_kernel, programs, arguments, tiling)


def backward_pass(
    saved: Saved, dlse: Tensor | None, options: CallOptions, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, object]]:
    """dq, dk, dv, the gradient of the bias if `with_bias`, and facts of the launches. Fills `saved.delta`."""
    q, k, v = saved.q, saved.k, saved.v
    dq = torch.zeros_like(q) if k.shape[2] == 0 else new_like(q, q.shape[3], q.dtype)
    if q.shape[2]:
        run(delta_call(saved, dlse), q.device)
    if q.shape[2] == 0 or k.shape[2] == 0:
        dbias = None if saved.bias is None else torch.zeros_like(saved.bias)
        return dq, torch.zeros_like(k), torch.zeros_like(v), dbias, {}
    kernels = Kernel.BACKWARD_KV, Kernel.BACKWARD_Q
    hopper = no_hopper(q, v, saved.bias, None, options)
    if options.keys.rows is not None:
        hopper = "its backward kernels do not support intervals of rows"
    key_tiling, query_tiling = (
        tiling_of(q, k, v, saved.bias, options, kernel, dout=saved.dout, hopper=hopper) for kernel in kernels
    )
    dk, dv = (_shares(tensor, key_tiling.parts) for tensor in (k, v))
    of_keys = run(key_call(saved, dk, dv, options, key_tiling), q.device)
    of_queries = run(query_call(saved, dq, options, query_tiling), q.device)
    dbias = (
        _bias_gradient(saved, options, replace(query_tiling, path=Path.PORTABLE.value, stages=1))
        if with_bias and saved.bias is not None
        else None
    )
    if key_tiling.parts > 1:
        dk, dv = (g.unflatten(1, (-1, key_tiling.parts)).sum(2).to(k.dtype) for g in (dk, dv))
    facts: dict[str, object] = {
        "backward_kv": describe(key_tiling, of_keys),
        "backward_q": describe(query_tiling, of_queries),
    }
    return dq, dk, dv, dbias, facts


def _shares(tensor: Tensor, parts: int) -> Tensor:
    if parts == 1:
        return new_like(tensor, tensor.shape[3], tensor.dtype)
    batch, heads, rows, width = tensor.shape
    return tensor.new_empty(batch, heads * parts, rows, width, dtype=torch.float32)


def _bias_gradient(saved: Saved, options: CallOptions, tiling: Tiling) -> Tensor:
    """The gradient, in the shape and dtype of the bias."""
    bias = saved.bias
    assert bias is not None
    batches, heads = (1, bias.shape[0]) if options.by_distance else bias.shape[:2]
    seq_q, seq_kv = saved.q.shape[2], saved.k.shape[2]
    pairs = torch.empty(batches, heads, seq_q, seq_kv, dtype=torch.float32, device=bias.device)
    run(bias_call(saved, pairs, options, tiling), bias.device)
    if options.by_distance:
        # Viewing the buffer with rows one number shorter shifts row i by seq_q - 1 - i: a column is one distance.
        wide = pairs.new_zeros(heads, seq_q, seq_q + seq_kv)
        wide[:, :, :seq_kv] = pairs[0].flip(1)
        sheared = wide.flatten(1)[:, : seq_q * (seq_q + seq_kv - 1)].unflatten(1, (seq_q, -1))
        steps: Tensor = sheared.sum(1)
        return steps.to(bias.dtype)
    summed: Tensor = pairs.sum_to_size(bias.shape)
    return summed.to(bias.dtype)


class Attention(torch.autograd.Function):
    """(out, lse) of q, k, v, bias and sinks. Gradients are equal bit for bit from run to run."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, options: CallOptions,
        facts: dict[str, object] | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Launch the kernel and save the tensors of the backward pass."""
        out, lse, launch_facts = forward_pass(q, k, v, bias, sinks, options, with_lse=True)
        assert lse is not None
        ctx.save_for_backward(q, k, v, bias, sinks, out, lse)
        ctx.options, ctx.facts = options, facts
        if facts is not None:
            facts.update(launch_facts)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of all five tensors; dsinks = -sum(exp(sink - lse) delta) over batch and rows."""
        q, k, v, bias, sinks, out, lse = ctx.saved_tensors
        dout = dout if dout.stride(3) == 1 else dout.contiguous()
        delta = lse.new_empty(lse.shape)
        saved = Saved(q, k, v, bias, out, lse, dout, delta)
        dlse = None if dlse is None else dlse.contiguous()
        dq, dk, dv, dbias, facts = backward_pass(saved, dlse, ctx.options, with_bias=ctx.needs_input_grad[3])
        dsinks = None
        if sinks is not None and ctx.needs_input_grad[4]:
            weight = torch.exp(sinks.float()[None, :, None] - lse)
            dsinks = -(weight * delta).sum((0, 2)).to(sinks.dtype)
        if ctx.facts is not None:
            ctx.facts.update(facts)
        return dq, dk, dv, dbias, dsinks, None, None
