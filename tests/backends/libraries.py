"""Stand-ins for CUDA libraries on a CPU: their documented calls over packed batches and pages, in plain torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from attnbench.attention import inputs, layouts
from attnbench.attention.choices import Returns
from attnbench.attention.problem import Problem
from attnbench.backends import Layout, Prepared, load
from attnbench.records.case import Case
from tests.backends.test_flash_attn import attend


def gathered(pool: Any, table: Any, count: int) -> Any:
    """The first keys of a sequence, [count, heads, width], from pages [pages, page_size, heads, width]."""
    assert table.dtype is torch.int32
    return pool[table[: -(-count // pool.shape[1])].long()].flatten(0, 1)[:count]


def attend_packed(q: Any, keys: Sequence[tuple[Any, Any]], starts_q: Any, longest_q: int, **options: Any) -> Any:
    """q [tokens, heads, width] over the k and v of each sequence: out, and lse [heads, tokens]."""
    assert starts_q.dtype is torch.int32
    assert longest_q == int(starts_q.diff().max())
    ends = starts_q.tolist()
    assert len(keys) == len(ends) - 1
    parts = [
        attend(q[None, a:b], k[None], v[None], **options)
        for a, b, (k, v) in zip(ends, ends[1:], keys, strict=False)
        if b > a
    ]
    return torch.cat([out[0] for out, _ in parts]), torch.cat([lse[0] for _, lse in parts], 1)


def split(k: Any, v: Any, starts: Any, longest: int) -> list[tuple[Any, Any]]:
    """The k and v of each sequence, from packed ones [tokens, heads, width]."""
    assert starts.dtype is torch.int32
    assert longest == int(starts.diff().max())
    ends = starts.tolist()
    return [(k[a:b], v[a:b]) for a, b in itertools.pairwise(ends)]


def read(k: Any, v: Any, table: Any, counts: Any) -> list[tuple[Any, Any]]:
    """The k and v of each sequence, from pages."""
    assert counts.dtype is torch.int32
    rows = zip(table, counts.tolist(), strict=True)
    return [(gathered(k, row, count), gathered(v, row, count)) for row, count in rows]


def varlen_attn(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *, return_aux: Any = None,
    scale: Any = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False, seqused_k: Any = None,
    block_table: Any = None, num_splits: int | None = None,
) -> Any:  # fmt: skip
    """torch 2.13: with `block_table`, only the first `seqused_k` keys of a sequence take part."""
    if block_table is None:
        keys = split(key, value, cu_seq_k, max_k)
    else:
        assert num_splits == 1
        assert key.shape[1] % 256 == 0
        keys = read(key, value, block_table, seqused_k)
    assert enable_gqa == (query.shape[1] > key.shape[-2])
    options = {"softmax_scale": scale, "causal": False, "window_size": window_size, "softcap": 0.0}
    out, lse = attend_packed(query, keys, cu_seq_q, max_q, **options)
    return (out, lse) if return_aux is not None and return_aux.lse else out


class FlashAttention2:
    """flash_attn/flash_attn_interface.py: the keys of a sequence in pages are counted by cu_seqlens_k."""

    @staticmethod
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        if block_table is None:
            keys = split(k, v, cu_seqlens_k, max_seqlen_k)
        else:
            assert k.shape[1] % 256 == 0
            keys = read(k, v, block_table, cu_seqlens_k.diff())
        options = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
        if alibi_slopes is not None:
            options["slopes"] = alibi_slopes
        out, lse = attend_packed(q, keys, cu_seqlens_q, max_seqlen_q, **options)
        return (out, lse, None) if return_attn_probs else out


class FlashAttention3:
    """hopper/flash_attn_interface.py: the keys of a sequence in pages are counted by cache_seqlens."""

    @staticmethod
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, window_size=(-1, -1), softcap=0.0, return_attn_probs=False,
    ):  # fmt: skip
        options = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
        keys = split(k, v, cu_seqlens_k, max_seqlen_k)
        out, lse = attend_packed(q, keys, cu_seqlens_q, max_seqlen_q, **options)
        return (out, lse) if return_attn_probs else out

    @staticmethod
    def flash_attn_with_kvcache(
        q, k_cache, v_cache, k=None, v=None, qv=None, cache_seqlens=None, page_table=None, cu_seqlens_q=None,
        max_seqlen_q=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        return_softmax_lse=False,
    ):  # fmt: skip
        options = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
        keys = read(k_cache, v_cache, page_table, cache_seqlens)
        out, lse = attend_packed(q, keys, cu_seqlens_q, max_seqlen_q, **options)
        return (out, lse, None) if return_softmax_lse else out


class FlashAttention4:
    """flash_attn/cute/interface.py: "page_table is not supported with cu_seqlens_k"."""

    @staticmethod
    def flash_attn_varlen_func(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None,
        seqused_k=None, page_table=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0, return_lse=False,
    ):  # fmt: skip
        if page_table is None:
            keys = split(k, v, cu_seqlens_k, max_seqlen_k)
        else:
            assert cu_seqlens_k is None
            assert max_seqlen_k == int(seqused_k.max())
            keys = read(k, v, page_table, seqused_k)
        if sum(window_size) < 0:
            window_size = (-1, -1)
        options = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
        out, lse = attend_packed(q, keys, cu_seqlens_q, max_seqlen_q, **options)
        return out, lse if return_lse else None


def prepared_batch(backend: str, problem: Problem, device: str = "cpu") -> tuple[Prepared, list[Any], list[Any]]:
    """A backend ready for the problem, its q, k and v as a run places them, and the packed ones; float32 on a CPU."""
    drawn = inputs.make(problem, 7)
    packed = [tensor.float() if device == "cpu" else tensor for tensor in (drawn.q, drawn.k, drawn.v)]
    prepared = load(backend).prepare(Case(problem=problem, backend=backend), device)
    placed = []
    for name, tensor in zip("qkv", packed, strict=True):
        if prepared.stored and name != "q":
            pool = prepared.stored(tensor)
            unused = torch.ones(pool.shape[0] * pool.shape[1], dtype=torch.bool)
            unused[torch.from_numpy(layouts.slots(problem))] = False
            pool.flatten(0, 1)[unused] = float("nan")  # a key that no request has must not matter
            placed.append(pool.to(device))
        else:
            flip = load(backend).layout is Layout.BSHD
            placed.append((tensor.transpose(1, 2).contiguous() if flip else tensor).to(device))
    return prepared, placed, packed


def computed(backend: str, problem: Problem, device: str = "cpu") -> tuple[Any, Any, list[Any]]:
    """out [1, heads, tokens, width] and lse, if the problem returns it, of a backend; and the packed q, k and v."""
    prepared, placed, packed = prepared_batch(backend, problem, device)
    result = prepared.call(*placed)
    out, lse = result if problem.returns is Returns.LSE else (result, None)
    return (out.transpose(1, 2) if load(backend).layout is Layout.BSHD else out), lse, packed


class Mask:
    """A class of xformers/ops/fmha/attn_bias.py: the sizes of sequences, where keys start, a table of pages."""

    causal = False
    window = 0

    def __init__(self, q_seqlen: list[int], kv_seqlen: list[int], kv_seqstarts: Any = None, **pages: Any) -> None:
        self.queries, self.keys, self.pages = q_seqlen, kv_seqlen, pages
        self.starts = kv_seqstarts or list(itertools.accumulate(kv_seqlen, initial=0))
        assert len(self.starts) == len(kv_seqlen) + 1

    @classmethod
    def from_seqlens(cls, q_seqlen: list[int], *others: Any, device: Any, **options: Any) -> Mask:
        assert device == torch.device("cpu")
        return cls(q_seqlen, *others, **options)

    def to(self, device: Any) -> Mask:
        assert isinstance(device, torch.device)
        return self

    def turned(self, kind: type[Mask], window: int = 0) -> Mask:
        made = kind(self.queries, self.keys)
        made.window = window
        return made


class BlockDiagonalCausalFromBottomRightMask(Mask):
    causal = True


class BlockDiagonalCausalLocalAttentionFromBottomRightMask(Mask):
    causal = True


class BlockDiagonalMask(Mask):
    def make_causal_from_bottomright(self) -> Mask:
        return self.turned(BlockDiagonalCausalFromBottomRightMask)

    def make_local_attention_from_bottomright(self, window_size: int) -> Mask:
        """The diagonal key is one of the window."""
        return self.turned(BlockDiagonalCausalLocalAttentionFromBottomRightMask, window_size)


class BlockDiagonalGappyKeysMask(Mask):
    pass


class BlockDiagonalCausalWithOffsetGappyKeysMask(Mask):
    causal = True


class PagedBlockDiagonalPaddedKeysMask(Mask):
    pass


class PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(Mask):
    causal = True


MASKS = {kind.__name__: kind for kind in Mask.__subclasses__()}
ALIKE = ("GappyKeysMask", "PaddedKeysMask")


def memory_efficient_attention(
    query: Any, key: Any, value: Any, attn_bias: Mask, p: float = 0.0, scale: Any = None, op: Any = None
) -> Any:
    """[1, tokens, heads, width], or [1, tokens, groups, heads, width] with keys expanded in a group."""
    if op is not None:
        assert type(attn_bias) in op[0].SUPPORTED_ATTN_BIAS_TYPES
    q, k, v = (tensor[0].flatten(1, -2) for tensor in (query, key, value))
    if attn_bias.pages:
        size, table = attn_bias.pages["page_size"], attn_bias.pages["block_tables"]
        keys = read(*(t.unflatten(0, (-1, size)) for t in (k, v)), table, torch.tensor(attn_bias.keys).int())
    else:
        spans = zip(attn_bias.starts, attn_bias.keys, strict=False)
        keys = [(k[start : start + count], v[start : start + count]) for start, count in spans]
    starts = torch.tensor([0, *itertools.accumulate(attn_bias.queries)], dtype=torch.int32)
    window = (attn_bias.window - 1, 0) if attn_bias.window else (-1, -1)
    options = {"softmax_scale": scale, "causal": attn_bias.causal, "window_size": window, "softcap": 0.0}
    return attend_packed(q, keys, starts, max(attn_bias.queries), **options)[0].view(query.shape)


def fmha() -> Any:
    """xformers.ops.fmha, with the classes that each kernel takes."""
    split_k = [kind for name, kind in MASKS.items() if name.endswith(ALIKE)]
    flash = [kind for name, kind in MASKS.items() if "Gappy" not in name]
    taken = {"flash": flash, "flash3": flash, "triton_splitk": split_k}
    kernels = {
        name: SimpleNamespace(FwOp=SimpleNamespace(SUPPORTED_ATTN_BIAS_TYPES=kinds)) for name, kinds in taken.items()
    }
    holder = ModuleType("xformers.ops.fmha")
    vars(holder).update(
        kernels, attn_bias=SimpleNamespace(**MASKS), memory_efficient_attention=memory_efficient_attention
    )
    return holder


class PlannedWrapper:
    """Wrappers of flashinfer/prefill.py and decode.py: a plan of tables on the host, and an lse to base 2."""

    def __init__(self, float_workspace_buffer: Any, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype is torch.uint8
        assert kv_layout == "NHD"
        self.starts_q: Any = None

    def keep(self, qo_indptr: Any, heads: tuple[int, int], head_dim: int, options: dict[str, Any]) -> None:
        assert qo_indptr.device.type == "cpu"
        assert head_dim in (64, 128, 256)
        assert options["q_data_type"] in ("float16", "bfloat16")
        self.starts_q, self.heads, self.width = qo_indptr, heads, head_dim
        self.options = {
            "softmax_scale": options.get("sm_scale"),
            "causal": options.get("causal", False),
            "window_size": (options.get("window_left", -1), -1),
            "softcap": options.get("logits_soft_cap") or 0.0,
        }

    def attended(self, q: Any, keys: list[tuple[Any, Any]], return_lse: bool) -> Any:
        assert q.shape == (self.starts_q[-1], self.heads[0], self.width)
        assert all(k.shape[1:] == (self.heads[1], self.width) for k, _ in keys)
        out, lse = attend_packed(q, keys, self.starts_q, int(self.starts_q.diff().max()), **self.options)
        return (out, (lse / math.log(2)).mT.contiguous()) if return_lse else out


class BatchPrefillWithRaggedKVCacheWrapper(PlannedWrapper):
    def plan(
        self, qo_indptr: Any, kv_indptr: Any, num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, **options: Any
    ) -> None:
        self.starts_kv = kv_indptr
        self.keep(qo_indptr, (num_qo_heads, num_kv_heads), head_dim_qk, options)

    def run(self, q: Any, k: Any, v: Any, return_lse: bool = False) -> Any:
        return self.attended(q, split(k, v, self.starts_kv, int(self.starts_kv.diff().max())), return_lse)


class PagedWrapper(PlannedWrapper):
    def take_pages(self, indptr: Any, indices: Any, last_page_len: Any, page_size: int) -> None:
        """ "1 <= last_page_len <= page_size"."""
        assert indptr.dtype is indices.dtype is last_page_len.dtype is torch.int32
        assert 1 <= last_page_len.min() <= last_page_len.max() <= page_size
        assert len(indices) == indptr[-1]
        self.pages = [indices[a:b] for a, b in itertools.pairwise(indptr.tolist())]
        self.counts = (indptr.diff() - 1) * page_size + last_page_len
        self.page_size = page_size

    def run(self, q: Any, paged_kv_cache: tuple[Any, Any], return_lse: bool = False) -> Any:
        k, v = paged_kv_cache
        assert k.shape[1] == self.page_size
        return self.attended(q, read(k, v, self.pages, self.counts), return_lse)


class BatchPrefillWithPagedKVCacheWrapper(PagedWrapper):
    def plan(
        self, qo_indptr: Any, paged_kv_indptr: Any, paged_kv_indices: Any, paged_kv_last_page_len: Any,
        num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, page_size: int, **options: Any,
    ) -> None:  # fmt: skip
        self.take_pages(paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size)
        self.keep(qo_indptr, (num_qo_heads, num_kv_heads), head_dim_qk, options)


class BatchDecodeWithPagedKVCacheWrapper(PagedWrapper):
    """flashinfer/decode.py: a query for each request, after all keys; CUDA cores take groups of 1, 2, 3, 4, 6 or 8."""

    def __init__(self, float_workspace_buffer: Any, kv_layout: str = "NHD", use_tensor_cores: bool = False) -> None:
        super().__init__(float_workspace_buffer, kv_layout)
        self.tensor_cores = use_tensor_cores

    def plan(
        self, indptr: Any, indices: Any, last_page_len: Any, num_qo_heads: int, num_kv_heads: int, head_dim: int,
        page_size: int, *, window_left: int = -1, logits_soft_cap: Any = None, q_data_type: Any = "float16",
        sm_scale: Any = None,
    ) -> None:  # fmt: skip
        assert self.tensor_cores or num_qo_heads // num_kv_heads in (1, 2, 3, 4, 6, 8)
        self.take_pages(indptr, indices, last_page_len, page_size)
        options = {"window_left": window_left, "logits_soft_cap": logits_soft_cap, "sm_scale": sm_scale}
        starts = torch.arange(len(indptr), dtype=torch.int32)
        self.keep(starts, (num_qo_heads, num_kv_heads), head_dim, {**options, "q_data_type": q_data_type})


class MultiLevelCascadeAttentionWrapper:
    """flashinfer/cascade.py: causal on the last level alone; the levels are merged by their lse, to base 2."""

    def __init__(self, num_levels: int, float_workspace_buffer: Any, kv_layout: str = "NHD") -> None:
        self.levels = [
            BatchPrefillWithPagedKVCacheWrapper(float_workspace_buffer, kv_layout) for _ in range(num_levels)
        ]

    def plan(
        self, qo_indptr_arr: list[Any], paged_kv_indptr_arr: list[Any], paged_kv_indices_arr: list[Any],
        paged_kv_last_page_len: list[Any], num_qo_heads: int, num_kv_heads: int, head_dim: int, page_size: int,
        causal: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        lists = qo_indptr_arr, paged_kv_indptr_arr, paged_kv_indices_arr, paged_kv_last_page_len
        assert len({int(starts[-1]) for starts in qo_indptr_arr}) == 1
        for level, *tables in zip(self.levels, *lists, strict=True):
            of_last = {"causal": causal and level is self.levels[-1]}
            level.plan(*tables, num_qo_heads, num_kv_heads, head_dim, page_size, **of_last, **options)

    def run(self, q: Any, paged_kv_cache: tuple[Any, Any]) -> Any:
        outs, lses = zip(*(level.run(q, paged_kv_cache, return_lse=True) for level in self.levels), strict=True)
        shares = (torch.stack(lses) * math.log(2)).softmax(0)
        return (torch.stack(outs) * shares[..., None]).sum(0)


class BatchMLAPagedAttentionWrapper:
    """flashinfer/mla/_core.py: the cache in two parts, of one head and of any strides."""

    def __init__(self, float_workspace_buffer: Any, backend: str = "auto") -> None:
        assert float_workspace_buffer.dtype is torch.uint8

    def plan(
        self, qo_indptr: Any, kv_indptr: Any, kv_indices: Any, kv_len_arr: Any, num_heads: int, head_dim_ckv: int,
        head_dim_kpe: int, page_size: int, causal: bool, sm_scale: float, q_data_type: Any, kv_data_type: Any,
    ) -> None:  # fmt: skip
        assert qo_indptr.dtype is kv_indptr.dtype is kv_indices.dtype is kv_len_arr.dtype is torch.int32
        assert q_data_type is kv_data_type
        assert q_data_type in (torch.float16, torch.bfloat16)
        assert len(kv_indices) == kv_indptr[-1]
        self.starts_q, self.counts, self.widths = qo_indptr, kv_len_arr, (head_dim_ckv, head_dim_kpe)
        self.pages = [kv_indices[a:b] for a, b in itertools.pairwise(kv_indptr.tolist())]
        self.heads, self.page_size = num_heads, page_size
        self.options = {"softmax_scale": sm_scale, "causal": causal, "window_size": (-1, -1), "softcap": 0.0}

    def run(self, q_nope: Any, q_pe: Any, ckv_cache: Any, kpe_cache: Any) -> Any:
        for shared, rope in ((q_nope, q_pe), (ckv_cache, kpe_cache)):
            assert (shared.shape[-1], rope.shape[-1]) == self.widths
            assert shared.stride(-1) == rope.stride(-1) == 1
        assert q_nope.shape[:2] == (self.starts_q[-1], self.heads)
        cache = torch.cat([ckv_cache, kpe_cache], -1)[:, :, None]
        assert cache.shape[1] == self.page_size
        keys = read(cache, cache[..., : self.widths[0]], self.pages, self.counts)
        q = torch.cat([q_nope, q_pe], -1)
        return attend_packed(q, keys, self.starts_q, int(self.starts_q.diff().max()), **self.options)[0]


FLASHINFER = {
    kind.__name__: kind
    for kind in (
        BatchPrefillWithRaggedKVCacheWrapper,
        BatchPrefillWithPagedKVCacheWrapper,
        BatchDecodeWithPagedKVCacheWrapper,
        MultiLevelCascadeAttentionWrapper,
        BatchMLAPagedAttentionWrapper,
    )
}
