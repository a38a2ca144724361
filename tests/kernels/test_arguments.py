"""Bad arguments of the in-house kernels: each is named with its value and the rule, before any launch."""

from __future__ import annotations

import os
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from attnbench import kernels  # noqa: E402
from attnbench.errors import AttnbenchError  # noqa: E402

uninterpreted = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="TRITON_INTERPRET is set here")


def tokens(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.zeros(*shape, dtype=dtype)


def ends(*values: int) -> Any:
    return torch.tensor(values, dtype=torch.int32)


Q = tokens(2, 4, 8, 16)
FP8 = tokens(2, 4, 8, 16, dtype=torch.float8_e4m3fn)
ROWS = kernels.rows(torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64), seq_kv=8)
LONG = tokens(1, 1, 1, 16).expand(1, 1, 2**30 + 1, 16)  # no memory behind it

BAD = [
    ((Q[0], Q, Q), {}, r"q has shape \[4, 8, 16\]: must be \[batch, heads, seq, head_dim\]"),
    ((Q.double(), Q, Q), {}, "q is torch.float64: must be float32"),
    ((Q, Q.half(), Q), {}, "k is torch.float16 on cpu: must be as q, torch.float32"),
    ((Q, Q, Q.bfloat16()), {}, "v is torch.bfloat16 on cpu: must be as q"),
    ((Q, Q.to("meta"), Q), {}, "k is torch.float32 on meta: must be as q"),
    ((Q, tokens(2, 3, 8, 16), tokens(2, 3, 8, 16)), {}, "k has 3 heads: the 4 heads of q must be a multiple"),
    ((Q, tokens(2, 4, 8, 32), Q), {}, r"k has shape \[2, 4, 8, 32\]: batch and head_dim must be those of q"),
    ((Q, tokens(1, 4, 8, 16), tokens(1, 4, 8, 16)), {}, r"k has shape \[1, 4, 8, 16\]: batch"),
    ((Q, Q, tokens(2, 4, 9, 16)), {}, r"v has shape \[2, 4, 9, 16\]: batch, heads and rows must be those of k"),
    ((tokens(1, 1, 8, 300),) * 3, {}, "q has head_dim 300: must be 1 to 256"),
    ((Q.transpose(2, 3).contiguous().transpose(2, 3), Q, Q), {}, r"q has strides .* 1, 8\): the last must be 1"),
    ((Q[:1, :1], LONG, LONG), {}, "k has 1073741825 rows: at most 1073741824"),
    ((Q, Q[0], Q), {}, r"k has shape \[4, 8, 16\]: must be"),
    ((Q, Q, Q[None]), {}, r"v has shape \[1, 2, 4, 8, 16\]: must be"),
    ((Q, Q, Q.transpose(2, 3).contiguous().transpose(2, 3)), {}, r"v has strides .*\(call .contiguous\(\)\)"),
    ((Q, Q, tokens(2, 4, 8, 257)), {}, "v has head_dim 257: must be 1 to 256"),
    ((Q, tokens(2, 0, 8, 16), tokens(2, 0, 8, 16)), {}, "k has 0 heads"),
    ((Q, Q, Q), {"window": -5}, "window=-5: must be a number of keys"),
    ((Q, Q, Q), {"window": (3, -2)}, r"window=\(3, -2\)"),
    ((Q, Q, Q), {"window": (1, 2, 3)}, r"window=\(1, 2, 3\)"),
    ((Q, Q, Q), {"window": 1.5}, "window=1.5"),
    ((Q, Q, Q), {"scale": float("nan")}, "scale=nan: must be a finite number"),
    ((Q, Q, Q), {"softcap": -1.0}, "softcap=-1.0: must be a positive number"),
    ((Q, Q, Q), {"softcap": 0.0}, "softcap=0.0: must be a positive number"),
    ((Q, Q, Q), {"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
    ((Q, Q, Q), {"dropout": -0.1}, "dropout=-0.1"),
    ((Q, Q, Q), {"dropout": float("nan")}, r"dropout=nan: must be in \[0, 1\)"),
    ((Q, Q, Q), {"seed": -1}, r"seed=-1: must be a whole number in \[0, 2\^63\)"),
    ((Q, Q, Q), {"seed": 2**63}, "seed=9223372036854775808: must be a whole number"),
    ((Q, Q, Q), {"seed": 1.5}, "seed=1.5: must be a whole number"),
    ((Q, Q, Q), {"scale": float("inf")}, "scale=inf: must be a finite number"),
    ((LONG, Q[:1, :1], Q[:1, :1]), {}, "q has 1073741825 rows: at most 1073741824"),
    ((Q, Q, Q), {"precision": "tf16"}, "precision='tf16': must be one of ieee, tf32"),
    ((Q, Q, Q), {"alibi_slopes": tokens(3)}, r"alibi_slopes is torch.float32 \[3\] on cpu: must be floats \[4\]"),
    ((Q, Q, Q), {"alibi_slopes": tokens(3, 4)}, r"alibi_slopes is torch.float32 \[3, 4\]"),
    ((Q, Q, Q), {"sinks": tokens(2, 4)}, r"sinks is torch.float32 \[2, 4\] on cpu: must be floats \[4\]"),
    ((Q, Q, Q), {"sinks": ends(1, 2, 3, 4)}, "sinks is torch.int32"),
    ((Q, Q, Q), {"bias": tokens(2, 4, 8, 9)}, r"bias is torch.float32 \[2, 4, 8, 9\]"),
    ((Q, Q, Q), {"bias": tokens(4, 16)}, r"bias is torch.float32 \[4, 16\] .* by distance \[4, 15\]"),
    ((Q, Q, Q), {"mask": tokens(2, 4, 8, 8)}, "mask is torch.float32"),
    ((Q, Q, Q), {"mask": tokens(2, 3, 8, 8, dtype=torch.bool)}, r"mask is torch.bool \[2, 3, 8, 8\]"),
    ((Q, Q, Q), {"bias": tokens(2, 4, 8)}, r"bias is torch.float32 \[2, 4, 8\]"),
    ((Q, Q, Q), {"bias": tokens(4, 15).long()}, "bias is torch.int64"),
    ((Q, Q, Q), {"mask": [True]}, r"mask=\[True\]: must be text, a tensor of bool"),
    ((Q, Q, Q), {"mask": tokens(8, 8, dtype=torch.bool)}, r"mask is torch.bool \[8, 8\]"),
    ((tokens(2, 4, 9, 16), Q, Q), {"mask": ROWS}, r"mask lists torch.int32 \[3, 2, 8\] on cpu: must be int32"),
    ((Q, Q, Q), {"mask": kernels.blocks(torch.ones(1, 1, 2, 1).bool(), 16, 16)}, r"mask has counts .*\[1, 1, 2\]"),
    ((Q, Q, Q), {"mask": kernels.blocks(torch.ones(1, 1, 1, 1).bool(), 48, 16)}, "mask has block_q=48: must be"),
    ((tokens(3, 4, 8, 16),) * 3, {"mask": ROWS}, r"mask lists torch.int32 \[3, 2, 8\] on cpu"),
    ((Q, Q, Q), {"descale": (tokens(4), tokens(4), tokens(4))}, "descale with torch.float32"),
    ((FP8, FP8, FP8), {}, "no descale: float8_e4m3fn inputs, and they alone, need"),
    ((Q.half(),) * 3, {"descale": (tokens(4), tokens(4), tokens(4))}, "descale with torch.float16"),
    ((FP8, FP8, FP8), {"descale": (tokens(4), tokens(4))}, "descale has 2 tensors: must be three"),
    ((FP8, FP8, FP8), {"descale": (tokens(4).half(), tokens(4), tokens(4))}, "descale of q is torch.float16"),
    ((FP8, FP8, FP8), {"descale": (tokens(4), tokens(2), tokens(4))}, r"descale of k is torch.float32 \[2\] on cpu"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "options", "message"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_argument_is_named_with_its_value(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.attention(*given, **options)


T = tokens(20, 4, 16)
PACKED = [
    ((Q, Q, Q), {"cu_seqlens_q": ends(0, 20)}, r"q has shape \[2, 4, 8, 16\]: must be \[tokens, heads, head_dim\]"),
    ((T, T, T), {"cu_seqlens_q": ends(0, 9, 5, 20)}, r"cu_seqlens_q=\[0, 9, 5, 20\]: must start at 0, not decrease"),
    ((T, T, T), {"cu_seqlens_q": ends(1, 20)}, r"cu_seqlens_q=\[1, 20\]: must start at 0"),
    ((T, T, T), {"cu_seqlens_kv": ends(0, 21)}, r"\[0, 21\]: .* end within the 20 tokens"),
    ((T, T, T), {"cu_seqlens_q": ends(0)}, r"cu_seqlens_q is torch.int32 \[1\]: must be int32 or int64"),
    ((T, T, T), {"cu_seqlens_q": tokens(3)}, "cu_seqlens_q is torch.float32"),
    ((T, T, T), {"cu_seqlens_q": ends(0, 20), "cu_seqlens_kv": ends(0, 5, 20)}, "cu_seqlens_kv has 2 sequences"),
    ((T, T, T), {"cu_seqlens_kv": ends(0, -3, 20)}, r"cu_seqlens_q=\[0, -3, 20\]: must start at 0, not decrease"),
    ((T, T, T), {"cu_seqlens_q": ends(0, 20).to("meta")}, "cu_seqlens_q is on meta: must be on cpu"),
    ((T, T, T), {"cu_seqlens_q": ends(0, 20), "mask": ROWS}, "packed sequences take causal, window, blocks"),
    ((T, T, T), {"cu_seqlens_q": ends(0, 20), "bias": tokens(1, 4, 20, 20)}, "packed sequences take alibi_slopes"),
    ((T, T, T), {"cu_seqlens_q": ends(0, 20), "mask": "causal"}, "mask='causal': packed sequences take"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "options", "message"), PACKED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_packed_sequences(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.attention(*given, **options)


PAGES = tokens(6, 16, 4, 16)
TABLE = ends(0, 1, 2, 3).reshape(2, 2)
DECODE = [
    ((tokens(2, 4, 17, 16), Q, Q), {}, "q has 17 queries of a sequence: decode takes 1 to 16"),
    ((Q, Q, Q), {"kv_lengths": ends(8, 9)}, "kv_lengths holds 9: must be 0 to 8"),
    ((Q, Q, Q), {"kv_lengths": ends(-1, 8)}, "kv_lengths holds -1: must be 0 to 8"),
    ((Q, Q, Q), {"kv_lengths": ends(8)}, r"kv_lengths is torch.int32 \[1\] on cpu: must be int32 \[2\]"),
    ((Q, Q, Q), {"kv_lengths": tokens(2)}, r"kv_lengths is torch.float32"),
    ((Q, PAGES, PAGES), {"page_table": ends(0, 1, 2, 6).reshape(2, 2)}, r"page_table\[1, 1\]=6: .* 0 to 5"),
    ((Q, PAGES, PAGES), {"page_table": ends(0, -1, 2, 3).reshape(2, 2)}, r"page_table\[0, 1\]=-1"),
    ((Q, PAGES, PAGES), {"page_table": ends(0, 9, 1, 2, 9, 3).reshape(2, 3)[:, ::2]}, "page_table has strides"),
    ((Q, PAGES, PAGES), {"page_table": TABLE.to("meta")}, "page_table is torch.int32 .* on meta"),
    ((Q, tokens(2, 257, 4, 16), tokens(2, 257, 4, 16)), {"page_table": TABLE}, "k has pages of 257 tokens"),
    ((Q, Q, Q), {"sinks": tokens(3)}, r"sinks is torch.float32 \[3\]"),
    ((Q, Q, Q), {"alibi_slopes": tokens(3)}, r"alibi_slopes is torch.float32 \[3\]"),
    ((Q, Q, Q), {"window": (1, -2)}, r"window=\(1, -2\)"),
    ((Q, Q, Q), {"softcap": 0.0}, "softcap=0.0: must be a positive number"),
    ((FP8, FP8, FP8), {}, "no descale: float8_e4m3fn"),
    ((Q.clone().requires_grad_(), Q, Q), {}, "requires grad: decode has no backward pass"),
    ((Q, Q, Q), {"sinks": tokens(4).requires_grad_()}, "sinks requires grad: decode has no backward pass"),
    ((Q, PAGES, PAGES), {"page_table": TABLE, "kv_lengths": ends(32, 33)}, "kv_lengths holds 33: must be 0 to 32"),
    ((Q, PAGES, PAGES), {"page_table": TABLE.long()}, "page_table is torch.int64"),
    ((Q, PAGES, PAGES), {"page_table": TABLE[:1]}, r"page_table is torch.int32 \[1, 2\] on cpu: must be int32 \[2, "),
    ((Q, PAGES[:, :0], PAGES[:, :0]), {"page_table": TABLE}, "k has pages of 0 tokens: must be 1 to 256"),
    ((Q, PAGES, PAGES[:5]), {"page_table": TABLE}, r"v has shape \[5, 16, 4, 16\]: pages, page_size and heads"),
    ((Q, PAGES[..., :8], PAGES), {"page_table": TABLE}, "k has head_dim 8: must be that of q, 16"),
    ((Q, PAGES[:, :, :3], PAGES[:, :, :3]), {"page_table": TABLE}, "k has 3 heads"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "options", "message"), DECODE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_arguments_of_decode(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.decode(*given, **options)


WIDE = tokens(6, 16, 1, 640)
LATENT = [
    (WIDE[..., :576], tokens(6, 16, 1, 512), "q has head_dim 576: must be 1 to 256"),
    (WIDE, WIDE[..., :512], "q has head_dim 640: must be 1 to 576"),
    (WIDE[..., :576], WIDE[..., :513], "v has head_dim 513: must be 1 to 512"),
]


@pytest.mark.parametrize(("k", "v", "message"), LATENT, ids=lambda value: value if isinstance(value, str) else "")
def test_wide_heads_need_values_that_are_a_view_of_the_keys(k: Any, v: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.decode(tokens(2, 4, 8, k.shape[-1]), k, v, page_table=TABLE)


TOKENS, ENDS = tokens(6, 4, 16), ends(0, 5, 6)
SHARED = {"page_table": ends(0, 1, 0, 3).reshape(2, 2), "shared_prefix": 16}
OF_REQUESTS = [
    ((Q, TOKENS, TOKENS), {}, r"q has shape \[2, 4, 8, 16\]: must be \[tokens, heads, head_dim\]"),
    ((TOKENS, Q[0, 0], TOKENS), {}, r"k has shape \[8, 16\]: must be \[tokens, heads, head_dim\]"),
    ((TOKENS, TOKENS, TOKENS), {"cu_seqlens_q": ends(0, 5)}, "cu_seqlens_q ends at 5: must end at 6"),
    ((TOKENS, TOKENS, TOKENS), {"cu_seqlens_kv": ends(0, 9, 5)}, "cu_seqlens_kv=.*must start at 0, not decrease"),
    ((TOKENS, TOKENS, TOKENS), {"cu_seqlens_kv": ends(0, 5)}, "cu_seqlens_kv has 1 sequences, cu_seqlens_q has 2"),
    ((TOKENS, TOKENS, TOKENS), {"kv_lengths": ends(5, 1)}, "kv_lengths with cu_seqlens_q: packed keys"),
    ((TOKENS, PAGES, PAGES), {"page_table": TABLE, "cu_seqlens_kv": ENDS}, "cu_seqlens_kv with page_table: keys in"),
    ((TOKENS, PAGES, PAGES), {"page_table": TABLE[:1]}, r"page_table is torch.int32 .* must be int32 \[2, "),
    ((TOKENS, PAGES, PAGES), {"page_table": TABLE, "kv_lengths": ends(5)}, r"kv_lengths is .*: must be int32 \[2\]"),
    ((TOKENS, PAGES, PAGES), {"page_table": TABLE, "kv_lengths": ends(40, 1)}, "kv_lengths holds 40: must be 0 to 32"),
    ((Q, Q, Q), {"cu_seqlens_q": None, "cu_seqlens_kv": ENDS}, "cu_seqlens_kv without cu_seqlens_q"),
    ((TOKENS, TOKENS, TOKENS), {"shared_prefix": 16}, "shared_prefix=16: needs cu_seqlens_q and page_table"),
    ((TOKENS, PAGES, PAGES), SHARED | {"shared_prefix": 8}, "shared_prefix=8: must be whole pages of 16, fewer than"),
    ((TOKENS, PAGES, PAGES), SHARED | {"shared_prefix": 32}, "shared_prefix=32: must be whole .* than the 2 of"),
    ((TOKENS, PAGES, PAGES), {"page_table": TABLE, "shared_prefix": 16}, r"page_table\[1\] begins with other pages"),
    ((TOKENS, PAGES, PAGES), SHARED | {"kv_lengths": ends(20, 30)}, "the queries of request 0 are not all behind it"),
    ((TOKENS, PAGES, PAGES), SHARED | {"window": 4}, "shared_prefix=16: with alibi_slopes or a window"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "options", "message"), OF_REQUESTS)
def test_bad_arguments_of_a_batch_of_requests(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.decode(*given, **({"cu_seqlens_q": ENDS} | options))


MADE = [
    (lambda: kernels.rows(tokens(1, 8), tokens(1, 8), seq_kv=8), r"low is torch.float32 \[1, 8\]: both must be int"),
    (lambda: kernels.rows(ends(0, 1), ends(0, 1), seq_kv=8), r"low is torch.int32 \[2\]: both .*batch or 1, seq_q"),
    (lambda: kernels.rows(ends(0, 1)[None], ends(0)[None], seq_kv=8), r"high is torch.int32 \[1, 1\]: .* of one shape"),
    (lambda: kernels.blocks(torch.ones(1, 1, 2, 2).int()), r"visible is torch.int32 \[1, 1, 2, 2\]: must be bool"),
    (lambda: kernels.blocks(torch.ones(2, 2).bool()), r"visible is torch.bool \[2, 2\]: must be bool \[batch"),
    (lambda: kernels.t5_bias(tokens(32), 4, 4), r"table has shape \[32\]: must be \[buckets, heads\]"),
    (lambda: kernels.t5_bias(tokens(3, 2), 4, 4), r"table has shape \[3, 2\]: .* at least 4 buckets, 2 to each side"),
    (lambda: kernels.t5_bias(tokens(32, 2), 4, 4, max_distance=8), "max_distance=8: must be above 8, the buckets of"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), MADE, ids=lambda value: value if isinstance(value, str) else "")
def test_masks_and_biases_are_not_made_of_what_they_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@uninterpreted  # which would read beyond the keys
def test_intervals_made_for_more_keys_are_refused() -> None:
    low, high = torch.zeros(2, 8, dtype=torch.int64), torch.full((2, 8), 64)
    with pytest.raises(ValueError, match="mask is of 64 keys: must be of 8"):
        kernels.attention(Q, Q, Q, mask=kernels.rows(low, high, seq_kv=64))


def test_a_window_is_no_truth_value() -> None:
    with pytest.raises(ValueError, match="window=True: must be a number of keys"):
        kernels.attention(Q, Q, Q, window=True)


@pytest.mark.parametrize("text", ["nonsense", "document:99"])
def test_text_that_is_no_mask_of_this_shape_is_named(text: str) -> None:
    with pytest.raises(AttnbenchError, match=text):
        kernels.attention(Q, Q, Q, mask=text)


def test_unused_entries_of_a_page_table_may_hold_anything() -> None:
    from attnbench.kernels.arguments import check_pages

    check_pages(ends(0, 99, 1, 2).reshape(2, 2), ends(16, 32), 3, 16)


@uninterpreted
def test_cpu_tensors_are_refused_outside_the_interpreter() -> None:
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
        kernels.attention(Q, Q, Q)
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1"):
        kernels.decode(Q, Q, Q)
