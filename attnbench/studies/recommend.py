"""What `attnbench recommend` does: the fastest backend of every shape of a run, and what one fixed choice would cost.

A backend counts as tied with the fastest where their intervals overlap; of those that are tied the table takes the one
that is fastest most often, so that a choice does not jump with the noise. Regret is the geometric mean of its time over
the least, over the problems that it can run; a backend that refuses some says how many.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from attnbench.frame import AXES, Row

VERSION = 1


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The backend for one shape."""

    problem: str  # in words
    device: str
    mode: str
    shape: dict[str, Any]  # the fields of the problem that vary over the run
    backend: str
    time_s: float
    tied: tuple[str, ...]  # as good, by their intervals
    second: str  # the next one that is slower; empty: there is none
    gain: float | None  # its time over this one's


class Regret(msgspec.Struct, frozen=True, kw_only=True):
    """What it would cost to take one backend for everything."""

    backend: str
    device: str
    runs: int  # problems that it can run
    of: int
    mean: float  # geometric, of its time over the least
    worst: float
    worst_at: str


class Dispatch(msgspec.Struct, frozen=True, kw_only=True):
    """The table, and what stands beside it."""

    version: int = VERSION
    choices: tuple[Choice, ...]
    regrets: tuple[Regret, ...]

    @property
    def by_device(self) -> dict[str, list[Regret]]:
        """Regrets of each device, the least first; those that run everything before the others."""
        found: dict[str, list[Regret]] = {}
        for one in sorted(self.regrets, key=lambda regret: (-regret.runs, regret.mean)):
            found.setdefault(one.device, []).append(one)
        return found


def dispatch(rows: Sequence[Row]) -> Dispatch:
    """The table of a run; problems that one backend alone could run are in it, and no regret follows from them."""
    problems: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["time_s"] and not row["impossible"]:
            problems.setdefault((row["device"], row["mode"], row["problem"]), []).append(row)
    varied = [name for name in AXES if len({str(row[name]) for row in rows}) > 1]
    wins = Counter(min(group, key=_time)["arm_name"] for group in problems.values())
    choices = tuple(_choice(group, varied, wins) for group in problems.values())
    return Dispatch(choices=choices, regrets=tuple(_regrets(problems)))


def _time(row: Row) -> float:
    return float(row["time_s"])


def _choice(group: Sequence[Row], varied: Sequence[str], wins: Counter[str]) -> Choice:
    best = min(group, key=_time)
    limit = best["time_high_s"] or best["time_s"]
    tied = [row for row in group if (row["time_low_s"] or row["time_s"]) <= limit]
    taken = max(tied, key=lambda row: (wins[row["arm_name"]], -_time(row)))
    slower = sorted((row for row in group if row not in tied), key=_time)
    return Choice(
        problem=taken["problem"],
        device=taken["device"],
        mode=taken["mode"],
        shape={name: taken[name] for name in varied},
        backend=taken["arm_name"],
        time_s=_time(taken),
        tied=tuple(row["arm_name"] for row in tied if row is not taken),
        second=slower[0]["arm_name"] if slower else "",
        gain=_time(slower[0]) / _time(taken) if slower else None,
    )


def _regrets(problems: dict[tuple[str, str, str], list[Row]]) -> list[Regret]:
    over: dict[tuple[str, str], list[tuple[float, str]]] = {}
    compared: Counter[str] = Counter()
    for (device, _, problem), group in problems.items():
        if len(group) < 2:
            continue
        compared[device] += 1
        least = min(map(_time, group))
        for row in group:
            over.setdefault((device, row["arm_name"]), []).append((_time(row) / least, problem))
    found = []
    for (device, backend), factors in over.items():
        worst, where = max(factors)
        found.append(
            Regret(
                backend=backend,
                device=device,
                runs=len(factors),
                of=compared[device],
                mean=math.exp(math.fsum(math.log(factor) for factor, _ in factors) / len(factors)),
                worst=worst,
                worst_at=where,
            )
        )
    return found
