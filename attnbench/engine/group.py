"""A group: one problem in one mode, and the arms that measure it in common rounds."""

from collections.abc import Collection

import msgspec
from msgspec.structs import replace

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records.arm import Arm
from attnbench.records.case import Case


class Group(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One problem in one mode, and the arms that measure it in common rounds."""

    id: str
    problem: Problem
    mode: Mode
    arms: tuple[Arm, ...]
    borrowed: tuple[Arm, ...] = ()  # reference arms for the speed-up, whose own Result is in another group
    late: bool = False  # in the second pass, for backends that compile
    probes: int = 0  # that each arm runs in the first restart, variants counted by themselves
    seconds: float = 0.0  # predicted, of the first restart
    # Predicted, of a call of each of `arms`; the peak is None for a user's file.
    calls_s: tuple[float, ...] = ()
    peaks_bytes: tuple[int | None, ...] = ()
    layers: int = 0  # of the model that share the plan of a batch; 0: not stated

    @property
    def alone(self) -> bool:
        return len(self.arms) + len(self.borrowed) == 1

    def in_turn(self, restart: int) -> list[Arm]:
        """All arms in the order in which they start and prepare, which may influence their times.

        In as many restarts as there are arms, each is in each place once.
        """
        arms = [*self.arms, *self.borrowed]
        first = restart % len(arms)
        return arms[first:] + arms[:first]

    def case(self, arm: Arm) -> Case:
        return Case(problem=self.problem, backend=arm.backend, mode=self.mode)

    def only(self, arms: Collection[Arm]) -> "Group":
        """The group with these of its arms."""
        places = [place for place, arm in enumerate(self.arms) if arm in arms]
        of_arms = {name: getattr(self, name) for name in ("arms", "calls_s", "peaks_bytes") if getattr(self, name)}
        return replace(self, **{name: tuple(values[place] for place in places) for name, values in of_arms.items()})
