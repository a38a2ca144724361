"""The requests of one step as they are measured: which first keys they share, and their parts of layers in chunks.

Requests share the blocks that the cache holds once for them. Groups of a batch do not overlap, so of prefixes that are
nested in each other, those are chosen that save most keys.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from attnbench.attention.requests import RequestSize
from attnbench.attention.shared_prefix import SharedPrefix
from attnbench.suite.serving.blocks import NO_BLOCKS, Blocks
from attnbench.suite.serving.scheduler import Batch


class StepRequest(NamedTuple):
    """One request of a step."""

    size: RequestSize
    blocks: Blocks = NO_BLOCKS  # of its first keys, before its queries: those that another request of the step has too


class Sharing(NamedTuple):
    """Keys of the cache that a step would hold several times without sharing."""

    keys: int  # that all requests share, nested prefixes included
    measured: int  # of these, those of the groups that are measured


class Grouped(NamedTuple):
    """The requests of a step, those of a group beside each other."""

    sizes: tuple[RequestSize, ...]
    prefixes: tuple[SharedPrefix, ...]  # empty: nothing is shared
    sharing: Sharing


class _Node(NamedTuple):
    """Requests whose first `depth` blocks are the same: those that go on alone from here, and those in branches."""

    depth: int
    alone: tuple[int, ...]
    branches: tuple["_Node", ...]


class _Cut(NamedTuple):
    """Groups of the requests of a node."""

    saved: int  # blocks
    groups: tuple[tuple[int, tuple[int, ...]], ...]  # the blocks and the requests of each
    left: tuple[int, ...]  # requests in no group


def requests_of(batch: Batch, blocks: Sequence[Blocks], block_size: int) -> tuple[StepRequest, ...]:
    """The requests of a step, with the blocks that they share. `blocks`: those that each of them holds."""
    full = [held[:before] for held, before in zip(blocks, ((batch.kv - batch.q) // block_size).tolist(), strict=True)]
    used, uses = np.unique(np.concatenate([NO_BLOCKS, *full]), return_counts=True)
    shared = used[uses > 1]
    sizes = map(RequestSize, batch.q.tolist(), batch.kv.tolist())
    return tuple(StepRequest(size, _leading(held, shared)) for size, held in zip(sizes, full, strict=True))


def _leading(held: Blocks, shared: Blocks) -> Blocks:
    """The blocks up to the first that is not shared."""
    alone = ~np.isin(held, shared)
    return held[: int(alone.argmax())].copy() if alone.any() else held.copy()


def chunked(requests: Sequence[StepRequest], chunk: int, block_size: int) -> Iterator[StepRequest]:
    """The parts of requests in chunks of so many tokens, within which a query sees: each as a request of its own.

    vLLM computes such layers in the same way. Blocks that lie across chunks are not shared.
    """
    for (queries, keys), blocks in requests:
        first = keys - queries
        for start in range(first // chunk * chunk, keys, chunk):
            stop = min(keys, start + chunk)
            shared = NO_BLOCKS if start % block_size else blocks[start // block_size : first // block_size]
            yield StepRequest(RequestSize(stop - max(first, start), stop - start), shared)


def grouped(requests: Sequence[StepRequest], block_size: int) -> Grouped:
    """The requests with those of a group beside each other, in their order otherwise."""
    cut = _cut(_tree([request.blocks for request in requests], tuple(range(len(requests))), 0), 0, {})
    group_of = {member: group for group in cut.groups for member in group[1]}
    order: dict[int, None] = {}
    prefixes: list[SharedPrefix] = []
    for number in range(len(requests)):
        if number in order:
            continue
        count, members = group_of.get(number, (0, (number,)))
        order |= dict.fromkeys(members)
        if not count and prefixes and not prefixes[-1].keys:
            prefixes[-1] = prefixes[-1]._replace(requests=prefixes[-1].requests + 1)
        else:
            prefixes.append(SharedPrefix(count * block_size, len(members)))
    uses = Counter(block for request in requests for block in request.blocks.tolist())
    sharing = Sharing((uses.total() - len(uses)) * block_size, cut.saved * block_size)
    return Grouped(tuple(requests[each].size for each in order), tuple(prefixes) if cut.groups else (), sharing)


def _tree(blocks: Sequence[Blocks], members: tuple[int, ...], depth: int) -> _Node:
    """The tree of requests whose first `depth` blocks are known to be the same."""
    shortest = min(blocks[member].size for member in members)
    rows = np.stack([blocks[member][depth:shortest] for member in members])
    equal = (rows == rows[0]).all(axis=0)
    depth += equal.size if equal.all() else int(equal.argmin())
    branches: dict[int, list[int]] = defaultdict(list)
    for member in members:
        branches[int(blocks[member][depth]) if blocks[member].size > depth else -1 - member].append(member)
    alone = tuple(branch[0] for branch in branches.values() if len(branch) == 1)
    below = (_tree(blocks, tuple(branch), depth) for branch in branches.values() if len(branch) > 1)
    return _Node(depth, alone, tuple(below))


def _cut(node: _Node, outer: int, known: dict[tuple[int, int], _Cut]) -> _Cut:
    """The groups that save most blocks, if each request that is left saves `outer` in a group further up.

    Either no group has exactly the blocks of this node, or one has, of all requests that no branch needs.
    """
    if (key := (id(node), outer)) not in known:
        parts = [_cut(branch, outer, known) for branch in node.branches]
        apart = _joined(parts, node.alone)
        saved, groups, members = _joined([_cut(branch, node.depth, known) for branch in node.branches], node.alone)
        saved += node.depth * (len(members) - 1)
        together = len(members) > 1 and saved > apart.saved + outer * len(apart.left)
        known[key] = _Cut(saved, (*groups, (node.depth, members)), ()) if together else apart
    return known[key]


def _joined(parts: Sequence[_Cut], alone: tuple[int, ...]) -> _Cut:
    groups = tuple(group for part in parts for group in part.groups)
    left = (*alone, *(member for part in parts for member in part.left))
    return _Cut(sum(part.saved for part in parts), groups, tuple(sorted(left)))
