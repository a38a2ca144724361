"""What the requests of a step share, against brute force, and their parts in chunks."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from attnbench.attention import shared_prefix
from attnbench.attention.requests import RequestSize
from attnbench.suite.serving.generate import Traffic, generate
from attnbench.suite.serving.scheduler import Batch, Scheduler, SchedulerOptions
from attnbench.suite.serving.step_requests import StepRequest, chunked, grouped, requests_of

SIZE = 4  # tokens of a block

# Prefixes as paths in a tree with two branches at each block; the block of a path is its number.
PATHS = st.lists(st.lists(st.integers(0, 1), max_size=4), min_size=1, max_size=6)


def step(paths: list[list[int]]) -> list[StepRequest]:
    """Requests of one query, with the blocks of these paths and a block of their own."""
    numbers: dict[tuple[int, ...], int] = {}
    held = [[numbers.setdefault(tuple(path[: end + 1]), len(numbers)) for end in range(len(path))] for path in paths]
    kv = np.array([SIZE * (len(path) + 1) + 1 for path in paths])
    blocks = [np.array([*each, 1000 + n], np.int64) for n, each in enumerate(held)]
    return list(requests_of(Batch(np.ones(len(paths), np.int64), kv), blocks, SIZE))


def partitions(members: list[int]) -> list[list[list[int]]]:
    if not members:
        return [[]]
    first, *rest = members
    return [
        [[first, *chosen], *others]
        for count in range(len(rest) + 1)
        for chosen in itertools.combinations(rest, count)
        for others in partitions([each for each in rest if each not in chosen])
    ]


def common(paths: list[list[int]]) -> int:
    return sum(1 for column in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False)))


@given(PATHS)
def test_groups_save_as_many_keys_as_any_groups_can(paths: list[list[int]]) -> None:
    best = max(
        sum(common([paths[member] for member in group]) * (len(group) - 1) for group in partition)
        for partition in partitions(list(range(len(paths))))
    )
    made = grouped(step(paths), SIZE)
    assert made.sharing.measured == SIZE * best
    held = [tuple(path[: end + 1]) for path in paths for end in range(len(path))]
    assert made.sharing.keys == SIZE * (len(held) - len(set(held)))
    assert sorted(made.sizes) == sorted(request.size for request in step(paths))
    if not best:
        assert made.prefixes == ()
        return
    groups = shared_prefix.groups(shared_prefix.spell(made.prefixes), made.sizes, SIZE)
    assert sum(keys * (len(members) - 1) for keys, members in groups) == made.sharing.measured
    shared_prefix.check(shared_prefix.spell(made.prefixes), made.sizes, SIZE)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=4), st.sampled_from((4, 8, 12, 7))
)
def test_parts_in_chunks_have_the_visible_pairs_of_the_requests(sizes: list[tuple[int, int]], chunk: int) -> None:
    requests = [StepRequest(RequestSize(queries, queries + before)) for queries, before in sizes]
    parts = [part.size for part in chunked(requests, chunk, SIZE)]
    assert sum(part.queries for part in parts) == sum(queries for queries, _ in sizes)
    pairs = [
        (i, j) for queries, before in sizes for i in range(before, before + queries) for j in range(i + 1)
        if i // chunk == j // chunk
    ]  # fmt: skip
    assert sum(q * kv - q * (q - 1) // 2 for q, kv in parts) == len(pairs)


def test_a_chunk_shares_what_lies_in_it() -> None:
    """Two requests share 3 blocks of 4 tokens; chunks of 8 begin at token 8, the third block."""
    requests = [StepRequest(RequestSize(1, keys), np.array([5, 6, 7])) for keys in (14, 16)]
    made = grouped(list(chunked(requests, 8, SIZE)), SIZE)
    assert made.sizes == ((1, 6), (1, 8))
    assert shared_prefix.spell(made.prefixes) == "4:2"
    # A chunk that does not begin with a block shares nothing.
    assert grouped(list(chunked(requests, 6, SIZE)), SIZE).prefixes == ()


def test_requests_with_equal_prompts_share_the_blocks_of_the_cache() -> None:
    """Four requests at once, of two prefixes of 1,024 tokens each: as soon as both are cached, all decode from them."""
    traffic = Traffic(requests=8, requests_per_s=1e6, input_tokens=64, input_variation=0, output_tokens=30, prefixes=2)
    for cached in (True, False):
        options = SchedulerOptions(kv_blocks=4000, block_size=16, prefix_cache=cached)
        scheduler = Scheduler(options, generate(traffic, seed=3))
        scheduler.step(0.0)
        batch = scheduler.step(1.0)
        while batch is not None and batch.q.max() > 1:
            batch = scheduler.step(1.0)
        assert batch is not None
        made = grouped(requests_of(batch, scheduler.blocks, 16), 16)
        assert [keys for keys, _ in made.prefixes] == ([1024, 1024] if cached else [])
        assert made.sharing.keys == made.sharing.measured == (6 * 1024 if cached else 0)
