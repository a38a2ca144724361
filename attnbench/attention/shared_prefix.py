"""Prefixes that requests of a batch share, as a system prompt in a server: `2k:8` is 2048 keys for every 8 requests.

A request has the prefix if all its queries come after it: keys - queries >= prefix. Others, such as the prefill that
computes the prefix, share nothing. Those that have it are grouped in the order of the batch.
"""

import re
from typing import NamedTuple

from attnbench.attention import requests
from attnbench.attention.requests import RequestSize
from attnbench.attention.terms import scaled
from attnbench.errors import ProblemError

_PREFIX = re.compile(r"(\d{1,12}k?):(\d{1,6})")


class SharedPrefix(NamedTuple):
    """How many keys are shared by how many requests."""

    keys: int
    requests: int  # of a group; the last group may have fewer


class PrefixGroup(NamedTuple):
    """Requests that share the storage of their first keys."""

    keys: int
    requests: tuple[int, ...]  # numbers of at least two requests of the batch, ascending


def parse(text: str) -> SharedPrefix:
    """Read `2k:8`. Raises ProblemError."""
    match = _PREFIX.fullmatch(text.strip())
    if not match:
        raise ProblemError(f"shared_prefix={text!r}: use <keys>:<requests>, as 2k:8 for 2048 keys of every 8 requests")
    prefix = SharedPrefix(requests.tokens(match[1]), int(match[2]))
    if prefix.keys < 1 or prefix.requests < 2:
        raise ProblemError(f"shared_prefix={text!r}: use at least 1 key and 2 requests, as 2k:8")
    return prefix


def spell(prefix: SharedPrefix) -> str:
    """The canonical text."""
    return f"{requests.short_tokens(prefix.keys)}:{prefix.requests}"


def check(text: str, sizes: tuple[RequestSize, ...], page_size: int) -> None:
    """Raise ProblemError where the requests cannot have this prefix, or share no page of it; no sizes: no requests."""
    if not sizes:
        raise ProblemError(f"shared_prefix={text}: use it with requests, as requests=8q1s4k")
    prefix = parse(text)
    shortest = min(sizes, key=lambda size: size.keys)
    if shortest.keys < prefix.keys:
        which = f"request {requests.spell((shortest,))} has {shortest.keys} keys, fewer than the prefix"
        raise ProblemError(f"shared_prefix={text}: {which}; use longer requests or {_at_most(sizes, prefix)}")
    if len(_members(prefix, sizes)) < 2:
        needed = f"fewer than 2 requests have {prefix.keys} keys before their queries"
        raise ProblemError(f"shared_prefix={text}: {needed}; use longer requests or {_at_most(sizes, prefix)}")
    if prefix.keys < page_size:
        raise ProblemError(f"shared_prefix={text} with page_size={page_size}: whole pages are shared; use a longer one")


def groups(text: str, sizes: tuple[RequestSize, ...], page_size: int) -> tuple[PrefixGroup, ...]:
    """The groups of requests that share keys: in pages, those of whole pages alone, and each request has the rest."""
    prefix = parse(text)
    keys = prefix.keys // page_size * page_size if page_size else prefix.keys
    members = _members(prefix, sizes)
    several = (tuple(members[start : start + prefix.requests]) for start in range(0, len(members), prefix.requests))
    return tuple(PrefixGroup(keys, group) for group in several if len(group) > 1)


def shrunk(text: str, sizes: tuple[RequestSize, ...], smaller: tuple[RequestSize, ...], share: float) -> str:
    """The prefix for requests of `share` of their length: who had it has it still, if a key is before the queries."""
    prefix = parse(text)
    before = (smaller[number].keys - smaller[number].queries for number in _members(prefix, sizes))
    return spell(prefix._replace(keys=min([scaled(prefix.keys, share), *filter(None, before)])))


def _members(prefix: SharedPrefix, sizes: tuple[RequestSize, ...]) -> list[int]:
    return [number for number, (queries, keys) in enumerate(sizes) if keys - queries >= prefix.keys]


def _at_most(sizes: tuple[RequestSize, ...], prefix: SharedPrefix) -> str:
    """The longest prefix that every request can have and that two of them share."""
    before = sorted(keys - queries for queries, keys in sizes)
    longest = min(before[-2] if len(before) > 1 else 0, min(keys for _, keys in sizes))
    return f"shared_prefix={spell(prefix._replace(keys=longest))}" if longest else "more requests, as 8q1s4k"
