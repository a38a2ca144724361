"""Checks of arguments before any launch: a ValueError names the argument, its value and the rule."""

import math

import torch
from torch import Tensor

from attnbench.kernels.call import KvCache, latent_tail
from attnbench.kernels.masking import BlockMask, KeyConditions, Rows, band, blocks_around, packed_rows, rows_of
from attnbench.kernels.prefix_groups import check_prefixes
from attnbench.kernels.tile import INTERPRETED
from attnbench.kernels.tiling import MAX_DECODE_ROWS, MAX_HEAD_DIM, MAX_LATENT, MIN_BLOCK

PRECISIONS = ("ieee", "tf32")
MAX_LENGTH = 2**30  # indices are 32 bits wide, and a window adds to them
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FP8 = torch.float8_e4m3fn
PAGE_SIZES = (1, 256)


def check_tensors(
    q: Tensor, k: Tensor, v: Tensor, names: str = "batch, heads, seq, head_dim", names_kv: str = "",
    widest: tuple[int, int] = (MAX_HEAD_DIM, MAX_HEAD_DIM),
) -> None:  # fmt: skip
    """Check that q, k and v have the dimensions `names`, k and v `names_kv`, and match in dtype and device."""
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        dimensions = names_kv if names_kv and name != "q" else names
        if tensor.ndim != len(dimensions.split(", ")):
            raise ValueError(f"{name} has shape {list(tensor.shape)}: must be [{dimensions}]")
        if tensor.dtype not in (*FLOATS, FP8):
            raise ValueError(f"{name} is {tensor.dtype}: must be float32, float16, bfloat16 or float8_e4m3fn")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            here, there = f"{tensor.dtype} on {tensor.device}", f"{q.dtype} on {q.device}"
            raise ValueError(f"{name} is {here}: must be as q, {there}")
        limit = widest[name == "v"]
        if not 1 <= tensor.shape[-1] <= limit:
            raise ValueError(f"{name} has head_dim {tensor.shape[-1]}: must be 1 to {limit}")
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}: the last must be 1 (call .contiguous())")
        if max(tensor.shape) > MAX_LENGTH:
            raise ValueError(f"{name} has {max(tensor.shape)} rows: at most {MAX_LENGTH}")


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check that q, k and v, [batch, heads, rows, width], match in shape."""
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"v has shape {list(v.shape)}: batch, heads and rows must be those of k, {list(k.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k has shape {list(k.shape)}: batch and head_dim must be those of q, {list(q.shape)}")
    check_heads(q, k)


def check_heads(q: Tensor, k: Tensor) -> None:
    """Check that kv_heads divides heads."""
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"k has {k.shape[1]} heads: the {q.shape[1]} heads of q must be a multiple of them")


def check_numbers(scale: float | None, softcap: float | None, dropout: float, seed: int, precision: str) -> None:
    """Check the options that are numbers or words."""
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale={scale!r}: must be a finite number")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap={softcap!r}: must be a positive number, or None")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}: must be in [0, 1)")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}: must be a whole number in [0, 2^63)")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}")


def check_device(q: Tensor, precision: str) -> None:
    """Check that the kernels can run on the device of q."""
    if q.device.type == "cuda" and not INTERPRETED:
        return
    if q.device.type != "cpu":
        hint = "unset TRITON_INTERPRET" if q.device.type == "cuda" else "kernels run on cuda"
        raise RuntimeError(f"q is on {q.device}: {hint}, or move it to the CPU for the interpreter")
    if not INTERPRETED:
        raise RuntimeError("q is on the CPU: set TRITON_INTERPRET=1 before Triton is imported to interpret the kernels")
    if precision != "ieee":
        raise ValueError(f"precision={precision!r}: the interpreter computes in ieee float32")


def check_slopes(slopes: Tensor | None, q: Tensor) -> Tensor | None:
    """ALiBi slopes as contiguous float32 [batch or 1, heads]; they take no gradient."""
    if slopes is None:
        return None
    batch, heads = q.shape[:2]
    _check_floats("alibi_slopes", slopes, [[heads], *([rows, heads] for rows in dict.fromkeys((batch, 1)))], q.device)
    return slopes.detach().float().contiguous().reshape(-1, heads)


def check_sinks(sinks: Tensor | None, q: Tensor) -> Tensor | None:
    """Sinks, floats [heads]."""
    if sinks is not None:
        _check_floats("sinks", sinks, [[q.shape[1]]], q.device)
    return sinks


def _check_floats(name: str, tensor: Tensor, shapes: list[list[int]], device: torch.device) -> None:
    if list(tensor.shape) not in shapes or not tensor.is_floating_point() or tensor.device != device:
        have = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        raise ValueError(f"{name} is {have}: must be floats {' or '.join(map(str, shapes))} on {device}")


def check_bias(bias: Tensor | None, q: Tensor, seq_kv: int, packed: bool) -> bool:
    """Whether the bias is by distance, [heads or 1, seq_q + seq_kv - 1]."""
    if bias is None:
        return False
    if packed:
        raise ValueError(f"bias has shape {list(bias.shape)}: packed sequences take alibi_slopes, no bias")
    batch, heads, seq_q, _ = q.shape
    ways = [[rows, h, m, n] for rows in (batch, 1) for h in (heads, 1) for m in (seq_q, 1) for n in (seq_kv, 1)]
    steps = [[h, seq_q + seq_kv - 1] for h in (heads, 1)]
    if not bias.is_floating_point() or bias.device != q.device or list(bias.shape) not in [*ways, *steps]:
        have = f"{bias.dtype} {list(bias.shape)} on {bias.device}"
        raise ValueError(
            f"bias is {have}: must be floats {[batch, heads, seq_q, seq_kv]} or 1 in place of any of these, "
            f"or by distance {steps[0]}, on {q.device}"
        )
    return bias.ndim == 2


def check_descale(descale: tuple[Tensor, Tensor, Tensor] | None, q: Tensor, kv_heads: int) -> Tensor | None:
    """The scales of fp8 inputs as float32 [2, heads]: of the products q k, and of v."""
    if (descale is not None) != (q.dtype is FP8):
        have = "no descale" if descale is None else f"descale with {q.dtype}"
        raise ValueError(f"{have}: float8_e4m3fn inputs, and they alone, need descale=(of q, of k, of v)")
    if descale is None:
        return None
    if len(descale) != 3:
        raise ValueError(f"descale has {len(descale)} tensors: must be three, (of q, of k, of v)")
    heads = (q.shape[1], kv_heads, kv_heads)
    for name, tensor, count in zip("qkv", descale, heads, strict=True):
        if list(tensor.shape) != [count] or tensor.device != q.device or tensor.dtype is not torch.float32:
            have = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"descale of {name} is {have}: must be float32 [{count}] on {q.device}")
    group = q.shape[1] // kv_heads
    of_q, of_k, of_v = descale
    return torch.stack([of_q * of_k.repeat_interleave(group), of_v.repeat_interleave(group)]).contiguous()


def check_lengths(name: str, cu_seqlens: Tensor, tokens: int, device: torch.device) -> None:
    """Check cu_seqlens: int32 or int64 [sequences + 1], from 0, not decreasing, at most `tokens`. Reads it."""
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        have = f"{cu_seqlens.dtype} {list(cu_seqlens.shape)}"
        raise ValueError(f"{name} is {have}: must be int32 or int64 [sequences + 1]")
    if cu_seqlens.device != device:
        raise ValueError(f"{name} is on {cu_seqlens.device}: must be on {device}")
    values = cu_seqlens.tolist()
    if values[0] != 0 or values != sorted(values) or values[-1] > tokens:
        shown = f"{values[:8]}{'...' if len(values) > 8 else ''}"
        raise ValueError(f"{name}={shown}: must start at 0, not decrease, and end within the {tokens} tokens")


def check_pages(table: Tensor, lengths: Tensor | None, pages: int, page_size: int) -> None:
    """Check that page numbers in use exist, and that lengths fit their pages. Reads both tensors."""
    room = table.shape[1] * page_size
    needed = torch.full((len(table),), room, device="cpu") if lengths is None else lengths.cpu()
    if len(needed) and not 0 <= int(needed.min()) <= int(needed.max()) <= room:
        worst = int(needed.max()) if int(needed.max()) > room else int(needed.min())
        raise ValueError(f"kv_lengths holds {worst}: must be 0 to {room}, {table.shape[1]} pages of {page_size}")
    used = torch.arange(table.shape[1], device="cpu")[None] * page_size < needed[:, None]
    numbers = table.cpu()
    wrong = used & ((numbers < 0) | (numbers >= pages))
    if wrong.any():
        sequence, entry = (int(index) for index in wrong.nonzero()[0])
        value = int(numbers[sequence, entry])
        raise ValueError(f"page_table[{sequence}, {entry}]={value}: must be a page of the cache, 0 to {pages - 1}")


def keys_of(
    mask: str | Tensor | Rows | BlockMask | None, causal: bool, window: int | tuple[int, int] | None, q: Tensor,
    seq_kv: int, cu_seqlens: tuple[Tensor, Tensor] | None,
) -> KeyConditions:  # fmt: skip
    """All conditions on the keys that a row sees, in the form that the kernels take."""
    batch, heads, seq_q, _ = q.shape
    left, right = band(causal, window, seq_q, seq_kv)
    rows = packed_rows(*cu_seqlens, seq_q, seq_kv, left, right) if cu_seqlens else None
    if mask is None:
        return KeyConditions(left, right, rows)
    if isinstance(mask, str | Rows) and cu_seqlens:
        raise ValueError(f"mask={mask!r}: packed sequences take causal, window, blocks(...) or a boolean mask")
    if isinstance(mask, str):
        return _keys_of_text(mask, q, seq_kv, left, right)
    if isinstance(mask, Rows):
        _check_rows(mask, q, seq_kv)
        return KeyConditions(
            left,
            right,
            mask if (left, right) == band(False, None, seq_q, seq_kv) else _narrowed(mask, left, right, seq_kv),
        )
    if isinstance(mask, BlockMask):
        _check_blocks(mask, q, seq_kv)
        return KeyConditions(left, right, rows, mask)
    if not isinstance(mask, Tensor):
        raise ValueError(f"mask={mask!r}: must be text, a tensor of bool, or of rows(...) or blocks(...)")
    shapes = [[b, h, seq_q, seq_kv] for b in dict.fromkeys((batch, 1)) for h in dict.fromkeys((heads, 1))]
    if mask.dtype is not torch.bool or mask.device != q.device or list(mask.shape) not in shapes:
        have = f"{mask.dtype} {list(mask.shape)} on {mask.device}"
        raise ValueError(f"mask is {have}: must be bool {' or '.join(map(str, shapes))} on {q.device}")
    return KeyConditions(left, right, rows, blocks_around(mask), mask)


def check_intervals(low: Tensor, high: Tensor) -> None:
    """Check the bounds of a mask by intervals."""
    for name, bound in {"low": low, "high": high}.items():
        if bound.dtype not in (torch.int32, torch.int64) or bound.ndim != 2 or bound.shape != low.shape:
            have = f"{bound.dtype} {list(bound.shape)}"
            raise ValueError(f"{name} is {have}: both must be int32 or int64 [batch or 1, seq_q], of one shape")


def check_visible(visible: Tensor) -> None:
    """Check the table of a block-sparse mask."""
    if visible.dtype is not torch.bool or visible.ndim != 4:
        have = f"{visible.dtype} {list(visible.shape)}"
        raise ValueError(f"visible is {have}: must be bool [batch or 1, heads or 1, blocks of rows, blocks of keys]")


def check_buckets(table: Tensor, bidirectional: bool, max_distance: int) -> None:
    """Check that the table of a T5 bias has buckets of single distances and of growing width."""
    if table.ndim != 2 or table.shape[0] < (4 if bidirectional else 2):
        minimum = "4 buckets, 2 to each side" if bidirectional else "2 buckets"
        raise ValueError(f"table has shape {list(table.shape)}: must be [buckets, heads], of at least {minimum}")
    single = table.shape[0] // (4 if bidirectional else 2)
    if max_distance <= single:
        raise ValueError(f"max_distance={max_distance}: must be above {single}, the buckets of single distances")


def _keys_of_text(text: str, q: Tensor, seq_kv: int, left: int, right: int) -> KeyConditions:
    from attnbench.attention.masks import parse
    from attnbench.attention.terms import Grid

    grid = Grid(q.shape[0], q.shape[2], seq_kv)
    masking = parse(text)
    masking.check(grid)
    if masking.pattern or "dense" in masking.words:
        shown = torch.from_numpy(masking.dense(grid))[:, None].to(q.device)
        return KeyConditions(left, right, None, blocks_around(shown), shown)
    low, high = (torch.from_numpy(bound).to(q.device) for bound in masking.rows(grid))
    return KeyConditions(left, right, rows_of(low, high, left, right, seq_kv))


def _narrowed(rows: Rows, left: int, right: int, seq_kv: int) -> Rows:
    low, high, diagonal = rows.listed
    return rows_of(low, high, left, right, seq_kv, diagonal)


def _check_rows(rows: Rows, q: Tensor, seq_kv: int) -> None:
    listed = rows.listed
    shapes = [[3, b, q.shape[2]] for b in dict.fromkeys((q.shape[0], 1))]
    if listed.dtype is not torch.int32 or listed.device != q.device or list(listed.shape) not in shapes:
        have = f"{listed.dtype} {list(listed.shape)} on {listed.device}"
        raise ValueError(f"mask lists {have}: must be int32 {' or '.join(map(str, shapes))} on {q.device}")
    if rows.seq_kv != seq_kv:
        raise ValueError(f"mask is of {rows.seq_kv} keys: must be of {seq_kv}, those of k")


def _check_blocks(blocks: BlockMask, q: Tensor, seq_kv: int) -> None:
    batch, heads, seq_q, _ = q.shape
    for name in ("block_q", "block_kv"):
        size = getattr(blocks, name)
        if size < MIN_BLOCK or size & (size - 1):
            raise ValueError(f"mask has {name}={size}: must be a power of two from {MIN_BLOCK}")
    tiles = -(-seq_q // blocks.block_q), -(-seq_kv // blocks.block_kv)
    for name, counts, count in (("counts", blocks.counts, tiles[0]), ("key_counts", blocks.key_counts, tiles[1])):
        shapes = [[b, h, count] for b in dict.fromkeys((batch, 1)) for h in dict.fromkeys((heads, 1))]
        if list(counts.shape) not in shapes or counts.dtype is not torch.int32 or counts.device != q.device:
            have = f"{counts.dtype} {list(counts.shape)} on {counts.device}"
            raise ValueError(f"mask has {name} {have}: must be int32 {' or '.join(map(str, shapes))} on {q.device}")


def check_cache(q: Tensor, k: Tensor, v: Tensor, cache: KvCache, read: bool) -> tuple[Tensor, Tensor, Tensor, KvCache]:
    """Check the tensors of a decode. Returns q, k and v with heads before rows, and the cache with all its fields.

    `read` also reads lengths, starts and page numbers.
    """
    packed, paged = cache.starts_q is not None, cache.table is not None
    names = "tokens, heads, head_dim" if packed else "batch, heads, seq, head_dim"
    widest = MAX_LATENT if latent_tail(k, v) else (MAX_HEAD_DIM, MAX_HEAD_DIM)
    check_tensors(q, k, v, names, "pages, page_size, heads, head_dim" if paged else "", widest)
    if packed:
        cache = _check_starts(q, k, cache, read)
        q = q.transpose(0, 1)[None]
        k, v = (k, v) if paged else (tensor.transpose(0, 1)[None] for tensor in (k, v))
    elif q.shape[2] > MAX_DECODE_ROWS:
        raise ValueError(f"q has {q.shape[2]} queries of a sequence: decode takes 1 to {MAX_DECODE_ROWS}")
    elif cache.starts_kv is not None:
        raise ValueError("cu_seqlens_kv without cu_seqlens_q: a packed batch needs both")
    sequences = q.shape[0] if cache.starts_q is None else len(cache.starts_q) - 1
    if cache.table is not None:
        longest_kv = _check_paged(q, k, v, sequences, cache.table, cache.lengths, read)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        check_heads(q, k)
    else:
        check_shapes(q, k, v)
        longest_kv = cache.longest_kv if packed else k.shape[2]
    _check_cached(q, sequences, cache.lengths, longest_kv, read and not paged)
    if cache.prefix and read:
        check_prefixes(cache, cache.prefix)
    return q, k, v, cache._replace(longest_q=cache.longest_q or q.shape[2], longest_kv=longest_kv)


def _check_starts(q: Tensor, k: Tensor, cache: KvCache, read: bool) -> KvCache:
    """Check where the requests of a packed batch begin. Returns the cache with its longest request."""
    starts_q, starts_kv = cache.starts_q, cache.starts_kv
    assert starts_q is not None
    if read:
        check_lengths("cu_seqlens_q", starts_q, q.shape[0], q.device)
        if int(starts_q[-1]) != q.shape[0]:
            raise ValueError(f"cu_seqlens_q ends at {int(starts_q[-1])}: must end at {q.shape[0]}, the tokens of q")
    longest_q = cache.longest_q or int(starts_q.diff().max())
    if cache.table is not None:
        if starts_kv is not None:
            raise ValueError("cu_seqlens_kv with page_table: keys in pages are counted by kv_lengths")
        return cache._replace(longest_q=longest_q)
    if cache.lengths is not None:
        raise ValueError("kv_lengths with cu_seqlens_q: packed keys are counted by cu_seqlens_kv")
    starts_kv = starts_q if starts_kv is None else starts_kv
    if read:
        check_lengths("cu_seqlens_kv", starts_kv, k.shape[0], q.device)
    check_as_many(starts_q, starts_kv)
    longest_kv = cache.longest_kv or int(starts_kv.diff().max())
    return cache._replace(starts_kv=starts_kv, longest_q=longest_q, longest_kv=longest_kv)


def check_as_many(starts_q: Tensor, starts_kv: Tensor) -> None:
    """Check that queries and keys are of as many sequences."""
    if starts_q.shape != starts_kv.shape:
        raise ValueError(
            f"cu_seqlens_kv has {len(starts_kv) - 1} sequences, cu_seqlens_q has {len(starts_q) - 1}: must be equal"
        )


def _check_cached(q: Tensor, sequences: int, lengths: Tensor | None, seq_kv: int, read: bool) -> None:
    """Check that lengths fit the cache; `read` also reads them."""
    if lengths is None:
        return
    if lengths.dtype is not torch.int32 or list(lengths.shape) != [sequences] or lengths.device != q.device:
        have = f"{lengths.dtype} {list(lengths.shape)} on {lengths.device}"
        raise ValueError(f"kv_lengths is {have}: must be int32 [{sequences}] on {q.device}")
    if read and len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= seq_kv:
        worst = int(lengths.max()) if int(lengths.max()) > seq_kv else int(lengths.min())
        raise ValueError(f"kv_lengths holds {worst}: must be 0 to {seq_kv}, the keys of the cache")


def _check_paged(
    q: Tensor, k: Tensor, v: Tensor, sequences: int, table: Tensor, lengths: Tensor | None, read: bool
) -> int:
    """Check that k and v are pages and that the table fits them. Returns the largest number of keys of a sequence."""
    pages, page_size = k.shape[:2]
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"v has shape {list(v.shape)}: pages, page_size and heads must be those of k, {list(k.shape)}")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k has head_dim {k.shape[3]}: must be that of q, {q.shape[3]}")
    if not PAGE_SIZES[0] <= page_size <= PAGE_SIZES[1]:
        raise ValueError(f"k has pages of {page_size} tokens: must be {PAGE_SIZES[0]} to {PAGE_SIZES[1]}")
    if table.dtype is not torch.int32 or table.ndim != 2 or len(table) != sequences or table.device != q.device:
        have = f"{table.dtype} {list(table.shape)} on {table.device}"
        raise ValueError(f"page_table is {have}: must be int32 [{sequences}, pages of a sequence] on {q.device}")
    if table.stride(1) != 1:
        raise ValueError(f"page_table has strides {table.stride()}: the last must be 1")
    if read:
        check_pages(table, lengths, pages, page_size)
    return table.shape[1] * page_size
