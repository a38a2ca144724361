"""Whether a kernel is faster on inputs that it has seen: then it remembers results, and its times mean nothing.

All calls of a block have the same inputs, so a kernel that remembers computes in the first of them at most. It is found
by calls that are made one by one: runs of calls on inputs that were seen before, which are written anew before each
call, take turns with runs of calls on new inputs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench import units
from attnbench.worker.prepared_case import PreparedCase

if TYPE_CHECKING:
    from attnbench.machine.device.instrument import BlockReading

SHORT_RUN, LONG_RUN = 4, 16  # calls; the long runs decide, so that more than a few calls have to be made to learn
GAIN = 1.1  # a kernel that gains less is not found
FIRST_CALL = 0.5  # of a call: what the first call of a block may take longer, with the caches of another worker's


class MemoryOfInputs:
    """Times of calls on inputs that are new and that were seen."""

    def __init__(self, case: PreparedCase) -> None:
        self._case = case
        self._excess: list[float] = []  # of the first call of each block, in calls
        self._single = True  # whether every timed call had inputs of its own
        self._times: dict[bool, list[float]] = {False: [], True: []}  # by whether the inputs were new
        self._count = 0

    def add_block(self, block: BlockReading) -> None:
        """Compare the first reading of a block with the later ones."""
        if block.calls * len(block.values) > 1:
            self._single = False
        if len(block.values) > 1:
            later = statistics.median(block.values[1:])
            self._excess.append((block.values[0] - later) * block.calls / later if later else 0.0)

    def call(self, seed: int) -> None:
        """One call, in runs on inputs that were seen and on new ones; as it comes where no input was used twice."""
        if self._single:
            self._case.call_once(self._case.state.timed_calls())
            return
        new = self._count // SHORT_RUN % 2 == 1
        self._times[new].append(self._timed(seed + self._count, new))
        self._count += 1

    def objection(self, seed: int) -> str:
        """Why the kernel remembers its inputs; empty if it does not. A suspicion is tested with many calls."""
        suspicious = is_faster(self._times[False], self._times[True])
        if self._excess and statistics.median(self._excess) > FIRST_CALL:
            suspicious = True
        if self._single or not suspicious:
            return ""
        times: dict[bool, list[float]] = {False: [], True: []}
        for half in range(2):
            for new in (False, True):
                first = seed + self._count + (2 * half + new) * LONG_RUN
                times[new] = [self._timed(first + number, new) for number in range(LONG_RUN)]
            if not is_faster(times[False], times[True]):
                return ""
        seen, unseen = (units.seconds(statistics.median(times[new])) for new in (False, True))
        return f"remembers its inputs: a call takes {seen} on those that it has seen, {unseen} on new ones"

    def _timed(self, seed: int, new: bool) -> float:
        case = self._case
        if new:
            case.change(seed, reorder=False)
        else:
            case.rewrite(seed)
        case.call_once(case.state.timed_calls())
        return case.call_s


def is_faster(seen: Sequence[float], new: Sequence[float]) -> bool:
    """Whether three quarters of the calls on new inputs take longer than as many of the others, by GAIN."""
    if min(len(seen), len(new)) < SHORT_RUN:
        return False
    slowest_seen, fastest_new = statistics.quantiles(seen, n=4)[2], statistics.quantiles(new, n=4)[0]
    return fastest_new > GAIN * slowest_seen
