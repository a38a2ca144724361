"""The scheduler of served requests, against the plain program in reference_scheduler.py."""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from attnbench.errors import UsageError
from attnbench.suite.serving.blocks import BlockPool
from attnbench.suite.serving.scheduler import Scheduler, SchedulerOptions
from attnbench.suite.serving.trace import HASHED_TOKENS, TracedRequest
from tests.suite.reference_scheduler import ReferenceScheduler

STEP_S = 0.1


@st.composite
def servers(draw: st.DrawFn) -> tuple[SchedulerOptions, list[TracedRequest]]:
    """A small server under load, and requests that fit into its cache."""
    size = draw(st.sampled_from([1, 16, 48, 100, 256, 512, 700]))
    requests, now_s = [], 0.0
    families = draw(st.integers(1, 3))
    for _ in range(draw(st.integers(1, 14))):
        now_s += draw(st.sampled_from([0.0, 0.05, 0.5, 3.0]))
        tokens = draw(st.integers(1, 60) if size == 1 else st.integers(1, 2600) | st.sampled_from([512, 1024, 1536]))
        hashes: tuple[int, ...] = ()
        if draw(st.booleans()):
            parts, family = -(-tokens // HASHED_TOKENS), draw(st.integers(1, families))
            shared = draw(st.integers(0, parts))
            # The last part is partial: equal hashes there need equal lengths.
            hashes = tuple(
                hash((family, part)) if part < shared and (part + 1) * HASHED_TOKENS <= tokens else hash((tokens, part))
                for part in range(parts)
            )
        requests.append(TracedRequest(now_s, tokens, draw(st.integers(1, 40)), hashes))
    largest = max(-(-(item.input_tokens + item.output_tokens - 1) // size) for item in requests)
    options = SchedulerOptions(
        kv_blocks=largest + draw(st.integers(0, 2 * largest)),
        block_size=size,
        max_num_batched_tokens=draw(st.integers(3, 3000)),
        max_num_seqs=draw(st.integers(1, 8)),
        prefix_cache=draw(st.booleans()),
    )
    return options, requests


def batches(options: SchedulerOptions, requests: list[TracedRequest]) -> tuple[list[list[tuple[int, int]]], Scheduler]:
    scheduler, steps, now_s = Scheduler(options, iter(requests)), [], 0.0
    while True:
        batch = scheduler.step(now_s)
        if batch is None:
            if scheduler.next_arrival_s is None:
                return steps, scheduler
            now_s = scheduler.next_arrival_s
            continue
        steps.append(list(zip(batch.q.tolist(), batch.kv.tolist(), strict=True)))
        now_s += STEP_S


def reference_steps(
    options: SchedulerOptions, requests: list[TracedRequest]
) -> tuple[list[list[tuple[int, int]]], ReferenceScheduler]:
    reference, steps, now_s = ReferenceScheduler(options, requests), [], 0.0
    while reference.running or reference.preempted or reference.arriving:
        step = reference.step(now_s)
        if step is None:
            now_s = reference.arriving[0].traced.arrival_s
            continue
        steps.append(step)
        now_s += STEP_S
    return steps, reference


def one_by_one(*tokens: int) -> tuple[SchedulerOptions, list[TracedRequest]]:
    """A server that runs one request at a time in a small cache, and prompts of which long ones have a common part."""
    options = SchedulerOptions(kv_blocks=37, block_size=16, max_num_batched_tokens=3, max_num_seqs=1)
    hashes = (1, 2)
    return options, [
        TracedRequest(0.0, each, 2, hashes[: -(-each // HASHED_TOKENS)] if each > 1 else ()) for each in tokens
    ]


# The second prompt computes the last block of the first again, and holds it when the first one is allocated anew.
@example(one_by_one(1, 512, 1, 1, 1, 1, 512, 1, 1, 1, 1, 1, 513))
@given(servers())
@settings(deadline=None, max_examples=50)
def test_every_step_is_that_of_the_reference(server: tuple[SchedulerOptions, list[TracedRequest]]) -> None:
    options, requests = server
    steps, scheduler = batches(options, requests)
    expected, reference = reference_steps(options, requests)
    assert steps == expected
    assert not reference.running
    assert not reference.preempted
    totals = scheduler.totals
    assert (totals.preemptions, totals.cached_tokens) == (reference.preemptions, reference.cached_tokens)


@given(servers())
@settings(deadline=None, max_examples=50)
def test_tokens_are_conserved_the_budget_holds_and_no_request_starves(
    server: tuple[SchedulerOptions, list[TracedRequest]],
) -> None:
    options, requests = server
    steps, scheduler = batches(options, requests)
    totals = scheduler.totals
    assert totals.finished == totals.requests == len(requests)
    assert totals.input_tokens == sum(item.input_tokens for item in requests)
    assert totals.output_tokens == sum(item.output_tokens for item in requests)
    assert all(sum(q for q, _ in step) <= options.max_num_batched_tokens for step in steps)
    assert all(1 <= len(step) <= options.max_num_seqs for step in steps)
    assert all(1 <= q <= kv for step in steps for q, kv in step)
    if not totals.preemptions:
        # The last token of an answer is never computed.
        needed = sum(item.input_tokens + item.output_tokens - 1 for item in requests)
        assert sum(q for step in steps for q, _ in step) == needed - totals.cached_tokens


@given(servers())
@settings(deadline=None, max_examples=50)
def test_keys_that_requests_share_are_those_of_a_naive_recount(
    server: tuple[SchedulerOptions, list[TracedRequest]],
) -> None:
    options, requests = server
    scheduler, now_s = Scheduler(options, iter(requests)), 0.0
    while (batch := scheduler.step(now_s)) or scheduler.next_arrival_s is not None:
        if batch is None:
            assert scheduler.next_arrival_s is not None
            now_s = scheduler.next_arrival_s
            continue
        held = [block for blocks in scheduler.blocks for block in blocks.tolist()]
        assert batch.repeated == (len(held) - len(set(held))) * options.block_size
        now_s += STEP_S


def test_reference_agrees_on_preemptions_hits_and_chunks() -> None:
    """Two prompts with a common part of 512 tokens, in a cache that holds one answer and not two."""
    options = SchedulerOptions(kv_blocks=60, block_size=16, max_num_batched_tokens=300)
    requests = [TracedRequest(0.0, 600, 200, (1, 2)), TracedRequest(1.0, 600, 200, (1, 3))]
    steps, scheduler = batches(options, requests)
    assert steps == reference_steps(options, requests)[0]
    assert (scheduler.totals.preemptions, scheduler.totals.cached_tokens) == (1, 512)
    assert steps[:2] == [[(300, 300)], [(300, 600)]]


def test_long_prompt_is_computed_in_chunks_beside_the_tokens_of_others() -> None:
    """A worked example: 2 tokens a step of the first request leave the rest of the budget to the second."""
    options = SchedulerOptions(kv_blocks=100, max_num_batched_tokens=64)
    steps, _ = batches(options, [TracedRequest(0.0, 10, 4), TracedRequest(0.05, 100, 2)])
    assert steps == [[(10, 10)], [(1, 11), (63, 63)], [(1, 12), (37, 100)], [(1, 13), (1, 101)]]


def test_second_request_computes_what_the_first_did_not_cache() -> None:
    """1,000 equal tokens: 62 full blocks of 16 are cached, but one token has to be computed."""
    same = (11, 12)
    steps, scheduler = batches(
        SchedulerOptions(kv_blocks=1000), [TracedRequest(0.0, 1000, 1, same), TracedRequest(1.0, 1000, 1, same)]
    )
    assert steps == [[(1000, 1000)], [(1000 - 62 * 16, 1000)]]
    assert scheduler.totals.cached_tokens == 62 * 16


def test_last_token_of_a_cached_prompt_is_computed() -> None:
    """1,024 equal tokens: all 64 blocks are cached, and the last of them is computed again."""
    same = (11, 12)
    requests = [TracedRequest(0.0, 1024, 1, same), TracedRequest(1.0, 1024, 1, same)]
    steps, scheduler = batches(SchedulerOptions(kv_blocks=1000), requests)
    assert steps == [[(1024, 1024)], [(16, 1024)]]
    assert scheduler.totals.cached_tokens == 1008


@pytest.mark.parametrize(("size", "hit"), [(16, 1024), (100, 1000), (512, 1024), (700, 700), (1024, 1024), (1100, 0)])
def test_blocks_of_any_size_are_found_again(size: int, hit: int) -> None:
    """Two prompts of 1,536 tokens have the first 1,024 in common."""
    first, second = (TracedRequest(arrival, 1536, 1, (11, 12, last)) for arrival, last in ((0.0, 13), (1.0, 14)))
    _, scheduler = batches(SchedulerOptions(kv_blocks=1000, block_size=size), [first, second])
    assert scheduler.totals.cached_tokens == hit


def test_request_larger_than_the_cache_is_refused_with_its_line() -> None:
    requests = [TracedRequest(0.0, 1000, 25, line=7)]
    with pytest.raises(UsageError, match=r"trace.csv:7: 1025 tokens .* need 64 blocks, and the cache has 63: use"):
        Scheduler(SchedulerOptions(kv_blocks=63), iter(requests), "trace.csv").step(math.inf)


def test_blocks_that_are_used_again_and_again_take_no_more_of_the_free_list() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    pool.release(blocks)
    for _ in range(5):
        pool.share(blocks)
        pool.release(blocks)
    assert pool._queued <= 2 * 4
    assert pool.allocate(4).tolist() == [2, 3, 1, 0]  # the oldest first; of one request, the last block first


def test_a_request_that_fits_no_machine_is_refused_by_its_blocks() -> None:
    """Its blocks are counted before memory is allocated for them."""
    huge = TracedRequest(line=1, arrival_s=0.0, input_tokens=10**11, output_tokens=3)
    scheduler = Scheduler(SchedulerOptions(kv_blocks=100), iter([huge]), "trace.jsonl")
    with pytest.raises(
        UsageError, match=r"trace.jsonl:1: 100000000003 tokens .* need 6250000001 blocks, and the cache"
    ):
        scheduler.step(0.0)
