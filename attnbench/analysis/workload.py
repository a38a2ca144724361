"""The numbers of a problem that its time and memory depend on, and its kind: everything about it that is no size."""

from functools import lru_cache
from typing import NamedTuple

from msgspec.structs import replace

from attnbench import backends
from attnbench.attention import cost
from attnbench.attention.choices import Autocast, KvDtype, Mode, Positions
from attnbench.attention.problem import Problem

# Features that are sizes, or follow from sizes: the laws of time take them as numbers.
_SIZES = frozenset({"gqa", "cross", "head_dim_v", "blind_rows", "scale", "requests"})
_GATHERED = 3  # keys in pages are read, written side by side, and read again


class Workload(NamedTuple):
    """The sizes of one problem in one mode, as one backend computes them."""

    sequences: float  # over batch and heads
    kv_sequences: float
    queries: float  # of a sequence, on average
    keys: float
    head_dim: float
    head_dim_v: float
    pairs: float  # of queries and keys, over batch and heads
    bytes: float  # of inputs and results
    dense_flops: float  # as if every pair were visible
    flops: float  # of the visible pairs alone, and of the matrices of a scope


@lru_cache(maxsize=64)  # the arms of a problem follow one another
def workload(problem: Problem, mode: Mode, padded: bool = False) -> Workload:
    """The sizes of a problem; `padded`: every request is computed at the lengths of the longest."""
    if padded and problem.requests:
        problem = replace(problem, requests="", shared_prefix="")
    read = cost.input_bytes(problem) * (_GATHERED if problem.page_size else 1)
    batch = problem.batch
    return Workload(
        sequences=batch * problem.heads,
        kv_sequences=batch * problem.kv_heads,
        queries=problem.tokens_q / batch,
        keys=problem.tokens_kv / batch,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        pairs=cost.dense_pairs(problem),
        bytes=read + cost.output_bytes(problem, mode),
        dense_flops=cost.flops_dense(problem, mode),
        flops=cost.flops(problem, mode),
    )


def of_backend(problem: Problem, mode: Mode, backend: str) -> Workload:
    """The sizes of a problem as this backend computes it."""
    return workload(problem, mode, bool(problem.requests) and pads(backend))


@lru_cache(maxsize=256)
def pads(backend: str) -> bool:
    """Whether a backend computes every request at the lengths of the longest."""
    return backend in backends.names() and backends.load(backend).pads


@lru_cache(maxsize=64)
def kind_of(problem: Problem) -> str:
    """Mask, score, cache and whatever else is no size, in words; problems of one kind obey one law."""
    words = sorted(problem.features - _SIZES)
    if problem.positions is not Positions.NONE:
        words.append(problem.positions.value)
    if problem.kv_dtype is not KvDtype.SAME:
        words.append(f"kv {problem.kv_dtype.value}")
    if problem.autocast is not Autocast.NONE:
        words.append(f"autocast {problem.autocast.value}")
    if (similarity := problem.score.similarity.value) not in ("dot", *words):
        words.append(similarity)
    if problem.requests:
        words.append("requests")
    if problem.scope != "core":
        words.append(problem.scope)
    return " ".join(words) or "plain"
