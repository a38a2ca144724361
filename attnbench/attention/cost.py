"""Exact work and traffic of a problem, counted from its mask.

`pairs` are the visible (query, key) pairs over batch and heads. A multiply and an add are two FLOPs; the softmax is not
counted, as is the convention of the field (FlashAttention-2, https://arxiv.org/abs/2307.08691, section 4.1).
Forward: q.k and p.v, so 2 pairs (d_qk + d_v). Backward: s again, then dv, dp, dq and dk, so 2 pairs (3 d_qk + 2 d_v).
"""

from __future__ import annotations

import math

from attnbench.attention import scopes
from attnbench.attention.problem import KvDtype, Mode, Problem, Returns, Scope


def pairs(problem: Problem) -> int:
    """Visible (query, key) pairs over batch and heads."""
    return problem.heads * problem.masking.pairs(problem.grid)


def flops(problem: Problem, mode: Mode) -> int:
    """FLOPs of one call, from the exact pairs; a scope adds those of its matrices, and its layers."""
    total = max(1, problem.scoped[1]) * _flops(pairs(problem), problem, mode)
    if inner := scopes.self_attention(problem):
        total += problem.scoped[1] * _flops(pairs(inner), inner, mode)
    # A product has two in its backward pass: for what it was given, and for its matrix.
    return total + 2 * _projections(problem) * {Mode.FWD: 1, Mode.BWD: 2, Mode.FWD_BWD: 3}[mode]


def exponentials(problem: Problem, mode: Mode) -> int:
    """exp of one call: one a visible pair in each pass, since a fused backward makes the weights again."""
    return pairs(problem) * (2 if mode is Mode.FWD_BWD else 1)


def flops_dense(problem: Problem, mode: Mode) -> int:
    """FLOPs if every pair were visible."""
    return _flops(_all_pairs(problem), problem, mode)


def flops_half_causal(problem: Problem, mode: Mode) -> int:
    """The convention of most published figures: dense, halved for any mask that holds causal."""
    halved = bool(problem.masking.words & {"causal", "prefix", "strided"})
    return flops_dense(problem, mode) // (2 if halved else 1)


def input_bytes(problem: Problem) -> int:
    """q, k and v, each once; k and v as a cache keeps them, with their scales."""
    return _q_numbers(problem) * problem.dtype.bytes + kv_bytes(problem)


def kv_bytes(problem: Problem) -> int:
    """k and v as a cache keeps them: in int8 and fp8 a byte a number, and 4 bytes of scale a token and head."""
    numbers = _k_numbers(problem) + _v_numbers(problem)
    if problem.kv_dtype is KvDtype.SAME:
        return numbers * problem.dtype.bytes
    return numbers + 2 * 4 * _kv_tokens(problem) * problem.kv_heads


def output_bytes(problem: Problem, mode: Mode) -> int:
    """What a call gives back: out and the lse (float32) where asked for, and dq, dk, dv."""
    out = _out_numbers(problem) * problem.dtype.out.bytes
    if problem.returns is Returns.LSE:
        out += _lse_bytes(problem)
    if problem.returns is Returns.WEIGHTS:
        out += problem.batch * problem.heads * problem.seq_q * problem.seq_kv * problem.dtype.out.bytes
    if mode is Mode.FWD:
        return out
    gradients = (_q_numbers(problem) + _k_numbers(problem) + _v_numbers(problem)) * problem.dtype.out.bytes
    return gradients if mode is Mode.BWD else out + gradients


def traffic_bytes(problem: Problem, mode: Mode) -> int:
    """Compulsory traffic: every input read once, every output written once, nothing kept in a cache between passes.

    The backward pass reads q, k, v, out, dout and the lse, and writes dq, dk and dv. A scope adds its weights.
    """
    forward = input_bytes(problem) + output_bytes(problem, Mode.FWD)
    out = _out_numbers(problem) * problem.dtype.out.bytes
    backward = input_bytes(problem) + 2 * out + _lse_bytes(problem) + output_bytes(problem, Mode.BWD)
    weights = sum(math.prod(shape) for shape in scopes.shapes(problem).values()) * problem.dtype.bytes
    forward, backward = forward + weights, backward + 2 * weights  # read again, and their gradients written
    return {Mode.FWD: forward, Mode.BWD: backward, Mode.FWD_BWD: forward + backward}[mode]


def scope_bytes(problem: Problem, mode: Mode) -> int:
    """Bytes at the peak of a call that a block or layers add: weights and what lies between their steps, predicted."""
    weights = sum(math.prod(shape) for shape in scopes.shapes(problem).values()) * problem.dtype.bytes
    tokens = input_bytes(problem) + output_bytes(problem, Mode.FWD)
    kind, depth = problem.scoped
    wide = (1 + scopes.FEED_FORWARD) * _q_numbers(problem) * problem.dtype.bytes if kind is Scope.LAYER else 0
    if mode is Mode.FWD:
        return weights + tokens + wide
    return 2 * weights + max(1, depth) * (2 * tokens + wide)


def _projections(problem: Problem) -> int:
    """Multiply-adds of the matrices of a scope, forward."""
    total = 0
    for name, (width, out) in scopes.shapes(problem).items():
        of_keys = name.split()[-1] in "kv" and "self" not in name
        total += (_kv_tokens(problem) if of_keys else _q_tokens(problem)) * width * out
    return total


def _flops(pair_count: int, problem: Problem, mode: Mode) -> int:
    forward = 2 * pair_count * (problem.head_dim + problem.head_dim_v)
    backward = 2 * pair_count * (3 * problem.head_dim + 2 * problem.head_dim_v)
    return {Mode.FWD: forward, Mode.BWD: backward, Mode.FWD_BWD: forward + backward}[mode]


def _all_pairs(problem: Problem) -> int:
    if problem.lengths:
        return problem.heads * sum(n * n for n in problem.lengths)
    return problem.batch * problem.heads * problem.seq_q * problem.seq_kv


def _q_tokens(problem: Problem) -> int:
    return sum(problem.lengths) or problem.batch * problem.seq_q


def _kv_tokens(problem: Problem) -> int:
    return sum(problem.lengths) or problem.batch * problem.seq_kv


def _q_numbers(problem: Problem) -> int:
    return _q_tokens(problem) * problem.heads * problem.head_dim


def _k_numbers(problem: Problem) -> int:
    return _kv_tokens(problem) * problem.kv_heads * problem.head_dim


def _v_numbers(problem: Problem) -> int:
    return _kv_tokens(problem) * problem.kv_heads * problem.head_dim_v


def _out_numbers(problem: Problem) -> int:
    return _q_tokens(problem) * problem.heads * problem.head_dim_v


def _lse_bytes(problem: Problem) -> int:
    return 4 * _q_tokens(problem) * problem.heads
