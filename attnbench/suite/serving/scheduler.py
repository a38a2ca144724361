"""Continuous batching as the scheduler of vLLM V1 does it: chunked prefill, pre-emption, prefix cache.

The rules are in docs/serving.md, and as a plain program in tests/suite/reference_scheduler.py. The running requests
are arrays, in the order of their admission; Python handles a request only where it needs blocks, starts or ends.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.errors import UsageError
from attnbench.suite.serving.blocks import NO_BLOCKS, BlockPool, Blocks, PrefixTable, block_hashes
from attnbench.suite.serving.trace import TracedRequest

Tokens = NDArray[np.int64]


class SchedulerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a server, by vLLM's names; its defaults on a GPU of 70 GiB or more."""

    kv_blocks: int
    block_size: int = 16  # tokens
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 1024
    prefix_cache: bool = True


class Batch(NamedTuple):
    """The requests of one step: their query tokens, and the tokens of their keys with these."""

    q: Tokens
    kv: Tokens
    repeated: int = 0  # of the keys, those in blocks of another request of the step, which counts them too


class Totals(msgspec.Struct):
    """What a scheduler did."""

    requests: int = 0  # that were admitted
    finished: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # of prompts, when their requests were admitted first
    preemptions: int = 0


def _blocks_of(tokens: int, size: int) -> int:
    """Blocks of a request of so many tokens; the last one of an answer is never a key."""
    return -(-(tokens - 1) // size)


class _Request:
    """A request that runs or was pre-empted."""

    def __init__(self, traced: TracedRequest, block_size: int) -> None:
        self.traced = traced
        self.known = traced.input_tokens  # tokens of the prompt, and those that were generated
        self.target = traced.input_tokens + traced.output_tokens
        self.blocks = np.empty(_blocks_of(self.target, block_size), np.int64)
        self.held = 0  # blocks
        self.hashed = traced.input_tokens // block_size if traced.prefix_hashes else 0  # full blocks with a hash
        self.hashes = block_hashes(traced.prefix_hashes, block_size, self.hashed)
        self.cached = 0  # of these, how many are in the table
        self.generations = NO_BLOCKS  # of the full blocks when it was pre-empted

    def hold(self, blocks: Blocks) -> None:
        self.blocks[self.held : self.held + blocks.size] = blocks
        self.held += blocks.size


class Scheduler:
    """The state of one server; `requests` come by arrival and are read when they can be admitted."""

    def __init__(self, options: SchedulerOptions, requests: Iterator[TracedRequest], place: str = "") -> None:
        self.options, self.totals, self._place = options, Totals(), place
        self._requests, self._next, self._size = requests, next(requests, None), options.block_size
        self._pool = BlockPool(options.kv_blocks)
        self._table = PrefixTable(self._pool, options.block_size)
        self._preempted: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._scheduled = self._running  # in the last step
        size = min(options.max_num_seqs, options.max_num_batched_tokens, options.kv_blocks)  # at least one of each
        self._computed, self._known, self._target = (np.zeros(size, np.int64) for _ in range(3))
        self._room = np.zeros(size, np.int64)  # tokens that fit into the blocks that a request holds
        self._uncached = np.zeros(size, bool)  # some block of the prompt with a hash is not full yet

    @property
    def next_arrival_s(self) -> float | None:
        """When the next request arrives, if nothing runs; None at the end."""
        return self._next.arrival_s if self._next else None

    @property
    def blocks(self) -> list[Blocks]:
        """The blocks that each request of the last step holds; valid up to the next step."""
        return [request.blocks[: request.held] for request in self._scheduled]

    def step(self, now_s: float) -> Batch | None:
        """Schedule one step and count it as done; None if there is no request to run."""
        before = self.totals.preemptions
        q, budget = self._schedule_running(self.options.max_num_batched_tokens)
        if self.totals.preemptions == before:
            q = self._admit(q, budget, now_s)
        count = len(self._running)
        if not count:
            return None
        computed = self._computed[:count]
        computed += q
        self._room[:count] -= q
        batch, self._scheduled = Batch(q, computed.copy(), self._pool.repeated * self._size), self._running
        known = self._known[:count]
        known += computed == known
        if (ended := known == self._target[:count]).any():
            self._finish(ended)
        return batch

    def _schedule_running(self, budget: int) -> tuple[Tokens, int]:
        """The query tokens of the running requests, for which they hold blocks then; the tokens that are left.

        Each has at least one: a request starts only where the budget leaves a token, and the last one alone has more.
        """
        count = len(self._running)
        q = self._known[:count] - self._computed[:count]
        if (total := int(q.sum())) > budget:
            q[-1] -= total - budget
            total = budget
        lacking = q - self._room[:count]
        short = np.flatnonzero(lacking > 0)
        needed = -(-lacking[short] // self._size)
        if int(needed.sum()) > self._pool.free or self._uncached[:count].any():
            return self._schedule_each(budget)
        if short.size:
            self._room[short] += needed * self._size
            blocks, start = self._pool.allocate(int(needed.sum())), 0
            for index, size in zip(short.tolist(), needed.tolist(), strict=True):
                self._running[index].hold(blocks[start : start + size])
                start += size
        return q, budget - total

    def _schedule_each(self, budget: int) -> tuple[Tokens, int]:
        """The same, request by request: where blocks run out, or join the table of prefixes."""
        q: list[int] = []
        while len(q) < len(self._running):
            index, request = len(q), self._running[len(q)]
            computed = int(self._computed[index])
            tokens = min(int(self._known[index]) - computed, budget)
            needed = max(0, -(-(tokens - int(self._room[index])) // self._size))
            while needed > self._pool.free and len(self._running) > index:
                self._preempt()
            if len(self._running) == index:
                break
            if needed:
                request.hold(self._pool.allocate(needed))
                self._room[index] += needed * self._size
            self._cache(index, computed + tokens)
            q.append(tokens)
            budget -= tokens
        return np.array(q, np.int64), budget

    def _preempt(self) -> None:
        """Take the blocks of the request that was admitted last; it waits before all others and is computed again."""
        index = len(self._running) - 1
        request = self._running.pop()
        request.known = int(self._known[index])
        request.generations = self._pool.generation[request.blocks[: int(self._computed[index]) // self._size]]
        self._pool.release(request.blocks[: request.held])
        request.held = 0
        self._preempted.appendleft(request)
        self.totals.preemptions += 1

    def _admit(self, q: Tokens, budget: int, now_s: float) -> Tokens:
        """The query tokens with those of requests that start now: first come, first served."""
        started: list[int] = []
        while budget > 0 and len(self._running) < self.options.max_num_seqs:
            request = self._first(now_s)
            if request is None:
                break
            hits = self._hits(request)
            computed = hits.size * self._size
            tokens = min(request.known - computed, budget)
            needed = -(-(computed + tokens) // self._size) - hits.size
            if needed > self._pool.free - self._pool.unused(hits):
                break
            self._pool.share(hits)
            self._start(request, hits, needed)
            self._cache(len(self._running) - 1, computed + tokens)
            started.append(tokens)
            budget -= tokens
        return np.concatenate([q, np.array(started, np.int64)]) if started else q

    def _first(self, now_s: float) -> _Request | None:
        if self._preempted:
            return self._preempted[0]
        if self._next is None or self._next.arrival_s > now_s:
            return None
        tokens = self._next.input_tokens + self._next.output_tokens
        if (blocks := _blocks_of(tokens, self._size)) > self.options.kv_blocks:
            raise UsageError(
                f"{self._place}:{self._next.line}: {tokens} tokens of prompt and answer need "
                f"{blocks} blocks, and the cache has {self.options.kv_blocks}: use --kv-blocks "
                f"{blocks} or more, or a larger --tp"
            )
        return _Request(self._next, self._size)

    def _hits(self, request: _Request) -> Blocks:
        """The cached blocks of a request, with those that it held before it was pre-empted; one token is computed."""
        if not self.options.prefix_cache:
            return NO_BLOCKS
        hits = self._table.find(request.hashes, request.hashed) if request.hashed else NO_BLOCKS
        if hits.size == request.hashed < request.generations.size:
            before = request.blocks[request.hashed : request.generations.size]
            valid = self._pool.generation[before] == request.generations[request.hashed :]
            hits = np.concatenate([hits, before if valid.all() else before[: int(valid.argmin())]])
        return hits[: (request.known - 1) // self._size]

    def _start(self, request: _Request, hits: Blocks, needed: int) -> None:
        index, totals = len(self._running), self.totals
        if self._preempted:
            self._preempted.popleft()
        else:
            self._next = next(self._requests, None)
            totals.requests += 1
            totals.input_tokens += request.traced.input_tokens
            totals.cached_tokens += hits.size * self._size
        self._running.append(request)
        request.hold(hits)
        request.hold(self._pool.allocate(needed))
        request.cached = min(hits.size, request.hashed)
        self._computed[index] = hits.size * self._size
        self._known[index], self._target[index] = request.known, request.target
        self._room[index] = needed * self._size

    def _cache(self, index: int, computed: int) -> None:
        """Put the blocks of a prompt that are full after this step into the table."""
        request = self._running[index]
        full = min(computed // self._size, request.hashed)
        if self.options.prefix_cache and full > request.cached:
            self._table.add(request.hashes, request.cached, request.blocks[request.cached : full])
            request.cached = full
        self._uncached[index] = self.options.prefix_cache and request.cached < request.hashed

    def _finish(self, ended: NDArray[np.bool_]) -> None:
        """Release the requests that have their last token."""
        for index in np.flatnonzero(ended).tolist():
            request = self._running[index]
            self._pool.release(request.blocks[: request.held])
            self.totals.finished += 1
            self.totals.output_tokens += request.traced.output_tokens
        count, stay = ended.size, np.flatnonzero(~ended)
        self._running = [self._running[index] for index in stay.tolist()]
        for values in (self._computed, self._known, self._target, self._room, self._uncached):
            values[: stay.size] = values[:count][stay]
