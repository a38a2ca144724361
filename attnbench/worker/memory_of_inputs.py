"""Whether a kernel is faster on inputs that it has seen: then it remembers results, and its times mean nothing.

All calls of a block have the same inputs, so a kernel that remembers computes in the first of them at most. First calls
of blocks, or a call on wholly new inputs, make it suspicious. Then calls are made one by one: runs on inputs that were
seen take turns with runs on new inputs, and both kinds of inputs are written before each call.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench import units
from attnbench.worker.prepared_case import PreparedCase

if TYPE_CHECKING:
    from attnbench.machine.device.instrument import BlockReading

REPEATS, RUN = 3, 16  # runs of each kind, which must all say the same; calls of a run, if they are short
GAIN = 1.1  # a kernel that gains less is not found
FEW = 3  # calls of each kind, before runs of them
SUSPICIOUS = 1.25  # times a call in a row: a new call, whose inputs were written before, is slower for that alone
FIRST_CALL = {False: 0.1, True: 1.0}  # of a call: what the first one of a block takes longer, if a reading has several
MAX_SHIFT = 1 << 20  # tokens


class MemoryOfInputs:
    """Times of calls on inputs that are new and that were seen."""

    def __init__(self, case: PreparedCase) -> None:
        self._case = case
        self._several = self._single = False  # calls in a reading; a single call in every block
        self._excess: list[float] = []  # of the first call of each block, in calls
        self._in_a_row: list[float] = []  # seconds of calls on unchanged inputs
        self._shift = [0] * 4  # of q, k, v and dout, in tokens

    def add_block(self, block: BlockReading) -> None:
        """Compare the first reading of a block with the later ones."""
        self._several = block.calls > 1
        self._single = block.calls * len(block.values) == 1
        if len(block.values) > 1 and (later := statistics.median(block.values[1:])):
            slowest = block.values[0] > max(block.values[1:])
            self._excess.append((block.values[0] / later - 1) * block.calls if slowest else 0.0)

    def add_call(self, seconds: float) -> None:
        """Note the time of a call on unchanged inputs."""
        self._in_a_row.append(seconds)

    def objection(self, seed: int, suspected: bool = False) -> str:
        """Why the times are those of a kernel that remembers its inputs; empty if it does not.

        Where every timed call had inputs of its own it is tested only if it is `suspected` for another reason.
        """
        if not suspected and (self._single or not self._in_a_row):
            return ""
        source = random.Random(seed)
        try:
            return self._tested(source) if suspected or self._is_suspicious(source) else ""
        finally:
            self._move([-places for places in self._shift])

    def _is_suspicious(self, source: random.Random) -> bool:
        limit = SUSPICIOUS * statistics.median(self._in_a_row)
        new = [self._timed(source, new=True)]
        is_slow_first = self._excess and statistics.median(self._excess) > FIRST_CALL[self._several]
        if not is_slow_first and new[0] <= limit:
            return False
        new += [self._timed(source, new=True) for _ in range(FEW - 1)]
        seen = [self._timed(source, new=False) for _ in range(FEW)]
        return min(new) > GAIN * min(seen)

    def _tested(self, source: random.Random) -> str:
        """The reason, from runs of calls in turn."""
        calls = FEW + 1 if self._single else RUN
        for _ in range(REPEATS):
            seen, new = ([self._timed(source, kind) for _ in range(calls)] for kind in (False, True))
            if not is_faster(seen, new):
                return ""
        times = (units.seconds(statistics.median(each)) for each in (seen, new))
        return "remembers its inputs: a call takes {} on those that it has seen, {} on new ones".format(*times)

    def _timed(self, source: random.Random, new: bool) -> float:
        """One call on new inputs, or on those of the call before, with the same work before it."""
        first, second = ([source.randrange(MAX_SHIFT) for _ in self._shift] for _ in range(2))
        self._move(first)
        self._move(second if new else [-places for places in first])
        self._case.call_once(self._case.state.timed_calls())
        return self._case.call_s

    def _move(self, places: list[int]) -> None:
        self._shift = [before + more for before, more in zip(self._shift, places, strict=True)]
        self._case.shift(places)


def is_faster(seen: Sequence[float], new: Sequence[float]) -> bool:
    """Whether three quarters of the calls on new inputs take longer than as many of the others, by GAIN."""
    return statistics.quantiles(new, n=4)[0] > GAIN * statistics.quantiles(seen, n=4)[2]
