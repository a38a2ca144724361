"""FLOPs and bytes of a problem, counted exactly from its mask.

`pairs` are the visible (query, key) pairs over batch and heads. A multiply and an add are two FLOPs; the softmax is not
counted, by the convention of the field (FlashAttention-2, https://arxiv.org/abs/2307.08691, section 4.1).
Forward: q.k and p.v, so 2 pairs (d_qk + d_v). Backward: q.k again, then dv, dp, dq and dk, so
2 pairs (3 d_qk + 2 d_v).
Of a latent cache, these are the FLOPs of expanded keys and values without the products that expand them: less than any
implementation computes. What a backend computes is its fact `executed_flops`.
"""

import math
from collections import Counter
from functools import lru_cache

import numpy as np

from attnbench.attention import latent, scopes
from attnbench.attention.biases import Relative
from attnbench.attention.choices import KvDtype, Mode, Returns
from attnbench.attention.kv_cache import stored_bytes
from attnbench.attention.problem import Problem
from attnbench.attention.scope_text import Scope

# FLOPs of a visible pair: how many for each number of head_dim, and for each of head_dim_v.
_PAIR_FLOPS = {Mode.FWD: (2, 2), Mode.BWD: (6, 4), Mode.FWD_BWD: (8, 6)}

_once = lru_cache(maxsize=4096)  # the metrics of a case, and the arms of a problem, count the same


@_once
def pairs(problem: Problem) -> int:
    """Visible (query, key) pairs over batch and heads."""
    parts = Counter(problem.parts)
    return problem.heads * sum(count * part.masking.pairs(part.grid) for part, count in parts.items())


def dense_pairs(problem: Problem) -> int:
    """All (query, key) pairs over batch and heads."""
    if problem.requests or problem.lengths:
        return problem.heads * sum(queries * keys for queries, keys in problem.sizes)
    return problem.heads * problem.batch * problem.seq_q * problem.seq_kv


@_once
def flops(problem: Problem, mode: Mode) -> int:
    """FLOPs of one call, from the exact pairs; a block or layers add those of their matrices."""
    total = max(1, problem.scoped[1]) * _flops(pairs(problem), problem, mode)
    if problem.scope == "core":
        return total
    if inner := scopes.self_attention(problem):
        total += problem.scoped[1] * _flops(pairs(inner), inner, mode)
    # The backward pass of a product has two: the gradients of its input and of its matrix.
    return total + 2 * _projections(problem) * {Mode.FWD: 1, Mode.BWD: 2, Mode.FWD_BWD: 3}[mode]


def exponentials(problem: Problem, mode: Mode) -> int:
    """Exponentials of one call: one for each visible pair and pass, since a fused backward recomputes the weights."""
    return pairs(problem) * (2 if mode is Mode.FWD_BWD else 1)


@_once
def flops_dense(problem: Problem, mode: Mode) -> int:
    """FLOPs if every pair were visible."""
    return _flops(dense_pairs(problem), problem, mode)


def flops_half_causal(problem: Problem, mode: Mode) -> int:
    """FLOPs by the convention of most published figures: dense, halved for any causal mask."""
    return flops_dense(problem, mode) // (2 if problem.masking.holds_causal else 1)


@_once
def input_bytes(problem: Problem) -> int:
    """Bytes of q, k and v; k and v in the format of the cache, with their scales."""
    return _q_numbers(problem) * problem.dtype.bytes + kv_bytes(problem)


def kv_bytes(problem: Problem) -> int:
    """Bytes of k and v in the cache, with the scales of its format; shared pages once."""
    shared = sum(keys * (len(members) - 1) for keys, members in problem.prefix_groups) if problem.page_size else 0
    return _bytes_of_kv(problem, problem.tokens_kv - shared)


def seen_keys(problem: Problem) -> int:
    """Keys that some query sees, in tokens over the batch; those of a shared prefix count once for its requests."""
    parts = problem.parts
    total = sum(count * part.masking.seen_keys(part.grid) for part, count in Counter(parts).items())
    for keys, members in problem.prefix_groups:
        counts = Counter(parts[number] for number in members)
        seen = {part: part.masking.seen(part.grid)[0, :keys] for part in counts}
        of_each = sum(count * int(seen[part].sum()) for part, count in counts.items())
        total -= of_each - int(np.logical_or.reduce(list(seen.values())).sum())
    return total


def output_bytes(problem: Problem, mode: Mode) -> int:
    """Bytes of the results: out, the lse (float32) or the weights if they are returned, and dq, dk, dv."""
    out = _out_bytes(problem)
    if problem.returns is Returns.LSE:
        out += _lse_bytes(problem)
    if problem.returns is Returns.WEIGHTS:
        out += problem.tokens_q * problem.heads * problem.seq_kv * problem.dtype.out.bytes
    if mode is Mode.FWD:
        return out
    gradients = (_q_numbers(problem) + _kv_numbers(problem)) * problem.dtype.out.bytes
    return gradients if mode is Mode.BWD else out + gradients


