"""The fastest backend of every shape of a run, and the cost of one fixed choice.

Which backends are tied is decided by `ranking.places`, as in the tables of a run; among tied backends the table takes
the one that is fastest most often, so that noise does not change the choice, and none that failed in another case. The
regret of a backend is the geometric mean of its time over the fastest, over the problems that it can run; a backend
that refuses some reports how many.
"""

import math
from collections import Counter
from collections.abc import Container, Iterator, Sequence

import msgspec

from attnbench.analysis.preferences import AxisPreference, preferences
from attnbench.analysis.roofline import NO_CEILINGS, CeilingsByDevice
from attnbench.analysis.rows import AXES, Place, Row, failing, ranked, relative_times, tied_first

VERSION = 1


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The backend for one shape."""

    problem: str  # as text
    device: str
    mode: str
    shape: dict[str, object]  # the fields of the problem that vary over the run
    backend: str
    time_s: float
    tied: tuple[str, ...]  # other backends that are tied with it
    second: str  # the next slower backend; empty: none
    gain: float | None  # time of `second` over that of `backend`, paired by round where they share rounds


class Regret(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of using one backend for everything."""

    backend: str
    device: str
    runs: int  # problems that it can run
    of: int
    mean: float  # geometric mean of its time over the minimum
    worst: float
    worst_at: str


class Dispatch(msgspec.Struct, frozen=True, kw_only=True):
    """The dispatch table and the regrets of fixed choices."""

    version: int = VERSION
    choices: tuple[Choice, ...]
    regrets: tuple[Regret, ...]
    preferences: tuple[AxisPreference, ...] = ()  # of dtypes and devices

    @property
    def by_device(self) -> dict[str, list[Regret]]:
        """Regrets of each device, the smallest first; backends that run everything come before the others."""
        devices: dict[str, list[Regret]] = {}
        for regret in sorted(self.regrets, key=lambda regret: (-regret.runs, regret.mean)):
            devices.setdefault(regret.device, []).append(regret)
        return devices


def dispatch(rows: Sequence[Row], ceilings: CeilingsByDevice = NO_CEILINGS) -> Dispatch:
    """The table of a run. A problem that only one backend can run is included, and does not count in regrets.

    Backends that share no rounds are not compared.
    """
    problems: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.time_s and not row.impossible:
            problems.setdefault((row.device, row.mode, row.problem), []).append(row)
    problems = {key: chosen for key, group in problems.items() if (chosen := ranked(group))}
    varied = [name for name in AXES if len({str(row.value(name)) for row in rows}) > 1]
    wins = Counter(relative_times(group)[0][0].arm_name for group in problems.values())
    failed = failing(rows)
    choices = tuple(_choice(group, varied, wins, failed) for group in problems.values())
    preferred = tuple(preferences(rows, ceilings))
    return Dispatch(choices=choices, regrets=tuple(_regrets(problems)), preferences=preferred)


def _choice(group: Sequence[Row], varied: Sequence[str], wins: Counter[str], failed: Container[str]) -> Choice:
    leading, times = tied_first(group), {id(row): relative for row, relative in relative_times(group)}
    tied = [row for row in leading if row.arm_name not in failed] or leading
    taken = max(tied, key=lambda row: (wins[row.arm_name], -times[id(row)]))
    slower = [row for row, _ in relative_times(group) if row.place is Place.BEHIND]
    return Choice(
        problem=taken.problem,
        device=taken.device,
        mode=taken.mode,
        shape={name: taken.value(name) for name in varied},
        backend=taken.arm_name,
        time_s=taken.seconds,
        tied=tuple(row.arm_name for row in tied if row is not taken),
        second=slower[0].arm_name if slower else "",
        gain=times[id(slower[0])] / times[id(taken)] if slower else None,
    )


def _regrets(problems: dict[tuple[str, str, str], list[Row]]) -> Iterator[Regret]:
    over: dict[tuple[str, str], list[tuple[float, str]]] = {}
    compared: Counter[str] = Counter()
    for (device, _, problem), group in problems.items():
        if len(group) < 2:
            continue
        compared[device] += 1
        for row, relative in relative_times(group):
            over.setdefault((device, row.arm_name), []).append((relative, problem))
    for (device, backend), factors in over.items():
        worst, where = max(factors)
        yield Regret(
            backend=backend,
            device=device,
            runs=len(factors),
            of=compared[device],
            mean=math.exp(math.fsum(math.log(factor) for factor, _ in factors) / len(factors)),
            worst=worst,
            worst_at=where,
        )
