"""Prefixes that requests of a batch share, as a system prompt in a server: `2k:8` is 2048 keys for every 8 requests.

A request has the prefix if all its queries come after it: keys - queries >= prefix. Others, such as the prefill that
computes the prefix, share nothing. Those that have it are grouped in the order of the batch. Several segments are the
groups themselves, of consecutive requests: of `2k:8_0:2_512:3`, 8 requests share 2048 keys, 2 none, and 3 share 512.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from attnbench.attention import requests
from attnbench.attention.requests import RequestSize
from attnbench.attention.terms import scaled
from attnbench.errors import ProblemError

_PREFIX = re.compile(r"(\d{1,12}k?):(\d{1,6})")


class SharedPrefix(NamedTuple):
    """How many keys are shared by how many requests."""

    keys: int  # 0 between groups: of requests that share none
    requests: int  # of a group; the last group of equal ones may have fewer


class PrefixGroup(NamedTuple):
    """Requests that share the storage of their first keys."""

    keys: int
    requests: tuple[int, ...]  # numbers of at least two requests of the batch, ascending


def parse(text: str) -> tuple[SharedPrefix, ...]:
    """Read `2k:8`, or the groups `2k:8_0:2_512:3`. Raises ProblemError."""
    prefixes: list[SharedPrefix] = []
    for segment in text.strip().split("_"):
        if not (match := _PREFIX.fullmatch(segment)):
            form = "<keys>:<requests>, as 2k:8 for 2048 keys of every 8 requests"
            raise ProblemError(f"shared_prefix={text!r}: use {form}, or groups in order, as 2k:8_0:2_512:3")
        prefixes.append(SharedPrefix(requests.tokens(match[1]), int(match[2])))
    if not any(keys for keys, _ in prefixes) or any(count < (2 if keys else 1) for keys, count in prefixes):
        raise ProblemError(f"shared_prefix={text!r}: use at least 1 key and 2 requests, as 2k:8")
    return tuple(prefixes)


def spell(prefixes: Sequence[SharedPrefix]) -> str:
    """The canonical text."""
    return "_".join(f"{requests.short_tokens(keys)}:{count}" for keys, count in prefixes)


def short(text: str) -> str:
    """The text for a label; of many groups, their number, the keys that they save, and a hash."""
    if len(text) <= requests.LONGEST_LABEL:
        return text
    several = [prefix for prefix in parse(text) if prefix.keys]
    saved = sum(keys * (count - 1) for keys, count in several)
    return f"{len(several)}-groups-save-{requests.short_tokens(saved)}~{requests.digest(text)}"


def check(text: str, sizes: tuple[RequestSize, ...], page_size: int) -> None:
    """Raise ProblemError where the requests cannot have this prefix, or share no page of it; no sizes: no requests."""
    if not sizes:
        raise ProblemError(f"shared_prefix={text}: use it with requests, as requests=8q1s4k")
    if not all(size.queries for size in sizes):
        raise ProblemError(f"shared_prefix={text}: a request without queries shares nothing: leave one of both out")
    prefixes = parse(text)
    if len(prefixes) == 1:
        _check_equal(prefixes[0], sizes)
    else:
        _check_groups(prefixes, sizes)
    if min(keys for keys, _ in prefixes if keys) < page_size:
        raise ProblemError(f"shared_prefix={text} with page_size={page_size}: whole pages are shared; use a longer one")


def _check_equal(prefix: SharedPrefix, sizes: tuple[RequestSize, ...]) -> None:
    name, shortest = f"shared_prefix={spell((prefix,))}", min(sizes, key=lambda size: size.keys)
    if shortest.keys < prefix.keys:
        which = f"request {requests.spell((shortest,))} has {shortest.keys} keys, fewer than the prefix"
        raise ProblemError(f"{name}: {which}; use longer requests or {_at_most(sizes, prefix)}")
    if len(_members(prefix, sizes)) < 2:
        needed = f"fewer than 2 requests have {prefix.keys} keys before their queries"
        raise ProblemError(f"{name}: {needed}; use longer requests or {_at_most(sizes, prefix)}")


def _check_groups(prefixes: Sequence[SharedPrefix], sizes: tuple[RequestSize, ...]) -> None:
    name, named = f"shared_prefix={spell(prefixes)}", sum(count for _, count in prefixes)
    if named > len(sizes):
        raise ProblemError(f"{name}: groups of {named} requests for a batch of {len(sizes)}: use fewer")
    for keys, members in _groups(prefixes, sizes):
        for number in members:
            if (before := sizes[number].keys - sizes[number].queries) < keys:
                which = f"request {number + 1} ({requests.spell((sizes[number],))})"
                raise ProblemError(f"{name}: {which} has {before} keys before its queries: use at most {before}")


def groups(text: str, sizes: tuple[RequestSize, ...], page_size: int) -> tuple[PrefixGroup, ...]:
    """The groups of requests that share keys: in pages, those of whole pages alone, and each request has the rest."""
    several = _groups(parse(text), sizes)
    return tuple(
        PrefixGroup(keys // page_size * page_size if page_size else keys, members)
        for keys, members in several
        if keys and len(members) > 1
    )


def shrunk(text: str, sizes: tuple[RequestSize, ...], smaller: tuple[RequestSize, ...], share: float) -> str:
    """The prefix for requests of `share` of their length: who had it has it still, if a key is before the queries."""
    prefixes = parse(text)
    if len(prefixes) == 1:
        before = (smaller[number].keys - smaller[number].queries for number in _members(prefixes[0], sizes))
        return spell([prefixes[0]._replace(keys=min([scaled(prefixes[0].keys, share), *filter(None, before)]))])
    short = [
        SharedPrefix(
            min([scaled(keys, share), *(smaller[each].keys - smaller[each].queries for each in members)]), count
        )
        for (_, count), (keys, members) in zip(prefixes, _groups(prefixes, sizes), strict=True)
    ]
    return spell(short) if any(keys for keys, _ in short) else ""


def _groups(prefixes: Sequence[SharedPrefix], sizes: tuple[RequestSize, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The keys and the requests of every segment; of one segment, as often as there are requests that have them."""
    if len(prefixes) == 1:
        members, count = _members(prefixes[0], sizes), prefixes[0].requests
        yield from (
            (prefixes[0].keys, tuple(members[start : start + count])) for start in range(0, len(members), count)
        )
        return
    ends = itertools.accumulate((count for _, count in prefixes), initial=0)
    for (keys, _), (start, stop) in zip(prefixes, itertools.pairwise(ends), strict=True):
        yield keys, tuple(range(start, stop))


def _members(prefix: SharedPrefix, sizes: tuple[RequestSize, ...]) -> list[int]:
    return [number for number, (queries, keys) in enumerate(sizes) if keys - queries >= prefix.keys]


def _at_most(sizes: tuple[RequestSize, ...], prefix: SharedPrefix) -> str:
    """The longest prefix that every request can have and that two of them share."""
    before = sorted(keys - queries for queries, keys in sizes)
    longest = min(before[-2] if len(before) > 1 else 0, min(keys for _, keys in sizes))
    return f"shared_prefix={spell([prefix._replace(keys=longest)])}" if longest else "more requests, as 8q1s4k"
