"""The scheduler of docs/serving.md as a plain program: lists, dictionaries, one block at a time."""

from collections.abc import Sequence

from attnbench.suite.serving.scheduler import SchedulerOptions
from attnbench.suite.serving.trace import HASHED_TOKENS, TracedRequest

Step = list[tuple[int, int]]  # (q, kv) of each request


class Request:
    """One request and its state."""

    def __init__(self, number: int, traced: TracedRequest) -> None:
        self.number, self.traced = number, traced
        self.known = traced.input_tokens
        self.target = traced.input_tokens + traced.output_tokens
        self.computed = 0
        self.blocks: list[int] = []
        self.admitted_before = False

    def content(self, block: int, size: int) -> object:
        """What block `block` holds when it is full: blocks of a prompt with hashes can be shared, others cannot."""
        if self.traced.prefix_hashes and (block + 1) * size <= self.traced.input_tokens:
            return self.traced.prefix_hashes[((block + 1) * size - 1) // HASHED_TOKENS], block
        return "request", self.number, block


class ReferenceScheduler:
    """Every step is scheduled from the description."""

    def __init__(self, options: SchedulerOptions, requests: Sequence[TracedRequest]) -> None:
        self.options = options
        self.arriving = [Request(number, traced) for number, traced in enumerate(requests)]
        self.preempted: list[Request] = []
        self.running: list[Request] = []
        self.free = list(range(options.kv_blocks))  # allocated from the front
        self.users = dict.fromkeys(self.free, 0)
        self.content: dict[int, object] = {}  # of a block
        self.cached: dict[object, int] = {}  # the block of a content
        self.preemptions = self.cached_tokens = self.finished = 0

    def step(self, now_s: float) -> Step | None:
        """Schedule a step and count it as done; None if nothing runs."""
        budget, scheduled, preempted = self.options.max_num_batched_tokens, [], False
        for request in list(self.running):
            if request not in self.running or budget == 0:
                continue
            q = min(request.known - request.computed, budget)
            while not self.can_hold(request, request.computed + q, ()):
                preempted = True
                if self.preempt_last() is request:
                    break
            if request in self.running:
                self.hold(request, request.computed + q)
                scheduled.append((request, q))
                budget -= q
        while not preempted and budget > 0 and len(self.running) < self.options.max_num_seqs:
            request = self.first_waiting(now_s)
            if request is None:
                break
            hits = self.hits(request)
            computed = len(hits) * self.options.block_size
            q = min(request.known - computed, budget)
            if not self.can_hold(request, computed + q, hits):
                break
            (self.preempted or self.arriving).pop(0)
            self.cached_tokens += 0 if request.admitted_before else computed
            request.admitted_before = True
            for block in hits:
                if self.users[block] == 0:
                    self.free.remove(block)
                self.users[block] += 1
            request.blocks, request.computed = list(hits), computed
            self.running.append(request)
            self.hold(request, computed + q)
            scheduled.append((request, q))
            budget -= q
        batch = []
        for request, q in scheduled:
            request.computed += q
            batch.append((q, request.computed))
        for request, _ in scheduled:
            if request.computed == request.known:
                request.known += 1
                if request.known == request.target:
                    self.running.remove(request)
                    self.let_go(request)
                    self.finished += 1
        return batch or None

    def first_waiting(self, now_s: float) -> Request | None:
        """Pre-empted requests come before those that arrived."""
        if self.preempted:
            return self.preempted[0]
        return self.arriving[0] if self.arriving and self.arriving[0].traced.arrival_s <= now_s else None

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.options.block_size)

    def can_hold(self, request: Request, tokens: int, hits: Sequence[int]) -> bool:
        """Whether enough blocks are free; hits that nobody uses are on the free list and stay."""
        missing = self.blocks_for(tokens) - len(hits or request.blocks)
        return missing <= len(self.free) - sum(self.users[block] == 0 for block in hits)

    def hold(self, request: Request, tokens: int) -> None:
        """Allocate the blocks of so many tokens, and cache those that this step fills."""
        while len(request.blocks) < self.blocks_for(tokens):
            block = self.free.pop(0)
            self.users[block] = 1
            if (old := self.content.pop(block, None)) is not None:
                del self.cached[old]
            request.blocks.append(block)
        for index in range(request.computed // self.options.block_size, tokens // self.options.block_size):
            content, block = request.content(index, self.options.block_size), request.blocks[index]
            if content not in self.cached and self.options.prefix_cache:
                self.cached[content] = block
                self.content[block] = content

    def hits(self, request: Request) -> list[int]:
        """The blocks of the longest cached prefix that leaves one token to compute."""
        found: list[int] = []
        for index in range((request.known - 1) // self.options.block_size):
            block = self.cached.get(request.content(index, self.options.block_size))
            if block is None:
                break
            found.append(block)
        return found

    def preempt_last(self) -> Request:
        request = self.running.pop()
        self.let_go(request)
        request.computed = 0
        self.preempted.insert(0, request)
        self.preemptions += 1
        return request

    def let_go(self, request: Request) -> None:
        """The tail of a request is freed first."""
        for block in reversed(request.blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free.append(block)
        request.blocks = []