@_once
def traffic_bytes(problem: Problem, mode: Mode) -> int:
    """Compulsory bytes: what is needed is read once, every output written once, nothing is cached between passes.

    A key that no query sees is not needed, nor is its value: a decoding step with a window reads the window. Pages add
    4 bytes each for the table. The backward pass reads q, k, v, out, dout and the lse, and writes dq, dk and dv. A
    scope adds its weights, and a latent cache, which is read once, the matrices of its keys and values.
    """
    read = _q_numbers(problem) * problem.dtype.bytes + _bytes_of_kv(problem, seen_keys(problem)) + _table_bytes(problem)
    forward = read + output_bytes(problem, Mode.FWD)
    backward = read + 2 * _out_bytes(problem) + _lse_bytes(problem) + output_bytes(problem, Mode.BWD)
    weights = _weight_bytes(problem)
    forward, backward = forward + weights, backward + 2 * weights  # read again, and their gradients written
    return {Mode.FWD: forward, Mode.BWD: backward, Mode.FWD_BWD: forward + backward}[mode]


def merge_bytes(problem: Problem) -> int:
    """What a cascade adds to the compulsory bytes: both levels write out and lse of each row, and read them again."""
    rows = sum(problem.sizes[number].queries for group in problem.prefix_groups for number in group.requests)
    return 4 * rows * problem.heads * (problem.head_dim_v * problem.dtype.out.bytes + 4)


@_once
def call_bytes(problem: Problem, mode: Mode) -> int:
    """Bytes of the inputs and results of a call; with gradients also those of out and of its gradient."""
    total = input_bytes(problem) + output_bytes(problem, Mode.FWD)
    return total + output_bytes(problem, Mode.FWD_BWD) if mode.needs_grad else total


def scope_bytes(problem: Problem, mode: Mode) -> int:
    """Bytes that a block or layers add to the peak of a call, predicted: weights and intermediate results."""
    weights = _weight_bytes(problem)
    tokens = input_bytes(problem) + output_bytes(problem, Mode.FWD)
    kind, depth = problem.scoped
    wide = (1 + scopes.FEED_FORWARD) * _q_numbers(problem) * problem.dtype.bytes if kind is Scope.LAYER else 0
    if mode is Mode.FWD:
        return weights + tokens + wide
    return 2 * weights + max(1, depth) * (2 * tokens + wide)


def relative_bias_bytes(problem: Problem, bias: Relative) -> int:
    """Bytes that `bias.whole` allocates: the products twice, the values gathered from them, and 64-bit row numbers."""
    rows = problem.batch * problem.heads * problem.seq_q
    numbers = rows * (2 * bias.table_rows(problem) + problem.seq_kv)
    return numbers * problem.dtype.bytes + 8 * problem.seq_q * problem.seq_kv


def _bytes_of_kv(problem: Problem, tokens: int) -> int:
    rows, widths = tokens * problem.kv_heads, problem.kv_widths
    if problem.kv_dtype is KvDtype.SAME:
        return rows * sum(widths) * problem.dtype.bytes
    return sum(stored_bytes(problem.kv_dtype, rows, width) for width in widths if width)


def _table_bytes(problem: Problem) -> int:
    """Bytes of the table of pages, if the cache has pages."""
    if not problem.page_size:
        return 0
    return 4 * sum(-(-keys // problem.page_size) for queries, keys in problem.sizes if queries)


def _weight_bytes(problem: Problem) -> int:
    scoped = sum(math.prod(shape) for shape in scopes.shapes(problem).values()) * problem.dtype.bytes
    return scoped + latent.matrix_bytes(problem)


def _projections(problem: Problem) -> int:
    """Multiply-adds of the matrices of a block or layers, forward."""
    total = 0
    for name, (width, out) in scopes.shapes(problem).items():
        of_keys = name.split()[-1] in "kv" and "self" not in name
        total += (problem.tokens_kv if of_keys else problem.tokens_q) * width * out
    return total


def _flops(pair_count: int, problem: Problem, mode: Mode) -> int:
    of_width, of_width_v = _PAIR_FLOPS[mode]
    return pair_count * (of_width * problem.head_dim + of_width_v * problem.head_dim_v)


def _q_numbers(problem: Problem) -> int:
    return problem.tokens_q * problem.heads * problem.head_dim


def _kv_numbers(problem: Problem) -> int:
    return problem.tokens_kv * problem.kv_heads * sum(problem.kv_widths)


def _out_bytes(problem: Problem) -> int:
    return problem.tokens_q * problem.heads * problem.head_dim_v * problem.dtype.out.bytes


def _lse_bytes(problem: Problem) -> int:
    return 4 * problem.tokens_q * problem.heads
