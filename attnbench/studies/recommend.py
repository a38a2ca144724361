"""The fastest backend of every shape of a run, and the cost of one fixed choice.

Which backends are tied is decided by `ranking.places`, as in the tables of a run; among tied backends the table takes
the one that is fastest most often, so that noise does not change the choice, and none that failed in another case. The
regret of a backend is the geometric mean of its time over the fastest, over the problems that it can run; a backend
that refuses some reports how many.
"""

import math
from collections import Counter
from collections.abc import Container, Iterator, Sequence

from attnbench.analysis.preferences import preferences
from attnbench.analysis.roofline import NO_CEILINGS, CeilingsByDevice
from attnbench.analysis.rows import AXES, Place, Row, failing, problem_of, ranked, relative_times, tied_first
from attnbench.studies.dispatch_table import Choice, Dispatch, Origin, Ranked, Regret


def dispatch(rows: Sequence[Row], ceilings: CeilingsByDevice = NO_CEILINGS, origin: Origin | None = None) -> Dispatch:
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
    unsafe = {(*_kind(row), row.backend) for row in rows if row.status.failed or row.impossible}
    choices = sorted((_choice(group, varied, wins, failed, unsafe) for group in problems.values()), key=_order)
    preferred = tuple(preferences(rows, ceilings))
    return Dispatch(origin=origin, choices=tuple(choices), regrets=tuple(_regrets(problems)), preferences=preferred)


def _order(choice: Choice) -> list[tuple[float, str]]:
    """By the axes that vary, numbers by size: a run with several restarts measures in a random order."""
    values = choice.shape.values()
    return [(value, "") if isinstance(value, int | float) else (0.0, str(value)) for value in values]


def _kind(row: Row) -> tuple[str, ...]:
    """Where a failure of a backend counts: on every device of that kind."""
    return row.device.partition(":")[0], row.mode, row.dtype, row.mask


def _ranking(group: Sequence[Row], unsafe: Container[tuple[str, ...]]) -> tuple[Ranked, ...]:
    """The arms without settings of their own, and not the copies of an A/A control."""
    safe: dict[str, float] = {}
    for row, over in relative_times(group):
        if row.arm == f"{row.backend}@{row.device}" and (*_kind(row), row.backend) not in unsafe:
            safe.setdefault(row.backend, over)
    return tuple(Ranked(backend=backend, over=over) for backend, over in safe.items())


def _choice(
    group: Sequence[Row], varied: Sequence[str], wins: Counter[str], failed: Container[str],
    unsafe: Container[tuple[str, ...]],
) -> Choice:  # fmt: skip
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
        axes=problem_of(taken),
        ranking=_ranking(group, unsafe),
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
