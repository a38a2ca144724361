"""Results of base and head -> what the rule decides on: effects by launch, memory, errors, support."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from attnbench import frame, stats
from attnbench.gate import rule
from attnbench.gate.rule import Evidence
from attnbench.joined import Joined
from attnbench.metrics import METRICS
from attnbench.result import Outcome, Result, Sample, Status, Verdict

CLOCKS = ("sm_clock_hz_before", "sm_clock_hz")  # facts of a block
BASE, HEAD, SENTINEL = 1, 2, 3  # twin numbers of a case's arms
MEMORY = ("peak_bytes", "saved_bytes", "workspace_bytes")
MEMORY_SHARE, MEMORY_BYTES = 0.01, 2**20
ERROR_SHARE = 0.10


class Pairing(msgspec.Struct, kw_only=True):
    """One case on one device: what base, head and the sentinel did in it."""

    base: Joined | None = None
    head: Joined | None = None
    sentinel: Joined | None = None

    @property
    def any(self) -> Joined:
        """Whichever there is."""
        found = self.head or self.base
        assert found
        return found

    @property
    def key(self) -> tuple[str, str]:
        """Case id and device."""
        return self.any.case.id, self.any.arm.device


def pairings(results: Iterable[Result]) -> list[Pairing]:
    """By case and device, in order of appearance."""
    sides: dict[tuple[str, str], dict[int, dict[int, Result]]] = {}
    for result in results:
        own = sides.setdefault((result.case.id, result.arm.device), {})
        own.setdefault(result.arm.twin, {})[result.launch] = result
    return [
        Pairing(**{name: Joined(list(twins[twin].values())) for twin, name in _NAMES.items() if twin in twins})
        for twins in sides.values()
    ]


def _as_it_is(time: Sample) -> Sample:
    return time


def _in_cycles(time: Sample) -> Sample | None:
    """Times by the clock that the GPU had around each block; None where no clock was read."""
    values: list[float | None] = []
    for block, seconds in stats.by_block(time):
        clocks = [block.facts[name] for name in CLOCKS if name in block.facts]
        if not clocks:
            return None
        hertz = sum(clocks) / len(clocks)
        values += [None if value is None else value * hertz for value in seconds]
    return msgspec.structs.replace(time, unit="1", values=tuple(values))


_NAMES = {BASE: "base", HEAD: "head", SENTINEL: "sentinel"}


def effects(above: Joined, below: Joined, read: Callable[[Sample], Sample | None] = _as_it_is) -> dict[int, float]:
    """log(above / below) of every launch in which both took part in the same rounds: the median over rounds.

    Of a block the lower quartile counts. On A/A runs both together were steady where other processes disturb, and as
    good as any where none do (docs/gate.md).
    """
    others = {result.launch: result for result in below.results}
    found = {}
    for own in above.results:
        other = others.get(own.launch)
        if other is None or own.group != other.group or "time" not in own.samples or "time" not in other.samples:
            continue
        over, under = read(own.samples["time"]), read(other.samples["time"])
        if over is None or under is None:
            continue
        logs = stats.log_ratios(over, under, within="lower_quartile")
        if len(logs):
            found[own.launch] = float(np.median(logs))
    return found


def evidence(pair: Pairing, screen_launches: int, tolerance: float) -> Evidence | None:
    """Of time; None unless both sides were measured."""
    return _evidence(pair.base, pair.head, screen_launches, tolerance)


def _evidence(base: Joined | None, head: Joined | None, screen_launches: int, tolerance: float) -> Evidence | None:
    if not (base and head and base.time and head.time and base.status is head.status is Status.OK):
        return None
    by_launch = effects(head, base)
    if not by_launch:
        return None
    return Evidence(
        case_id=head.case.id,
        label=head.case.label,
        device=head.arm.device,
        backend=head.case.backend,
        base_s=base.time.value,
        head_s=head.time.value,
        screen=tuple(value for launch, value in by_launch.items() if launch < screen_launches),
        confirm=tuple(value for launch, value in by_launch.items() if launch >= screen_launches),
        cycles=tuple(effects(head, base, _in_cycles).values()),
        tolerance=tolerance,
    )


def equal_arms(found: Iterable[Pairing], screen_launches: int) -> dict[str, Evidence]:
    """The sentinels against base, by label and device."""
    twins = {}
    for pair in found:
        if one := _evidence(pair.base, pair.sentinel, screen_launches, rule.TOLERANCE):
            twins[f"{one.label}@{one.device}"] = one
    return twins


# -- what needs no statistics ------------------------------------------------------------------------------------------


def support(pair: Pairing) -> Verdict | None:
    """Broken, new, missing; None where both sides are ok, and where neither ever was."""
    base, head = (_status(side) for side in (pair.base, pair.head))
    if head and head.failed:
        return _plain(pair, "status", Outcome.BROKEN, f"{head.value}: {_reason(pair.head)}")
    if base is Status.OK and head is not Status.OK:
        if head is None:
            return _plain(pair, "status", Outcome.MISSING, "in base alone")
        return _plain(pair, "status", Outcome.BROKEN, f"was ok, now {head.value}: {_reason(pair.head)}")
    if head is Status.OK and base is not Status.OK:
        why = "in head alone" if base is None else f"base: {base.value}: {_reason(pair.base)}"
        return _plain(pair, "status", Outcome.NEW, why)
    return None


def base_fails(pairs: Sequence[Pairing]) -> str:
    """Why, where head is ok in some case and base fails in every such one; empty otherwise.

    A base that lacks a backend is another matter: then the case is new.
    """
    runs = [pair for pair in pairs if _status(pair.head) is Status.OK]
    if any(pair.head and pair.head.status.failed for pair in pairs):
        return ""
    failed = [pair for pair in runs if pair.base and pair.base.status.failed]
    return _reason(failed[0].base) if runs and len(failed) == len(runs) else ""


def unreadable(pair: Pairing) -> Verdict:
    """Of a case whose times are there and cannot be computed with."""
    return _plain(pair, "time_s", Outcome.INCONCLUSIVE, "no launch has a finite time of both sides")


def _status(side: Joined | None) -> Status | None:
    return side.status if side else None


def _reason(side: Joined | None) -> str:
    return frame.one_line(side.worst.reason) if side else ""


def memory(pair: Pairing) -> list[Verdict]:
    """Of each part that changed by more than 1 % and a mebibyte: it has no noise, so it needs no test."""
    found = []
    for name in MEMORY:
        base, head = (METRICS[name].compute(side) if side else None for side in (pair.base, pair.head))
        if base is None or head is None:
            continue
        limit = max(MEMORY_SHARE * base, MEMORY_BYTES)
        outcome = (
            Outcome.REGRESSED if head > base + limit else Outcome.IMPROVED if head < base - limit else Outcome.SAME
        )
        found.append(_figures(pair, name, outcome, base, head, limit))
    return found


def errors_grew(pair: Pairing) -> bool:
    """Whether the rms error against float64 rose by more than 10 %: then more seeds are looked at."""
    base, head = errors(pair.base), errors(pair.head)
    return base is not None and head is not None and head > (1 + ERROR_SHARE) * base


def errors(side: Joined | None) -> float | None:
    """The rms error of the worst output."""
    return METRICS["rms_err"].compute(side) if side else None


def accuracy(pair: Pairing, more: Sequence[tuple[float, float]]) -> Verdict | None:
    """Regressed where head's error exceeds base's by 10 % on every seed; `more` are (base, head) of further seeds."""
    base, head = errors(pair.base), errors(pair.head)
    if base is None or head is None:
        return None
    grew = errors_grew(pair) and bool(more) and all(h > (1 + ERROR_SHARE) * b for b, h in more)
    said = f"on each of {1 + len(more)} seeds" if grew else ""
    outcome = Outcome.REGRESSED if grew else Outcome.SAME
    return _figures(pair, "rms_err", outcome, base, head, ERROR_SHARE * base, said)


def _figures(
    pair: Pairing, metric: str, outcome: Outcome, base: float, head: float, limit: float, reason: str = ""
) -> Verdict:
    change = head / base - 1 if base else (math.inf if head else 0.0)
    return msgspec.structs.replace(
        _plain(pair, metric, outcome, reason),
        base=base,
        head=head,
        change=change if math.isfinite(change) else None,
        margin=limit / base if base else None,
    )


def _plain(pair: Pairing, metric: str, outcome: Outcome, reason: str) -> Verdict:
    one = pair.any
    return Verdict(
        case_id=one.case.id, label=one.case.label, device=one.arm.device, backend=one.case.backend, metric=metric,
        outcome=outcome, reason=reason, launches=len(one.times),
    )  # fmt: skip
