"""The groups of a restart in their order, with the predicted seconds of those that follow."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from attnbench.engine.forecast import MARGIN, rounds_s
from attnbench.engine.group import Group

RENEWED = 20  # times, in a long plan: to predict all later groups after each one would be quadratic


class LaterGroups:
    """An iterator over groups. `seconds` are predicted for the groups after the present one, with the fewest rounds."""

    def __init__(self, groups: Sequence[Group], needed_s: Callable[[Sequence[Group]], list[float]]) -> None:
        self._groups, self._needed_s = groups, needed_s
        self._predicted: deque[tuple[Group, float]] = deque()
        self._present_s = self.seconds = 0.0

    def __iter__(self) -> Iterator[Group]:
        for place, group in enumerate(self._groups):
            if place % max(1, len(self._groups) // RENEWED) == 0:
                rest = self._groups[place:]
                self._predicted = deque(zip(rest, self._needed_s(rest), strict=True))
                self.seconds = sum(seconds for _, seconds in self._predicted)
            _, self._present_s = self._predicted.popleft()
            self.seconds = max(self.seconds - self._present_s, 0.0) if self._predicted else 0.0
            yield group

    def reserved_s(self, left_s: float, restarts_s: Sequence[float] = ()) -> float:
        """Seconds that the present group leaves to later ones and to later restarts: `left_s` are left of the budget.

        All that are predicted, if they may fit; else those of the first ones that fit, with usual rounds.
        """
        left_s -= self._present_s
        total_s = self.seconds + sum(restarts_s)
        if total_s <= MARGIN * left_s:
            return total_s
        reserved_s = 0.0
        for seconds in chain((seconds + rounds_s(group) for group, seconds in self._predicted), restarts_s):
            if reserved_s + seconds > left_s:
                break
            reserved_s += seconds
        return reserved_s
