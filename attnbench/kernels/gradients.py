"""Launches of the backward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from msgspec.structs import replace
from torch import Tensor

from attnbench.kernels import backward
from attnbench.kernels.launch import (
    Call,
    Terms,
    common,
    cut_of,
    describe,
    new_like,
    no_hopper,
    operand,
    run,
    sources,
)
from attnbench.kernels.tables import Kernel
from attnbench.kernels.tiling import Path, Tiling, padded


class Saved(NamedTuple):
    """What a backward pass starts from. delta: fp32 [batch, heads, seq_q], see `delta_call`."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    out: Tensor
    lse: Tensor
    dout: Tensor
    delta: Tensor


def delta_call(saved: Saved, dlse: Tensor | None) -> Call:
    """delta = rowsum(out dout) - dlse."""
    batch, heads, seq_q, head_dim_v = saved.out.shape
    cut = Tiling(block_q=32, block_kv=1, warps=4, stages=1)
    arguments = {
        "out": operand(saved.out), "dout": operand(saved.dout), "dlse_ptr": dlse, "delta_ptr": saved.delta,
        "pairs": batch * heads, "heads": heads, "seq_q": seq_q,
        "HEAD_DIM_V": head_dim_v, "BLOCK_E": padded(head_dim_v), "BLOCK_Q": cut.block_q,
    }  # fmt: skip
    return Call(backward.delta_kernel, triton.cdiv(seq_q, cut.block_q) * batch * heads, arguments, cut)


def _of_backward(saved: Saved, terms: Terms, kernel: Kernel, cut: Tiling) -> dict[str, Any]:
    seq_q, seq_kv = saved.q.shape[2], saved.k.shape[2]
    arguments = common(saved.q, saved.k, saved.v, saved.bias, terms, kernel) | {
        "dout": operand(saved.dout), "lse_ptr": saved.lse, "delta_ptr": saved.delta, "resident": cut.resident,
        "BLOCK_Q": cut.block_q, "BLOCK_KV": cut.block_kv,
        # The pass over rows needs no mask at the end of the keys.
        "EDGES": terms.keys.hides(seq_q, seq_kv) or (kernel is Kernel.BACKWARD_Q and seq_kv % cut.block_kv != 0),
    }  # fmt: skip
    tensors = {"q": saved.q, "k": saved.k, "v": saved.v, "dout": saved.dout}
    return arguments | sources(tensors, cut)


def key_call(saved: Saved, dk: Tensor, dv: Tensor, terms: Terms, cut: Tiling) -> Call:
    """dk and dv: [batch, kv_heads * parts, seq_kv, width]."""
    if cut.path == Path.HOPPER:
        from attnbench.kernels.hopper import launch as hopper

        return hopper.key_call(saved, dk, dv, terms, cut)
    batch, heads, seq_kv = saved.q.shape[0], saved.q.shape[1], saved.k.shape[2]
    shares = saved.k.shape[1] * cut.parts
    arguments = _of_backward(saved, terms, Kernel.BACKWARD_KV, cut) | {
        "dk": operand(dk), "dv": operand(dv), "pairs": batch * shares, "parts": cut.parts, "GROUP": heads // shares,
        "RAGGED": saved.q.shape[2] % cut.block_q != 0 and cut.path != Path.DESCRIPTORS,
    }  # fmt: skip
    return Call(backward.key_kernel, triton.cdiv(seq_kv, cut.block_kv) * batch * shares, arguments, cut)


def query_call(saved: Saved, dq: Tensor, terms: Terms, cut: Tiling) -> Call:
    """dq: as q."""
    if cut.path == Path.HOPPER:
        from attnbench.kernels.hopper import launch as hopper

        return hopper.query_call(saved, dq, terms, cut)
    batch, heads, seq_q = saved.q.shape[:3]
    arguments = _of_backward(saved, terms, Kernel.BACKWARD_Q, cut)
    arguments |= {"dq": operand(dq), "LONG_FIRST": cut.long_first}
    return Call(backward.query_kernel, triton.cdiv(seq_q, cut.block_q) * batch * heads, arguments, cut)


