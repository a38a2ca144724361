"""In-house attention kernels in Triton, usable outside the benchmark: `attention`, and `decode` for cached keys.

The logit of a pair is softcap(scale q.k) + bias - slope |key - diagonal|, where softcap(x) = c tanh(x / c), scale is by
default head_dim^-0.5, and the diagonal key of a row is row + seq_kv - seq_q (in a packed sequence: of that sequence).

- causal hides keys behind the diagonal; `window` (left, right) keeps that many keys beside it, -1 for all.
- alibi_slopes: [heads] or [batch, heads] (https://arxiv.org/abs/2108.12409).
- bias: [batch or 1, heads or 1, seq_q or 1, seq_kv or 1], or by distance [heads or 1, seq_q + seq_kv - 1], where
  entry key - diagonal + seq_kv - 1 serves a pair: see `t5_bias`.
- sinks: [heads], a logit without a value in each softmax (https://arxiv.org/abs/2309.17453); lse includes it.
- dropout of the weights: which weights remain follows from (seed, batch, head, query, key) alone, by Philox 4x32-10:
  `attnbench.attention.dropout` computes the same mask. In packed sequences batch is 0, query and key count tokens.
- mask: text as in `attnbench list masks`; bool [batch or 1, heads or 1, seq_q, seq_kv], True where visible;
  `rows(...)` or `blocks(...)`, built once and used often. All conditions hold together.
- descale: for float8_e4m3fn, the scales of q, k and v, float32 [heads], [kv_heads], [kv_heads].
- precision of products of float32: ieee or tf32.

A row that sees no key gives 0, and -inf (or its sink) as lse. On a CPU the kernels run in Triton's interpreter, for
tests alone: TRITON_INTERPRET=1 must be set before Triton is imported. docs/kernels.md explains the algorithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnbench.kernels.tables import Kernel
from attnbench.kernels.tiling import Tiling, tiling

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.kernels.call import CallOptions, Prefixes
    from attnbench.kernels.masking import BlockMask, Rows

__all__ = ["Kernel", "Tiling", "attention", "blocks", "decode", "prefixes", "rows", "t5_bias", "tiling"]


def attention(
    q: Tensor, k: Tensor, v: Tensor, *,
    causal: bool = False, window: int | tuple[int, int] | None = None, scale: float | None = None,
    softcap: float | None = None, alibi_slopes: Tensor | None = None, bias: Tensor | None = None,
    sinks: Tensor | None = None, dropout: float = 0.0, seed: int = 0,
    cu_seqlens_q: Tensor | None = None, cu_seqlens_kv: Tensor | None = None,
    mask: str | Tensor | Rows | BlockMask | None = None, return_lse: bool = False,
    descale: tuple[Tensor, Tensor, Tensor] | None = None, precision: str = "ieee", path: str = "",
    tilings: dict[Kernel, Tiling] | None = None, facts: dict[str, object] | None = None, check: bool = True,
    cuts: dict[Kernel, Tiling] | None = None,
) -> Any:  # fmt: skip
    """Exact attention: out [batch, heads, seq_q, head_dim_v], or (out, lse) with lse float32 [batch, heads, seq_q].

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim]; v: [batch, kv_heads, seq_kv,
    head_dim_v]; packed: [tokens, heads, width] with cu_seqlens, out and lse [heads, tokens] alike. float32, float16,
    bfloat16, or float8_e4m3fn (forward only, out in bfloat16, with `descale`). The last stride must be 1. kv_heads
    divides heads; head dims are 1 to 256. The options are explained at the top of the module.

    Gradients of q, k, v, bias, sinks, also through lse, are deterministic; the same graph can be walked again with
    retain_graph. `path` (decode, hopper, descriptors, portable) and `tilings` (once `cuts`) replace what `tiling`
    chooses; `facts` is filled with what ran. `check=False` leaves out the checks that read tensors. ValueError names a
    bad argument and its value, before any launch. RuntimeError: the kernels cannot run on that device.
    """
    from attnbench.kernels import arguments
    from attnbench.kernels.call import CallOptions

    packed = cu_seqlens_q is not None or cu_seqlens_kv is not None
    arguments.check_tensors(q, k, v, "tokens, heads, head_dim" if packed else "batch, heads, seq, head_dim")
    lengths = None
    if packed:
        lengths = _lengths(q, k, cu_seqlens_q, cu_seqlens_kv, check)
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    arguments.check_shapes(q, k, v)
    arguments.check_numbers(scale, softcap, dropout, seed, precision)
    slopes, sinks = arguments.check_slopes(alibi_slopes, q), arguments.check_sinks(sinks, q)
    options = CallOptions(
        keys=arguments.keys_of(mask, causal, window, q, k.shape[2], lengths),
        scale=q.shape[3] ** -0.5 if scale is None else scale,
        softcap=softcap, slopes=slopes, dropout=dropout, seed=seed,
        by_distance=arguments.check_bias(bias, q, k.shape[2], packed),
        descale=arguments.check_descale(descale, q, k.shape[1]),
        precision=precision, path=path, tilings=tilings or cuts,
    )  # fmt: skip
    arguments.check_device(q, precision)
    out, lse = _compute(q, k, v, bias, sinks, options, facts, return_lse)
    if packed:
        out, lse = out[0].transpose(0, 1), lse[0] if lse is not None else None
    return (out, lse) if return_lse else out


def decode(
    q: Tensor, k: Tensor, v: Tensor, *,
    kv_lengths: Tensor | None = None, page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None, cu_seqlens_kv: Tensor | None = None, max_seqlen_q: int = 0,
    max_seqlen_kv: int = 0, shared_prefix: int | Prefixes = 0,
    causal: bool = True, window: int | tuple[int, int] | None = None, scale: float | None = None,
    softcap: float | None = None, alibi_slopes: Tensor | None = None, sinks: Tensor | None = None,
    descale: tuple[Tensor, Tensor, Tensor] | None = None, precision: str = "ieee", return_lse: bool = False,
    tiling: Tiling | None = None, facts: dict[str, object] | None = None, check: bool = True, cut: Tiling | None = None,
) -> Any:  # fmt: skip
    """The newest 1 to 16 queries of each sequence against its cached keys: out [batch, heads, seq_q, head_dim_v].

    q: [batch, heads, seq_q, head_dim]. k: [batch, kv_heads, seq_kv, head_dim], v: [batch, kv_heads, seq_kv,
    head_dim_v]; or in pages of 1 to 256 tokens, k: [pages, page_size, kv_heads, head_dim], v: [pages, page_size,
    kv_heads, head_dim_v], and page_table int32 [batch, pages of a sequence].
    kv_lengths: int32 [batch], tokens in the cache of each sequence, the new ones included; by default all that fit.

    With cu_seqlens_q, a batch of requests with any number of queries each, prefills beside decodes, in one launch:
    q [tokens, heads, head_dim], out and lse [heads, tokens] alike. Keys are in pages, or packed as q, k [tokens,
    kv_heads, head_dim], with cu_seqlens_kv. max_seqlen_q and max_seqlen_kv, those of the longest request, choose the
    tiles and splits; left out, they are read from cu_seqlens, which waits for the device.

    shared_prefix: the first keys of all requests, whole pages that stand first in every row of page_table; or those of
    groups of requests, from `prefixes(...)`, built once for a batch. They are computed once for the queries of a group,
    and merged with the other keys of each request by log-sum-exp (cascade).

    Where v is a view of the first columns of k, as in the cache of latent attention, they are read once, and head_dim
    may be 576 with head_dim_v 512.

    The diagonal of the last query is the last key of its sequence. Other options are those of `attention`. Forward
    only. The keys are split among programs where the chip would be idle otherwise (Flash-Decoding,
    https://pytorch.org/blog/flash-decoding/). With `check=False` page numbers and lengths are not read, which would
    wait for the device. ValueError names a bad argument and its value; RuntimeError: the kernels cannot run there.
    """
    from attnbench.kernels import arguments
    from attnbench.kernels.call import CallOptions, KvCache
    from attnbench.kernels.launch import decode_pass
    from attnbench.kernels.masking import KeyConditions, band
    from attnbench.kernels.prefix_groups import prefixes_of

    if isinstance(shared_prefix, int):
        made = prefixes_of(shared_prefix, page_table, cu_seqlens_q, k.shape[1], len(q)) if shared_prefix else None
    else:
        made = shared_prefix
    cache = KvCache(kv_lengths, page_table, cu_seqlens_q, cu_seqlens_kv, max_seqlen_q, max_seqlen_kv, made)
    q, k, v, cache = arguments.check_cache(q, k, v, cache, check)
    arguments.check_numbers(scale, softcap, 0.0, 0, precision)
    if made and (alibi_slopes is not None or window is not None):
        raise ValueError(f"shared_prefix={made.keys}: with alibi_slopes or a window no prefix is the same for all")
    options = CallOptions(
        keys=KeyConditions(*band(causal, window, q.shape[2], max(cache.longest_kv, k.shape[2]))),
        scale=q.shape[3] ** -0.5 if scale is None else scale,
        softcap=softcap, slopes=arguments.check_slopes(alibi_slopes, q),
        descale=arguments.check_descale(descale, q, k.shape[1]),
        precision=precision, tilings={Kernel.DECODE: tiling} if (tiling := tiling or cut) else None,
    )  # fmt: skip
    if _needs_grad(q, k, v, None, sinks):
        raise ValueError("q, k, v or sinks requires grad: decode has no backward pass; call it under torch.no_grad()")
    sinks = arguments.check_sinks(sinks, q)
    arguments.check_device(q, precision)
    out, lse, launched = decode_pass(q, k, v, sinks, options, return_lse, cache)
    if cu_seqlens_q is not None:
        out, lse = out[0].transpose(0, 1), lse[0] if lse is not None else None
    if facts is not None:
        facts.update(launched)
    return (out, lse) if return_lse else out


def prefixes(keys: int, groups: Sequence[int], *, page_table: Tensor, cu_seqlens_q: Tensor, page_size: int) -> Prefixes:
    """The shared prefixes of consecutive groups of requests: `keys` of each, in whole pages.

    groups: the first request of each group, and the number of requests.
    """
    from attnbench.kernels.prefix_groups import prefixes_of

    return prefixes_of(keys, page_table, cu_seqlens_q, page_size, 0, groups)


def rows(low: Tensor, high: Tensor, *, seq_kv: int) -> Rows:
    """A mask by intervals: row i of a sequence sees keys [low, high); both int [batch or 1, seq_q]."""
    from attnbench.kernels.arguments import check_intervals
    from attnbench.kernels.masking import rows_of

    check_intervals(low, high)
    unbounded = low.shape[-1] + seq_kv
    return rows_of(low, high, unbounded, unbounded, seq_kv)


def blocks(visible: Tensor, block_q: int = 64, block_kv: int = 64) -> BlockMask:
    """A block-sparse mask; visible: bool [batch or 1, heads or 1, ceil(seq_q / block_q), ceil(seq_kv / block_kv)]."""
    from attnbench.kernels.arguments import check_visible
    from attnbench.kernels.masking import blocks_of

    check_visible(visible)
    return blocks_of(visible, block_q, block_kv)


def t5_bias(table: Tensor, seq_q: int, seq_kv: int, *, bidirectional: bool = True, max_distance: int = 128) -> Tensor:
    """The relative bias of T5 by distance, [heads, seq_q + seq_kv - 1], from its table [buckets, heads].

    Half of the buckets are single distances, the widths of the others grow by a constant factor up to `max_distance`
    (https://arxiv.org/abs/1910.10683). Gradients flow into the table.
    """
    from attnbench.kernels.arguments import check_buckets
    from attnbench.kernels.masking import t5_buckets

    check_buckets(table, bidirectional, max_distance)
    return table[t5_buckets(table.shape[0], seq_q, seq_kv, bidirectional, max_distance).to(table.device)].T


def _lengths(
    q: Tensor, k: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_kv: Tensor | None, check: bool
) -> tuple[Tensor, Tensor]:
    from attnbench.kernels import arguments

    starts_q = cu_seqlens_q if cu_seqlens_q is not None else cu_seqlens_kv
    starts_kv = cu_seqlens_kv if cu_seqlens_kv is not None else cu_seqlens_q
    assert starts_q is not None
    assert starts_kv is not None
    if check:
        arguments.check_lengths("cu_seqlens_q", starts_q, q.shape[0], q.device)
        arguments.check_lengths("cu_seqlens_kv", starts_kv, k.shape[0], q.device)
    arguments.check_as_many(starts_q, starts_kv)
    return starts_q, starts_kv


def _needs_grad(*tensors: Tensor | None) -> bool:
    import torch

    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _compute(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, options: CallOptions,
    facts: dict[str, object] | None, with_lse: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    from attnbench.kernels.arguments import FP8
    from attnbench.kernels.launch import Attention, forward_pass

    if _needs_grad(q, k, v, bias, sinks):
        if q.dtype is FP8:
            raise ValueError("q is torch.float8_e4m3fn: it has no backward pass; call it under torch.no_grad()")
        return Attention.apply(q, k, v, bias, sinks, options, facts)  # type: ignore[no-untyped-call,no-any-return]
    out, lse, launched = forward_pass(q, k, v, bias, sinks, options, with_lse)
    if facts is not None:
        facts.update(launched)
    return out, lse
