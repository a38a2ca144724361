"""Batches of requests with their own numbers of queries and keys, in the grammar of vLLM's attention benchmark.

Segments are joined by `_`: an optional count, `q` and the queries of each request, and optionally `s` and its keys in
all, as many as queries if left out. `k` after a number multiplies it by 1024: `2q2k_32q1s1k` is two prefills of 2048
tokens beside 32 decodes over 1024. An older spelling has `kv` for `s`.
https://github.com/vllm-project/vllm/blob/main/benchmarks/attention_benchmarks/batch_spec.py
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from attnbench.attention.terms import scaled
from attnbench.errors import ProblemError

MAX_REQUESTS = 65_536
LONGEST_LABEL = 40  # characters
_SEGMENT = re.compile(r"(\d{1,12})?q(\d{1,12}k?)(?:(?:s|kv)(\d{1,12}k?))?")


class RequestSize(NamedTuple):
    """One request of a batch, in tokens."""

    queries: int  # scheduled in this step; 0: it waits, and has no output
    keys: int  # in all, those of the queries included


@lru_cache(maxsize=65536)
def parse(text: str) -> tuple[RequestSize, ...]:
    """Every request of a batch, in order. Raises ProblemError for a malformed segment."""
    requests: list[RequestSize] = []
    for segment in text.strip().split("_"):
        match = _SEGMENT.fullmatch(segment)
        if not match:
            raise ProblemError(
                f"requests {text!r}: {segment!r} is no segment: use [count]q<queries>[s<keys>], as 4q1s2k"
            )
        count, queries = int(match[1] or 1), tokens(match[2])
        keys = queries if match[3] is None else tokens(match[3])
        if count < 1:
            raise ProblemError(f"requests {text!r}: {segment!r}: the count must be at least 1; leave the segment out")
        if keys < queries:
            raise ProblemError(
                f"requests {text!r}: {segment!r}: {keys} keys are fewer than {queries} queries; s counts all"
            )
        if len(requests) + count > MAX_REQUESTS:
            raise ProblemError(f"requests {text!r}: more than {MAX_REQUESTS:,} requests")
        requests += [RequestSize(queries, keys)] * count
    if not any(queries for queries, _ in requests):
        raise ProblemError(f"requests {text!r}: no request has a query: use q1 or more in one of them, as q0s8_q1s8")
    return tuple(requests)


def spell(requests: tuple[RequestSize, ...]) -> str:
    """The canonical text: neighbours that are equal are counted, `k` is used where it is exact."""
    return "_".join(_segment(len(list(equal)), *request) for request, equal in itertools.groupby(requests))


@lru_cache(maxsize=1024)
def spans(requests: tuple[RequestSize, ...]) -> tuple[tuple[slice, slice], ...]:
    """The queries and the keys of every request that has queries, among those of all."""
    ends = (itertools.accumulate(counts, initial=0) for counts in zip(*requests, strict=True))
    queries, keys = (itertools.starmap(slice, itertools.pairwise(each)) for each in ends)
    return tuple(span for span, size in zip(zip(queries, keys, strict=True), requests, strict=True) if size.queries)


def tokens(text: str) -> int:
    """A number of tokens, in units of 1024 with `k`."""
    return int(text.removesuffix("k")) * (1024 if text.endswith("k") else 1)


def short_tokens(count: int) -> str:
    """A number of tokens, with `k` where that is exact."""
    return f"{count // 1024}k" if count and count % 1024 == 0 else str(count)


def short(text: str) -> str:
    """The text for a label; of many segments, the tokens of all requests, and a hash."""
    if len(text) <= LONGEST_LABEL:
        return text
    queries, keys = map(sum, zip(*parse(text), strict=True))
    return f"q{queries}s{keys}~{digest(text)}"


def short_lengths(lengths: Sequence[int]) -> str:
    """The lengths of a ragged batch for a label; of many, their number and range, and a hash."""
    text = "-".join(map(str, lengths))
    if len(text) <= LONGEST_LABEL:
        return text
    return f"{len(lengths)}x{min(lengths)}..{max(lengths)}~{digest(text)}"


def digest(text: str) -> str:
    """What tells two long texts apart in their labels."""
    return hashlib.sha256(text.encode()).hexdigest()[:4]


def shrunk(requests: tuple[RequestSize, ...], share: float) -> tuple[RequestSize, ...]:
    """The same requests with `share` of their queries and keys, each at least 1 where there are any."""
    return tuple(RequestSize(*(scaled(count, share) if count else 0 for count in size)) for size in requests)


def _segment(count: int, queries: int, keys: int) -> str:
    prefix = str(count) if count > 1 else ""
    return f"{prefix}q{short_tokens(queries)}" + (f"s{short_tokens(keys)}" if keys != queries else "")