def bias_call(saved: Saved, dbias: Tensor, terms: Terms, cut: Tiling) -> Call:
    """dbias: fp32 [batch or 1, heads or 1, seq_q, seq_kv]."""
    batch, seq_q, seq_kv = saved.q.shape[0], saved.q.shape[2], saved.k.shape[2]
    arguments = _of_backward(saved, terms, Kernel.BACKWARD_Q, cut)
    for name in ("pairs", "resident", "EDGES", "DESCRIPTORS"):
        del arguments[name]
    arguments |= {
        "dbias": operand(dbias), "batches": batch, "bias_batches": dbias.shape[0], "bias_heads": dbias.shape[1]
    }  # fmt: skip
    programs = triton.cdiv(seq_q, cut.block_q) * triton.cdiv(seq_kv, cut.block_kv) * dbias.shape[0] * dbias.shape[1]
    return Call(backward.bias_kernel, programs, arguments, cut)


def backward_pass(
    saved: Saved, dlse: Tensor | None, terms: Terms, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]]:
    """dq, dk, dv, the gradient of the bias if it is wanted, and the facts of the launches. Fills `saved.delta`."""
    q, k, v = saved.q, saved.k, saved.v
    dq = torch.zeros_like(q) if k.shape[2] == 0 else new_like(q, q.shape[3], q.dtype)
    if q.shape[2]:
        run(delta_call(saved, dlse), q.device)
    if q.shape[2] == 0 or k.shape[2] == 0:
        dbias = None if saved.bias is None else torch.zeros_like(saved.bias)
        return dq, torch.zeros_like(k), torch.zeros_like(v), dbias, {}
    kernels = Kernel.BACKWARD_KV, Kernel.BACKWARD_Q
    hopper = no_hopper(q, v, saved.bias, None, terms)
    if terms.keys.rows is not None:
        hopper = "intervals of rows are not in its backward kernels"
    key_cut, query_cut = (
        cut_of(q, k, v, saved.bias, terms, kernel, dout=saved.dout, hopper=hopper) for kernel in kernels
    )
    dk, dv = (_shares(tensor, key_cut.parts) for tensor in (k, v))
    of_keys = run(key_call(saved, dk, dv, terms, key_cut), q.device)
    of_queries = run(query_call(saved, dq, terms, query_cut), q.device)
    dbias = (
        _bias_gradient(saved, terms, replace(query_cut, path=Path.PORTABLE.value, stages=1))
        if with_bias and saved.bias is not None
        else None
    )
    if key_cut.parts > 1:
        dk, dv = (g.unflatten(1, (-1, key_cut.parts)).sum(2).to(k.dtype) for g in (dk, dv))
    facts = {"backward_kv": describe(key_cut, of_keys), "backward_q": describe(query_cut, of_queries)}
    return dq, dk, dv, dbias, facts


def _shares(tensor: Tensor, parts: int) -> Tensor:
    if parts == 1:
        return new_like(tensor, tensor.shape[3], tensor.dtype)
    batch, heads, rows, width = tensor.shape
    return tensor.new_empty(batch, heads * parts, rows, width, dtype=torch.float32)


def _bias_gradient(saved: Saved, terms: Terms, cut: Tiling) -> Tensor:
    """In the shape and dtype of the bias."""
    bias = saved.bias
    assert bias is not None
    batches, heads = (1, bias.shape[0]) if terms.by_distance else bias.shape[:2]
    seq_q, seq_kv = saved.q.shape[2], saved.k.shape[2]
    pairs = torch.empty(batches, heads, seq_q, seq_kv, dtype=torch.float32, device=bias.device)
    run(bias_call(saved, pairs, terms, cut), bias.device)
    if terms.by_distance:
        # Read with rows one number shorter, row i moves by seq_q - 1 - i: equal distances stand in one column.
        wide = pairs.new_zeros(heads, seq_q, seq_q + seq_kv)
        wide[:, :, :seq_kv] = pairs[0].flip(1)
        sheared = wide.flatten(1)[:, : seq_q * (seq_q + seq_kv - 1)].unflatten(1, (seq_q, -1))
        steps: Tensor = sheared.sum(1)
        return steps.to(bias.dtype)
    summed: Tensor = pairs.sum_to_size(bias.shape)
    return summed.to(bias.dtype)
